"""What a transform file claims, checked before ITK reads it.

ITK makes room for a field as large as the file says, whatever it holds, and HDF5 follows links to other
files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SegGuidedMMRegLib.displacement import FieldError
from SegGuidedMMRegLib.image_headers import LARGEST_IMAGE
from SegGuidedMMRegLib.space import Grid

if TYPE_CHECKING:
    import h5py

_MOST_DEFLATED = 1100
_MOST_PARTS, _MOST_FIXED, _LONGEST_NAME = 1000, 64, 200
_NAME = re.compile(r"\w+_(double|float)_\d_(\d)")


class TransformFileError(FieldError):
    """A file that holds no transform of ours; the message names it and the remedy."""


@dataclass(frozen=True)
class _Part:
    """One transform of a file: its ITK name, how many parameters it has, and the fixed ones."""

    name: str
    parameters: int
    fixed: Sequence[float]


def check_transform_file(path: Path) -> None:
    """Refuse a transform file that would take more memory than it holds numbers for.

    An `.h5` file is looked into with h5py. Slicer's own Python may lack it, where another one runs the jobs:
    there ITK reads the file as it does when Slicer opens it itself.

    Args:
        path: ends in `.h5`, or else is text (`.tfm`, `.txt`).

    Raises:
        TransformFileError: naming the file, for what is missing, damaged or claims too much.
    """
    if not path.exists():
        raise TransformFileError(f"{path}: no such file.")
    if not path.is_file():
        raise TransformFileError(f"{path}: is a folder or a device, and a transform file is needed.")
    is_h5 = path.name.lower().endswith(".h5")
    if is_h5 and not _has_h5py():
        return
    parts = _parts_of_h5(path) if is_h5 else _parts_of_text(path)
    for number, part in enumerate(parts):
        if number >= _MOST_PARTS:
            raise TransformFileError(f"{path}: chains more than {_MOST_PARTS} transforms.")
        _check_part(part, path)


def field_grid(path: Path) -> Grid:
    """The grid of the field in an `.h5` file of ours, without reading the field; 2D ones have three slices.

    Raises:
        TransformFileError: naming the file, if it holds none.
    """
    check_transform_file(path)
    for part in _parts_of_h5(path):
        if len(part.fixed) >= 18 and part.name.startswith("DisplacementFieldTransform"):
            i, j, k, *place = part.fixed[:18]
            x, y, z, dx, dy, dz, *direction = place
            return Grid((int(i), int(j), int(k)), (dx, dy, dz), (x, y, z), tuple(direction))
    raise TransformFileError(f"{path}: holds no displacement field. Register the pair again.")


def cannot_be_read(path: Path, why: object = "") -> TransformFileError:
    """What to raise for a file that is no transform."""
    told = f" ({why})" if str(why) else ""
    return TransformFileError(f"{path}: cannot be read as a transform{told}. Give an ITK transform file.")


def _check_part(part: _Part, path: Path) -> None:
    if part.parameters * 8 > LARGEST_IMAGE:
        raise TransformFileError(
            f"{path}: holds {part.parameters} numbers; more than {LARGEST_IMAGE // 2**30} GiB is not read. "
            "Write it with a coarser spacing."
        )
    match = _NAME.fullmatch(part.name)
    dimension = int(match.group(2)) if match else 3
    if len(part.fixed) < dimension * (dimension + 3):  # not size, origin, spacing and direction of a lattice
        return
    size = part.fixed[:dimension]
    if not all(math.isfinite(n) and n >= 0 for n in size):
        raise cannot_be_read(path, f"the size of its field is {_spoken(size)}")
    if math.prod(size) * dimension > part.parameters:
        raise TransformFileError(
            f"{path}: says that it holds a field of {_spoken(size)} nodes, but it holds {part.parameters} "
            "numbers. Export it again."
        )


def _spoken(size: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in size)


# -- text -----------------------------------------------------------------------------------------------


def _parts_of_text(path: Path) -> Iterator[_Part]:
    name, parameters = "", 0
    with path.open("rb") as stream:
        for line in stream:
            key, _, rest = line.partition(b":")
            if key == b"Transform":
                name, parameters = rest.decode("ascii", "replace").strip(), 0
            elif key == b"Parameters":
                parameters = len(rest.split())
            elif key == b"FixedParameters":
                yield _Part(name, parameters, _numbers(rest, path))


def _numbers(text: bytes, path: Path) -> list[float]:
    try:
        return [float(word) for word in text.split()[:_MOST_FIXED]]
    except ValueError:
        raise cannot_be_read(path, "its fixed parameters are no numbers") from None


# -- HDF5 -----------------------------------------------------------------------------------------------


def _has_h5py() -> bool:
    try:
        import h5py  # noqa: F401
    except ImportError:
        return False
    return True


def _parts_of_h5(path: Path) -> list[_Part]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            transforms = _own(file, "TransformGroup", path)
            return [_part_of_h5(_own(transforms, name, path), path) for name in transforms]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, TransformFileError):
            raise
        raise cannot_be_read(
            path, type(error).__name__ if isinstance(error, AttributeError) else error
        ) from None


def _part_of_h5(group: h5py.Group, path: Path) -> _Part:
    name, parameters, fixed = "", 0, []
    for key in group:
        values = _own(group, key, path)
        claimed = math.prod(values.shape) * values.dtype.itemsize
        if values.external or values.is_virtual:
            raise TransformFileError(f"{path}: keeps its numbers in another file. Save it anew as one file.")
        if claimed > _MOST_DEFLATED * max(values.id.get_storage_size(), 1):
            raise TransformFileError(
                f"{path}: is cut off: {key} should hold {claimed} bytes. Export it again."
            )
        if key.endswith("FixedParameters"):
            fixed = [float(n) for n in values[:_MOST_FIXED]]
        elif key.endswith("Parameters"):
            parameters = math.prod(values.shape)
        elif key == "TransformType":
            name = _text(values, path)
    if not _NAME.fullmatch(name):  # ITK crashes on an empty one
        raise cannot_be_read(path, f"it holds a transform called {name!r}")
    return _Part(name, parameters, fixed)


def _text(values: h5py.Dataset, path: Path) -> str:
    """The only text of an entry. HDF5 makes room for whatever length is written there: that is read first."""
    import h5py

    kind = h5py.check_string_dtype(values.dtype)
    offset = values.id.get_offset()
    if kind is None or offset is None or values.shape != (1,):
        raise cannot_be_read(path, "the name of a transform is no text")
    with path.open("rb") as stream:
        stream.seek(offset)
        length = kind.length or int.from_bytes(stream.read(4), "little")
    if length > _LONGEST_NAME:
        raise cannot_be_read(path, "the name of a transform is too long")
    return str(values.asstr()[0])


def _own(group: h5py.Group, name: str, path: Path) -> Any:
    """The entry `name` of a group, if it lies in this file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise TransformFileError(f"{path}: {name} is missing or a link. Save it anew as one file.")
    return group[name]
