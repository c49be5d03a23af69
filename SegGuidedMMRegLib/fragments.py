"""Fragments: pieces of a predicted structure that are far smaller than any that the labels show.

A network now and then finds a bit of femur in the corner of an image. Where the labels show a structure in
one piece, or in pieces of comparable size, such bits are taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SegGuidedMMRegLib.space import FloatArray

_LARGEST_SHARE = 0.2
"""A piece of more than this share of the largest one is never a fragment: an image may cut a bone in two."""


def fragment_limits(labels: Iterable[NDArray[np.integer]], structures: int) -> tuple[float, ...]:
    """Below which share of its largest piece another piece of a structure is a fragment; one number each.

    Half of the smallest share that is seen, and a fifth at most; so 0.2 for structures in one piece, and
    almost 0 for those that the labels show with specks.

    Args:
        labels: class indices [*shape] of the labelled images.
        structures: how many there are, background not counted.
    """
    limits = np.full(structures, _LARGEST_SHARE)
    for array in labels:
        for index in range(structures):
            sizes = _pieces(array == index + 1)[1]
            if len(sizes):
                limits[index] = min(limits[index], sizes.min() / sizes.max() / 2)
    return tuple(limits.tolist())


def without_fragments(probabilities: FloatArray, limits: Sequence[float]) -> FloatArray:
    """`probabilities` without fragments: there the other classes share what was theirs.

    Args:
        probabilities: [1 + structures, *shape], background first, in 2D or 3D.
        limits: of `fragment_limits`.

    Returns:
        The array itself where there are no fragments, else a changed copy.
    """
    winners = probabilities.argmax(0)
    fragments = [_fragments(winners == n, limit) for n, limit in enumerate(limits, start=1)]
    if not any(where.any() for where in fragments):
        return probabilities
    found = probabilities.copy()
    for channel, where in enumerate(fragments, start=1):
        found[channel][where] = 0
    found[0][found.sum(0) < 1e-6] = 1
    return found / found.sum(0)


def _fragments(mask: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Where something is nearer to a fragment of `mask` than to a piece that stays: with its soft border."""
    pieces, sizes = _pieces(mask)
    small = np.flatnonzero(sizes < limit * sizes.max(initial=0)) + 1
    if not len(small):
        return np.zeros_like(mask)
    away = np.isin(pieces, small)
    return np.asarray(_distance(away) < _distance(mask & ~away))


def _pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Connected pieces (corners count) numbered from 1, and the voxels of each."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(image, True))
    return pieces, np.bincount(pieces.ravel())[1:]


def _distance(mask: NDArray[np.bool_]) -> FloatArray:
    """Voxels to the nearest voxel of `mask`."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, False))
