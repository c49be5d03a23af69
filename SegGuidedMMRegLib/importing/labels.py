"""Label maps on their way into a study: which structures there are, and each map on the grid of its image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from SegGuidedMMRegLib.cases import Structure, values_to_indices
from SegGuidedMMRegLib.colours import palette_color
from SegGuidedMMRegLib.images import Image, LabelMap, read_labels, resample, spacing_is_known
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study_file import StudyError

_APART_VOXELS = 0.05
_MANY_VALUES = 100
_STRUCTURE = re.compile(r"(?:(\d+)=)?([^=:]+?)(?::#([0-9a-fA-F]{6}))?(?::([^~]*~.*))?")


def parse_structures(texts: Sequence[str]) -> tuple[Structure, ...]:
    """Structures from `VALUE=NAME`, `VALUE=NAME:#RRGGBB` or either with `:TERM` at its end, such as
    `1=femur:#e69f00`; a bare NAME counts from 1. TERM is a line as 3D Slicer writes it (`terminology.py`).

    Raises:
        StudyError: naming the text that does not fit.
    """
    found = []
    for n, text in enumerate(texts, 1):
        match = _STRUCTURE.fullmatch(text.strip())
        if match is None:
            raise StudyError(
                f"structure {text!r}: expected VALUE=NAME or VALUE=NAME:#RRGGBB, like 1=femur:#e69f00, and "
                ":TERM after it where it has a standard term."
            )
        value, name, color, term = match.groups()
        rgb = palette_color(n) if color is None else tuple(int(color[i : i + 2], 16) for i in (0, 2, 4))
        found.append(Structure(int(value or n), name, rgb, term or ""))  # type: ignore[arg-type]
    return tuple(found)


def find_structures(paths: Sequence[Path]) -> tuple[Structure, ...]:
    """The structures of label files: names and colours where a `.seg.nrrd` has them, else "structure 1" and
    so on.

    Files that can't be read are passed over (importing them says why).

    Raises:
        StudyError: if no file holds a structure, or one holds so many values that it is no label map.
    """
    named: dict[str, Structure] = {}
    values: set[int] = set()
    for path in paths:
        try:
            labels = read_labels(path)
        except (ValueError, OSError):
            continue
        if labels.segments:
            for s in labels.segments:
                value = s.value if s.value not in {k.value for k in named.values()} else len(named) + 1
                named.setdefault(s.name.casefold(), Structure(value, s.name, s.color, s.terminology))
            continue
        here = [int(v) for v in np.unique(labels.array) if v > 0]
        if len(here) > _MANY_VALUES:
            raise StudyError(
                f"{path}: holds {len(here)} different values, which looks like an image, not a label map. "
                "Check "
                "that the folders of images and labels are not swapped."
            )
        values.update(here)
    if not named and not values:
        raise StudyError(
            "No label file holds a structure. Name the structures with --structures 1=femur 2=tibia, or "
            "give labels."
        )
    taken = {s.value for s in named.values()}
    plain = [
        Structure(v, f"structure {v}", palette_color(n)) for n, v in enumerate(sorted(values - taken), 1)
    ]
    return tuple(sorted([*named.values(), *plain], key=lambda s: s.value))


def read_matching_labels(path: Path, image: Image, structures: Sequence[Structure]) -> Image:
    """The label map in `path` on the grid of its image, with the values of `structures`.

    Where the file names its segments as the study names its structures, names decide (Slicer numbers the
    segments of each file anew). A map that Slicer stored as a smaller box comes onto the whole grid.

    Raises:
        ValueError: naming the file, if it is empty, of another place in space, or holds an unknown structure.
    """
    labels = with_study_values(read_labels(path), structures)
    values_to_indices(labels.array, structures, str(path))
    if not (labels.array > 0).any():
        raise StudyError(f"{path}: the label map is empty, every voxel is background.")
    return _on_grid(labels, image.grid, path)


def with_study_values(labels: LabelMap, structures: Sequence[Structure]) -> LabelMap:
    """The same with the values of `structures`, where the map names its segments as these.

    Raises:
        StudyError: if some segments have their names and another one has not.
    """
    known = {s.name.casefold(): s.value for s in structures}
    wanted = {s.value: known.get(s.name.casefold()) for s in labels.segments}
    if (
        not wanted
        or all(v is None for v in wanted.values())
        or all(v in (None, k) for k, v in wanted.items())
    ):
        return labels
    array = np.zeros(labels.array.shape, dtype=np.uint16)
    for value in np.unique(labels.array):
        target = wanted.get(int(value))
        if value > 0 and target is None:
            name = next((s.name for s in labels.segments if s.value == value), f"value {value}")
            raise StudyError(
                f"The segment {name!r} is no structure of this study (known: "
                f"{', '.join(s.name for s in structures)})."
            )
        array[labels.array == value] = target or 0
    return LabelMap(array, labels.grid, labels.segments)


def _on_grid(labels: Image, grid: Grid, path: Path) -> Image:
    placeless = _says_no_place(path)
    if labels.grid.size == grid.size and (placeless or labels.grid.is_close(grid, _APART_VOXELS)):
        return Image(labels.array, grid)
    if placeless or not _is_part_of(labels.grid, grid, path):
        raise StudyError(
            f"{path}: lies on another grid than its image: {_described(labels.grid)}; the image has "
            f"{_described(grid)}. Resample the labels onto the image (nearest neighbour), import them again."
        )
    return resample(labels, grid, interpolation="nearest")


def _says_no_place(path: Path) -> bool:
    """Whether the file is a picture: it has no origin, no direction, and seldom a spacing."""
    return path.suffix.lower() in {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"} or not spacing_is_known(
        path
    )


def _is_part_of(labels: Grid, image: Grid, path: Path) -> bool:
    """Whether `labels` is a box of voxels cut from `image`, as Slicer stores segmentations.

    A smaller box at the same origin is so only in a `.seg.nrrd`; elsewhere it is likely another image's size.
    """
    if labels.dimension != image.dimension:
        return False
    last = np.asarray(labels.size) - 1
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * last
    voxels = image.points_to_voxels(labels.voxels_to_points(corners))
    first = np.rint(voxels[0])
    cut = path.name.lower().endswith(".seg.nrrd") or bool(first.any())
    inside = bool((first >= 0).all() and (first + last < np.asarray(image.size)).all())
    return cut and inside and bool(np.abs(voxels - (first + corners)).max() <= _APART_VOXELS)


def _described(grid: Grid) -> str:
    d = grid.dimension
    size = " x ".join(str(n) for n in grid.size[:d])
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing[:d])
    origin = ", ".join(f"{o:.4g}" for o in grid.origin)
    return f"{size} voxels of {spacing} mm from ({origin})"
