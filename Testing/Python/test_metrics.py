"""Overlap, distances, folds and landmark errors against MONAI, brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SegGuidedMMRegLib import metrics
from SegGuidedMMRegLib.space import Grid


def blobs(seed: int, shape: tuple[int, ...], values: int = 2) -> np.ndarray:
    """Overlapping random boxes of classes 1 to `values`; some touch the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.int64)
    for value in range(1, values + 1):
        low = [rng.integers(0, max(n // 2, 1)) for n in shape]
        high = [rng.integers(min(lo + 2, n), n + 1) for lo, n in zip(low, shape, strict=True)]
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
        labels[tuple(rng.integers(0, n) for n in shape)] = value
    return labels


def brute_surface_distances(x: np.ndarray, y: np.ndarray, spacing: tuple[float, ...]) -> tuple:
    def edge_points(mask: np.ndarray) -> np.ndarray:
        found = []
        for index in np.argwhere(mask):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    neighbour = index.copy()
                    neighbour[axis] += step
                    outside = (neighbour < 0).any() or (neighbour >= mask.shape).any()
                    if outside or not mask[tuple(neighbour)]:
                        found.append(tuple(index))
        return np.array(sorted(set(found)), dtype=float) * np.asarray(spacing)

    p, q = edge_points(x), edge_points(y)
    apart = np.linalg.norm(p[:, None] - q[None], axis=-1)
    return apart.min(1), apart.min(0)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((12, 17), (0.5, 2.0)), ((6, 9, 11), (3.0, 1.0, 0.7)), ((1, 20), (1.0, 1.0))]
)
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_those_found_by_comparing_every_pair_of_surface_voxels(shape, spacing, seed):
    a, b = blobs(seed, shape, 1), blobs(seed + 100, shape, 1)
    there, back = brute_surface_distances(a == 1, b == 1, spacing)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert metrics.hd95(a, b, [1], spacing)[1] == pytest.approx(expected, abs=1e-5)
    mean = np.concatenate([there, back]).mean()
    assert metrics.assd(a, b, [1], spacing)[1] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (0.5, 2.0)), ((12, 20, 16), (3.0, 1.0, 0.7))])
@pytest.mark.parametrize("seed", range(3))
def test_measures_equal_monais(shape, spacing, seed):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

    a, b = blobs(seed, shape), blobs(seed + 50, shape)
    x, y = (torch.as_tensor(np.stack([m == v for v in (0, 1, 2)])[None], dtype=torch.float32) for m in (a, b))
    found = metrics.compare(a, b, [1, 2], spacing, a_name="a", b_name="b")
    overlap = compute_dice(x, y, include_background=False)[0]
    hausdorff = compute_hausdorff_distance(x, y, percentile=95, spacing=spacing)[0]
    average = compute_average_surface_distance(x, y, symmetric=True, spacing=spacing)[0]
    assert [f.dice for f in found] == pytest.approx(overlap.tolist(), abs=1e-6)
    assert [f.hd95_mm for f in found] == pytest.approx(hausdorff.tolist(), abs=1e-4)
    assert [f.assd_mm for f in found] == pytest.approx(average.tolist(), abs=1e-4)


def test_a_shift_along_the_coarse_axis_is_measured_in_millimetres():
    a, b = np.zeros((10, 30), int), np.zeros((10, 30), int)
    a[2, 5:25], b[5, 5:25] = 1, 1
    assert metrics.hd95(a, b, [1], (2.5, 0.5))[1] == pytest.approx(7.5)
    assert metrics.assd(a, b, [1], (2.5, 0.5))[1] == pytest.approx(7.5)


def test_a_structure_in_neither_map_has_no_measure_and_says_why():
    empty = np.zeros((5, 5), int)
    (found,) = metrics.compare(empty, empty, [3], (1.0, 1.0), a_name="the prediction", b_name="the truth")
    assert (found.dice, found.hd95_mm, found.assd_mm) == (None, None, None)
    assert found.reason == "absent from the prediction and from the truth"


def test_a_structure_that_one_map_lost_has_dice_0_and_no_distance():
    truth = np.zeros((5, 5), int)
    truth[1:3, 1:3] = 1
    (found,) = metrics.compare(
        np.zeros_like(truth), truth, [1], (1.0, 2.0), a_name="the prediction", b_name="the truth"
    )
    assert (found.dice, found.hd95_mm, found.assd_mm) == (0.0, None, None)
    assert found.reason == "absent from the prediction"
    assert (found.volume_a, found.volume_b) == (0.0, 8.0)
    (turned,) = metrics.compare(truth, np.zeros_like(truth), [1], (1, 1), a_name="a", b_name="b")
    assert turned.reason == "absent from b"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), three=st.booleans())
def test_measures_do_not_depend_on_the_order_of_the_two_maps(seed, three):
    shape, spacing = ((5, 6, 7), (2.0, 1.0, 0.5)) if three else ((9, 8), (2.0, 0.5))
    a, b = blobs(seed, shape, 1), blobs(seed + 1, shape, 1)
    for measure in (metrics.hd95, metrics.assd):
        assert measure(a, b, [1], spacing)[1] == pytest.approx(measure(b, a, [1], spacing)[1])
    assert metrics.dice(a, b, [1]) == metrics.dice(b, a, [1])
    assert metrics.dice(a, a, [1])[1] == 1
    assert metrics.hd95(a, a, [1], spacing)[1] == 0


def test_maps_of_different_shape_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match="resample one onto the other"):
        metrics.dice(np.zeros((3, 4)), np.zeros((4, 3)), [1])
    with pytest.raises(ValueError, match="one spacing an axis"):
        metrics.hd95(np.zeros((3, 4)), np.zeros((3, 4)), [1], (1.0, 1.0, 1.0))


def test_volume_is_an_area_in_2d_and_a_volume_in_3d():
    flat = Grid((4, 3, 1), (0.5, 2.0, 9.0))
    solid = Grid((4, 3, 2), (0.5, 2.0, 3.0))
    assert metrics.volume(np.ones(flat.shape, int), [1, 2], flat) == {1: 12.0, 2: 0.0}
    assert metrics.volume(np.ones(solid.shape, int), [1], solid) == {1: 72.0}


def test_folds_are_counted_in_all_and_within_a_structure():
    folds = np.zeros((4, 5), bool)
    folds[1, 1] = folds[3, 4] = True
    bone = np.zeros((4, 5), bool)
    bone[:2, :2] = True
    assert metrics.count_folds(folds) == metrics.FoldCount(2, 20)
    assert metrics.count_folds(folds, bone).share == 0.25
    assert metrics.count_folds(folds, np.zeros((4, 5), bool)).share is None
    with pytest.raises(ValueError, match="one grid"):
        metrics.count_folds(folds, np.zeros((5, 4), bool))


@pytest.mark.parametrize("size", [(8, 7, 1), (8, 7, 6)])
def test_jacobian_of_a_linear_map_is_its_determinant_on_an_oblique_grid(size):
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    grid = Grid(size, (0.5, 1.5, 4.0), (3.0, -2.0, 1.0), tuple(turn.ravel()))
    points = grid.points()
    axes = turn[:, : grid.dimension]  # stretch by 1.2 within the plane (2D) or in all directions (3D)
    displacement = 0.2 * points @ axes @ axes.T
    found = metrics.jacobian_determinant(displacement, grid)
    assert found.shape == grid.shape
    assert np.allclose(found, 1.2**grid.dimension)


def test_landmark_distances_are_euclidean_and_refuse_unpaired_points():
    assert metrics.landmark_distances([[0, 0, 0], [1, 1, 1]], [[3, 4, 0], [1, 1, 1]]).tolist() == [5.0, 0.0]
    with pytest.raises(ValueError, match="pairs"):
        metrics.landmark_distances([[0, 0, 0]], [[0, 0, 0], [1, 1, 1]])
