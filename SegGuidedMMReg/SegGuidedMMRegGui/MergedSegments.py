"""The segments of a segmentation put together as one label map, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.Places import Pace, Way
from SegGuidedMMRegGui.Resampling import Block, Blocks, Lookup, Part, voxels_for
from SegGuidedMMRegGui.Steps import Progress, Steps
from SegGuidedMMRegGui.Unchanged import Unchanged
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.space import Grid

_COPIED_VOXELS = 1 << 20
"""Of a block that is copied, which takes less time for each voxel than looking it up."""


@dataclass(frozen=True)
class Mask:
    """A segment as an image of 0 and 1, made a part at a time.

    Attributes:
        grid: its own, in the space of its node.
        data: its label map, which other segments may share.
        label: of it in there.
    """

    grid: Grid
    data: Any
    label: int

    def part(self, part: Part) -> np.ndarray:
        values = vtk_to_numpy(self.data.GetPointData().GetScalars()).reshape(self.grid.size[::-1])
        return (values[part] == self.label).view(np.uint8)


@dataclass
class Merged:
    """Segments put together.

    Attributes:
        array: (k, j, i).
        there: structures that have a voxel.
        overlaps: of a structure with one before it, and in how many voxels.
    """

    array: np.ndarray
    there: set[Structure] = field(default_factory=set)
    overlaps: dict[Structure, tuple[int, int]] = field(default_factory=dict)

    def put(self, structure: Structure, part: Part, mask: np.ndarray) -> None:
        if not mask.any():
            return
        self.there.add(structure)
        there = self.array[part]
        shared = there[mask & (there > 0)]
        if shared.size:
            other, count = self.overlaps.get(structure, (int(shared[0]), 0))
            self.overlaps[structure] = (other, count + shared.size)
        there[mask] = structure.value

    def values(self, grid: Grid) -> np.ndarray:
        """In the smallest type that holds them."""
        small = max((s.value for s in self.there), default=0) < 256
        return self.array.astype(np.uint8 if small else np.uint16, copy=False).reshape(grid.shape)


def merging(
    node: Any, guard: Unchanged, masks: Mapping[Structure, Mask], way: Way, grid: Grid
) -> Steps[Merged]:
    """Put the segments of a node together on a grid, by nearest neighbour.

    Args:
        node: a segmentation.
        guard: of it.
        masks: its segments.
        way: from the space of `grid` to that of the masks.
        grid: where labels are wanted.

    Raises:
        BridgeError: naming the node, where segments overlap, or it is removed or changed meanwhile.
    """
    kind = np.uint8 if max((s.value for s in masks), default=0) < 256 else np.uint16
    merged, pace = Merged(np.zeros(grid.size[::-1], dtype=kind)), Pace()
    firsts = {s: way.whole_voxels(mask.grid, grid) for s, mask in masks.items()}
    looked_up = [mask.grid for s, mask in masks.items() if firsts[s] is None]
    size = min((voxels_for(grid, source) for source in looked_up), default=_COPIED_VOXELS)
    parts = Blocks(grid, size)
    for number, block in enumerate(parts):
        lookup = (yield from Lookup.along(way, block.grid, pace)) if looked_up else None
        for structure, mask in masks.items():
            guard.check()
            first = firsts[structure]
            found = _copied(mask, block, first) if first is not None else _looked_up(mask, lookup)
            if found is not None:
                merged.put(structure, block.part, found)
            yield Progress(node.GetName(), number, len(parts))
    _refuse_overlap(node, merged, list(masks))
    return merged


def _looked_up(mask: Mask, lookup: Lookup) -> np.ndarray | None:
    """Where in a block something is drawn, (k, j, i); None if nothing is."""
    part = lookup.part_of(mask.grid)
    drawn = None if part is None else mask.part(part)
    if drawn is None or not drawn.any():
        return None
    found = lookup.values(mask.grid, part, drawn, "nearest", 0.0)
    return found.reshape(lookup.grid.size[::-1]) > 0


def _copied(mask: Mask, block: Block, first: tuple[int, int, int]) -> np.ndarray | None:
    """The same, which is much faster, where the voxels are the same from the voxel `first` of the grid on."""
    from_, to = [], []
    for start, count, part in zip(first[::-1], mask.grid.size[::-1], block.part, strict=True):
        low, high = max(start, part.start), min(start + count, part.stop)
        if low >= high:
            return None
        to.append(slice(low - part.start, high - part.start))
        from_.append(slice(low - start, high - start))
    found = np.zeros(block.grid.size[::-1], dtype=bool)
    found[tuple(to)] = mask.part(tuple(from_)) > 0  # type: ignore[arg-type]
    return found


def _refuse_overlap(node: Any, merged: Merged, structures: Sequence[Structure]) -> None:
    for structure in structures:
        value, count = merged.overlaps.get(structure, (0, 0))
        if not count:
            continue
        other = next(s.name for s in structures if s.value == value)
        raise BridgeError(
            f"In {node.GetName()!r} the segments {other!r} and {structure.name!r} overlap in {count} "
            "voxels; a voxel can belong to one structure only. Remove the overlap in the Segment Editor "
            "(Masking, Modify other segments: Overwrite all)."
        )
