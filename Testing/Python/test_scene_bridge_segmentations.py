"""Segmentations and landmarks between a study and a scene of 3D Slicer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer")

import slicer
import vtk
from scene_study import (
    GRIDS,
    RAS,
    STRUCTURES,
    bending_parent,
    linear_parent,
    make_study,
    new_scene,
    placed,
    some_labels,
    state_of,
)

from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.SegmentationNodes import read_segments, show_labels
from SegGuidedMMRegLib.images import Image, read_labels
from SegGuidedMMRegLib.points import PointList, read_points, write_points
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study_file import StudyError

ENTRY = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^71341001^Femur~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^"
)


@pytest.fixture
def scene():
    return new_scene()


@pytest.fixture
def bridge(scene, tmp_path):
    return SceneBridge(scene, make_study(tmp_path / "study"))


def read_by_slicer(scene, path):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read by Slicer")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    return node


def mask_of(node, name):
    """Voxels of a segment as world points (LPS mm), by Slicer's own means."""
    from vtk.util.numpy_support import vtk_to_numpy

    segmentation = node.GetSegmentation()
    identity = segmentation.GetSegmentIdBySegmentName(name)
    image = slicer.vtkOrientedImageData()
    assert node.GetBinaryLabelmapRepresentation(identity, image)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    extent = image.GetExtent()
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    points = []
    for k, j, i in np.argwhere(array > 0).tolist():
        local = matrix.MultiplyPoint([i + extent[0], j + extent[2], k + extent[4], 1.0])[:3]
        world = [0.0, 0.0, 0.0]
        node.TransformPointToWorld(local, world)
        points.append(world)
    return np.array(points) * RAS


@pytest.mark.parametrize("name", GRIDS)
def test_labels_become_segments_with_ids_names_colours_at_their_place(scene, tmp_path, name):
    bridge = SceneBridge(scene, make_study(tmp_path, a=GRIDS[name]))
    node = bridge.show_labels(bridge.study.cases[0])
    segmentation = node.GetSegmentation()
    assert [segmentation.GetNthSegmentID(n) for n in range(3)] == ["Segment_1", "Segment_4", "Segment_7"]
    for structure in STRUCTURES:
        segment = segmentation.GetSegment(f"Segment_{structure.value}")
        assert segment.GetName() == structure.name
        np.testing.assert_allclose(np.array(segment.GetColor()) * 255, structure.color, atol=1e-9)
    labels = some_labels(GRIDS[name])
    for value, structure in ((1, "femur"), (4, "tibia")):
        expected = labels.grid.points()[labels.array == value]
        np.testing.assert_allclose(np.sort(mask_of(node, structure), 0), np.sort(expected, 0), atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_segments_come_back_as_the_file_they_were(scene, tmp_path, name):
    bridge = SceneBridge(scene, make_study(tmp_path, a=GRIDS[name]))
    (case,) = bridge.study.cases
    before = sitk.ReadImage(str(tmp_path / case.label))
    found = bridge.save_labels(bridge.show_labels(case), case)
    assert found.problems() == ("nothing drawn for patella.",)
    after = sitk.ReadImage(str(tmp_path / case.label))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(before))
    assert after.GetOrigin() == before.GetOrigin()
    for key in before.GetMetaDataKeys():
        if key.startswith("Segment"):
            assert after.GetMetaData(key) == before.GetMetaData(key), key
    assert [(s.value, s.name, s.color) for s in read_labels(tmp_path / case.label).segments] == [
        (s.value, s.name, s.color) for s in STRUCTURES
    ]


def test_terminology_survives_study_and_scene(scene, bridge):
    case = bridge.study.cases[0]
    bridge.label_path(case).unlink()
    node = bridge.new_labels(case, terms={"femur": ENTRY})
    bridge.save_labels(node, case)
    theirs = read_by_slicer(scene, bridge.label_path(case)).GetSegmentation()
    found = vtk.reference("")
    assert theirs.GetSegment("Segment_1").GetTag("TerminologyEntry", found)
    assert str(found) == ENTRY
    bridge.remove()
    again = bridge.show_labels(case).GetSegmentation()
    again.GetSegment("Segment_1").GetTag("TerminologyEntry", found)
    assert str(found) == ENTRY


def test_a_new_segmentation_waits_for_drawing_on_the_grid_of_its_image(scene, bridge):
    case = replace(bridge.study.cases[1], label=None, label_use=None)
    with pytest.raises(BridgeError, match="target/b has a segmentation already"):
        bridge.new_labels(case)
    bridge.label_path(case).unlink()
    node = bridge.new_labels(case)
    volume = bridge.show_case(case)
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    geometry = slicer.vtkOrientedImageData()
    text = node.GetSegmentation().GetConversionParameter("Reference image geometry")
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    assert geometry.GetDimensions() == GRIDS["left-handed"].size
    found = bridge.save_labels(node, case)
    assert set(found.empty) == {"femur", "tibia", "patella"}
    assert not read_labels(bridge.label_path(case)).array.any()
    drawn = Image(some_labels(GRIDS["left-handed"]).array, GRIDS["left-handed"])
    show_labels(scene, drawn, STRUCTURES, Tag("labels", str(bridge.study.folder.resolve()), case.key), "x")
    bridge.label_path(case).unlink()
    assert bridge.new_labels(case) is node
    bridge.save_labels(node, case)
    np.testing.assert_array_equal(read_labels(bridge.label_path(case)).array, drawn.array)
    assert bridge.show_labels(case) is node


def test_a_segmentation_of_slicer_with_other_numbers_and_a_cropped_box_is_known_by_names(
    scene, bridge, tmp_path
):
    """Slicer numbers segments anew and stores the box that they fill."""
    case = bridge.study.cases[0]
    grid = GRIDS["oblique"]
    other = (replace(STRUCTURES[1], value=1), replace(STRUCTURES[0], value=2))
    array = some_labels(grid).array[:, 2:16, 3:14]
    numbers = np.array([0, 2, 0, 0, 1], np.uint8)[array]
    corner = tuple(grid.voxels_to_points([3, 2, 0]))
    cropped = Image(numbers, Grid((11, 14, 16), grid.spacing, corner, grid.direction))
    node = show_labels(scene, cropped, other, Tag("x", "y", "z"), "theirs")
    for name in ("Kind", "Study", "Subject"):
        node.RemoveAttribute(f"SegGuidedMMReg.{name}")
    before = state_of(node)
    found = bridge.save_labels(node, case)
    assert found.missing == ("patella",)
    assert state_of(node) == before
    np.testing.assert_array_equal(read_labels(bridge.label_path(case)).array, some_labels(grid).array)


def test_another_geometry_is_resampled_by_nearest_neighbour_like_simpleitk(scene, bridge, tmp_path):
    fine = Grid((30, 36, 40), (0.73, 0.61, 0.9), (-14.0, 31.0, 5.0), GRIDS["mirrored"].direction)
    labels = Image(np.zeros(fine.shape, np.uint8), fine)
    labels.array[5:30, 6:20, 4:18] = 1
    labels.array[5:30, 22:34, 4:18] = 4
    node = show_labels(scene, labels, STRUCTURES, Tag("x", "y", "z"), "fine")
    found = read_segments(node, STRUCTURES, GRIDS["oblique"])
    reference = sitk.Image(list(GRIDS["oblique"].size), sitk.sitkUInt8)
    reference.SetSpacing(GRIDS["oblique"].spacing)
    reference.SetOrigin(GRIDS["oblique"].origin)
    reference.SetDirection(GRIDS["oblique"].direction)
    expected = sitk.Resample(
        labels.to_sitk(), reference, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor
    )
    np.testing.assert_array_equal(found.labels.array, sitk.GetArrayFromImage(expected))
    assert found.labels.array.any()


def test_without_a_grid_a_segmentation_is_written_on_its_own(scene, bridge, tmp_path):
    labels = some_labels(GRIDS["mirrored"])
    node = show_labels(scene, labels, STRUCTURES, Tag("x", "y", "z"), "own")
    node.SetAndObserveTransformNodeID(linear_parent(scene, placed((0.1, 0.2, 0.3), (9, 9, 9))).GetID())
    bridge.write_segments(node, tmp_path / "own.seg.nrrd")
    written = read_labels(tmp_path / "own.seg.nrrd")
    assert written.grid.is_close(labels.grid, 1e-6)
    np.testing.assert_array_equal(written.array, labels.array)


@pytest.mark.parametrize("parent", ["linear", "bending"])
def test_a_segmentation_under_a_transform_is_written_where_it_is_shown(scene, bridge, parent):
    grid = GRIDS["oblique"]
    node = show_labels(scene, some_labels(grid), STRUCTURES, Tag("x", "y", "z"), "moved")
    transform = (
        linear_parent(scene, placed((0.1, 0, 0.1), (2, -1, 3)))
        if parent == "linear"
        else bending_parent(scene, 4.0)
    )
    node.SetAndObserveTransformNodeID(transform.GetID())
    world = Grid((60, 60, 60), (1.0, 1.0, 1.0), tuple(grid.centre_lps_mm - 30.0))
    found = read_segments(node, STRUCTURES, world).labels
    for value, name in ((1, "femur"), (4, "tibia")):
        shown = world.points_to_voxels(mask_of(node, name))
        drawn = world.points()[found.array == value]
        np.testing.assert_allclose(world.points_to_voxels(drawn).mean(0), shown.mean(0), atol=0.35)
        inside = found.array[tuple(np.rint(shown).astype(int).T[::-1])] == value
        assert inside.mean() > 0.9


def test_under_the_same_transform_as_its_image_a_segmentation_keeps_its_voxels(scene, bridge):
    case = bridge.study.cases[0]
    parent = bending_parent(scene)
    for node in (bridge.show_case(case), bridge.show_labels(case)):
        node.SetAndObserveTransformNodeID(parent.GetID())
    bridge.save_labels(node, case)
    np.testing.assert_array_equal(
        read_labels(bridge.label_path(case)).array, some_labels(GRIDS["oblique"]).array
    )


def test_a_surface_is_turned_into_labels_and_stays_a_surface(scene, bridge):
    ball = vtk.vtkSphereSource()
    grid = GRIDS["oblique"]
    ball.SetCenter(*(grid.centre_lps_mm * RAS))
    ball.SetRadius(6.0)
    ball.SetThetaResolution(60)
    ball.SetPhiResolution(60)
    ball.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segment = slicer.vtkSegment()
    segment.SetName("femur")
    segment.AddRepresentation("Closed surface", ball.GetOutput())
    node.GetSegmentation().AddSegment(segment, "ball")
    found = read_segments(node, STRUCTURES, grid).labels
    volume = (found.array == 1).sum() * np.prod(grid.spacing)
    np.testing.assert_allclose(volume, 4 / 3 * np.pi * 6**3, rtol=0.05)
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_single_segments_are_chosen_by_name_or_id(scene, bridge, tmp_path):
    names = (replace(STRUCTURES[0], name="left femur"), replace(STRUCTURES[1], name="something"))
    grid = GRIDS["oblique"]
    node = show_labels(scene, some_labels(grid), (*names, STRUCTURES[2]), Tag("x", "y", "z"), "theirs")
    found = bridge.write_segments(
        node, tmp_path / "one.seg.nrrd", grid, chosen={"femur": "left femur", "tibia": "Segment_4"}
    )
    np.testing.assert_array_equal(read_labels(tmp_path / "one.seg.nrrd").array, some_labels(grid).array)
    assert (found.missing, found.extra) == (("patella",), ())
    with pytest.raises(BridgeError, match=r"no segment named 'bone'.*left femur, something, patella"):
        read_segments(node, STRUCTURES, grid, chosen={"femur": "bone"})
    with pytest.raises(BridgeError, match="'hip' is no structure of the study"):
        read_segments(node, STRUCTURES, grid, chosen={"hip": "left femur"})


def test_what_is_missing_or_left_out_is_said(scene, bridge):
    grid = GRIDS["oblique"]
    mixed = (STRUCTURES[0], replace(STRUCTURES[1], name="screw"))
    node = show_labels(scene, some_labels(grid), mixed, Tag("x", "y", "z"), "mixed")
    node.RemoveAttribute("SegGuidedMMReg.Kind")
    found = read_segments(node, STRUCTURES, grid)
    assert found.problems() == (
        "left out, since they are no structure of the study: screw.",
        "no segment for the structures tibia, patella.",
    )
    assert set(np.unique(found.labels.array)) == {0, 1}


def test_a_structure_that_the_user_renamed_in_our_node_is_still_known(scene, bridge):
    case = bridge.study.cases[0]
    node = bridge.show_labels(case)
    node.GetSegmentation().GetSegment("Segment_4").SetName("shin bone")
    bridge.save_labels(node, case)
    assert (read_labels(bridge.label_path(case)).array == 4).any()


def test_what_cannot_be_used_is_refused_by_name_and_nothing_is_written(scene, bridge):
    case = bridge.study.cases[0]
    grid = GRIDS["oblique"]
    before = bridge.label_path(case).read_bytes()
    none = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "none")
    other = show_labels(scene, some_labels(grid), [replace(s, name=f"x{s.value}") for s in STRUCTURES],
                        Tag("x", "y", "z"), "other")  # fmt: skip
    other.RemoveAttribute("SegGuidedMMReg.Kind")
    twice = show_labels(scene, some_labels(grid), [replace(s, name="femur") for s in STRUCTURES],
                        Tag("t", "y", "z"), "twice")  # fmt: skip
    overlap = show_labels(scene, some_labels(grid), STRUCTURES, Tag("o", "y", "z"), "overlap")
    segment = slicer.vtkSegment()
    segment.DeepCopy(overlap.GetSegmentation().GetSegment("Segment_1"))
    segment.SetName("patella")
    overlap.GetSegmentation().RemoveSegment("Segment_7")
    overlap.GetSegmentation().AddSegment(segment, "copy")
    volume = bridge.show_case(case)
    for node, words in (
        (none, "'none' has no segment"),
        (
            other,
            r"No segment of 'other' \(x1, x4, x7\) is a structure of the study \(femur, tibia, patella\)",
        ),
        (twice, "'twice' has two segments named 'femur'"),
        (overlap, r"'femur' and 'patella' overlap in \d+ voxels"),
        (volume, "and a segmentation is needed"),
    ):
        with pytest.raises(BridgeError, match=words):
            bridge.save_labels(node, case)
    assert bridge.label_path(case).read_bytes() == before


def test_labels_of_another_study_are_not_shown(scene, bridge):
    image = Image(np.full(GRIDS["oblique"].shape, 3, np.uint8), GRIDS["oblique"])
    with pytest.raises(StudyError, match="3"):
        show_labels(scene, image, STRUCTURES, Tag("x", "y", "z"), "foreign labels")
    assert not bridge.nodes()


def test_a_case_without_labels_or_prediction_says_what_to_do(bridge):
    case = bridge.study.cases[0]
    with pytest.raises(BridgeError, match=r"source/a has no prediction; .*missing"):
        bridge.show_labels(case, predicted=True)
    bridge.label_path(case).unlink()
    with pytest.raises(BridgeError, match=r"source/a has no segmentation; draw one"):
        bridge.show_labels(case)


def test_a_prediction_is_another_node_than_the_labels(bridge):
    case = bridge.study.cases[0]
    path = bridge.study.prediction_path(case)
    path.parent.mkdir(parents=True)
    path.write_bytes(bridge.label_path(case).read_bytes())
    assert bridge.show_labels(case, predicted=True) is not bridge.show_labels(case)
    assert len(bridge.nodes("source/a")) == 2


# -- landmarks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".mrk.json", ".fcsv"])
@pytest.mark.parametrize("parent", ["none", "linear", "bending"])
def test_points_are_written_in_world_coordinates(scene, bridge, tmp_path, suffix, parent):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    for n, label in enumerate(("condyle", "spine")):
        node.AddControlPoint([10.0 * n, 4.0, -7.0], label)
    if parent != "none":
        transform = (
            linear_parent(scene, placed((0, 0, 1), (3, 2, 1)))
            if parent == "linear"
            else bending_parent(scene)
        )
        node.SetAndObserveTransformNodeID(transform.GetID())
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld([10.0, 4.0, -7.0], world)
    assert bridge.write_points(node, tmp_path / f"points{suffix}") == ()
    found = read_points(tmp_path / f"points{suffix}")
    assert found.names == ("condyle", "spine")
    np.testing.assert_allclose(found.points_lps_mm[1], np.array(world) * RAS, atol=1e-6)
    assert node.GetNthControlPointPosition(1) == (10.0, 4.0, -7.0)


def test_landmarks_of_a_case_are_shown_and_come_back(scene, bridge):
    points = PointList(("a", "b"), np.array([[1.0, 2, 3], [-4, 5, -6]]))
    case = replace(bridge.study.cases[0], landmarks="landmarks/source/a.csv")
    write_points(points, bridge.study.folder / case.landmarks)
    node = bridge.show_landmarks(case)
    assert bridge.show_landmarks(case) is node
    assert node.GetNumberOfControlPoints() == 2
    np.testing.assert_allclose(node.GetNthControlPointPositionWorld(1), [4, -5, -6])
    bridge.write_points(node, bridge.study.folder / "back.csv")
    np.testing.assert_allclose(
        read_points(bridge.study.folder / "back.csv").points_lps_mm, points.points_lps_mm
    )


def test_points_without_position_are_left_out_and_named(scene, bridge, tmp_path):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    with pytest.raises(BridgeError, match="'landmarks' has no point"):
        bridge.write_points(node, tmp_path / "points.csv")
    node.AddControlPoint([1, 2, 3], "here")
    node.AddControlPoint([4, 5, 6], "nowhere")
    node.UnsetNthControlPointPosition(1)
    assert bridge.write_points(node, tmp_path / "points.csv") == ("nowhere",)
    assert read_points(tmp_path / "points.csv").names == ("here",)
    with pytest.raises(BridgeError, match="a point list is needed"):
        bridge.write_points(bridge.show_case(bridge.study.cases[0]), tmp_path / "points.csv")
