"""Registering volumes of the scene from a script: what the child gets, what is shown, what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer")

import slicer
import slicer_module
import vtk
from scene_study import (
    GRIDS,
    STRUCTURES,
    bending_parent,
    linear_parent,
    make_study,
    new_scene,
    placed,
    some_labels,
    state_of,
    world_of_voxel,
)
from test_scene_bridge_transforms import a_transform, by_simpleitk, mapped, points_inside

from SegGuidedMMRegGui.JobEvents import JobEnd
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.PairRegistration import PairRegistration, RegistrationError, Side
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.Scripting import ScriptedStudy
from SegGuidedMMRegGui.SegmentationNodes import show_labels
from SegGuidedMMRegGui.StudyRecord import study_as_told
from SegGuidedMMRegLib.images import read_image, read_labels, write_labels
from SegGuidedMMRegLib.points import read_points
from SegGuidedMMRegLib.study_file import StudyError
from SegGuidedMMRegLib.study_record import to_record
from SegGuidedMMRegLib.transform_files import write_transform
from SegGuidedMMRegLib.worker.requests import parse_request


class Child:
    """In the place of the child process: reads what it would read, and writes such files as it would."""

    def __init__(self, study, *, end: JobEnd | None = None, meanwhile=lambda: None) -> None:
        self.study, self.meanwhile = study, meanwhile
        self.end = end or JobEnd(0, False, {"command": "register"})
        self.arguments: list[str] = []
        self.given: dict = {}

    def run(self, arguments, listener=None) -> JobEnd:
        assert listener is None
        self.arguments = list(arguments)
        assert arguments[:2] == ("register", str(self.study.folder))
        self.sides = [self._read(text) for text in arguments[2:4]]
        for option, value in pairwise(arguments):
            if option.endswith("-labels"):
                self.given[option] = read_labels(value)
            if option.endswith("-landmarks"):
                self.given[option] = read_points(value)
        if self.end.exit_code in (0, 1) and not self.end.message and not self.end.cancelled:
            self._write(*self.sides)
        self.meanwhile()
        return self.end

    def value(self, option: str) -> str:
        return self.arguments[self.arguments.index(option) + 1]

    def _read(self, text):
        keys = {case.key: case for case in self.study.cases}
        return self.study.read_image(keys[text]) if text in keys else read_image(text)

    def _write(self, moving, fixed) -> None:
        keys = {case.key: case for case in self.study.cases}
        if "--out" in self.arguments:
            folder = Path(self.value("--out"))
        else:
            folder = self.study.registration_folder(*(keys[t] for t in self.arguments[2:4]))
        write_transform(a_transform(fixed.grid, moving.grid), folder / "forward.h5")
        write_transform(a_transform(moving.grid, fixed.grid), folder / "inverse.h5")
        write_labels(some_labels(fixed.grid), STRUCTURES, folder / "warped_labels.seg.nrrd")
        status = "failed" if self.end.exit_code else "ok"
        report = {"moving": "m", "fixed": "f", "status": status, "reasons": ["it folds"] * self.end.exit_code}
        (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture
def scene():
    return new_scene()


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


@pytest.fixture
def bridge(scene, study):
    with SceneBridge(scene, study) as made:
        yield made


def volumes(bridge):
    return [bridge.show_case(case) for case in bridge.study.cases]


def copy_of(scene, node, name):
    """A volume of the user's with the same image."""
    theirs = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(theirs, np.array(slicer.util.arrayFromVolume(node)))
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    theirs.SetIJKToRASMatrix(matrix)
    return theirs


def test_two_cases_are_registered_by_name_into_the_study(scene, study, bridge):
    moving, fixed = volumes(bridge)
    child = Child(study)
    nodes = PairRegistration(bridge, child).register(fixed, moving)
    assert child.arguments == ["register", str(study.folder), "source/a", "target/b"]
    assert (nodes.status, nodes.reasons) == ("ok", ())
    assert bridge.nodes("a--b") == [nodes.forward, nodes.inverse, nodes.shown, nodes.contours]
    points = points_inside(GRIDS["left-handed"])
    expected = by_simpleitk(study.folder / "registrations/a--b/forward.h5", points)
    np.testing.assert_allclose(mapped(nodes.forward, points), expected, atol=1e-3)


def test_volumes_of_the_scene_go_as_files_where_they_lie_in_the_world(scene, study, bridge):
    of_cases = volumes(bridge)
    moving, fixed = copy_of(scene, of_cases[0], "T1 -- left/x"), copy_of(scene, of_cases[1], "b")
    moving.SetAndObserveTransformNodeID(linear_parent(scene, placed((0.1, 0.2, 0), (20, 0, 5))).GetID())
    before = state_of(moving), state_of(fixed)
    child = Child(study)
    nodes = PairRegistration(bridge, child).register(fixed, Side(moving, modality="source", mirrored=True))
    assert (state_of(moving), state_of(fixed)) == before
    image = child.sides[0].to_sitk()
    for voxel in ((0, 0, 0), (9, 7, 5)):
        there = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(world_of_voxel(moving, voxel), there, atol=1e-6)
    assert child.value("--moving-modality") == "source"
    assert "--moving-mirrored" in child.arguments
    assert "--fixed-mirrored" not in child.arguments
    assert Path(child.arguments[2]).name == "T1_-_left_x.nrrd"
    assert nodes.forward.GetNodeReference(nodes.forward.GetMovingNodeReferenceRole()) is moving
    assert bridge.nodes("T1_-_left_x--b")[0] is nodes.forward
    assert not Path(child.arguments[2]).exists()


def test_the_result_can_go_into_a_folder_of_the_users(scene, study, bridge, tmp_path):
    moving, fixed = volumes(bridge)
    child = Child(study)
    PairRegistration(bridge, child).register(fixed, moving, out=tmp_path / "mine")
    assert child.value("--out") == str(tmp_path / "mine")
    assert (tmp_path / "mine/forward.h5").is_file()
    bridge.close()
    assert (tmp_path / "mine/forward.h5").is_file()


def test_a_changed_case_is_registered_as_it_is_now_with_what_the_study_knows_of_it(scene, study):
    cases = (replace(study.cases[0], mirrored=True), study.cases[1])
    with SceneBridge(scene, replace(study, cases=cases)) as bridge:
        moving, fixed = volumes(bridge)
        slicer.util.arrayFromVolume(moving)[3:6] += 100
        child = Child(study)
        PairRegistration(bridge, child).register(fixed, moving)
        assert child.arguments[3] == "target/b"
        assert child.arguments[2].endswith(".nrrd")
        np.testing.assert_array_equal(child.sides[0].array, slicer.util.arrayFromVolume(moving))
        assert child.value("--moving-modality") == "source"
        assert "--moving-mirrored" in child.arguments


def test_segmentations_segments_and_landmarks_of_the_scene_are_used(scene, study, bridge):
    moving, fixed = volumes(bridge)
    grid = GRIDS["oblique"]
    renamed = [replace(s, name=f"my {s.name}") for s in STRUCTURES]
    theirs = show_labels(scene, some_labels(grid), renamed, Tag("x", "y", "z"), "theirs")
    points = []
    for name in ("m", "f"):
        node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        node.AddControlPoint([1, 2, 3], "condyle")
        points.append(node)
    child = Child(study)
    PairRegistration(bridge, child).register(
        Side(fixed, segmentation=bridge.show_labels(study.cases[1]), points=points[1]),
        Side(moving, segmentation=theirs, segments={"tibia": "my tibia"}, points=points[0]),
    )
    given = child.given["--moving-labels"]
    np.testing.assert_array_equal(given.array, np.where(some_labels(grid).array == 4, 4, 0))
    assert given.grid.is_close(child.sides[0].grid)
    np.testing.assert_array_equal(child.given["--fixed-labels"].array, some_labels(child.sides[1].grid).array)
    np.testing.assert_allclose(child.given["--moving-landmarks"].points_lps_mm, [[-1, -2, 3]])


def test_what_the_user_should_know_is_noted(scene, study, bridge):
    moving, fixed = volumes(bridge)
    moving.SetAndObserveTransformNodeID(bending_parent(scene).GetID())
    node = bridge.show_labels(study.cases[1])
    points = []
    for name in ("m", "f"):
        node_of_points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        node_of_points.AddControlPoint([1, 2, 3], "condyle")
        node_of_points.AddControlPoint([1, 2, 3], "lost")
        points.append(node_of_points)
    points[0].UnsetNthControlPointPosition(1)
    request = PairRegistration(bridge, Child(study)).prepare(
        Side(fixed, segmentation=node, points=points[1]), Side(moving, points=points[0])
    )
    told = " ".join(request.notes)
    assert "a (source): its parent transform bends it, so it was resampled" in told
    assert "b (target) labels: nothing drawn for patella." in told
    assert "m: without position, left out: lost." in told


def test_the_worker_is_asked_for_the_same_as_the_command(scene, study, bridge, tmp_path):
    moving, fixed = volumes(bridge)
    registration = PairRegistration(bridge)
    request = registration.prepare(fixed, moving)
    asked = parse_request(json.dumps({"id": 1, **request.worker_request}).encode())
    assert (asked.moving.case, asked.fixed.case) == ("source/a", "target/b")
    assert Path(asked.out) == study.folder / "registrations/a--b"
    theirs = copy_of(scene, moving, "T1")
    points = []
    for name in ("m", "f"):
        points.append(scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name))
        points[-1].AddControlPoint([1, 2, 3], "condyle")
    request = registration.prepare(
        Side(fixed, segmentation=bridge.show_labels(study.cases[1]), points=points[1]),
        Side(theirs, points=points[0], mirrored=True),
        out=tmp_path / "mine",
    )
    asked = parse_request(json.dumps({"id": 2, **request.worker_request}).encode())
    for side, image in (("moving", asked.moving), ("fixed", asked.fixed)):
        for what in ("labels", "landmarks", "modality"):
            option, told = f"--{side}-{what}", getattr(image, what)
            assert (option in request.arguments) == (told is not None)
            if told is not None:
                assert request.arguments[request.arguments.index(option) + 1] == told
    assert (asked.moving.file, asked.fixed.case) == request.arguments[2:4]
    assert (asked.moving.modality, asked.moving.mirrored) == ("source", True)
    assert request.arguments[-2:] == ("--out", str(tmp_path / "mine"))
    with pytest.raises(TypeError, match="runner is needed"):
        registration.register(fixed, moving)


UNTRAINED = JobEnd(2, False, None, "The study is not trained. Train it.", "not_trained")
KILLED = JobEnd(-9, False, None, "The job ended without saying why (exit code -9).")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (UNTRAINED, ("Train it", "not_trained")),
        (KILLED, ("exit code -9", "")),
        (JobEnd(7, False, None), ("ended with 7", "")),
        (JobEnd(None, True, None), ("cancelled", "interrupted")),
    ],
)
def test_a_child_that_fails_raises_what_it_said_and_changes_nothing(scene, study, bridge, end, words):
    moving, fixed = volumes(bridge)
    before = scene.GetNumberOfNodes()
    with pytest.raises(RegistrationError, match=words[0]) as raised:
        PairRegistration(bridge, Child(study, end=end)).register(fixed, moving)
    assert raised.value.code == words[1]
    assert scene.GetNumberOfNodes() == before


def test_a_bad_registration_is_shown_as_failed_with_its_reasons(scene, study, bridge):
    moving, fixed = volumes(bridge)
    child = Child(study, end=JobEnd(1, False, {"command": "register"}))
    nodes = PairRegistration(bridge, child).register(fixed, moving)
    assert (nodes.status, nodes.reasons) == ("failed", ("it folds",))
    assert nodes.forward is not None


def test_what_cannot_be_registered_is_refused_before_a_process_starts(scene, study, bridge):
    moving, fixed = volumes(bridge)
    child = Child(study)
    registration = PairRegistration(bridge, child)
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    points.AddControlPoint([1, 2, 3], "condyle")
    bridge.label_path(study.cases[1]).unlink()
    empty = bridge.new_labels(study.cases[1])
    for arguments, words in (
        ((fixed, fixed), "Moving and fixed are both 'b \\(target\\)'"),
        ((fixed, Side(moving, points=points)), "Landmarks come in pairs"),
        (
            (Side(fixed, segmentation=empty), moving),
            "Nothing is drawn in 'b \\(target\\) labels' over this image",
        ),
        ((scene.AddNewNodeByClass("vtkMRMLModelNode", "bone"), moving), "'bone' is a vtkMRMLModelNode"),
    ):
        with pytest.raises(BridgeError, match=words):
            registration.register(*arguments)
    assert child.arguments == []


def test_volumes_deleted_or_a_scene_closed_during_the_job_are_survived(scene, study, bridge):
    moving, fixed = volumes(bridge)
    child = Child(study, meanwhile=lambda: scene.RemoveNode(moving))
    nodes = PairRegistration(bridge, child).register(fixed, moving)
    assert nodes.shown is None
    assert nodes.forward is not None
    moving, fixed = volumes(bridge)
    child = Child(study, meanwhile=lambda: scene.Clear(False))
    nodes = PairRegistration(bridge, child).register(fixed, moving)
    assert nodes.shown is None
    assert bridge.nodes("a--b") == [nodes.forward, nodes.inverse, nodes.contours]


def test_a_volume_moved_during_the_job_is_shown_as_it_was_registered(scene, study, bridge):
    moving, fixed = volumes(bridge)
    parent = linear_parent(scene, placed((0, 0, 0), (50, 0, 0)))
    child = Child(study, meanwhile=lambda: moving.SetAndObserveTransformNodeID(parent.GetID()))
    nodes = PairRegistration(bridge, child).register(fixed, moving)
    nodes.shown.SetAndObserveTransformNodeID(None)
    np.testing.assert_allclose(
        world_of_voxel(nodes.shown, (0, 0, 0)), GRIDS["oblique"].voxels_to_points([0, 0, 0]), atol=1e-9
    )
    assert nodes.shown.GetImageData() is not moving.GetImageData()


def test_a_study_is_known_from_what_the_child_tells_of_it(study):
    told = as_told(study)
    again = study_as_told(study.folder, told)
    assert (again.cases, again.structures, again.folder) == (study.cases, study.structures, study.folder)
    with pytest.raises(StudyError, match="needs at least one structure"):
        study_as_told(study.folder, {**told, "structures": []})
    del told["cases"]
    with pytest.raises(StudyError, match="did not tell 'cases'"):
        study_as_told(study.folder, told)


def as_told(study) -> dict:
    """What `segmmreg info STUDY --events` ends with (the true one is in the test of the page)."""
    record = json.loads(json.dumps(to_record(study)))
    cases = [{**case, "predicted": False} for case in record["cases"]]
    return {"command": "info", "exit_code": 0, **record, **record["modalities"], "cases": cases}


def test_a_study_is_opened_by_the_childs_word_or_its_message_is_raised(scene, study):
    class Telling:
        def __init__(self, end):
            self.end = end

        def run(self, arguments, listener=None):
            assert listener is None
            assert arguments == ("info", str(study.folder))
            return self.end

    with ScriptedStudy(study.folder, scene, Telling(JobEnd(0, False, as_told(study)))) as opened:
        node = opened.bridge.show_case(opened.study.case("a"))
    assert node.GetName() == "a (source)"
    with pytest.raises(StudyError, match="is not a study"):
        ScriptedStudy(study.folder, scene, Telling(JobEnd(2, False, None, "x is not a study: …")))


# -- the true child ---------------------------------------------------------------------------------------
PAGE = Path(__file__).parents[2] / "docs" / "slicer-scripting.md"


@pytest.fixture
def as_in_slicer(finished, tmp_path):
    """A copy of the trained study, the scene that `slicer.mrmlScene` names, and the scripts of the page."""
    from trained_study import copy_of as copy_of_study

    from SegGuidedMMRegGui.JobPython import choose_python

    choose_python("")
    folder = copy_of_study(finished.study, tmp_path / "study").folder
    scripts = PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
    scene = slicer_module.slicer.mrmlScene
    scene.Clear(False)
    yield folder, scene, [script.split("```")[0].replace("/data/", f"{tmp_path}/") for script in scripts]
    scene.Clear(False)


@pytest.mark.xdist_group("trained")
def test_the_scripts_of_the_page_run(as_in_slicer, tmp_path):
    folder, scene, (cases, one_line, volumes_of_scene, labels) = as_in_slicer
    folder.rename(tmp_path / "knees")
    names: dict = {}
    exec(cases, names)
    nodes = names["nodes"]
    assert nodes.status == "ok", nodes.reasons
    assert nodes.forward.GetNodeReference(nodes.forward.GetFixedNodeReferenceRole()) is names["fixed"]
    exec(one_line, names)
    assert (names["nodes"].status, names["nodes"].forward) == ("ok", nodes.forward)
    bridge = names["show"]
    truth = sitk.ReadImage(str(bridge.label_path(names["radiograph"])))
    assert overlap(bridge, nodes, names["radiograph"], truth, tmp_path) > 0.6
    parent = linear_parent(scene, placed((0, 0, 0.2), (15, -8, 0)))
    segmentation = bridge.show_labels(names["dxa"])
    names["moving"].SetName("left knee")
    names["fixed"].SetName("other knee")
    segmentation.SetName("Segmentation")
    for node in (names["moving"], segmentation):
        node.SetAndObserveTransformNodeID(parent.GetID())
    first = segmentation.GetSegmentation().GetNthSegment(0).GetName()
    names["dxa_structure"] = first
    script = volumes_of_scene.replace('{"femur": "bone 1"}', f"{{{first!r}: {first!r}}}")
    exec(script.replace("mirrored=True", f"mirrored={names['dxa'].mirrored}"), names)
    assert (tmp_path / "left_to_other" / "forward.h5").is_file()
    exec(labels, names)
    assert len(names["found"].empty) == len(names["knees"].study.structures)
    assert not names["show"].nodes(names["case"].key)


def overlap(bridge, nodes, case, truth, folder) -> float:
    """Mean Dice of the warped structures with the truth, on the truth's grid."""
    from trained_study import mean_dice

    bridge.write_segments(nodes.contours, folder / "w.seg.nrrd", bridge.study.read_image(case).grid)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "w.seg.nrrd")))
    return mean_dice(found, sitk.GetArrayFromImage(truth), len(bridge.study.structures))
