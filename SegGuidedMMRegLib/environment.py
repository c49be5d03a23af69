"""What this machine has: versions, devices, memory; what is missing, and its remedy. Needs no package."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib import __version__

_PACKAGES = (
    "numpy",
    "SimpleITK",
    "torch",
    "monai",
    "icon_registration",
    "lightning-fabric",
    "safetensors",
    "pydantic",
    "PyYAML",
    "h5py",
    "tyro",
    "rich",
    "Jinja2",
    "matplotlib",
)


_CGROUP = "/sys/fs/cgroup"
_CONTAINERS = (
    (f"{_CGROUP}/memory.max", f"{_CGROUP}/memory.current"),
    (f"{_CGROUP}/memory/memory.limit_in_bytes", f"{_CGROUP}/memory/memory.usage_in_bytes"),
)
"""Files with the limit of a container and what it uses: control groups, version 2 and 1."""


@dataclass(frozen=True)
class Fact:
    """One line: what, its value, and for something missing what to do about it."""

    name: str
    value: str
    remedy: str | None = None


def facts() -> list[Fact]:
    """All that is known of this machine. Never raises for what is absent or broken."""
    found = [Fact("SegGuidedMMReg", __version__), Fact("Python", sys.version.split()[0])]
    found.append(Fact("system", f"{platform.system()} {platform.release()}, {platform.machine()}"))
    found += [_package(name) for name in _PACKAGES]
    return [*found, _cores(), _memory(), *_devices()]


def lines(found: list[Fact]) -> list[str]:
    """The same for people."""
    return [f"{f.name:<20} {f.value}" + (f"   -> {f.remedy}" if f.remedy else "") for f in found]


def _package(name: str) -> Fact:
    try:
        return Fact(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Fact(name, "missing", f"pip install {_requirement(name)}")


def _requirement(name: str) -> str:
    """What to give pip: icon_registration alone without its own requirements, which would replace torch."""
    return "--no-deps icon_registration footsteps tqdm" if name == "icon_registration" else name


def _cores() -> Fact:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Fact("CPU cores", f"{usable or 'unknown'}")


def _memory() -> Fact:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Fact("memory", "unknown")
    return Fact("memory", f"{size / 2**30:.1f} GB")


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device, or held by this process already; None where that is not known.

    Args:
        device: cpu, cuda (the current one) or mps.
    """
    if device == "cpu":
        return _free_here()
    torch = importlib.import_module("torch")
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    return int(torch.mps.recommended_max_memory())


def _free_here() -> int | None:
    """What the system can give without swapping, within what the container allows, and what we have."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = {name: int(value.split()[0]) << 10 for name, value in (x.split(":") for x in lines)}
        mine = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        free = available["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return None
    limits = (limit for limit in map(_container_free, _CONTAINERS) if limit is not None)
    return min([free, *limits]) + mine * os.sysconf("SC_PAGE_SIZE")


def _container_free(files: tuple[str, str]) -> int | None:
    try:
        limit, used = (int(Path(file).read_text(encoding="ascii")) for file in files)
    except (OSError, ValueError):  # no container, or "max"
        return None
    return max(limit - used, 0)


def _devices() -> list[Fact]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything
        reason = "torch is missing" if isinstance(error, ImportError) else f"torch does not load: {error}"
        return [
            Fact("device", f"none ({reason})", "pip install torch (pytorch.org tells the one for your GPU)")
        ]
    return [_cuda(torch), _mps(torch)]


def _cuda(torch: Any) -> Fact:
    try:
        if not torch.cuda.is_available():
            built = torch.version.cuda
            why = "torch was built without CUDA" if built is None else "no usable GPU or driver found"
            return Fact("CUDA", f"no ({why}); the CPU is used")
        cards = []
        for n in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(n)
            name = torch.cuda.get_device_name(n)
            cards.append(f"{name}, {total / 2**30:.1f} GB, {free / 2**30:.1f} GB free")
    except Exception as error:
        return Fact("CUDA", f"broken: {error}", "update the NVIDIA driver, or set training.device=cpu")
    return Fact("CUDA", "; ".join(cards))


def _mps(torch: Any) -> Fact:
    backend = getattr(torch.backends, "mps", None)
    return Fact("Apple MPS", "yes" if backend is not None and backend.is_available() else "no")
