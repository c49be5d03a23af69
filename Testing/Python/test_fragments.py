"""Bits of structures that no label shows are taken away, pieces like those of the labels are kept."""

from __future__ import annotations

import numpy as np
import pytest

from SegGuidedMMRegLib.fragments import fragment_limits, without_fragments


def soft(labels: np.ndarray, structures: int = 2) -> np.ndarray:
    """Probabilities that go over two voxels from 0.04 or less to 0.9."""
    found = np.stack([(labels == n).astype(np.float32) for n in range(structures + 1)])
    for axis in range(1, found.ndim):
        found = (np.roll(found, 1, axis) + 2 * found + np.roll(found, -1, axis)) / 4
    found = 0.9 * found + 0.1 / (structures + 1)
    return (found / found.sum(0)).astype(np.float32)


def picture(shape: tuple[int, ...], *boxes: tuple[int, int, int]) -> np.ndarray:
    """Label map with cubes: label, first voxel along each axis, edge."""
    labels = np.zeros(shape, dtype=np.int64)
    for label, first, edge in boxes:
        labels[(slice(first, first + edge),) * len(shape)] = label
    return labels


@pytest.mark.parametrize("shape", [(40, 44), (32, 34, 36)])
def test_a_speck_far_from_a_structure_goes_with_its_soft_border(shape) -> None:
    limits = fragment_limits([picture(shape, (1, 4, 8), (2, 20, 6))], 2)
    assert limits == (0.2, 0.2)
    speckled = soft(picture(shape, (1, 4, 8), (2, 20, 6), (1, 28, 3)))
    found = without_fragments(speckled, limits)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    corner = (slice(27, 32),) * len(shape)
    assert speckled[1][corner].max() > 0.3
    assert found[1][corner].max() == 0
    assert found.argmax(0)[corner].max() == 0, "the background takes over"
    near = (slice(0, 20),) * len(shape)
    np.testing.assert_array_equal(found[(slice(None), *near)], speckled[(slice(None), *near)])


def test_a_speck_inside_another_structure_becomes_that() -> None:
    limits = (0.2, 0.2)
    labels = picture((40, 40), (1, 2, 10), (2, 16, 16), (1, 22, 2))
    found = without_fragments(soft(labels), limits).argmax(0)
    np.testing.assert_array_equal(found == 1, soft(labels).argmax(0) * (picture((40, 40), (1, 2, 10))) == 1)
    assert (found[20:28, 20:28] == 2).all()


def test_a_structure_that_is_cut_in_two_stays_whole() -> None:
    probabilities = soft(picture((40, 40), (1, 2, 10), (1, 20, 6)))
    assert without_fragments(probabilities, (0.2, 0.2)) is probabilities


def test_specks_that_labels_show_are_kept() -> None:
    labels = picture((40, 40), (1, 2, 10), (1, 30, 3), (2, 16, 5))
    limits = fragment_limits([labels, picture((40, 40), (2, 3, 9))], 2)
    assert limits == (pytest.approx(0.045), 0.2)
    probabilities = soft(labels)
    assert without_fragments(probabilities, limits) is probabilities


def test_nothing_predicted_stays_nothing() -> None:
    probabilities = soft(np.zeros((20, 20), dtype=np.int64))
    assert without_fragments(probabilities, (0.2, 0.2)) is probabilities
    assert fragment_limits([], 3) == (0.2, 0.2, 0.2)
