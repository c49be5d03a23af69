"""Step 2 as a user does it: cases opened, drawn, saved, drafted, suggested; and what goes wrong."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer_harness
from reported_study import make_reported_study
from slicer_harness import layouts
from slicer_harness.segment_editor import draw
from slicer_module import FOLDER, Gaps, slicer
from trained_study import tiny_config

import qt
from SegGuidedMMRegGui import CaseDesk as case_desk
from SegGuidedMMRegGui import OpenCase as open_case
from SegGuidedMMRegGui.AnnotatePanel import AnnotatePanel
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.OpenCase import CaseFiles
from SegGuidedMMRegGui.SegmentationNodes import nothing_on
from SegGuidedMMRegGui.VolumeNodes import range_of
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.importing.labelling import label_cases
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study


@pytest.fixture(autouse=True)
def clean():
    layouts.start(slicer)
    slicer_harness.slot_errors.clear()
    slicer_harness.displays.clear()
    slicer.mrmlScene.Clear(0)
    yield
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Four knees a modality; of dxa only d1 has labels for training, d3 and d4 for evaluation."""
    folder = make_reported_study(tmp_path_factory.mktemp("annotate") / "knees", 2).folder
    label_cases(folder, ["d2"], use="none")
    (folder / "labels/dxa/d2.seg.nrrd").unlink()
    replace(Study.open(folder), config=tiny_config(2, hurried=True)).save_settings()
    return folder


@pytest.fixture
def knees(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "knees")
    return tmp_path / "knees"


@pytest.fixture
def panel(knees):
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    workplace.parameters = SimpleNamespace()
    panel = AnnotatePanel(workplace)
    workplace.watchers.append(panel.study_changed)
    workplace.open(str(knees))
    settle(panel)
    panel.opened()
    yield panel
    panel.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()


def settle(panel: AnnotatePanel, seconds: float = 90) -> None:
    runner = panel.workplace.runner
    slicer_harness.process_until(
        lambda: not runner.running() and not panel.desk.is_busy and not runner.running(), seconds
    )


def open_by(panel: AnnotatePanel, key: str) -> None:
    """Choose a row and press Enter."""
    panel.list.choose(key)
    panel.onOpen()
    slicer_harness.process_until(lambda: panel.desk.case is not None and panel.desk.case.case.key == key)
    panel.onLook()


def paint(panel: AnnotatePanel, structure: int = 1, place=(slice(0, 1), slice(5, 25), slice(5, 20))) -> None:
    panel.desk.editor.remember()
    draw(panel.desk.case.segmentation, f"Segment_{structure}", place)
    panel.onLook()


def row(panel: AnnotatePanel, key: str) -> str:
    rows = panel._ui.casesList
    texts = [rows.item(n).text() for n in range(rows.count)]
    return next(text for text in texts if f"  {key.partition('/')[2]}  " in text)


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def message(panel: AnnotatePanel) -> str:
    return panel._ui.messageLabel.text


# -- the list -------------------------------------------------------------------------------------------
def test_cases_are_listed_with_their_state(panel):
    assert [panel._ui.casesList.item(n).text() for n in range(4)] == [
        "●  d1  ·  dxa  ·  labelled, for training",
        "○  d2  ·  dxa  ·  no labels",
        "◆  d3  ·  dxa  ·  labelled, for evaluation",
        "◆  d4  ·  dxa  ·  labelled, for evaluation",
    ]
    assert "1 of 2 images of dxa for training are labelled" in panel._ui.summaryLabel.text
    assert "For evaluation: 6." in panel._ui.summaryLabel.text


def test_the_list_shows_a_modality_what_is_to_do_and_names_that_are_looked_for(panel):
    ui = panel._ui
    ui.modalityBox.setCurrentIndex(2)
    assert ui.casesList.count == 8
    ui.findEdit.text = "R3"
    assert ui.casesList.count == 1
    ui.findEdit.text = ""
    ui.todoBox.checked = True
    assert ui.casesList.count == 1
    assert vars(panel.workplace.parameters)["annotateToDo"] is True


def test_five_thousand_cases_are_listed_in_a_moment(panel):
    cases = [
        {"modality": "dxa", "name": f"k{n}", "role": "train", "label_use": None, "draft": False}
        for n in range(5000)
    ]
    with Gaps() as gaps:
        turns = iter((lambda: panel.list.fill(cases), lambda: panel.list.fill(cases, text="9")))
        import qt

        for turn in turns:
            qt.QTimer.singleShot(0, turn)
        gaps.spin(lambda: 0 < panel._ui.casesList.count < 5000, 5)
    assert gaps.longest < 0.1
    panel._fill()


# -- opening --------------------------------------------------------------------------------------------
def test_an_opened_case_is_upright_fitted_bright_and_ready_to_draw(panel):
    panel._ui.casesList.setCurrentRow(1)
    panel._ui.casesList.itemDoubleClicked.emit(panel._ui.casesList.item(1))
    slicer_harness.process_until(lambda: panel.desk.case is not None)
    case, layout = panel.desk.case, slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    assert layout.GetViewArrangement() == layout.SlicerLayoutOneUpRedSliceView
    composite = slicer.app.applicationLogic().GetSliceLogicByLayoutName("Red").GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == case.volume.GetID()
    picture = layouts.picture(slicer, "Red")[..., 0]
    shown = picture[np.ix_(picture.any(1), picture.any(0))]
    assert min(shown.shape) > 150, "it fills the view"
    low, high = np.percentile(slicer.util.arrayFromVolume(case.volume), (1, 99))
    display = case.volume.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((low, high))
    editor = panel.desk.editor.widget
    assert editor.segmentationNode() is case.segmentation
    assert editor.sourceVolumeNode() is case.volume
    assert editor.currentSegmentID() == "Segment_1"
    assert editor.keys
    assert editor.views
    segmentation = case.segmentation.GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
    assert names == [s["name"] for s in panel.workplace.study["structures"]]
    assert not case.is_changed


def test_a_labelled_case_shows_its_labels(panel, knees):
    open_by(panel, "dxa/d1")
    drawn = panel.desk.case.drawn().labels.array
    assert np.array_equal(drawn, voxels(knees / "labels/dxa/d1.seg.nrrd").reshape(drawn.shape))
    assert "labelled, for training" in panel._ui.caseLabel.text
    assert not panel._ui.saveButton.enabled


def test_brightness_is_kept_a_case(panel):
    open_by(panel, "dxa/d1")
    panel._ui.brightnessSlider.value = 30
    panel._ui.contrastSlider.value = 20
    display = panel.desk.case.volume.GetDisplayNode()
    changed = (display.GetWindowLevelMin(), display.GetWindowLevelMax())
    low, high = panel.desk.fitting
    assert changed[1] - changed[0] < high - low
    open_by(panel, "dxa/d2")
    open_by(panel, "dxa/d1")
    display = panel.desk.case.volume.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx(changed)
    panel._ui.autoButton.click()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((low, high))


def test_only_the_open_case_is_in_the_scene(panel):
    open_by(panel, "dxa/d1")
    count = slicer.mrmlScene.GetNumberOfNodes()
    for key in ("dxa/d2", "dxa/d3", "dxa/d1"):
        open_by(panel, key)
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_an_image_that_something_else_uses_stays(panel):
    open_by(panel, "dxa/d1")
    volume = panel.desk.case.volume
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetNodeReferenceID("fixed", volume.GetID())
    open_by(panel, "dxa/d2")
    assert slicer.mrmlScene.IsNodePresent(volume)


# -- saving ---------------------------------------------------------------------------------------------
def test_what_is_drawn_is_saved_when_the_next_case_is_opened(panel, knees):
    open_by(panel, "dxa/d2")
    paint(panel)
    assert "not saved" in row(panel, "dxa/d2")
    assert "not saved" in panel._ui.caseLabel.text
    panel._ui.nextButton.click()
    slicer_harness.process_until(lambda: panel.desk.case.case.key == "dxa/d3")
    settle(panel)
    assert voxels(knees / "labels/dxa/d2.seg.nrrd").sum() == 300
    assert Study.open(knees).case("d2").label_use == "training"
    assert "labelled, for training" in row(panel, "dxa/d2")
    assert "2 of 2 images" in panel._ui.summaryLabel.text


def test_the_key_saves_on_demand_and_says_what_is_missing(panel, knees):
    open_by(panel, "dxa/d2")
    paint(panel)
    panel._shortcuts[2].activated.emit()
    settle(panel)
    assert "d2 is saved" in message(panel)
    assert "nothing drawn for" in message(panel)
    assert not panel.desk.case.is_changed
    assert not panel._ui.saveButton.enabled
    assert Study.open(knees).case("d2").label_use == "training"
    paint(panel, 2, (slice(0, 1), slice(30, 40), slice(5, 20)))
    assert panel._ui.saveButton.enabled
    assert "not saved" in row(panel, "dxa/d2")


def test_nothing_drawn_is_no_label(panel, knees):
    open_by(panel, "dxa/d2")
    panel._ui.nextButton.click()
    slicer_harness.process_until(lambda: panel.desk.case.case.key == "dxa/d3")
    open_by(panel, "dxa/d2")
    paint(panel)
    panel._ui.undoButton.click()
    panel.desk.save()
    assert "nothing is saved" in message(panel)
    assert not (knees / "labels/dxa/d2.seg.nrrd").exists()


@pytest.mark.parametrize("leaving", ["left", "scene", "study", "cleanup"])
def test_nothing_is_lost_however_the_case_is_left(panel, knees, leaving):
    open_by(panel, "dxa/d2")
    paint(panel)
    if leaving == "left":
        panel.left()
    elif leaving == "scene":
        scene = slicer.mrmlScene
        tag = scene.AddObserver(scene.StartCloseEvent, lambda *_: panel.left())
        scene.Clear(0)
        scene.RemoveObserver(tag)
        assert panel.desk.case is None
    elif leaving == "study":
        panel.workplace.close()
    else:
        panel.cleanup()
    slicer_harness.process_until((knees / "labels/dxa/d2.seg.nrrd").is_file, 5)
    assert voxels(knees / "labels/dxa/d2.seg.nrrd").sum() == 300
    slicer_harness.process_until(lambda: Study.open(knees).case("d2").label_use == "training", 60)


def test_a_full_disk_keeps_the_case_open_and_says_so(panel, knees, monkeypatch):
    open_by(panel, "dxa/d2")
    paint(panel)

    def full(*_):
        raise OSError(28, "No space left on device", "d2.seg.nrrd")

    monkeypatch.setattr(open_case, "write_labels", full)
    panel._ui.nextButton.click()
    settle(panel)
    assert panel.desk.case.case.key == "dxa/d2"
    assert "No space left on device" in message(panel)
    assert panel.desk.case.is_changed
    assert not (knees / "labels/dxa/d2.seg.nrrd").exists()
    monkeypatch.undo()
    panel._ui.saveButton.click()
    settle(panel)
    assert "d2 is saved" in message(panel)


def test_structures_that_overlap_are_not_saved_and_named(panel):
    open_by(panel, "dxa/d2")
    paint(panel, 1)
    paint(panel, 2)
    segmentation = panel.desk.case.segmentation.GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in (0, 1)]
    panel._ui.nextButton.click()
    settle(panel)
    assert "overlap in 300 voxels" in message(panel)
    assert all(name in message(panel) for name in names)
    assert panel.desk.case.case.key == "dxa/d2"


def test_undo_takes_a_stroke_back_and_revert_all_of_them(panel):
    open_by(panel, "dxa/d1")
    before = panel.desk.case.drawn().labels.array
    paint(panel, 1, (slice(0, 1), slice(0, 4), slice(0, 4)))
    changed = panel.desk.case.drawn().labels.array
    paint(panel, 1, (slice(0, 1), slice(60, 64), slice(0, 4)))
    panel._ui.undoButton.click()
    assert np.array_equal(panel.desk.case.drawn().labels.array, changed)
    panel._ui.revertButton.click()
    settle(panel)
    assert np.array_equal(panel.desk.case.drawn().labels.array, before)
    assert not panel.desk.case.is_changed
    panel._ui.undoButton.click()
    assert np.array_equal(panel.desk.case.drawn().labels.array, changed)
    assert panel.desk.case.is_changed


def test_labels_can_be_kept_for_evaluation(panel, knees):
    open_by(panel, "dxa/d1")
    box = panel._ui.useBox
    assert [box.itemData(n) for n in range(box.count)] == ["training", "evaluation", "none"]
    box.setCurrentIndex(1)
    box.activated.emit(1)
    settle(panel)
    assert Study.open(knees).case("d1").label_use == "evaluation"
    assert "labelled, for evaluation" in panel._ui.caseLabel.text
    open_by(panel, "dxa/d3")
    assert [box.itemData(n) for n in range(box.count)] == ["evaluation", "none"]


def test_a_busy_study_keeps_the_drawing_as_a_draft_and_says_so(panel, knees):
    from SegGuidedMMRegLib.locks import working_on

    open_by(panel, "dxa/d2")
    paint(panel)
    with working_on(knees, "cases"):
        panel._ui.saveButton.click()
        settle(panel)
    assert "not used" in message(panel)
    assert "draft" in row(panel, "dxa/d2")
    assert panel._ui.saveButton.enabled
    panel._ui.saveButton.click()
    settle(panel)
    assert Study.open(knees).case("d2").label_use == "training"


# -- the scene ------------------------------------------------------------------------------------------
def test_nodes_that_are_deleted_close_the_case(panel):
    open_by(panel, "dxa/d2")
    slicer.mrmlScene.RemoveNode(panel.desk.case.volume)
    panel.onLook()
    assert panel.desk.case is None
    assert "removed from the scene" in message(panel)
    assert panel._ui.caseFrame.isHidden()
    open_by(panel, "dxa/d2")


def test_a_drawing_of_the_scene_that_the_study_does_not_have_is_kept(panel):
    bridge = panel.workplace.bridge
    case = bridge.study.case("d2")
    node = bridge.new_labels(case)
    draw(node, "Segment_1", (slice(0, 1), slice(5, 25), slice(5, 20)))
    panel.list.choose("dxa/d2")
    panel.onOpen()
    slicer_harness.process_until(lambda: panel.desk.case is not None)
    assert panel.desk.case.segmentation is node
    assert panel.desk.case.is_changed
    assert "not saved" in message(panel)
    assert panel.desk.case.drawn().labels.array.sum() == 300


def test_a_scene_comes_back_with_its_open_case(panel, knees):
    open_by(panel, "dxa/d2")
    paint(panel)
    workplace = Workplace(
        slicer.mrmlScene, JobRunner()
    )  # as of a module that finds the nodes in a loaded scene
    workplace.parameters = SimpleNamespace(annotateCase="dxa/d2", annotateToDo=True)
    other = AnnotatePanel(workplace)
    workplace.watchers.append(other.study_changed)
    other.opened()
    workplace.open(str(knees))
    slicer_harness.process_until(lambda: other.desk.case is not None, 60)
    assert other.desk.case.case.key == "dxa/d2"
    assert other.desk.case.drawn().labels.array.sum() == 300
    assert other._ui.todoBox.checked
    other.cleanup()
    workplace.cleanup()


def test_a_volume_is_shown_in_four_views(made, tmp_path):
    folder = make_reported_study(tmp_path / "volumes", 3, 32).folder
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    panel = AnnotatePanel(workplace)
    workplace.watchers.append(panel.study_changed)
    workplace.open(str(folder))
    settle(panel)
    panel.opened()
    open_by(panel, "dxa/d1")
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    for view in ("Red", "Green", "Yellow"):
        logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName(view)
        assert logic.GetSliceCompositeNode().GetBackgroundVolumeID() == panel.desk.case.volume.GetID()
        assert layouts.picture(slicer, view)[..., 0].max() > 100
    assert "Fill between slices" in panel.desk.editor.widget.effectNameOrder()
    panel.cleanup()
    workplace.cleanup()


def test_without_a_segment_editor_the_panel_still_opens(panel, monkeypatch):
    monkeypatch.delattr(slicer, "qMRMLSegmentEditorWidget")
    open_by(panel, "dxa/d1")
    assert panel.desk.editor.widget is None
    assert not panel._ui.undoButton.enabled
    assert "Segment Editor" in panel._ui.undoButton.toolTip


# -- help -----------------------------------------------------------------------------------------------
class FakeWorker:
    """Answers what it is told to, when it is told to."""

    def __init__(self, runner):
        self.asked: list[dict] = []
        self._runner, self._jobs = runner, []

    def ask(self, title, request, listener):
        from SegGuidedMMRegGui.WorkerClient import WorkerRequest

        job = WorkerRequest(self, len(self.asked), request, listener)
        self._runner.adopt(title, job)
        self.asked.append(dict(request))
        self._jobs.append(job)
        return job

    def answer(self, **data):
        self._jobs[-1].hear("result", data)

    def fail(self, text):
        self._jobs[-1].hear("error", {"code": "input", "message": text})

    def cancel(self, _number):
        pass

    def kill(self):
        pass


@pytest.fixture
def worker(panel, knees, monkeypatch):
    fake = FakeWorker(panel.workplace.runner)
    keys = [case.key for case in panel.workplace.bridge.study.cases]
    path = panel.workplace.bridge.study.affines_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"study_to_case_lps": dict.fromkeys(keys, np.eye(4).tolist())}))
    monkeypatch.setattr(Workplace, "worker", fake)
    return fake


def suggestion(name: str, gain: float) -> dict:
    return {"case": f"dxa/{name}", "stands_for": 2, "gain": gain, "reason": "stands for 2 of 3 images"}


def test_the_next_case_is_suggested_and_opened(panel, worker):
    panel._ui.suggestButton.click()
    assert worker.asked == [{"do": "suggest", "count": 5}]
    assert not panel._ui.suggestButton.enabled
    assert "help which was asked for" in panel._ui.suggestButton.toolTip
    worker.answer(cases=[suggestion("d2", 0.31)])
    slicer_harness.process_until(lambda: panel.desk.case is not None)
    assert panel.desk.case.case.key == "dxa/d2"
    assert "Most helpful next: d2, which stands for 2 of 3 images" in panel._ui.summaryLabel.text
    assert panel._ui.suggestButton.enabled


def test_what_is_drawn_is_saved_before_the_next_case_is_asked_for(panel, worker, knees):
    open_by(panel, "dxa/d2")
    paint(panel)
    panel._ui.suggestButton.click()
    assert not worker.asked
    slicer_harness.process_until(lambda: worker.asked, 60)
    assert Study.open(knees).case("d2").label_use == "training"
    worker.answer(cases=[suggestion("d2", 0.3)])


def test_little_gain_is_said(panel, worker):
    panel._ui.suggestButton.click()
    worker.answer(cases=[suggestion("d2", 0.02)])
    assert "More labels would help little" in panel._ui.summaryLabel.text


def test_a_suggestion_that_cannot_be_made_says_why(panel, worker):
    panel._ui.suggestButton.click()
    worker.fail("no image of 'dxa' is left to label.")
    assert "no image of 'dxa' is left to label" in message(panel)
    assert panel._ui.suggestButton.enabled


@pytest.fixture
def draft(knees, tmp_path) -> Path:
    """The labels of d1, as if they had been carried to another case."""
    path = tmp_path / "draft.seg.nrrd"
    shutil.copy(knees / "labels/dxa/d1.seg.nrrd", path)
    return path


def answer_with(worker, draft: Path, *warnings: str) -> None:
    worker.answer(file=str(draft), source="dxa/d1", warnings=list(warnings))


def test_a_draft_is_an_undoable_edit_and_no_label_until_it_is_saved(panel, worker, knees, draft):
    open_by(panel, "dxa/d2")
    panel._ui.prefillButton.click()
    assert worker.asked[0]["image"] == {"case": "dxa/d2"}
    answer_with(worker, draft, "The two are not alike.")
    settle(panel)
    assert "A draft from d1" in message(panel)
    assert "not alike" in message(panel)
    assert np.array_equal(panel.desk.case.drawn().labels.array.ravel(), voxels(draft).ravel())
    panel._ui.undoButton.click()
    assert not panel.desk.case.is_drawn
    panel.desk.editor.widget.redo()
    panel._ui.nextButton.click()
    slicer_harness.process_until(lambda: panel.desk.case.case.key == "dxa/d3")
    settle(panel)
    assert Study.open(knees).case("d2").label_use is None
    panel.workplace.read_again()
    settle(panel)
    assert "draft" in row(panel, "dxa/d2")
    open_by(panel, "dxa/d2")
    assert np.array_equal(panel.desk.case.drawn().labels.array.ravel(), voxels(draft).ravel())
    panel._ui.saveButton.click()
    settle(panel)
    assert Study.open(knees).case("d2").label_use == "training"
    assert "labelled, for training" in row(panel, "dxa/d2")


def test_a_drawing_is_replaced_only_after_a_question(panel, worker, draft, monkeypatch):
    open_by(panel, "dxa/d2")
    paint(panel)
    heard, answers = [], iter((False, True))
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text: heard.append(text) or next(answers))
    panel._ui.prefillButton.click()
    assert not worker.asked
    panel._ui.prefillButton.click()
    assert heard == ["Replace what is drawn for d2 by a draft? Undo brings it back."] * 2
    answer_with(worker, draft)
    settle(panel)
    assert np.array_equal(panel.desk.case.drawn().labels.array.ravel(), voxels(draft).ravel())


def test_what_is_drawn_while_a_draft_is_made_is_not_lost(panel, worker, draft, monkeypatch):
    open_by(panel, "dxa/d2")
    panel._ui.prefillButton.click()
    paint(panel)
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text: False)
    answer_with(worker, draft)
    settle(panel)
    assert panel.desk.case.drawn().labels.array.sum() == 300


def test_a_draft_for_a_case_that_is_not_open_any_more_is_left(panel, worker, draft):
    open_by(panel, "dxa/d2")
    panel._ui.prefillButton.click()
    open_by(panel, "dxa/d1")
    before = panel.desk.case.drawn().labels.array
    answer_with(worker, draft)
    settle(panel)
    assert np.array_equal(panel.desk.case.drawn().labels.array, before)
    assert "too late" in message(panel)


def test_the_prefill_button_says_what_it_needs(panel):
    open_by(panel, "dxa/d1")
    assert "another case of dxa with labels" in panel._ui.prefillButton.toolTip
    panel._ui.modalityBox.setCurrentIndex(1)
    open_by(panel, "radiograph/r1")
    assert "a trained study (step 3)" in panel._ui.prefillButton.toolTip


def test_images_are_pre_aligned_before_the_worker_suggests_and_drafts(panel, knees):
    open_by(panel, "dxa/d1")
    assert not (knees / "models/prealign/affines.json").exists()
    panel._ui.suggestButton.click()
    settle(panel, 170)
    slicer_harness.process_until(lambda: panel.desk.case.case.key == "dxa/d2", 90)
    assert (knees / "models/prealign/affines.json").is_file()
    panel._ui.prefillButton.click()
    settle(panel, 120)
    assert panel.desk.case.is_drawn, message(panel)
    assert "A draft from d1" in message(panel)


# -- manners --------------------------------------------------------------------------------------------
def test_the_gui_is_never_busy_for_long(panel, knees):
    with Gaps() as gaps:
        panel.list.choose("dxa/d1")
        panel.onOpen()
        gaps.spin(lambda: panel.desk.case is not None)
        paint(panel)
        panel.desk.open("dxa/d2")
        gaps.spin(lambda: panel.desk.case.case.key == "dxa/d2" and not panel.desk.is_busy, 60)
        panel.workplace.read_again()
        gaps.spin(lambda: not panel.workplace.runner.running(), 60)
    assert gaps.longest < 0.1


def test_large_volumes_are_opened_one_after_the_other_in_short_steps(panel, monkeypatch):
    grid = Grid((256, 256, 128), (0.5, 0.5, 1.0), (0.0, 0.0, 0.0))
    image = Image(np.random.default_rng(0).normal(100, 30, grid.shape).astype(np.int16), grid)
    labels = nothing_on(grid)
    labels.array[40:90, 60:200, 60:180] = 1
    files = CaseFiles(image, labels, range_of(image.array))
    monkeypatch.setattr(case_desk, "read_files", lambda *_: files)
    longest = 0.0
    for key in ("dxa/d1", "dxa/d3"):
        panel.desk.open(key)
        end = time.monotonic() + 60
        while (panel.desk.case is None or panel.desk.case.case.key != key) and time.monotonic() < end:
            before = time.thread_time()
            qt.QApplication.processEvents()
            longest = max(longest, time.thread_time() - before)
        assert panel.desk.case.case.key == key
        display = panel.desk.case.volume.GetDisplayNode()
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx(files.range)
        assert panel.desk.case.is_drawn
    assert longest < 0.1


def test_buttons_show_their_keys(panel):
    ui = panel._ui
    assert "Ctrl" in ui.previousButton.text
    assert "Ctrl" in ui.nextButton.text
    assert "Ctrl" in ui.saveButton.text
    assert "(Z)" in ui.undoButton.text


def test_leaving_gives_keys_and_views_back(panel):
    open_by(panel, "dxa/d1")
    editor = panel.desk.editor.widget
    panel.left()
    assert not editor.keys
    assert not editor.views
    assert not any(shortcut.isEnabled() for shortcut in panel._shortcuts)
    panel.opened()
    assert editor.keys
    assert panel._shortcuts[0].isEnabled()


def test_the_module_leaves_no_node_of_the_editor_behind(knees):
    widget = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    panel = widget.panels["annotate"]
    widget.workplace.open(str(knees))
    settle(panel)
    widget.ui.annotateButton.collapsed = False
    assert widget.ui.studyButton.collapsed
    open_by(panel, "dxa/d1")
    assert widget.workplace.parameters.annotateCase == "dxa/d1"
    slicer.mrmlScene.Clear(0)
    assert panel.desk.case is None
    widget.enter()
    widget.workplace.open(str(knees))
    settle(panel)
    open_by(panel, "dxa/d1")
    widget.cleanup()
    assert slicer.mrmlScene.GetSingletonNode("SegGuidedMMReg", "vtkMRMLSegmentEditorNode") is None
