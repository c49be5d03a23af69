"""A pair registered by the warm worker: shown with its segmentations; what is deleted, closed or broken
meanwhile is survived."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer_harness
from reported_study import make_reported_study
from scene_study import linear_parent, placed, state_of, world_of_voxel
from slicer_module import Gaps, environment, fake_job, slicer
from test_scene_bridge_registration import copy_of
from test_scene_bridge_transforms import by_simpleitk, mapped

from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.NodeTags import BridgeError, nodes_of
from SegGuidedMMRegGui.PairRegistration import Side
from SegGuidedMMRegGui.WarmRegistration import Outcome, WarmRegistration
from SegGuidedMMRegGui.WorkerClient import WorkerClient
from SegGuidedMMRegGui.Workplace import Workplace


@pytest.fixture
def workplace():
    slicer_harness.slot_errors.clear()
    slicer.mrmlScene.Clear(0)
    made = Workplace(slicer.mrmlScene, JobRunner())
    yield made
    made.cleanup()
    made.runner.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


def open_study(workplace, folder):
    failures: list[str] = []
    workplace.open(str(folder), failures.append)
    slicer_harness.process_until(lambda: workplace.study or failures, 90)
    assert not failures
    return workplace.bridge


def finish(registration, outcomes, seconds=120) -> Outcome:
    slicer_harness.process_until(lambda: outcomes, seconds)
    assert not registration.is_running
    return outcomes[0]


def temporary_files(bridge):
    return [] if bridge._temporary is None else list(bridge._temporary.rglob("inputs/*/*"))


# -- the true worker --------------------------------------------------------------------------------------
@pytest.mark.xdist_group("trained")
def test_a_pair_is_registered_and_shown_with_its_predicted_segmentations(finished, tmp_path, workplace):
    from trained_study import copy_of as copy_of_study
    from trained_study import mean_dice, values

    bridge = open_study(workplace, copy_of_study(finished.study, tmp_path / "study").folder)
    cases = [bridge.study.cases_of(m, "test")[0] for m in (bridge.study.source, bridge.study.target)]
    theirs = copy_of(workplace.scene, bridge.show_case(cases[0]), "left knee")
    theirs.SetAndObserveTransformNodeID(
        linear_parent(workplace.scene, placed((0, 0, 0.2), (15, -8, 0))).GetID()
    )
    fixed = bridge.show_case(cases[1])
    before = state_of(theirs), state_of(fixed)
    registration, outcomes = WarmRegistration(workplace), []
    moving = Side(theirs, modality=cases[0].modality, mirrored=cases[0].mirrored)
    registration.start(fixed, moving, outcomes.append)
    with Gaps() as gaps:
        gaps.spin(lambda: outcomes, 120)
    nodes = finish(registration, outcomes).nodes
    assert gaps.longest < 0.1
    assert (state_of(theirs), state_of(fixed)) == before
    assert nodes.status == "ok", nodes.reasons
    assert nodes.report["mean"]["after"]["dice"] > nodes.report["mean"]["before"]["dice"] - 0.05
    grid = bridge.study.read_image(cases[1]).grid
    points = np.stack([grid.voxels_to_points([i, j, 0]) for i, j in ((20, 30), (41, 12), (33, 50))])
    expected = by_simpleitk(nodes.folder / "forward.h5", points)
    np.testing.assert_allclose(mapped(nodes.forward, points), expected, atol=1e-3)
    assert nodes.shown.GetImageData() is theirs.GetImageData()
    assert nodes.forward.GetNodeReference(nodes.forward.GetFixedNodeReferenceRole()) is fixed
    names = [s.name for s in bridge.study.structures]
    for node in (nodes.moving_labels, nodes.fixed_labels):
        segmentation = node.GetSegmentation()
        found = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
        assert [segment.GetName() for segment in found] == names
        colours = [tuple(round(255 * c) for c in segment.GetColor()) for segment in found]
        assert colours == [s.color for s in bridge.study.structures]
    assert nodes.fixed_labels.GetName() == f"{cases[1].name} ({cases[1].modality}) prediction"
    for node, case, volume in (
        (nodes.moving_labels, cases[0], theirs),
        (nodes.fixed_labels, cases[1], fixed),
    ):
        out = tmp_path / f"{case.name}.seg.nrrd"
        place = bridge.write_volume(volume, tmp_path / "place.nrrd").image.grid
        bridge.write_segments(node, out, place)
        truth = values(bridge.label_path(case))
        assert mean_dice(values(out).reshape(truth.shape), truth, len(names)) > 0.5
    corner = world_of_voxel(theirs, (0, 0, 0))
    np.testing.assert_allclose(place.voxels_to_points([0, 0, 0]), world_of_voxel(fixed, (0, 0, 0)), atol=1e-6)
    assert not np.allclose(corner, bridge.study.read_image(cases[0]).grid.voxels_to_points([0, 0, 0]))
    assert not temporary_files(bridge)
    first = dict.fromkeys(node.GetID() for node in nodes_of(workplace.scene))
    outcomes.clear()
    registration.start(fixed, moving, outcomes.append)
    again = finish(registration, outcomes).nodes
    assert again.forward is nodes.forward
    assert dict.fromkeys(node.GetID() for node in nodes_of(workplace.scene)) == first


@pytest.mark.xdist_group("trained")
def test_segmentations_of_the_users_are_used_and_returned_not_changed(finished, tmp_path, workplace):
    from trained_study import copy_of as copy_of_study

    bridge = open_study(workplace, copy_of_study(finished.study, tmp_path / "study").folder)
    moving, fixed = (bridge.study.cases_of(m, "test")[0] for m in (bridge.study.source, bridge.study.target))
    drawn = bridge.show_labels(moving)
    before = drawn.GetMTime()
    registration, outcomes = WarmRegistration(workplace), []
    registration.start(
        bridge.show_case(fixed),
        Side(bridge.show_case(moving), segmentation=drawn, segments={"femur": "femur"}),
        outcomes.append,
        out=tmp_path / "mine",
    )
    outcome = finish(registration, outcomes)
    assert outcome.nodes.moving_labels is drawn
    assert drawn.GetMTime() == before
    assert outcome.nodes.folder == tmp_path / "mine"
    assert outcome.nodes.fixed_labels.GetName().endswith("prediction")
    told = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert told["status"] == outcome.nodes.status


# -- what goes wrong --------------------------------------------------------------------------------------
SLOW = """
for line in sys.stdin:
    asked = json.loads(line)
    if asked['do'] == 'register':
        time.sleep(0.2)
        tell('error', code='input', message='Bad.', remedy='Mend it.', request=asked['id'])
    else:
        tell('error', code='interrupted', message='Cancelled.', request=asked.get('request'))
"""
DONE = """
import shutil
for line in sys.stdin:
    asked = json.loads(line)
    if asked['do'] == 'register':
        time.sleep(0.3)
        tell('result', request=asked['id'])
    else:
        tell('result', files=['/nowhere/labels.seg.nrrd'], request=asked['id'])
"""
HANGS = "for line in sys.stdin: pass"
CRASHES = "sys.stdin.readline(); print('no memory', file=sys.stderr, flush=True); os._exit(137)"


class FakePython:
    def __init__(self, code):
        self.code = code

    def command(self, _):
        return fake_job(self.code)

    def environment(self):
        return environment()


@pytest.fixture
def pair(tmp_path, workplace):
    """An open study, two of its cases in the scene, and the means to fake its worker."""
    bridge = open_study(workplace, make_reported_study(tmp_path / "knees", 2, 32).folder)
    study = bridge.study
    moving, fixed = (bridge.show_case(study.cases_of(m, "test")[0]) for m in (study.source, study.target))

    def with_worker(code):
        workplace._worker = WorkerClient(workplace.folder, workplace.runner, FakePython(code))
        return WarmRegistration(workplace), []

    return moving, fixed, with_worker


@pytest.mark.parametrize(("code", "words"), [(SLOW, "Bad. Mend it."), (CRASHES, "memory"), (DONE, "nowhere")])
def test_what_went_wrong_is_told_and_another_one_can_begin(workplace, pair, code, words):
    moving, fixed, with_worker = pair
    registration, outcomes = with_worker(code)
    there = workplace.scene.GetNumberOfNodes()
    registration.start(fixed, moving, outcomes.append)
    with pytest.raises(RuntimeError, match="Wait until the other"):
        registration.start(fixed, moving, outcomes.append)
    assert words in finish(registration, outcomes).message
    assert workplace.scene.GetNumberOfNodes() == there
    registration.start(fixed, moving, outcomes.append)


def test_a_registration_is_cancelled(workplace, pair):
    moving, fixed, with_worker = pair
    registration, outcomes = with_worker(HANGS)
    registration.start(fixed, moving, outcomes.append)
    registration.cancel()
    assert outcomes == [Outcome(None)]
    outcomes.clear()
    registration.start(fixed, moving, outcomes.append)
    slicer_harness.process_until(workplace.runner.running)
    workplace.worker.kill()
    assert finish(registration, outcomes) == Outcome(None)


def test_a_scene_closed_meanwhile_gets_nothing_of_it(workplace, pair):
    moving, fixed, with_worker = pair
    registration, outcomes = with_worker(DONE)
    registration.start(fixed, moving, outcomes.append)
    slicer_harness.process_until(workplace.runner.running)
    workplace.scene.Clear(0)
    other = [workplace.bridge.show_case(case) for case in workplace.bridge.study.cases[:2]]
    there = workplace.scene.GetNumberOfNodes()
    outcome = finish(registration, outcomes)
    assert "Both volumes were removed" in outcome.message
    assert outcome.nodes is None
    assert workplace.scene.GetNumberOfNodes() == there
    assert all(workplace.scene.IsNodePresent(node) for node in other)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_study_closed_meanwhile_leaves_nothing(workplace, pair, at_once):
    moving, fixed, with_worker = pair
    registration, outcomes = with_worker(DONE)
    bridge, there = workplace.bridge, workplace.scene.GetNumberOfNodes()
    registration.start(fixed, Side(copy_of(workplace.scene, moving, "other")), outcomes.append)
    place = bridge._temporary
    if not at_once:
        slicer_harness.process_until(workplace.runner.running)
    workplace.close()
    assert finish(registration, outcomes) == Outcome(None)
    assert workplace.scene.GetNumberOfNodes() <= there + 3
    assert not [n for n in nodes_of(workplace.scene) if n.IsA("vtkMRMLTransformNode")]
    assert not place.exists()


def test_what_cannot_be_used_is_refused_at_once(workplace, pair):
    moving, _, with_worker = pair
    registration, outcomes = with_worker(HANGS)
    with pytest.raises(BridgeError, match="both"):
        registration.start(moving, moving, outcomes.append)
    assert not registration.is_running
    workplace.close()
    with pytest.raises(RuntimeError, match="Open a study"):
        registration.start(moving, moving, outcomes.append)
