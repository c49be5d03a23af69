"""The module as a user meets it: opened, closed, reloaded, two scenes in a row; the strip on top."""

from __future__ import annotations

import sys

import pytest
import slicer_harness
from slicer_module import FOLDER, environment, fake_job, slicer

import qt
from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.JobRunner import ChildJob


@pytest.fixture
def widget():
    slicer_harness.slot_errors.clear()
    slicer.mrmlScene.Clear(0)
    opened = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    yield opened
    opened.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


def begin(widget, code: str, title: str = "Fake job") -> ChildJob:
    job = ChildJob(fake_job(code), environment(), JobListener())
    widget.logic.runner.adopt(title, job)
    job.start()
    return job


def settle(widget) -> None:
    slicer_harness.process_until(lambda: not widget.logic.runner.running(), 120)


def test_the_module_tells_slicer_who_it_is(widget):
    parent = slicer.modules.SegGuidedMMRegInstance.parent
    assert parent.categories == ["Registration"]
    assert "MIDL 2024" in parent.acknowledgementText
    assert not parent.icon.isNull()


def test_the_set_up_card_is_folded_once_all_is_there(widget):
    assert widget.setupPanel.is_ready
    assert widget.ui.setupButton.collapsed
    settle(widget)
    assert widget.strip._ui.deviceLabel.text == widget.setupPanel.device != ""


def test_the_strip_shows_the_job_its_progress_and_time_left(widget):
    settle(widget)
    ui = widget.strip._ui
    assert ui.cancelButton.isHidden()
    begin(
        widget,
        "tell('progress', stage='segmentation', step=1, of=4, seconds_left=300, metrics={}); time.sleep(60)",
        "Training knees",
    )
    slicer_harness.process_until(lambda: "segmentation" in ui.jobLabel.text)
    assert ui.jobLabel.text == "Training knees: segmentation, about 5 min left"
    assert ui.progressBar.value == 250
    assert not ui.cancelButton.isHidden()
    other = begin(widget, "", "Looking")
    assert ui.jobLabel.text == "Looking"
    slicer_harness.process_until(lambda: not other.is_running)
    assert (ui.jobLabel.text, ui.progressBar.value) == (
        "Training knees: segmentation, about 5 min left",
        250,
    ), "what it told before"
    ui.cancelButton.click()
    assert "cancelled" in ui.jobLabel.text
    settle(widget)
    assert ui.cancelButton.isHidden()
    assert ui.reportButton.isHidden()


def test_the_strip_keeps_the_error_and_its_report(widget):
    settle(widget)
    ui = widget.strip._ui
    begin(
        widget,
        "tell('error', code='disk_full', message='No room.', remedy='Make room.'); sys.exit(4)",
        "Train",
    )
    settle(widget)
    assert ui.jobLabel.text == "Train: No room. Make room."
    ui.reportButton.click()
    assert "No room." in qt.QApplication.clipboard().text()


def test_closing_the_module_ends_its_jobs_and_leaves_no_observer(widget):
    job = begin(widget, "time.sleep(60)")
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit("SegGuidedMMReg")
    assert not job.is_running
    scene = slicer.mrmlScene
    assert not widget.hasObserver(scene, scene.StartCloseEvent, widget.onSceneStartClose)
    assert not widget.hasObserver(scene, scene.EndCloseEvent, widget.onSceneEndClose)


def test_a_module_that_was_reloaded_may_be_ended_again_when_its_widgets_are_gone(widget):
    ended = []
    widget.panels["review"].cleanup = lambda: ended.append("review")
    widget.cleanup()
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit("SegGuidedMMReg")
    assert ended == ["review"]


def test_a_panel_that_fails_at_the_end_keeps_no_other_from_its_own(widget, monkeypatch):
    job, done = begin(widget, "time.sleep(60)"), []

    def fail():
        raise ValueError("Trying to set property 'text' on a destroyed QLabel object")

    with monkeypatch.context() as patch:
        patch.setattr(widget.panels["study"], "cleanup", fail)
        patch.setattr(widget.panels["export"], "cleanup", lambda: done.append("export"))
        with pytest.raises(ValueError, match="destroyed"):
            widget.cleanup()
    assert done == ["export"]
    assert not job.is_running


def test_slicer_loads_before_it_what_it_uses(widget):
    assert set(slicer.modules.SegGuidedMMRegInstance.parent.dependencies) >= {"Segmentations", "Markups"}


def test_choices_come_back_with_a_scene_and_a_new_scene_starts_afresh(widget, tmp_path):
    widget.workplace.parameters.studyFolder = "/data/knees"
    path = tmp_path / "scene.mrml"
    slicer.mrmlScene.SetURL(str(path))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(0)
    widget.enter()
    assert widget.workplace.parameters.studyFolder == ""
    slicer.mrmlScene.SetURL(str(path))
    assert slicer.mrmlScene.Connect()
    widget.enter()
    assert widget.workplace.parameters.studyFolder == "/data/knees"


def test_the_module_can_be_reloaded(widget, monkeypatch):
    old = sys.modules["SegGuidedMMRegGui.JobRunner"]
    kept = {name: module for name, module in sys.modules.items() if name.startswith("SegGuidedMMRegGui")}
    reloaded = []
    monkeypatch.setattr(
        type(widget).__mro__[1], "onReload", lambda self: reloaded.append(self.moduleName), raising=False
    )
    try:
        widget.onReload()
        assert reloaded == ["SegGuidedMMReg"]
        import SegGuidedMMRegGui.JobRunner as new

        assert new is not old
    finally:
        sys.modules.update(kept)


def test_it_fits_the_panel_of_a_small_screen(widget):
    settle(widget)
    widget.ui.setupButton.collapsed = False
    assert widget.widget.minimumSizeHint.width() <= 420
    assert widget.widget.minimumSizeHint.height() <= 700


def test_buttons_say_what_they_do(widget):
    for button in slicer.util.findChildren(widget.widget, className="QPushButton"):
        assert button.toolTip, button.objectName
