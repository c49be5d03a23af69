"""Images looked up along a `Way`, a small block at a time, so that large ones keep neither window nor memory.

Besides the result there are at no time more than a block, the points of it, and the part of the source that
these points reach. Each block gives what the whole grid at one go would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegGui.Places import Pace, Way
from SegGuidedMMRegGui.Steps import Progress, Steps
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.sampling import Image, Interpolation, resample
from SegGuidedMMRegLib.space import FloatArray, Grid, apply_affine

BLOCK_VOXELS = 1 << 15
_MARGIN = 2
"""Voxels of the source around those that are reached: interpolation looks at neighbours."""

Part = tuple[slice, slice, slice]
"""Of an array (k, j, i)."""


@dataclass(frozen=True)
class Block:
    """A part of a grid.

    Attributes:
        part: where it lies in an array (k, j, i) of the whole grid.
        grid: its own.
    """

    part: Part
    grid: Grid


class Blocks:
    """A grid cut into blocks of at most so many voxels, as cubic as can be."""

    def __init__(self, grid: Grid, voxels: int = BLOCK_VOXELS) -> None:
        self._grid, self._size = grid, list(grid.size)
        while np.prod(self._size) > max(voxels, 1):
            longest = self._size.index(max(self._size))
            self._size[longest] = -(-self._size[longest] // 2)
        self._starts = [range(0, n, step) for n, step in zip(grid.size, self._size, strict=True)]

    def __len__(self) -> int:
        return int(np.prod([len(starts) for starts in self._starts]))

    def __iter__(self) -> Iterator[Block]:
        return (_block(self._grid, (i, j, k), self._size) for k, j, i in product(*self._starts[::-1]))


def _block(grid: Grid, start: tuple[int, int, int], size: list[int]) -> Block:
    end = [min(a + n, all_) for a, n, all_ in zip(start, size, grid.size, strict=True)]
    corner = tuple(float(c) for c in grid.voxels_to_points(start))
    counts = tuple(b - a for a, b in zip(start, end, strict=True))
    part = tuple(slice(a, b) for a, b in zip(start[::-1], end[::-1], strict=True))
    return Block(part, Grid(counts, grid.spacing, corner, grid.direction))  # type: ignore[arg-type]


def voxels_for(grid: Grid, source: Grid) -> int:
    """Of a block of `grid`, so that the part of `source` that it reaches is not much larger than a block."""
    coarser = np.prod(grid.spacing) / np.prod(source.spacing)
    return max(64, int(BLOCK_VOXELS / max(1.0, coarser)))


@dataclass(frozen=True)
class Lookup:
    """Where the voxels of a block are looked up.

    Attributes:
        grid: of the block.
        transform: from its points to those of the source, LPS mm.
        reached: points (n, 3) of the source, in whose box all are that are looked up.
    """

    grid: Grid
    transform: FloatArray | SpatialTransform
    reached: FloatArray

    @staticmethod
    def along(way: Way, grid: Grid, pace: Pace) -> Steps[Lookup]:
        """The lookup of a small grid along a way."""
        if way.matrix_lps is not None:
            corners = np.array(list(product(*((0, n - 1) for n in grid.size))), dtype=float)
            return Lookup(grid, way.matrix_lps, apply_affine(way.matrix_lps, grid.voxels_to_points(corners)))
        points = grid.points().reshape(-1, 3)
        moved = yield from way.moving(points, pace)
        shift = (moved - points).reshape(*grid.shape, 3)
        return Lookup(grid, SpatialTransform(DisplacementField(grid, shift)), moved)

    def part_of(self, source: Grid) -> Part | None:
        """The part of a source (k, j, i) that is reached; None if that is nothing."""
        voxels = source.points_to_voxels(self.reached)
        low = np.maximum(np.floor(voxels.min(axis=0)) - _MARGIN, 0)
        high = np.minimum(np.ceil(voxels.max(axis=0)) + _MARGIN + 1, source.size)
        if (low >= high).any():
            return None
        k, j, i = (slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
        return k, j, i

    def values(
        self, source: Grid, part: Part, array: NDArray[np.generic], how: Interpolation, outside: float
    ) -> NDArray[np.generic]:
        """What is found, shape `grid.shape`, in the `array` of a `part` of the source."""
        start, size = ([getattr(s, end) for s in part[::-1]] for end in ("start", "stop"))
        corner = tuple(float(c) for c in source.voxels_to_points(start))
        counts = tuple(b - a for a, b in zip(start, size, strict=True))
        place = Grid(counts, source.spacing, corner, source.direction)  # type: ignore[arg-type]
        image = Image(np.ascontiguousarray(array).reshape(place.shape), place)
        found = resample(image, self.grid, self.transform, interpolation=how, outside=outside)
        return found.array


def resampling(
    way: Way,
    source: Grid,
    values: Callable[[], NDArray[np.generic]],
    grid: Grid,
    *,
    outside: float,
    what: str,
) -> Steps[Image]:
    """An image on another grid by linear interpolation, a block at a time.

    Args:
        way: from the space of `grid` to that of `source`.
        source: grid of the image.
        values: the image as array (k, j, i); asked for anew in each step, because it may be gone.
        grid: where values are wanted.
        outside: value where the image does not reach.
        what: told of the progress.
    """
    found = np.empty(grid.size[::-1], dtype=np.float32)
    pace, parts = Pace(), Blocks(grid, voxels_for(grid, source))
    for number, block in enumerate(parts):
        lookup = yield from Lookup.along(way, block.grid, pace)
        there, part = values(), lookup.part_of(source)
        if part is None:
            found[block.part] = outside
        else:
            told = lookup.values(source, part, there[part], "linear", outside)
            found[block.part] = told.reshape(block.grid.size[::-1])
        yield Progress(what, number + 1, len(parts))
    return Image(found.reshape(grid.shape), grid)
