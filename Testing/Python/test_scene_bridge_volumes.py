"""Images of a study as volume nodes of 3D Slicer, and volume nodes as files, at the same place."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer")

import slicer
from scene_study import (
    GRIDS,
    bending_parent,
    linear_parent,
    make_study,
    new_scene,
    placed,
    read_back,
    some_image,
    state_of,
    world_of_voxel,
)

from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.VolumeNodes import is_as_shown, read_volume, show_image
from SegGuidedMMRegLib.images import Image, read_image, write_image
from SegGuidedMMRegLib.space import Grid


@pytest.fixture
def scene():
    return new_scene()


def bridge_of(scene, folder, **grids):
    return SceneBridge(scene, make_study(folder, **grids))


def user_volume(scene, grid, seed=1):
    """A volume that somebody else put into the scene: read by Slicer from a file of SimpleITK's."""
    image = (
        some_image(grid, seed)
        if min(grid.size[:2]) > 4
        else Image(np.arange(108.0).reshape(grid.shape), grid)
    )
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "theirs")
    slicer.util.updateVolumeFromArray(node, image.array.reshape(grid.size[::-1]))
    node.SetIJKToRASMatrix(slicer_matrix(np.diag([-1.0, -1, 1, 1]) @ grid.voxel_to_lps))
    return node, image


def slicer_matrix(values):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(values, float).ravel().tolist())
    return matrix


@pytest.mark.parametrize("name", GRIDS)
def test_an_image_of_the_study_lies_where_simpleitk_says(scene, tmp_path, name):
    bridge = bridge_of(scene, tmp_path, a=GRIDS[name])
    case = bridge.study.cases[0]
    node = bridge.show_case(case)
    image = read_back(tmp_path / case.image)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), sitk.GetArrayFromImage(image))
    size = np.array(image.GetSize())
    for voxel in ([0, 0, 0], size - 1, size // 3):
        expected = image.TransformIndexToPhysicalPoint([int(v) for v in voxel])
        np.testing.assert_allclose(world_of_voxel(node, voxel), expected, atol=1e-9)
    assert bridge.case_of(node) == case
    assert node.GetImageData().GetSpacing() == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_picture_lies_as_slicer_itself_would_place_it(scene, tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 255, (9, 12)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"picture{suffix}"))
    bridge = bridge_of(scene, tmp_path, a=GRIDS["slice"])
    image = read_image(tmp_path / f"picture{suffix}", spacing_mm=0.5)
    node = bridge.show_case(bridge.study.cases[0], image)
    matrix = slicer_matrix(np.eye(4))
    node.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose([matrix.GetElement(n, n) for n in range(3)], [-0.5, -0.5, 1.0])
    assert slicer.util.arrayFromVolume(node).shape == (1, 9, 12)


def test_a_brightness_that_is_known_saves_slicer_the_look_at_all_voxels(scene):
    grid = Grid((192, 192, 128), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    image = Image(np.random.default_rng(0).normal(100, 30, grid.shape).astype(np.int16), grid)

    def seconds(number, shown):
        before = time.thread_time()
        node = show_image(scene, image, Tag("image", "study", f"{shown}{number}"), "image", shown)
        return time.thread_time() - before, node.GetDisplayNode()

    known, looked = ([seconds(n, shown) for n in range(3)] for shown in ((30.0, 170.0), None))
    for _, display in known:
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (30, 170)
        assert not display.GetAutoWindowLevel()
    assert looked[0][1].GetAutoWindowLevel()
    assert min(s for s, _ in known) < 0.75 * min(s for s, _ in looked)


def test_a_case_with_numbered_siblings_is_read_alone(scene, tmp_path):
    grid = GRIDS["slice"]
    bridge = bridge_of(scene, tmp_path, v2=grid, v3=grid)
    for number in (1, 4):
        write_image(some_image(grid, 9), tmp_path / f"images/source/v{number}.nrrd")
    node = bridge.show_case(bridge.study.case("v2"))
    assert slicer.util.arrayFromVolume(node).shape == (1, 20, 24)


def test_showing_a_case_twice_makes_one_node_and_brings_it_up_to_date(scene, tmp_path):
    bridge = bridge_of(scene, tmp_path)
    case = bridge.study.cases[0]
    first = bridge.show_case(case)
    other = some_image(GRIDS["mirrored"], 5)
    assert bridge.show_case(case, other) is first
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(first), other.array)
    assert len(bridge.nodes()) == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float16, np.float32, np.float64, np.int64])
def test_values_of_any_type_are_shown_and_written(scene, tmp_path, dtype):
    bridge = bridge_of(scene, tmp_path)
    image = some_image(GRIDS["oblique"])
    image = type(image)((image.array > 0).astype(dtype), image.grid)
    node = bridge.show_case(bridge.study.cases[0], image)
    bridge.write_volume(node, tmp_path / "out.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_back(tmp_path / "out.nrrd")), image.array)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_a_volume_under_no_transform_is_written_as_it_is(scene, tmp_path, name, suffix):
    node, image = user_volume(scene, GRIDS[name])
    before = state_of(node)
    world = SceneBridge(scene, make_study(tmp_path)).write_volume(node, tmp_path / f"out{suffix}")
    assert not world.resampled
    assert state_of(node) == before
    written = read_image(tmp_path / f"out{suffix}")
    assert written.grid.is_close(image.grid, 1e-5 if suffix == ".nii.gz" else 1e-9)
    np.testing.assert_array_equal(written.array, image.array)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("reflection", [False, True])
def test_linear_parent_transforms_move_the_written_volume_and_keep_its_values(
    scene, tmp_path, name, reflection
):
    node, image = user_volume(scene, GRIDS[name])
    inner = placed((0.2, 0.1, -0.4), (5, -7, 3), 1.1)
    if reflection:
        inner = inner @ np.diag([-1.0, 1, 1, 1])
    parent, grandparent = linear_parent(scene, inner), linear_parent(scene, placed((0, 0.3, 0), (1, 2, 3)))
    parent.SetAndObserveTransformNodeID(grandparent.GetID())
    node.SetAndObserveTransformNodeID(parent.GetID())
    before = state_of(node)
    world = SceneBridge(scene, make_study(tmp_path)).write_volume(node, tmp_path / "out.nrrd")
    assert not world.resampled
    assert state_of(node) == before
    written = read_back(tmp_path / "out.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written).ravel(), image.array.ravel())
    size = np.array(written.GetSize())
    for voxel in ([0, 0, 0], size - 1, size // 3):
        there = written.TransformIndexToPhysicalPoint([int(v) for v in voxel])
        np.testing.assert_allclose(world_of_voxel(node, voxel), there, atol=1e-6)


@pytest.mark.parametrize("kind", ["bends", "skews"])
def test_a_volume_under_a_transform_that_bends_or_skews_is_resampled_where_it_is_shown(scene, kind):
    node, image = user_volume(scene, GRIDS["oblique"])
    skew = np.eye(4)
    skew[0, 1] = 0.3
    parent = bending_parent(scene) if kind == "bends" else linear_parent(scene, skew)
    node.SetAndObserveTransformNodeID(parent.GetID())
    before = state_of(node)
    world = read_volume(node)
    assert world.resampled
    assert state_of(node) == before
    shown = sitk.Cast(world.image.to_sitk(), sitk.sitkFloat32)
    inside = [(6, 7, 5), (12, 10, 8), (9, 15, 4), (14, 18, 11)]
    found = [shown.EvaluateAtPhysicalPoint(world_of_voxel(node, v).tolist()) for v in inside]
    expected = [float(image.array[v[::-1]]) for v in inside]
    spread = float(np.ptp(image.array))
    np.testing.assert_allclose(found, expected, atol=0.04 * spread)
    corners = [(i, j, k) for i in (0, 19) for j in (0, 23) for k in (0, 15)]
    assert all(world.image.grid.contains(world_of_voxel(node, c)) for c in corners)
    assert world.image.array.min() >= image.array.min()


def test_outside_of_a_bent_volume_is_its_smallest_value_not_zero(scene):
    node, _ = user_volume(scene, GRIDS["oblique"])
    slicer.util.arrayFromVolume(node)[:] = -1000
    node.SetAndObserveTransformNodeID(bending_parent(scene).GetID())
    assert set(np.unique(read_volume(node).image.array)) == {-1000.0}


def test_a_bent_slice_and_what_is_no_image_are_refused_by_name(scene):
    node, _ = user_volume(scene, GRIDS["slice"])
    node.SetAndObserveTransformNodeID(bending_parent(scene).GetID())
    with pytest.raises(
        BridgeError, match=r"'theirs' is a single slice under the transform 'bent'.*Take it out"
    ):
        read_volume(node)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(BridgeError, match="'nothing' holds no image"):
        read_volume(empty)
    colour = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    slicer.util.updateVolumeFromArray(colour, np.zeros((3, 4, 5, 3), np.uint8))
    with pytest.raises(BridgeError, match="'colours'"):
        read_volume(colour)
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "map")
    with pytest.raises(BridgeError, match="'map' is a label map"):
        read_volume(labels)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "bone")
    with pytest.raises(BridgeError, match="'bone' is a vtkMRMLModelNode"):
        read_volume(model)


def test_a_volume_that_was_edited_or_moved_is_no_longer_the_image_of_the_study(scene, tmp_path):
    bridge = bridge_of(scene, tmp_path)
    node = bridge.show_case(bridge.study.cases[0])
    assert is_as_shown(node)
    parent = linear_parent(scene, placed((0, 0, 0.1), (0, 0, 1)))
    node.SetAndObserveTransformNodeID(parent.GetID())
    assert not is_as_shown(node)
    node.SetAndObserveTransformNodeID(None)
    assert is_as_shown(node)
    slicer.util.arrayFromVolume(node)[0, 0, 0] += 1
    assert not is_as_shown(node)


def test_a_volume_of_one_row_keeps_its_place(scene, tmp_path):
    grid = Grid((1, 12, 9), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0), GRIDS["oblique"].direction)
    node, _ = user_volume(scene, grid)
    SceneBridge(scene, make_study(tmp_path)).write_volume(node, tmp_path / "out.nrrd")
    written = read_back(tmp_path / "out.nrrd")
    assert written.GetSize() == (1, 12, 9)
    np.testing.assert_allclose(written.GetOrigin(), (5, 6, 7), atol=1e-9)
