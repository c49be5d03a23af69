"""A pair is corrected: edited and registered again by the warm worker; versions are kept, undo goes back."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_harness import layouts, markups_views
from slicer_harness.segment_editor import draw
from slicer_module import Gaps, environment, fake_job, module_opened, slicer

from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.Correction import Correction
from SegGuidedMMRegGui.PairVersions import new_version, pair_folder, use, versions, write_note
from SegGuidedMMRegGui.ReviewViews import FIXED, MOVING, OVERLAY
from SegGuidedMMRegGui.WorkerClient import WorkerClient
from SegGuidedMMRegLib.reviews import result_of
from SegGuidedMMRegLib.transform_files import read_transform


# -- versions on disk ---------------------------------------------------------------------------------------
def result(folder: Path, dice: float, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.h5").write_text(text)
    report = {"status": "ok", "mean": {"after": {"dice": dice}}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def corrected(pair: Path, dice: float, **files: str) -> Path:
    return result(new_version(pair), dice, **files)


def test_a_version_becomes_the_result_and_the_former_one_is_kept(tmp_path):
    pair = result(tmp_path / "a--b", 0.8, forward="first", extra="old")
    first = result_of(pair)
    version = corrected(pair, 0.9, forward="second")
    assert [v.is_result for v in versions(pair)] == [True, False]
    use(version)
    assert (pair / "forward.h5").read_text() == "second"
    assert not (pair / "extra.h5").exists()
    kept = {v.result: v for v in versions(pair)}
    assert len(kept) == 2
    assert (kept[first].folder / "forward.h5").read_text() == "first"
    assert kept[result_of(version)].is_result
    use(kept[first].folder)
    assert (pair / "extra.h5").read_text() == "old"
    assert len(versions(pair)) == 2
    assert pair_folder(version) == pair_folder(pair) == pair


def test_versions_survive_what_replaces_the_result(tmp_path):
    pair = result(tmp_path / "a--b", 0.8, forward="first")
    version = corrected(pair, 0.9, forward="second")
    use(version)
    (pair / "forward.h5").unlink()
    result(pair, 0.95, forward="third")
    assert (version / "forward.h5").read_text() == "second"
    assert {v.dice for v in versions(pair)} == {0.8, 0.9, 0.95}


def test_a_use_that_is_cut_off_loses_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    from SegGuidedMMRegGui import PairVersions

    pair = result(tmp_path / "a--b", 0.8, forward="first", inverse="first back")
    first, version = result_of(pair), corrected(pair, 0.9, forward="second", inverse="second back")
    put = PairVersions._put
    monkeypatch.setattr(PairVersions, "_put", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        use(version)
    monkeypatch.setattr(PairVersions, "_put", put)
    assert {v.result for v in versions(pair)} == {first, result_of(version)}
    use(version)
    assert (pair / "inverse.h5").read_text() == "second back"


def test_numbers_of_versions_are_never_used_twice(tmp_path):
    pair = result(tmp_path / "a--b", 0.8)
    assert [new_version(pair).name for _ in range(3)] == ["002", "003", "004"]
    write_note(pair / "versions" / "004", "abc", ["moving", "fixed"], 2)
    assert versions(pair)[0].name == ""


# -- the panel ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_reported_study(tmp_path_factory.mktemp("correct") / "knees", 2).folder


@pytest.fixture
def widget():
    layouts.start(slicer)
    with module_opened() as opened:
        yield opened


def open_pair(widget, folder: Path, pair: str):
    widget.panels["study"].open(str(folder))
    slicer_harness.process_until(lambda: widget.workplace.folder == str(folder), 90)
    panel = widget.panels["review"]
    widget.ui.reviewButton.collapsed = False
    slicer_harness.process_until(lambda: panel._list.entry(pair), 30)
    panel._ui.correctSection.collapsed = False
    panel.show_entry(panel._list.entry(pair))
    read(panel)
    return panel


def read(panel) -> None:
    slicer_harness.process_until(lambda: panel._reading is None, 30)


def settle(panel) -> None:
    """Let a version become the result."""
    slicer_harness.process_until(lambda: panel._correct._copying is None, 30)
    read(panel)


@pytest.fixture
def panel(widget, made, tmp_path):
    folder = tmp_path / "knees"
    shutil.copytree(made, folder)
    return open_pair(widget, folder, "d3--r3")


def correction(panel) -> Correction:
    return Correction(panel.workplace.bridge, panel.workplace.pair, panel._name())


def middle(panel) -> np.ndarray:
    """Of the fixed image, world RAS, and a little beside."""
    bounds = np.zeros(6)
    correction(panel).volume("fixed").GetRASBounds(bounds)
    return bounds.reshape(3, 2).mean(axis=1) + np.array([4.0, -3.0, 0.0])


def place(panel, side: str, position) -> None:
    """As a click in a view does, world RAS."""
    assert markups_views.click(slicer, position) is correction(panel).points(side)
    slicer_harness.process_until(lambda: not getattr(panel._ui, f"place{side.title()}Button").checked)


def answering(code: str):
    """A worker that answers by `code`, which has the `request`; `tell` writes an event."""

    class Python:
        def command(self, _arguments):
            lines = "for line in sys.stdin:\n    request = json.loads(line)\n"
            return fake_job(lines + "\n".join(f"    {text}" for text in code.splitlines()))

        def environment(self):
            return environment()

    return Python()


def use_worker(panel, code: str) -> None:
    workplace = panel.workplace
    workplace._worker = WorkerClient(workplace.folder, workplace.runner, answering(code))


def edit(panel, side: str) -> None:
    """Press the button, and wait until the structures are copied."""
    getattr(panel._ui, f"edit{side}Button").click()
    slicer_harness.process_until(lambda: panel._correct._preparing is None, 30)


def editor(panel):
    """The Segment Editor in the panel."""
    return panel._correct._draw._editor.widget


def seen_in(node) -> tuple[str, ...]:
    """Names of the views in which a node is seen."""
    display = node.GetDisplayNode()
    if not display.GetVisibility():
        return ()
    return tuple(slicer.mrmlScene.GetNodeByID(n).GetLayoutName() for n in display.GetViewNodeIDs())


def background(view: str) -> str:
    return Views.composite_node(view).GetBackgroundVolumeID()


def test_structures_are_edited_as_copies_beside_the_pair(panel):
    ui, scene = panel._ui, panel.workplace.scene
    before = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    assert ui.editorFrame.isHidden()
    edit(panel, "Fixed")
    assert not ui.editorFrame.isHidden()
    node, volume = editor(panel).segmentationNode(), editor(panel).sourceVolumeNode()
    assert (editor(panel).keys, editor(panel).views) == (True, True)
    assert panel._look.views.is_shown
    assert volume.GetID() == Correction.volume(correction(panel), "fixed").GetID()
    names = {node.GetSegmentation().GetNthSegment(n).GetName() for n in range(3)}
    assert names == {"femur", "tibia", "fibula"}
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == before + 1
    assert seen_in(node) == (FIXED.name, OVERLAY.name)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetNthSegmentID(0))
    edit(panel, "Fixed")
    assert ui.editorFrame.isHidden()
    assert (editor(panel).keys, editor(panel).views, seen_in(node)) == (False, False, ())
    edit(panel, "Fixed")
    assert editor(panel).segmentationNode() is node
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    assert "the fixed structures as edited" in ui.givenLabel.text
    assert ui.againButton.enabled


def test_the_moving_image_is_seen_unwarped_while_its_structures_are_drawn(panel):
    ui, pair = panel._ui, panel.workplace.pair
    warped = pair.shown.GetID()
    assert background(MOVING.name) == warped
    edit(panel, "Fixed")
    assert background(MOVING.name) == warped
    edit(panel, "Moving")
    assert (ui.editFixedButton.checked, ui.editMovingButton.checked) == (False, True)
    assert "moving image, in the second view" in ui.drawnLabel.text
    moving = Correction.volume(correction(panel), "moving")
    assert editor(panel).sourceVolumeNode() is moving
    assert background(MOVING.name) == moving.GetID()
    assert seen_in(editor(panel).segmentationNode()) == (MOVING.name,)
    assert seen_in(correction(panel).edited("fixed")) == ()
    ui.placeFixedButton.click()
    assert ui.editorFrame.isHidden()
    assert not ui.editMovingButton.checked
    assert background(MOVING.name) == warped


def test_a_stroke_is_undone_also_after_the_pair_was_looked_at(panel):
    ui = panel._ui
    edit(panel, "Fixed")
    node = editor(panel).segmentationNode()
    segment = node.GetSegmentation().GetNthSegmentID(0)
    before = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment).sum()
    editor(panel).saveStateForUndo()
    draw(node, segment, (slice(0, 1), slice(0, 9), slice(0, 9)))
    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, segment).sum() > before
    edit(panel, "Fixed")
    edit(panel, "Fixed")
    ui.undoStrokeButton.click()
    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, segment).sum() == before


def test_without_a_segment_editor_points_can_be_set(panel, monkeypatch):
    monkeypatch.delattr(slicer, "qMRMLSegmentEditorWidget")
    panel._correct.refresh()
    assert not panel._ui.editFixedButton.enabled
    assert "Segment Editor" in panel._ui.editFixedButton.toolTip
    assert panel._ui.placeFixedButton.enabled


def test_leaving_ends_the_drawing_and_the_module_leaves_no_editor_behind(widget, panel):
    edit(panel, "Fixed")
    node = editor(panel).segmentationNode()
    widget.ui.exportButton.collapsed = False
    assert panel._ui.editorFrame.isHidden()
    assert not editor(panel).keys
    assert panel.workplace.scene.IsNodePresent(node)
    assert seen_in(node) == ()
    widget.cleanup()
    assert not panel.workplace.scene.GetNumberOfNodesByClass("vtkMRMLSegmentEditorNode")


def test_what_was_drawn_stays_when_another_pair_is_looked_at(panel):
    edit(panel, "Fixed")
    node = editor(panel).segmentationNode()
    panel.show_entry(panel._list.entry("d4--r3"))
    read(panel)
    assert panel.workplace.scene.IsNodePresent(node)
    assert panel._ui.editorFrame.isHidden()
    assert seen_in(node) == ()
    panel.show_entry(panel._list.entry("d3--r3"))
    read(panel)
    assert correction(panel).edited("fixed") is node
    edit(panel, "Fixed")
    panel._ui.clearPointsButton.click()
    assert editor(panel).segmentationNode() is None
    assert panel._ui.editorFrame.isHidden()
    assert not panel.workplace.scene.IsNodePresent(node)
    assert not panel._ui.againButton.enabled
    assert "an edited segmentation" in panel._ui.againButton.toolTip


def test_points_are_set_in_turn_and_those_in_the_warped_image_are_of_the_moving_one(panel):
    ui = panel._ui
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    ui.placeFixedButton.click()
    assert ui.placeFixedButton.checked
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    inside = middle(panel)
    place(panel, "fixed", inside)
    assert ui.placeMovingButton.checked
    assert not ui.placeFixedButton.checked
    assert not ui.againButton.enabled
    place(panel, "moving", inside)
    assert not ui.placeMovingButton.checked
    assert "1 points in both images" in ui.givenLabel.text
    assert ui.againButton.enabled
    given = {}

    def take(fixed, moving):
        for name, side in (("fixed", fixed), ("moving", moving)):
            given[name] = np.array(side.points.GetNthControlPointPositionWorld(0))

    nodes = panel.workplace.scene.GetNumberOfNodes()
    correction(panel).sides(take)
    forward = read_transform(panel.workplace.pair.folder / "forward.h5")
    expected = forward.transform_points(given["fixed"] * [-1, -1, 1]) * [-1, -1, 1]
    np.testing.assert_allclose(given["moving"], expected, atol=1e-2)
    assert panel.workplace.scene.GetNumberOfNodes() == nodes


def test_leaving_ends_the_placing(panel):
    panel._ui.placeFixedButton.click()
    node = correction(panel).points("fixed")
    assert [observed for observed, _tag in panel._correct._observed] == [node]
    panel.left()
    assert not panel._correct._observed
    assert not panel._ui.placeFixedButton.checked
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    assert interaction.GetCurrentInteractionMode() != interaction.Place


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "tell('error', request=request['id'], code='input', message='The disk is full.')",
            "The disk is full.",
        ),
        ("os._exit(3)", "ended"),
    ],
    ids=["error", "crash"],
)
def test_a_registration_that_fails_says_why_and_leaves_no_version(panel, code, words):
    use_worker(panel, code)
    ui, pair = panel._ui, panel.workplace.pair
    before = result_of(pair.folder)
    edit(panel, "Moving")
    ui.againButton.click()
    assert not ui.againButton.enabled
    slicer_harness.process_until(lambda: ui.messageLabel.text, 60)
    assert words in ui.messageLabel.text
    assert panel.workplace.pair is pair
    assert result_of(pair.folder) == before
    assert len(versions(pair.folder)) == 1
    assert ui.againButton.enabled


def test_a_scene_closed_while_it_registers_is_survived(widget, panel):
    use_worker(panel, "time.sleep(30)")
    edit(panel, "Moving")
    panel._ui.againButton.click()
    panel.workplace.scene.Clear(0)
    widget.enter()
    slicer_harness.process_until(lambda: not panel.workplace.runner.running(), 30)
    assert panel.workplace.pair is None


@pytest.mark.xdist_group("trained")
def test_a_pair_is_registered_again_by_the_warm_worker_kept_as_a_version_and_undone(
    finished, widget, tmp_path
):
    from trained_study import copy_of

    study = copy_of(finished.study, tmp_path / "study")
    pair = sorted(path.parent.name for path in (study.folder / "registrations").glob("*/report.json"))[0]
    panel = open_pair(widget, study.folder, pair)
    ui, folder = panel._ui, panel.workplace.pair.folder
    first = result_of(folder)
    ui.placeFixedButton.click()
    place(panel, "fixed", middle(panel))
    place(panel, "moving", middle(panel) + np.array([1.0, 0.5, 0.0]))
    edit(panel, "Moving")
    took = []
    for number in (1, 2):
        before = result_of(panel.workplace.pair.folder)
        start = time.monotonic()
        ui.againButton.click()
        with Gaps() as gaps:
            gaps.spin(lambda: result_of(panel.workplace.pair.folder) != before, 240)  # noqa: B023
        took.append(time.monotonic() - start)
        assert gaps.longest < 0.1
        assert panel.workplace.pair.folder == folder / "versions" / f"{number + 1:03}"
        assert ui.editorFrame.isHidden(), "what has changed is seen"
        assert background(MOVING.name) == panel.workplace.pair.shown.GetID()
        assert ui.messageLabel.text == ""
    print(f"Registered again, from the click to what is seen: {took[0]:.2f} s cold, {took[1]:.2f} s warm")
    assert f"version {number + 1}" in ui.pairLabel.text
    report = json.loads((panel.workplace.pair.folder / "report.json").read_text())
    assert len(report["guiding_landmarks"]["names"]) == 1
    rows = [[ui.versionsTable.item(r, c).text() for c in range(3)] for r in range(ui.versionsTable.rowCount)]
    assert len(rows) == 3
    assert rows[2][2] == "moving edited, 1 points"
    assert result_of(folder) == first
    ui.useButton.click()
    assert not ui.useButton.enabled
    settle(panel)
    assert result_of(folder) != first
    assert panel.workplace.pair.folder == folder
    for _ in range(2):
        ui.undoButton.click()
        read(panel)
    assert result_of(panel.workplace.pair.folder) == first
    assert not ui.undoButton.enabled
    ui.useButton.click()
    assert not ui.useButton.enabled
    settle(panel)
    assert result_of(folder) == first
    assert len(versions(folder)) == 3
