"""What the library needs and what of it is there. Looks only, and imports nothing of what it looks for."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
HELD = ("numpy", "SimpleITK", "vtk", "requests", "torch", "torchvision")
"""Packages that no installation of ours may change."""


class Way(Enum):
    """How a missing package comes in."""

    WITH_SLICER = "with Slicer"
    BY_PYTORCH = "by the extension PyTorch"
    BY_PIP = "by pip"
    ALONE = "by pip, without its own requirements"


_WAYS = {
    "numpy": Way.WITH_SLICER,
    "SimpleITK": Way.WITH_SLICER,
    "torch": Way.BY_PYTORCH,
    "icon_registration": Way.ALONE,
    "footsteps": Way.ALONE,
    "tqdm": Way.ALONE,
}


@dataclass(frozen=True)
class Requirement:
    """A package that the library needs, and the versions that do (such as `>=1.5.1,<2`)."""

    name: str
    versions: str

    @property
    def way(self) -> Way:
        return _WAYS.get(self.name, Way.BY_PIP)

    def fits(self, version: str) -> bool:
        """Whether this version does."""
        return all(_holds(_numbers(version), condition) for condition in self.versions.split(","))

    def __str__(self) -> str:
        return self.name + self.versions


@dataclass(frozen=True)
class Package:
    """A requirement and the version that was found, None if there is none."""

    requirement: Requirement
    found: str | None

    @property
    def is_fine(self) -> bool:
        return self.found is not None and self.requirement.fits(self.found)


def requirements(path: Path = REQUIREMENTS) -> tuple[Requirement, ...]:
    """What the library needs, in the order of the file.

    Raises:
        ValueError: if a line is no requirement.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        parts = re.fullmatch(r"([\w.-]+)((?:[<>]=?[\d.]+,?)+)", text)
        if parts is None:
            raise ValueError(f"{path}: {text!r} is no requirement of the form name>=1.2,<3.")
        found.append(Requirement(parts[1], parts[2]))
    return tuple(found)


def packages_here(wanted: Iterable[Requirement]) -> tuple[Package, ...]:
    """What is there in the Python that runs this: in Slicer, Slicer's own."""
    importlib.invalidate_caches()
    return tuple(Package(each, _version(each.name)) for each in wanted)


def packages_told(wanted: Iterable[Requirement], facts: Mapping[str, str]) -> tuple[Package, ...]:
    """The same of another Python, as `segmmreg info --events` told it: name → version, or "missing"."""
    told = (Package(each, facts.get(each.name)) for each in wanted if each.name in facts)
    return tuple(Package(each.requirement, None if each.found == "missing" else each.found) for each in told)


def held_versions() -> tuple[str, ...]:
    """The packages that must stay as they are, as lines of a constraints file."""
    found = ((name, _version(name)) for name in HELD)
    return tuple(f"{name}=={version}" for name, version in found if version)


def free_disk_gb(place: Path) -> float:
    """Free space in GB (10⁹ bytes) where `place` is, or will be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: `2.10.0+cu126` is (2, 10, 0)."""
    digits = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in digits[0].split(".")) if digits else ()


def _holds(version: tuple[int, ...], condition: str) -> bool:
    sign, bound = re.fullmatch(r"([<>]=?)([\d.]+)", condition).groups()
    limit = _numbers(bound)
    length = max(len(version), len(limit))
    one, other = (numbers + (0,) * (length - len(numbers)) for numbers in (version, limit))
    return {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}[sign]
