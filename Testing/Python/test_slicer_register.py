"""Step 4, as a user meets it: images are chosen, a pair or many are registered; choices stay with a scene."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from functools import partial

import pytest
import slicer_harness
from reported_study import make_reported_study
from scene_study import STRUCTURES, some_labels
from slicer_module import FOLDER, Gaps, environment, fake_job, slicer
from test_scene_bridge_registration import copy_of

import qt
from SegGuidedMMReg import SegGuidedMMRegLogic, SegGuidedMMRegParameterNode
from SegGuidedMMRegGui import ReadingJob
from SegGuidedMMRegGui.GrowingTable import GrowingTable
from SegGuidedMMRegGui.JobPython import choose_python
from SegGuidedMMRegGui.NodeTags import Tag, nodes_of
from SegGuidedMMRegGui.PairTable import PairRow, PairTable
from SegGuidedMMRegGui.PairWords import summary
from SegGuidedMMRegGui.RegisterPanel import RegisterPanel
from SegGuidedMMRegGui.SegmentationNodes import show_labels
from SegGuidedMMRegGui.WorkerClient import WorkerClient


@pytest.fixture
def widget():
    slicer_harness.slot_errors.clear()
    choose_python("")
    slicer.mrmlScene.Clear(0)
    opened = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    yield opened
    opened.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


@pytest.fixture
def panel():
    """The step alone, which opens faster than the module."""
    slicer_harness.slot_errors.clear()
    choose_python("")
    slicer.mrmlScene.Clear(0)
    logic = SegGuidedMMRegLogic()
    workplace = logic.workplace
    made = RegisterPanel(workplace)
    workplace.parameters = SegGuidedMMRegParameterNode(logic.getParameterNode())
    made.choices_changed()
    workplace.watchers.append(made.study_changed)
    yield made
    made.cleanup()
    logic.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


@pytest.fixture
def step(widget):
    """The step within the module."""
    widget.goTo("register")
    return widget.panels["register"]


def settle(panel, seconds=120) -> None:
    def is_quiet():
        return not panel.workplace.runner.running()

    slicer_harness.process_until(is_quiet, seconds)


def open_study(panel, folder) -> None:
    failures: list[str] = []
    panel.workplace.open(str(folder), failures.append)
    slicer_harness.process_until(lambda: panel.workplace.folder == str(folder) or failures, 90)
    assert not failures


def pretend_trained(study) -> None:
    for stage in ("segmentation", "adaptation", "registration"):
        study.stage_folder(stage).mkdir(parents=True, exist_ok=True)
        for name in ("weights.safetensors", "network.yaml"):
            (study.stage_folder(stage) / name).write_text("")


@pytest.fixture
def knees(tmp_path):
    study = make_reported_study(tmp_path / "knees", 2, 32)
    pretend_trained(study)
    return study


@pytest.fixture
def trained(finished, tmp_path):
    from trained_study import copy_of as copy_of_study

    return copy_of_study(finished.study, tmp_path / "study")


def choose(box, text: str) -> None:
    """As a user does, from the list or by typing all of it."""
    index = next(n for n in range(box.count) if box.itemText(n).startswith(text))
    box.currentIndex = index
    box.activated.emit(index)


class FakePython:
    def __init__(self, code):
        self.code = code

    def command(self, _):
        return fake_job(self.code)

    def environment(self):
        return environment()


# -- choosing ---------------------------------------------------------------------------------------------
def test_a_button_says_what_is_missing(panel, tmp_path):
    ui = panel._ui
    assert not ui.startButton.enabled
    assert "an open study" in ui.startButton.toolTip
    assert "an open study" in ui.manyStartButton.toolTip
    study = make_reported_study(tmp_path / "knees", 2, 32)
    open_study(panel, study.folder)
    assert "a trained study: segmentation, adaptation, registration (step 3)" in ui.startButton.toolTip
    assert "a moving image, a fixed image" in ui.startButton.toolTip
    pretend_trained(study)
    panel.opened()
    slicer_harness.process_until(lambda: "trained" not in ui.startButton.toolTip, 60)
    choose(ui.movingCaseBox, "dxa/d3")
    choose(ui.fixedCaseBox, "dxa/d3")
    assert ui.startButton.toolTip == "Needs two different images"
    choose(ui.fixedCaseBox, "radiograph/r3")
    assert ui.startButton.enabled
    ui.movingPointsBox.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "p"))
    assert "landmarks of both images" in ui.startButton.toolTip
    assert ui.ownButton.text == "Own segmentations and landmarks (1)"


def test_a_case_is_found_by_a_part_of_its_name(panel, knees):
    open_study(panel, knees.folder)
    box = panel._ui.movingCaseBox
    completer = box.completer()
    completer.setCompletionPrefix("D3")
    assert completer.currentCompletion() == "dxa/d3 (test)"
    choose(box, "dxa/d3")
    assert panel.workplace.parameters.movingCase == "dxa/d3"
    line = box.lineEdit()
    line.text = "nobody"
    line.editingFinished.emit()
    assert line.text == "dxa/d3 (test)"


def test_of_a_volume_the_study_does_not_know_modality_and_side_are_asked(panel, knees):
    open_study(panel, knees.folder)
    ui, bridge = panel._ui, panel.workplace.bridge
    assert not ui.fixedVolumeBox.isHidden()
    assert ui.fixedKindFrame.isHidden()
    case = bridge.show_case(knees.case("r3"))
    ui.fixedVolumeBox.setCurrentNode(case)
    assert ui.fixedKindFrame.isHidden()
    ui.fixedVolumeBox.setCurrentNode(copy_of(slicer.mrmlScene, case, "theirs"))
    assert not ui.fixedKindFrame.isHidden()
    assert ui.fixedModalityBox.currentText == "radiograph"
    choose(ui.fixedModalityBox, "dxa")
    ui.fixedMirroredBox.click()
    side = panel._sides[1].chosen().side(ui.fixedVolumeBox.currentNode())
    assert (side.modality, side.mirrored) == ("dxa", True)
    choose(ui.fixedCaseBox, "radiograph/r3")
    assert ui.fixedVolumeBox.isHidden()
    assert ui.fixedKindFrame.isHidden()
    side = panel._sides[1].chosen().side(case)
    assert (side.modality, side.mirrored) == (None, False)


def test_single_segments_are_chosen_for_structures(panel, knees):
    open_study(panel, knees.folder)
    ui, scene = panel._ui, slicer.mrmlScene
    ui.ownButton.collapsed = False
    assert ui.segmentsTable.isHidden()
    renamed = [replace(STRUCTURES[0], name="FEMUR"), replace(STRUCTURES[1], name="bone 2")]
    grid = knees.read_image(knees.cases[0]).grid
    labels = some_labels(grid)
    theirs = show_labels(scene, labels, [*renamed, STRUCTURES[2]], Tag("x", "y", "z"), "theirs")
    ui.movingSegmentationBox.setCurrentNode(theirs)
    assert not ui.segmentsTable.isHidden()
    side, table = panel._sides[0], ui.segmentsTable
    assert side.segments() is None
    names = [table.item(row, 0).text() for row in range(table.rowCount)]
    assert names[:2] == ["femur", "tibia"]
    boxes = [table.cellWidget(row, 1) for row in range(table.rowCount)]
    assert (boxes[0].currentText, boxes[1].currentText) == ("FEMUR", "–")
    assert not table.cellWidget(0, 2).enabled
    choose(boxes[1], "bone 2")
    assert table.cellWidget(1, 1) is boxes[1]
    segments = side.segments()
    assert (segments["femur"], segments["tibia"]) == ("Segment_1", "Segment_4")
    choose(boxes[0], "–")
    theirs.SetName("renamed meanwhile")  # Slicer tells that as if another one were chosen
    assert "femur" not in side.segments()
    ui.movingSegmentationBox.setCurrentNode(None)
    assert side.segments() is None


def test_choices_come_back_with_a_saved_scene(widget, step, knees, tmp_path):
    open_study(step, knees.folder)
    ui, scene = step._ui, slicer.mrmlScene
    theirs = copy_of(scene, step.workplace.bridge.show_case(knees.case("d3")), "theirs")
    ui.movingVolumeBox.setCurrentNode(theirs)
    ui.movingMirroredBox.click()
    choose(ui.fixedCaseBox, "radiograph/r4")
    ui.manyButton.collapsed = False
    choose(ui.pairsBox, "Every case to one")
    choose(ui.templateBox, "dxa/d2")
    settle(step)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(0)
    widget.enter()
    assert ui.fixedCaseBox.currentText == "a volume of the scene"
    assert ui.movingVolumeBox.currentNode() is None
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Connect()
    widget.enter()
    open_study(step, knees.folder)
    assert ui.movingVolumeBox.currentNode().GetName() == "theirs"
    assert ui.movingMirroredBox.checked
    assert ui.fixedCaseBox.currentText == "radiograph/r4 (test)"
    assert ui.pairsBox.currentText.startswith("Every case to one")
    assert ui.templateBox.currentText.startswith("dxa/d2")


# -- a pair -----------------------------------------------------------------------------------------------
@pytest.mark.xdist_group("trained")
def test_two_cases_are_registered_shown_and_told(widget, step, trained):
    open_study(step, trained.folder)
    settle(step)
    ui, cases = step._ui, [trained.cases_of(m, "test")[0] for m in (trained.source, trained.target)]
    choose(ui.movingCaseBox, cases[0].key)
    choose(ui.fixedCaseBox, cases[1].key)
    heard: list[object] = []
    step.workplace.pair_watchers.append(lambda: heard.append(step.workplace.pair))
    ui.startButton.click()
    assert not ui.startButton.enabled
    assert "Wait" in ui.startButton.toolTip
    with Gaps() as gaps:
        gaps.spin(lambda: heard, 120)
    assert gaps.longest < 0.1
    nodes = step.workplace.pair
    assert (nodes.status, ui.messageLabel.text) == ("ok", "")
    told = ui.resultLabel.text
    dice = nodes.report["mean"]["after"]["dice"]
    assert told.startswith("Registered well.")
    assert f"{dice:.2f} after, by hand-made labels" in told
    assert "No folds." in told
    assert ui.reviewButton.isHidden() == ("review" not in widget.panels)
    assert nodes.folder == trained.folder / "registrations" / f"{cases[0].name}--{cases[1].name}"
    assert nodes.shown.GetTransformNodeID() == nodes.forward.GetID()
    assert {n.IsA("vtkMRMLSegmentationNode") for n in (nodes.moving_labels, nodes.fixed_labels)} == {True}
    assert ui.startButton.enabled
    ui.reviewButton.click()
    step.workplace.close()
    assert ui.resultLabel.isHidden()
    assert step.workplace.pair is None


BAD = """
asked = json.loads(sys.stdin.readline())
tell('error', code='input', message='It is torn.', request=asked['id'])
time.sleep(9)
"""


def test_what_went_wrong_stands_in_the_step_and_its_report_in_the_strip(widget, step, knees):
    open_study(step, knees.folder)
    settle(step)
    ui, workplace = step._ui, step.workplace
    choose(ui.movingCaseBox, "dxa/d3")
    choose(ui.fixedCaseBox, "radiograph/r3")
    workplace._worker = WorkerClient(workplace.folder, workplace.runner, FakePython(BAD))
    ui.startButton.click()
    slicer_harness.process_until(lambda: ui.messageLabel.text, 30)
    assert ui.messageLabel.text == "It is torn."
    assert ui.startButton.enabled
    assert not ui.reviewButton.isVisible()
    widget.strip._ui.reportButton.click()
    assert "It is torn." in qt.QApplication.clipboard().text()
    knees.folder.joinpath(knees.case("d4").image).write_text("torn")
    choose(ui.movingCaseBox, "dxa/d4")
    ui.startButton.click()
    slicer_harness.process_until(lambda: "d4.nrrd" in ui.messageLabel.text, 30)
    assert ui.startButton.enabled


def test_what_cannot_be_registered_is_said_and_a_volume_deleted_is_missing(panel, knees):
    open_study(panel, knees.folder)
    ui, scene, bridge = panel._ui, slicer.mrmlScene, panel.workplace.bridge
    choose(ui.fixedCaseBox, "radiograph/r3")
    theirs = copy_of(scene, bridge.show_case(knees.case("d3")), "theirs")
    ui.movingVolumeBox.setCurrentNode(theirs)
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    ui.movingSegmentationBox.setCurrentNode(empty)
    ui.startButton.click()
    slicer_harness.process_until(lambda: ui.messageLabel.text, 30)
    assert "'empty' has no segment" in ui.messageLabel.text
    scene.RemoveNode(theirs)
    panel.opened()
    assert ui.startButton.toolTip == "Needs a moving image"


def test_a_scene_closed_while_images_are_read_gets_nothing(widget, step, knees, monkeypatch):
    monkeypatch.setattr(ReadingJob, "BUSY_S", 0.0)  # these small images are soon read
    open_study(step, knees.folder)
    ui = step._ui
    choose(ui.movingCaseBox, "dxa/d3")
    choose(ui.fixedCaseBox, "radiograph/r3")
    ui.startButton.click()
    slicer.mrmlScene.Clear(0)
    widget.enter()
    slicer_harness.process_until(lambda: not step._is_busy, 30)
    assert not nodes_of(slicer.mrmlScene)
    assert not step._registration.is_running
    assert "The scene was closed" in ui.messageLabel.text


def test_a_module_left_and_entered_while_images_are_read_registers_them(widget, step, knees):
    open_study(step, knees.folder)
    settle(step)
    ui, workplace = step._ui, step.workplace
    choose(ui.movingCaseBox, "dxa/d3")
    choose(ui.fixedCaseBox, "radiograph/r3")
    workplace._worker = WorkerClient(workplace.folder, workplace.runner, FakePython(BAD))
    ui.startButton.click()
    assert step._is_busy
    widget.exit()
    widget.enter()
    slicer_harness.process_until(lambda: not step._is_busy, 30)
    assert ui.messageLabel.text == "It is torn."  # which the worker says, so it was asked
    assert len(nodes_of(slicer.mrmlScene)) == 2


def test_a_result_is_told_in_words():
    report = {
        "warnings": ["femur: half of it is outside the image"],
        "mean": {"before": {"dice": 0.5}, "after": {"dice": 0.9}},
        "labels": {"moving": "prediction", "fixed": "prediction"},
        "folds": {"total": 12},
        "inverse_consistency": {"mean_voxels": 0.0123, "max_voxels": 0.5},
        "landmarks": {"mean_before_mm": 8.0, "mean_after_mm": 1.25},
        "guiding_landmarks": None,
        "seconds": 1.26,
    }
    assert summary("failed", ["it folds."], report).splitlines() == [
        "Not to be trusted: it folds.",
        "Note: femur: half of it is outside the image.",
        "Overlap of the structures (Dice): 0.50 before, 0.90 after, by predictions.",
        "12 folded voxels.",
        "There and back misses the start by 0.012 voxels, 0.50 at most.",
        "Landmarks: 8.0 mm apart before, 1.2 after.",
        "Computed in 1.3 s.",
    ]
    report["labels"] = {"moving": "given", "fixed": "prediction"}
    assert "0.90 after, by given segmentations." in summary("ok", [], report)
    assert summary("failed", [], {}) == "Not to be trusted: no reason is given."


# -- many pairs -------------------------------------------------------------------------------------------
def rows(panel) -> list[list[str]]:
    table = panel._ui.pairsTable
    return [
        [table.item(r, c).text() if table.item(r, c) else "" for c in range(table.columnCount)]
        for r in range(table.rowCount)
    ]


def wait_for_list(panel, count: int) -> None:
    def is_there():
        return len(rows(panel)) == count and all(row[0] for row in rows(panel))

    slicer_harness.process_until(is_there, 90)


@pytest.mark.xdist_group("trained")
def test_many_pairs_are_registered_cancelled_continued_and_shown(widget, step, trained):
    shutil.rmtree(trained.folder / "registrations")
    open_study(step, trained.folder)
    settle(step)
    ui = step._ui
    ui.manyButton.collapsed = False
    wait_for_list(step, 4)
    assert {row[2] for row in rows(step)} == {"waits"}
    assert ui.countLabel.text == "0 of 4 pairs are done, 0 failed."
    assert not ui.manyShowButton.enabled
    ui.manyStartButton.click()
    assert "the end of the job" in ui.manyStartButton.toolTip
    assert widget.strip._ui.jobLabel.text.startswith("Registering many pairs")
    widget.strip._ui.cancelButton.click()
    slicer_harness.process_until(lambda: ui.manyStartButton.enabled, 60)
    assert "Cancelled" in ui.countLabel.text
    ui.manyStartButton.click()
    with Gaps() as gaps:
        gaps.spin(lambda: "4 of 4" in ui.countLabel.text and ui.manyStartButton.enabled, 240)
    assert gaps.longest < 0.1
    with (trained.folder / "registrations" / "summary.csv").open(encoding="utf-8", newline="") as file:
        told = {line["pair"]: line for line in csv.DictReader(file)}
    slicer_harness.process_until(lambda: all(row[2] != "waits" for row in rows(step)))
    for row in rows(step):
        line = told[f"{row[0]}--{row[1]}"]
        assert row[2] == line["status"]
        assert float(row[4]) == pytest.approx(float(line["dice_after"]), abs=0.006)
        assert row[5] == line["folded_voxels"]
    heard: list[object] = []
    step.workplace.pair_watchers.append(lambda: heard.append(step.workplace.pair))
    ui.pairsTable.cellDoubleClicked.emit(1, 0)
    slicer_harness.process_until(lambda: heard, 60)
    nodes = step.workplace.pair
    assert nodes.folder.name == "--".join(rows(step)[1][:2])
    assert nodes.shown is not None
    assert nodes.moving_labels.GetName().endswith("prediction")
    ui.pairsTable.setCurrentCell(2, 0)
    heard.clear()
    ui.manyShowButton.click()
    slicer_harness.process_until(lambda: heard, 60)
    assert step.workplace.pair.folder.name == "--".join(rows(step)[2][:2])


def test_a_list_of_the_users_is_checked_and_shown(panel, knees, tmp_path):
    open_study(panel, knees.folder)
    ui = panel._ui
    ui.manyButton.collapsed = False
    choose(ui.pairsBox, "The pairs of a list")
    assert "a list" in ui.manyStartButton.toolTip
    path = tmp_path / "pairs.csv"
    path.write_text("moving,fixed\nd3,nobody\n")
    ui.pairsPath.currentPath = str(path)
    slicer_harness.process_until(lambda: "nobody" in ui.countLabel.text, 60)
    assert not ui.manyStartButton.enabled
    path.write_text("moving,fixed,name\nd3,r3,mine\nd4,r3,\n")
    panel.opened()
    wait_for_list(panel, 2)
    assert [row[:2] for row in rows(panel)] == [["d3", "r3"], ["d4", "r3"]]
    assert ui.manyStartButton.enabled
    choose(ui.pairsBox, "Every case to one")
    assert "a template" in ui.manyStartButton.toolTip
    choose(ui.templateBox, "radiograph/r1")
    wait_for_list(panel, 7)
    panel.workplace.close()
    assert rows(panel) == []
    settle(panel)


def test_a_list_is_asked_for_when_its_path_is_typed_not_at_every_key(panel, knees, tmp_path, monkeypatch):
    path, asked, runner = tmp_path / "pairs.csv", [], panel.workplace.runner
    path.write_text("moving,fixed\nd3,r3\nd4,r3\n")
    open_study(panel, knees.folder)
    ui, start = panel._ui, runner.start
    ui.manyButton.collapsed = False
    choose(ui.pairsBox, "The pairs of a list")

    def started(title, arguments, *others):
        asked.append(arguments)
        return start(title, arguments, *others)

    monkeypatch.setattr(runner, "start", started)
    for length in range(1, len(str(path)) + 1):
        ui.pairsPath.currentPath = str(path)[:length]
        slicer_harness.process_until(lambda: True, 1)
        assert not ui.manyStartButton.enabled
    assert not asked
    wait_for_list(panel, 2)
    assert [arguments[arguments.index("--pairs") + 1] for arguments in asked] == [str(path)]
    assert ui.manyStartButton.enabled
    ui.pairsPath.currentPath = str(path)[:-1]
    assert rows(panel) == []
    assert not ui.manyStartButton.enabled
    slicer_harness.process_until(lambda: "pairs.cs" in ui.countLabel.text, 60)
    settle(panel)


def test_thousands_of_pairs_do_not_keep_the_window_busy(panel):
    table, widget = PairTable(panel._ui.pairsTable, lambda row: None), panel._ui.pairsTable
    found = {"status": "ok", "dice_before": "0.5", "folded_voxels": "0", "seconds": "1.2"}
    lines = [{"pair": f"a{n}--b", **found, "dice_after": f"0.{n:04d}"} for n in range(500)]
    count, bar = 5000, widget.verticalScrollBar()

    def at(row):
        bar.value = row
        return [widget.item(row, column).text() for column in range(5)]

    def tell():
        for line in lines:
            table.tell(line)

    panel._ui.manyButton.collapsed = False
    panel.widget.show()
    many = [PairRow(f"a{n}--b", f"s/a{n}", "t/b") for n in range(count)]
    sort = partial(table.onSort, 4)
    with Gaps() as gaps:
        for step in (partial(table.set_pairs, many), tell, sort, table.forget_results, tell, sort):
            qt.QTimer.singleShot(0, step)
            gaps.spin(lambda: False, 0.3)
    assert gaps.longest < 0.1
    assert at(0) == ["a499", "b", "ok", "0.50", "0.05"]
    assert at(499)[:3] == ["a0", "b", "ok"]
    assert at(4000) == ["a4000", "b", "waits", "", ""]
    assert table.counts() == (count, 500, 0)
    panel.widget.hide()
    table.stop()


def test_a_table_is_read_while_it_grows_and_when_it_is_made_anew(tmp_path):
    path = tmp_path / "summary.csv"
    table = GrowingTable(path)
    assert table.more() == (False, [])
    path.write_text('pair,reason\na,"x, y"\nb,ha')
    assert table.more() == (False, [{"pair": "a", "reason": "x, y"}])
    with path.open("a") as file:
        file.write("lf\n")
    assert table.more() == (False, [{"pair": "b", "reason": "half"}])
    assert table.more() == (False, [])
    new = tmp_path / "new.csv"
    new.write_text("reason,pair\nz,c\n")
    new.replace(path)
    assert table.more() == (True, [{"pair": "c", "reason": "z"}])
    with path.open("a") as file:
        file.writelines(f"reason {n},d{n}\n" for n in range(5000))
    seen = 0
    while True:
        is_new, found = table.more()
        assert not is_new
        seen += len(found)
        if not table.has_more:
            break
    assert seen == 5000


ENDLESS = """
tell('started', stage='register', pid=os.getpid())
tell('progress', stage='register', step=1, of=9)
time.sleep(60)
"""


def test_a_job_that_outlived_slicer_is_found_again(widget, step, knees):
    from SegGuidedMMRegGui.DetachedJob import DetachedJob
    from SegGuidedMMRegGui.JobEvents import JobListener

    job = DetachedJob.begin(knees.folder, ("register", str(knees.folder)), JobListener(), FakePython(ENDLESS))
    job.leave()
    open_study(step, knees.folder)
    assert "the end of the job" in step._ui.manyStartButton.toolTip
    slicer_harness.process_until(lambda: "register" in widget.strip._ui.jobLabel.text, 30)
    widget.strip._ui.cancelButton.click()
    slicer_harness.process_until(lambda: step._many._job is None, 60)
    job._child.wait()


def test_the_panel_fits_and_every_button_says_what_it_does(panel, knees):
    open_study(panel, knees.folder)
    for button in (panel._ui.ownButton, panel._ui.manyButton):
        button.collapsed = False
    assert panel.widget.minimumSizeHint.width() <= 420
    for kind in ("QPushButton", "QComboBox", "qMRMLNodeComboBox"):
        for found in slicer.util.findChildren(panel.widget, className=kind):
            assert found.toolTip or "cell" in found.name or not found.name, found.name
