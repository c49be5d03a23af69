"""Registered pairs as transform nodes of 3D Slicer, checked against SimpleITK; scenes saved and loaded."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer")

import slicer
from scene_study import (
    GRIDS,
    RAS,
    STRUCTURES,
    linear_parent,
    make_study,
    new_scene,
    placed,
    save_and_load,
    some_labels,
    state_of,
)
from spatial_cases import smooth_displacement

from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair, vectors_ras_mm
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.TransformNodes import show_displacement
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.images import read_image, write_labels
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.transform_files import write_transform

PAIRS = [("oblique", "left-handed"), ("left-handed", "mirrored"), ("mirrored", "oblique"), ("slice", "slice")]


@pytest.fixture
def scene():
    return new_scene()


def a_transform(fixed: Grid, moving: Grid, *, reflected: bool = False) -> SpatialTransform:
    """Bends by 3 voxels, then turns and moves the fixed grid's middle to the moving one's."""
    field = smooth_displacement(fixed, 3.0, 4.0, 5)
    affine = placed((0.05, 0.02, 0.1), (0, 0, 0))
    if reflected:
        affine = affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = moving.centre_lps_mm - affine[:3, :3] @ fixed.centre_lps_mm
    return SpatialTransform(field, affine)


def make_pair(study, *, status: str = "ok", spacing_mm: float | None = None, reflected: bool = False):
    """A result on disk that no network has made: case 0 is moving, case 1 is fixed."""
    moving, fixed = study.cases
    folder = study.registration_folder(moving, fixed)
    grids = [study.read_image(case).grid for case in (fixed, moving)]
    for name, (a, b) in (("forward", grids), ("inverse", grids[::-1])):
        write_transform(a_transform(a, b, reflected=reflected), folder / f"{name}.h5", spacing_mm=spacing_mm)
    write_labels(some_labels(grids[0]), STRUCTURES, folder / "warped_labels.seg.nrrd")
    report = {"moving": moving.name, "fixed": fixed.name, "status": status, "reasons": ["a “fold”; at: 1%"]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def study_of(folder, fixed="oblique", moving="left-handed"):
    return make_study(folder, a=GRIDS[moving], b=GRIDS[fixed])


def shown_pair(scene, study, folder):
    bridge = SceneBridge(scene, study)
    moving, fixed = (bridge.show_case(case) for case in study.cases)
    return bridge, bridge.show_pair(read_pair(folder), fixed=fixed, moving=moving), fixed, moving


def points_inside(grid: Grid, count: int = 60) -> np.ndarray:
    last = np.asarray(grid.size) - 1
    return grid.voxels_to_points(np.random.default_rng(2).uniform(0, last, (count, 3)))


def mapped(node, points_lps: np.ndarray) -> np.ndarray:
    transform = node.GetTransformFromParent()
    return np.array([transform.TransformPoint(p) for p in (points_lps * RAS).tolist()]) * RAS


def by_simpleitk(path, points_lps: np.ndarray) -> np.ndarray:
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p) for p in points_lps.tolist()])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("spacing", [None, 3.0])
@pytest.mark.parametrize("reflected", [False, True])
def test_transform_nodes_map_points_as_simpleitk_does(scene, tmp_path, pair, spacing, reflected):
    fixed, moving = pair
    study = study_of(tmp_path, fixed, moving)
    folder = make_pair(study, spacing_mm=spacing, reflected=reflected)
    _, nodes, *_ = shown_pair(scene, study, folder)
    for node, name, grid in ((nodes.forward, "forward", fixed), (nodes.inverse, "inverse", moving)):
        points = points_inside(GRIDS[grid])
        expected = by_simpleitk(folder / f"{name}.h5", points)
        np.testing.assert_allclose(mapped(node, points), expected, atol=1e-3)
        assert np.linalg.norm(expected - points, axis=1).max() > 1


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
def test_the_shown_volume_is_what_simpleitk_resamples(scene, tmp_path, fixed, moving):
    study = study_of(tmp_path, fixed, moving)
    folder = make_pair(study)
    _, nodes, fixed_node, _ = shown_pair(scene, study, folder)
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(scene)
    found = slicer.util.arrayFromVolume(logic.ResampleVolumeToReferenceVolume(nodes.shown, fixed_node))
    images = [sitk.ReadImage(str(study.folder / case.image)) for case in study.cases]
    transform = sitk.ReadTransform(str(folder / "forward.h5"))
    expected = sitk.GetArrayFromImage(
        sitk.Resample(sitk.Cast(images[0], sitk.sitkFloat64), images[1], transform, sitk.sitkLinear)
    )
    inside = expected != 0
    assert inside.mean() > 0.2
    off = np.abs(found - expected)[inside]
    assert np.quantile(off, 0.95) <= 1.0  # integers are cut, and the image's border differs


def test_nodes_remember_their_volumes_status_and_report(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study, status="failed")
    bridge, nodes, fixed, moving = shown_pair(scene, study, folder)
    assert nodes.status == "failed"
    assert nodes.reasons == ("a “fold”; at: 1%",)
    role = nodes.forward.GetFixedNodeReferenceRole(), nodes.forward.GetMovingNodeReferenceRole()
    assert [nodes.forward.GetNodeReference(r) for r in role] == [fixed, moving]
    assert [nodes.inverse.GetNodeReference(r) for r in role] == [moving, fixed]
    assert nodes.forward.GetAttribute("SegGuidedMMReg.Status") == "failed"
    assert json.loads(nodes.forward.GetAttribute("SegGuidedMMReg.Report"))["fixed"] == "b"
    assert nodes.shown.GetParentTransformNode() is nodes.forward
    assert bridge.nodes("a--b") == [nodes.forward, nodes.inverse, nodes.shown, nodes.contours]


def test_the_users_volume_is_neither_moved_nor_copied(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge = SceneBridge(scene, study)
    theirs = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "theirs")
    theirs.Copy(bridge.show_case(study.cases[0]))
    theirs.SetAndObserveTransformNodeID(linear_parent(scene, placed((0.1, 0, 0), (4, 5, 6))).GetID())
    before = state_of(theirs)
    nodes = bridge.show_pair(read_pair(folder), moving=theirs)
    assert state_of(theirs) == before
    assert nodes.shown.GetImageData() is theirs.GetImageData()
    for voxel in ((0, 0, 0), (7, 9, 3)):
        world, local = [0.0] * 3, np.zeros(4)
        matrix = slicer_matrix(theirs)
        theirs.TransformPointToWorld(matrix.MultiplyPoint([*map(float, voxel), 1.0])[:3], world)
        local = slicer_matrix(nodes.shown).MultiplyPoint([*map(float, voxel), 1.0])[:3]
        np.testing.assert_allclose(local, world, atol=1e-9)


def slicer_matrix(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_the_warped_image_has_the_brightness_of_the_users(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge = SceneBridge(scene, study)
    moving = bridge.show_case(study.cases[0])
    moving.GetDisplayNode().SetAutoWindowLevel(False)
    moving.GetDisplayNode().SetWindowLevel(321.0, 45.0)
    shown = bridge.show_pair(read_pair(folder), moving=moving).shown.GetDisplayNode()
    assert (shown.GetWindow(), shown.GetLevel()) == (321.0, 45.0)


def test_contours_lie_over_the_fixed_image_as_outlines(scene, tmp_path):
    study = study_of(tmp_path)
    _, nodes, *_ = shown_pair(scene, study, make_pair(study))
    display = nodes.contours.GetDisplayNode()
    assert (display.GetVisibility2DOutline(), display.GetVisibility2DFill()) == (1, 0)
    segmentation = nodes.contours.GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(3)] == ["femur", "tibia", "patella"]


def test_registering_again_uses_the_same_nodes(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge, first, fixed, moving = shown_pair(scene, study, folder)
    count = scene.GetNumberOfNodes()
    write_transform(a_transform(GRIDS["oblique"], GRIDS["mirrored"]), folder / "forward.h5")
    second = bridge.show_pair(read_pair(folder), fixed=fixed, moving=moving)
    assert (second.forward, second.shown) == (first.forward, first.shown)
    assert scene.GetNumberOfNodes() == count
    points = points_inside(GRIDS["oblique"])
    expected = by_simpleitk(folder / "forward.h5", points)
    np.testing.assert_allclose(mapped(second.forward, points), expected, atol=1e-3)


def test_a_result_without_transforms_takes_the_old_ones_away(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge, *_ = shown_pair(scene, study, folder)
    for name in ("forward.h5", "inverse.h5", "warped_labels.seg.nrrd"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"forward\.h5"):
        read_pair(folder)
    report = {"moving": "a", "fixed": "b", "status": "failed", "reasons": ["no structure was found"]}
    (folder / "report.json").write_text(json.dumps(report))
    nodes = bridge.show_pair(read_pair(folder))
    assert (nodes.forward, nodes.inverse, nodes.shown, nodes.contours) == (None, None, None, None)
    assert bridge.nodes("a--b") == []
    with pytest.raises(BridgeError, match=r"has no transform\. no structure was found"):
        bridge.show_volume_change(read_pair(folder))


def test_an_unfinished_or_damaged_result_is_refused_by_name(tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    (folder / "forward.h5").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"forward\.h5"):
        read_pair(folder)
    (folder / "report.json").write_text("[]")
    with pytest.raises(BridgeError, match="is no report of a registration"):
        read_pair(folder)
    (folder / "report.json").unlink()
    with pytest.raises(BridgeError, match=r"report\.json is missing"):
        read_pair(folder)


@pytest.mark.parametrize("kind", [".mrb", ".mrml"])
def test_a_saved_scene_comes_back_with_references_and_the_same_map(scene, tmp_path, kind):
    study = study_of(tmp_path / "study")
    folder = make_pair(study)
    bridge, nodes, fixed, moving = shown_pair(scene, study, folder)
    bridge.show_volume_change(read_pair(folder))
    bridge.show_labels(study.cases[0])
    ids = [n.GetName() for n in bridge.nodes()]
    loaded = save_and_load(scene, tmp_path, kind)
    again = SceneBridge(loaded, study)
    again.scene_loaded()
    assert sorted(n.GetName() for n in again.nodes()) == sorted(ids)
    (forward,) = again.nodes("a--b", "forward")
    assert forward.GetNodeReference(forward.GetFixedNodeReferenceRole()).GetName() == fixed.GetName()
    assert forward.GetNodeReference(forward.GetMovingNodeReferenceRole()).GetName() == moving.GetName()
    assert json.loads(forward.GetAttribute("SegGuidedMMReg.Report")) == dict(read_pair(folder).report)
    (shown,) = again.nodes("a--b", "shown")
    assert shown.GetParentTransformNode() is forward
    points = points_inside(GRIDS["oblique"])
    np.testing.assert_allclose(
        mapped(forward, points), by_simpleitk(folder / "forward.h5", points), atol=1e-3
    )
    (labels,) = again.nodes("source/a", "labels")
    again.save_labels(labels, study.cases[0])
    count = loaded.GetNumberOfNodes()
    again.show_pair(
        read_pair(folder), fixed=again.show_case(study.cases[1]), moving=again.show_case(study.cases[0])
    )
    assert loaded.GetNumberOfNodes() == count
    assert nodes.forward is not forward


# -- what is shown of a transform -------------------------------------------------------------------------


def folding(grid: Grid) -> SpatialTransform:
    """Doubles lengths along i in one half, and goes back and forth in a few voxels."""
    voxels = np.zeros((*grid.shape, 3))
    voxels[..., 14:17, 0] = [1.0, -1.5, 1.0]
    return SpatialTransform(DisplacementField(grid, voxels @ grid.voxel_to_lps[:3, :3].T))


@pytest.mark.parametrize("name", ["oblique", "slice"])
def test_the_map_of_volume_change_has_diverging_colours_and_marks_folds(scene, tmp_path, name):
    study = study_of(tmp_path, name, name)
    folder = make_pair(study)
    write_transform(folding(GRIDS[name]), folder / "forward.h5")
    bridge = SceneBridge(scene, study)
    node = bridge.show_volume_change(read_pair(folder))
    values = slicer.util.arrayFromVolume(node)
    assert values.min() < 0 < values.max()
    assert int(node.GetAttribute("SegGuidedMMReg.Folds")) == (values <= 0).sum()
    colours = colours_of(node, [-3.0, -0.001, 0.001, 1.0, 2.0, 9.0])
    magenta = (255, 0, 255)
    assert tuple(colours[0]) == tuple(colours[1]) == magenta
    assert tuple(colours[2]) != magenta
    assert min(colours[3]) > 240  # no change is white
    assert colours[2][2] > colours[2][0]  # vanishing is blue
    assert colours[4][0] > colours[4][2]  # growing is red
    assert tuple(colours[4]) == tuple(colours[5])
    assert bridge.show_volume_change(read_pair(folder)) is node
    bridge.remove()
    assert scene.GetFirstNodeByName("Change of volume") is None


def colours_of(volume, values):
    """The colours in which a volume's display shows these values, by Slicer's own pipeline."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    image = vtk.vtkImageData()
    image.SetDimensions(len(values), 1, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(np.array(values, np.float32), deep=True))
    display = volume.GetDisplayNode()
    producer = vtk.vtkTrivialProducer()
    producer.SetOutput(image)
    display.SetInputImageDataConnection(producer.GetOutputPort())
    display.UpdateImageDataPipeline()
    port = display.GetImageDataConnection()
    port.GetProducer().Update()
    return vtk_to_numpy(port.GetProducer().GetOutput().GetPointData().GetScalars())[:, :3]


def test_grid_and_arrows_of_a_transform_can_be_shown_and_hidden(scene, tmp_path):
    study = study_of(tmp_path)
    _, nodes, fixed, _ = shown_pair(scene, study, make_pair(study))
    show_displacement(nodes.forward, "off", region=fixed)
    assert nodes.forward.GetDisplayNode() is None
    show_displacement(nodes.forward, "grid", region=fixed, spacing_mm=4.0, views=("vtkMRMLSliceNodeRed",))
    display = nodes.forward.GetDisplayNode()
    assert display.GetVisualizationMode() == display.VIS_MODE_GRID
    assert display.GetGridSpacingMm() == 4.0
    assert display.GetRegionNode() is fixed
    assert display.GetViewNodeIDs() == ("vtkMRMLSliceNodeRed",)
    assert display.GetVisibility2D()
    show_displacement(nodes.forward, "arrows", region=fixed)
    assert nodes.forward.GetDisplayNode() is display
    assert display.GetVisualizationMode() == display.VIS_MODE_GLYPH
    show_displacement(nodes.forward, "off", region=fixed)
    assert not display.GetVisibility2D()
    with pytest.raises(BridgeError, match="above 0 mm, got 0"):
        show_displacement(nodes.forward, "grid", region=fixed, spacing_mm=0)


# -- manners ----------------------------------------------------------------------------------------------


def test_removal_takes_exactly_our_nodes(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge = SceneBridge(scene, study)
    theirs = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "theirs")
    slicer.util.updateVolumeFromArray(theirs, np.zeros((3, 4, 5), np.int16))
    theirs.CreateDefaultDisplayNodes()
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    moving, fixed = (bridge.show_case(case) for case in study.cases)
    nodes = bridge.show_pair(read_pair(folder), fixed=fixed, moving=moving)
    show_displacement(nodes.forward, "grid", region=fixed)
    bridge.show_volume_change(read_pair(folder))
    bridge.show_labels(study.cases[1])
    bridge.remove("a--b")
    assert {n.GetName() for n in bridge.nodes()} == {"a (source)", "b (target)", "b (target) labels"}
    bridge.remove()
    left = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    kinds = {scene.GetNodeByID(i).GetClassName() for i in left - before}
    assert before <= left
    assert kinds <= {"vtkMRMLSubjectHierarchyNode"}, kinds


def test_two_studies_in_a_scene_do_not_touch_each_other(scene, tmp_path):
    one, two = (study_of(tmp_path / name) for name in ("one", "two"))
    bridges = [SceneBridge(scene, study) for study in (one, two)]
    nodes = [bridge.show_case(bridge.study.cases[0]) for bridge in bridges]
    assert nodes[0] is not nodes[1]
    assert bridges[1].case_of(nodes[0]) is None
    bridges[0].remove()
    assert bridges[1].nodes() == [nodes[1]]


def test_deleted_nodes_and_a_closed_scene_are_survived(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    bridge, nodes, fixed, moving = shown_pair(scene, study, folder)
    scene.RemoveNode(nodes.forward)
    scene.RemoveNode(moving)
    again = bridge.show_pair(read_pair(folder), fixed=fixed, moving=moving)
    assert again.shown is None
    assert again.forward.GetNodeReference(again.forward.GetFixedNodeReferenceRole()) is fixed
    assert again.forward.GetNodeReference(again.forward.GetMovingNodeReferenceRole()) is None
    scene.Clear(False)
    assert bridge.nodes() == []
    bridge.remove()
    _, after, *_ = shown_pair(scene, study, folder)
    assert after.shown.GetParentTransformNode() is after.forward


def test_nothing_observes_the_scene_and_no_file_is_left(scene, tmp_path):
    study = study_of(tmp_path)
    folder = make_pair(study)
    observed = [scene.HasObserver(event) for event in ("ModifiedEvent", "DeleteEvent")]
    with SceneBridge(scene, study) as bridge:
        temporary = bridge.temporary_folder("x-")
        assert temporary.is_dir()
        bridge.show_pair(read_pair(folder), moving=bridge.show_case(study.cases[0]))
    assert not temporary.parent.exists()
    assert [scene.HasObserver(event) for event in ("ModifiedEvent", "DeleteEvent")] == observed
    bridge.close()


def test_the_bridge_needs_neither_torch_nor_monai_nor_what_slicer_does_not_bring(tmp_path):
    import subprocess

    folder = make_pair(study_of(tmp_path / "other"))
    absent = (
        "torch monai pydantic yaml h5py tyro rich matplotlib jinja2 lightning_fabric icon_registration scipy"
    )
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent.split()}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "import SegGuidedMMRegGui.PairRegistration, SegGuidedMMRegGui.StudyRecord\n"
        "import scene_study, pathlib\n"
        "from SegGuidedMMRegGui.SceneBridge import SceneBridge\n"
        f"study = scene_study.make_study(pathlib.Path({str(tmp_path)!r}))\n"
        "bridge = SceneBridge(scene_study.new_scene(), study)\n"
        "print(bridge.show_labels(study.cases[0]).GetName())\n"
        "from SegGuidedMMRegGui.PairFiles import read_pair\n"
        f"shown = bridge.show_pair(read_pair({str(folder)!r}), moving=bridge.show_case(study.cases[0]))\n"
        "print(shown.status, shown.shown.GetParentTransformNode() is shown.forward)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.splitlines() == ["a (source) labels", "ok True"], found.stderr


def test_the_image_written_for_the_child_and_the_transform_agree_for_moved_volumes(scene, tmp_path):
    """The volume lies elsewhere in the world; what the child maps are world points."""
    study = study_of(tmp_path)
    bridge = SceneBridge(scene, study)
    node = bridge.show_case(study.cases[0])
    parent = linear_parent(scene, placed((0, 0, 0.4), (30, 0, 0)))
    node.SetAndObserveTransformNodeID(parent.GetID())
    bridge.write_volume(node, tmp_path / "world.nrrd")
    moved = read_image(tmp_path / "world.nrrd").grid
    own = study.read_image(study.cases[0]).grid
    expected = own.points() @ placed((0, 0, 0.4), (0, 0, 0))[:3, :3].T + [30, 0, 0]
    np.testing.assert_allclose(moved.points(), expected, atol=1e-9)


def test_a_large_pair_is_shown_in_steps_that_let_the_window_live(scene, tmp_path):
    study = make_study(tmp_path, a=GRIDS["left-handed"], b=GRIDS["oblique"])
    grid = Grid((160, 160, 160), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), GRIDS["oblique"].direction)
    field = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
    transform = SpatialTransform(field)
    vectors = dict.fromkeys(("forward", "inverse"), vectors_ras_mm(field))
    labels = some_labels(grid)
    pair = PairResult(tmp_path / "pair", {"status": "ok"}, transform, transform, labels, vectors)
    moving, fixed = (SceneBridge(scene, study).show_case(case) for case in study.cases)
    steps = SceneBridge(scene, study).showing_pair(pair, fixed=fixed, moving=moving)
    count, longest, start = 0, 0.0, time.thread_time()
    for _ in steps:
        count, longest = count + 1, max(longest, time.thread_time() - start)
        start = time.thread_time()
    assert count > 4
    assert longest < 0.1
