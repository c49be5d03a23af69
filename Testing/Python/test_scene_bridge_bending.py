"""Volumes and segmentations under transforms that bend: read in short steps, with what one go would give."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("slicer")

import slicer
import vtk
from scene_study import (
    GRIDS,
    STRUCTURES,
    bending_parent,
    linear_parent,
    new_scene,
    placed,
    some_image,
    some_labels,
)
from spatial_cases import rotation

from SegGuidedMMRegGui import Resampling
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.Places import Way, finding_grid_around, to_vtk, voxel_to_ras
from SegGuidedMMRegGui.Resampling import Blocks
from SegGuidedMMRegGui.SegmentationNodes import read_segments, reading_segments, show_labels
from SegGuidedMMRegGui.Steps import SLAB_BYTES, at_once
from SegGuidedMMRegGui.VolumeNodes import read_volume, reading_volume
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.sampling import Image, resample
from SegGuidedMMRegLib.space import Grid

VOLUMES = ("oblique", "left-handed", "mirrored")


@pytest.fixture
def scene():
    return new_scene()


def wave_parent(scene, amplitude_mm=5.0, *, to_parent=False, size=12):
    """A grid transform node, whose grid is oblique and reaches beyond the volumes."""
    grid = Grid(
        (size, size, size),
        (260 / size,) * 3,
        (-150.0, -120.0, -130.0),
        tuple(placed((0.2, 0.1, 0.3), (0, 0, 0))[:3, :3].ravel()),
    )
    phase = np.stack(np.meshgrid(*(np.linspace(0, 5, size),) * 3, indexing="ij"), axis=-1)
    image = vtk.vtkImageData()
    image.SetDimensions(*grid.size)
    image.SetSpacing(*grid.spacing)
    image.SetOrigin(*voxel_to_ras(grid)[:3, 3])
    vectors = (amplitude_mm * np.sin(phase[..., ::-1] + [0, 1, 2])).reshape(-1, 3)
    image.GetPointData().SetScalars(vtk.util.numpy_support.numpy_to_vtk(vectors, deep=True))
    direction = np.eye(4)
    direction[:3, :3] = voxel_to_ras(grid)[:3, :3] / grid.spacing
    bends = slicer.vtkOrientedGridTransform()
    bends.SetDisplacementGridData(image)
    bends.SetGridDirectionMatrix(to_vtk(direction))
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "waves")
    (node.SetAndObserveTransformToParent if to_parent else node.SetAndObserveTransformFromParent)(bends)
    return node


def parents(scene, kind):
    """The node under which a volume is put."""
    if kind == "skews":
        matrix = placed((0.1, 0.2, -0.1), (3, 4, 5))
        matrix[0, 1] += 0.3
        return linear_parent(scene, matrix)
    bends = (
        bending_parent(scene) if kind == "splines" else wave_parent(scene, to_parent=kind == "inverse waves")
    )
    if kind == "linear under waves":
        turned = linear_parent(scene, placed((0.3, -0.5, 0.9), (8, -6, 4), 1.2))
        turned.SetAndObserveTransformNodeID(bends.GetID())
        return turned
    if kind == "waves under linear":
        bends.SetAndObserveTransformNodeID(linear_parent(scene, placed((0.3, -0.5, 0.9), (8, -6, 4))).GetID())
    return bends


KINDS = ("splines", "waves", "inverse waves", "linear under waves", "waves under linear", "skews")


def volume_of(scene, image, name="theirs"):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, image.array)
    node.SetIJKToRASMatrix(to_vtk(voxel_to_ras(image.grid)))
    return node


def at_one_go(image, grid, way, interpolation, outside=0.0):
    """By the field of the whole grid."""
    if way.matrix_lps is not None:
        return resample(image, grid, way.matrix_lps, interpolation=interpolation, outside=outside).array
    points = grid.points()
    field = DisplacementField(grid, way.points(points) - points)
    return resample(image, grid, SpatialTransform(field), interpolation=interpolation, outside=outside).array


# -- the same as at one go --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_read_in_blocks_is_the_volume_read_at_one_go(scene, monkeypatch, name, kind):
    monkeypatch.setattr(Resampling, "BLOCK_VOXELS", 300)
    image = some_image(GRIDS[name])
    node, parent = volume_of(scene, image), parents(scene, kind)
    node.SetAndObserveTransformNodeID(parent.GetID())
    world = read_volume(node)
    assert world.resampled
    lowest = float(image.array.min())
    expected = at_one_go(image, world.image.grid, Way.between(None, parent), "linear", lowest)
    assert len(np.unique(expected)) > 1000
    assert world.image.array.dtype == expected.dtype
    np.testing.assert_allclose(world.image.array, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize("kind", KINDS)
def test_segments_read_in_blocks_are_those_read_at_one_go(scene, monkeypatch, name, kind):
    monkeypatch.setattr(Resampling, "BLOCK_VOXELS", 300)
    labels = some_labels(GRIDS[name])
    node, parent = show_labels(scene, labels, STRUCTURES, Tag("x", "y", "z"), "drawn"), parents(scene, kind)
    node.SetAndObserveTransformNodeID(parent.GetID())
    around = at_once(finding_grid_around(GRIDS[name], Way.between(parent, None), "drawn"))
    for place in (around, turned_over(around)):
        expected = at_one_go(labels, place, Way.between(None, parent), "nearest")
        found = read_segments(node, STRUCTURES, place)
        np.testing.assert_array_equal(found.labels.array, expected)
        assert set(np.unique(expected)) == {0, 1, 4}
        assert found.empty == ("patella",)


def turned_over(grid):
    """Coarser, oblique to the other, with the same middle."""
    turn, spacing = rotation(0.5, 0.2, -0.4), np.array([1.7, 1.4, 1.2])
    size = (np.array(grid.extent_mm) / spacing).astype(int)
    corner = grid.centre_lps_mm - turn @ ((size - 1) / 2 * spacing)
    return Grid(tuple(size), tuple(spacing), tuple(corner), tuple(turn.ravel()))


def test_blocks_cover_a_grid_once_and_lie_where_it_does():
    grid = GRIDS["oblique"]
    for voxels in (5, 137, 1000, 10**6):
        count, points = np.zeros(grid.size[::-1], int), grid.points()
        blocks = Blocks(grid, voxels)
        assert len(list(blocks)) == len(blocks)
        for block in blocks:
            assert np.prod(block.grid.size) <= voxels
            count[block.part] += 1
            there = block.grid.points().reshape(*block.grid.size[::-1], 3)
            np.testing.assert_allclose(there, points[block.part], atol=1e-9)
        assert (count == 1).all()


# -- short steps ------------------------------------------------------------------------------------------
def longest_step(steps):
    longest, count = 0.0, 0
    while True:
        before = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            return max(longest, time.thread_time() - before), count, end.value
        longest, count = max(longest, time.thread_time() - before), count + 1


LARGE = Grid((128, 128, 64), (1.4, 1.4, 2.0), (-90.0, -100.0, -60.0))


@pytest.mark.parametrize("kind", [None, "waves", "inverse waves"])
def test_reading_a_large_volume_takes_short_steps_and_little_memory(scene, kind):
    array = np.random.default_rng(0).integers(0, 2000, LARGE.shape).astype(np.int16)
    node = volume_of(scene, Image(array, LARGE))
    if kind is not None:
        node.SetAndObserveTransformNodeID(parents(scene, kind).GetID())
    tracemalloc.start()
    longest, count, world = longest_step(reading_volume(node))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert longest < 0.1
    assert count > (array.nbytes / SLAB_BYTES if kind is None else 40)
    assert most < world.image.array.nbytes + (1 << 24)


@pytest.mark.parametrize("kind", [None, "waves"])
def test_reading_large_segments_takes_short_steps(scene, kind):
    labels = Image(np.zeros(LARGE.shape, np.uint8), LARGE)
    labels.array[20:50, 30:60, 30:100], labels.array[20:50, 60:90, 30:100] = 1, 4
    node = show_labels(scene, labels, STRUCTURES, Tag("x", "y", "z"), "drawn")
    if kind is not None:
        node.SetAndObserveTransformNodeID(parents(scene, kind).GetID())
    longest, _, found = longest_step(reading_segments(node, STRUCTURES, LARGE))
    assert longest < 0.1
    assert set(np.unique(found.labels.array)) == {0, 1, 4}


def test_a_slow_transform_is_asked_for_few_points_at_a_time(scene, monkeypatch):
    asked = []

    def slow(way, points):
        asked.append(len(points))
        until = time.thread_time() + 2e-4 * len(points)
        while time.thread_time() < until:
            pass
        return points

    image = Image(np.ones((6, 10, 10), np.int16), Grid((10, 10, 6)))
    node = volume_of(scene, image)
    node.SetAndObserveTransformNodeID(bending_parent(scene).GetID())
    monkeypatch.setattr(Way, "points", slow)
    longest, _, _ = longest_step(reading_volume(node))
    assert longest < 0.1
    assert max(asked[1:]) <= 256


# -- what happens meanwhile -------------------------------------------------------------------------------
def remove(scene, node, parent):
    scene.RemoveNode(node)


def close(scene, node, parent):
    scene.Clear(0)


def put_elsewhere(scene, node, parent):
    node.SetAndObserveTransformNodeID(None)


def bend_otherwise(scene, node, parent):
    parent.SetAndObserveTransformFromParent(vtk.vtkTransform())


def edit(scene, node, parent):
    slicer.util.arrayFromVolume(node)[2] += 1
    slicer.util.arrayFromVolumeModified(node)


def replace(scene, node, parent):
    slicer.util.updateVolumeFromArray(node, np.zeros((2, 3, 4), np.int16))


@pytest.mark.parametrize("kind", [None, "waves"])
@pytest.mark.parametrize("happens", [remove, close, put_elsewhere, bend_otherwise, edit, replace])
def test_a_volume_that_is_removed_or_changed_while_it_is_read_is_refused(scene, monkeypatch, kind, happens):
    monkeypatch.setattr(Resampling, "BLOCK_VOXELS", 300)
    monkeypatch.setattr("SegGuidedMMRegGui.Steps.SLAB_BYTES", 1000)
    node = volume_of(scene, some_image(GRIDS["oblique"]))
    parent = linear_parent(scene, placed((0.1, 0, 0), (1, 2, 3))) if kind is None else parents(scene, kind)
    node.SetAndObserveTransformNodeID(parent.GetID())
    steps = reading_volume(node)
    for _ in range(6):
        next(steps)
    happens(scene, node, parent)
    words = "removed from the scene" if happens in (remove, close) else "changed while it was read"
    with pytest.raises(BridgeError, match=f"'theirs' was {words}"):
        at_once(steps)


@pytest.mark.parametrize("happens", ["a stroke", "removed", "moved"])
def test_a_segmentation_that_is_removed_or_changed_while_it_is_read_is_refused(scene, monkeypatch, happens):
    monkeypatch.setattr(Resampling, "BLOCK_VOXELS", 300)
    grid = GRIDS["oblique"]
    node = show_labels(scene, some_labels(grid), STRUCTURES, Tag("x", "y", "z"), "drawn")
    parent = wave_parent(scene)
    node.SetAndObserveTransformNodeID(parent.GetID())
    steps = reading_segments(node, STRUCTURES, grid)
    for _ in range(6):
        next(steps)
    if happens == "a stroke":
        node.GetSegmentation().GetNthSegment(1).GetRepresentation("Binary labelmap").Modified()
    elif happens == "removed":
        scene.RemoveNode(node)
    else:
        node.SetAndObserveTransformNodeID(None)
    words = "removed from the scene" if happens == "removed" else "changed while it was read"
    with pytest.raises(BridgeError, match=f"'drawn' was {words}"):
        at_once(steps)


def test_looking_on_is_no_change(scene):
    node = volume_of(scene, some_image(GRIDS["oblique"]))
    node.SetAndObserveTransformNodeID(wave_parent(scene).GetID())
    expected, steps = read_volume(node).image.array, reading_volume(node)
    next(steps)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    node.GetImageData().GetScalarRange()
    node.SetName("another name")
    node.SetSelected(1)
    np.testing.assert_array_equal(at_once(steps).image.array, expected)
