"""Step 1: a study is made from folders, added to, opened and found again; what is wrong is said in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer_harness
from reported_study import make_reported_study
from slicer_module import FOLDER, environment, fake_job, slicer

import qt
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.Workplace import Workplace


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    yield
    assert not slicer_harness.slot_errors


@pytest.fixture
def panel():
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = StudyPanel(workplace)
    workplace.watchers.append(made.study_changed)
    yield made
    workplace.cleanup()
    workplace.runner.cleanup()


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    return make_reported_study(tmp_path_factory.mktemp("study") / "knees", 2).folder


def settle(panel: StudyPanel) -> None:
    slicer_harness.process_until(lambda: not panel.workplace.runner.running(), 90)


def table(panel: StudyPanel) -> list[list[str]]:
    cases = panel.cases._ui.casesTable
    return [[cases.item(r, c).text() for c in range(cases.columnCount)] for r in range(cases.rowCount)]


def folders(tmp_path: Path) -> Path:
    """Two modalities, three images each, two of them labelled; a file that is no image."""
    generator = np.random.default_rng(3)
    for modality in ("a", "b"):
        (tmp_path / modality).mkdir()
        for n in range(3):
            image = sitk.GetImageFromArray(generator.integers(0, 255, (40, 32)).astype(np.uint8))
            image.SetSpacing((0.5, 0.5))
            sitk.WriteImage(image, str(tmp_path / modality / f"s{n}.nrrd"))
    (tmp_path / "labels").mkdir()
    for n in range(2):
        label = np.zeros((40, 32), np.uint8)
        label[10:30, 8:20] = 1
        image = sitk.GetImageFromArray(label)
        image.SetSpacing((0.5, 0.5))
        sitk.WriteImage(image, str(tmp_path / "labels" / f"s{n}.nrrd"))
    (tmp_path / "a" / "broken.nrrd").write_bytes(b"NRRD0004\ntype: float\n")
    return tmp_path


def test_a_study_is_opened_and_its_cases_are_listed(panel, knees):
    panel._ui.studyPath.currentPath = str(knees)
    panel._ui.openButton.click()
    settle(panel)
    rows = table(panel)
    assert len(rows) == 8
    assert rows[0] == ["dxa", "d1", "d1", "train", "for training", "yes", rows[0][6], "–"]
    assert (
        "Phantom knees, 2D: 4 images of dxa (2 labelled for training), 4 of radiograph"
        in panel._ui.summaryLabel.text
    )
    assert panel.workplace.folder == str(knees)


def test_a_folder_without_a_study_is_said_in_words(panel, tmp_path):
    panel.open(str(tmp_path))
    settle(panel)
    assert str(tmp_path) in panel._ui.messageLabel.text
    assert panel.workplace.study is None


def test_a_button_says_what_it_needs(panel):
    ui = panel._ui
    assert not ui.newButton.enabled
    assert "names of both modalities" in ui.newButton.toolTip
    assert "an open study" in ui.addButton.toolTip
    assert "the folder of a study" in ui.openButton.toolTip


def test_a_path_that_is_taken_away_counts_no_more(panel, tmp_path):
    ui = panel._ui
    ui.studyPath.currentPath = str(tmp_path)
    assert ui.openButton.enabled
    ui.studyPath.currentPath = ""
    assert not ui.openButton.enabled


def test_a_study_is_made_from_folders_and_added_to(panel, tmp_path):
    ui, place = panel._ui, folders(tmp_path)
    ui.newPath.currentPath = str(tmp_path / "study")
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "us"
    ui.sourceImagesPath.currentPath = str(place / "a")
    ui.targetImagesPath.currentPath = str(place / "b")
    panel.form.structures._ui.addRowButton.click()
    panel.form.structures._ui.table.item(0, 1).setText("the bone")
    ui.presetBox.currentIndex = 1
    ui.newButton.click()
    assert not ui.newButton.enabled
    settle(panel)
    settle(panel)
    assert panel.workplace.study is not None, ui.messageLabel.text
    assert [s["name"] for s in panel.workplace.study["structures"]] == ["the bone"]
    assert panel.workplace.study["preset"] == "quick"
    assert {row[4] for row in table(panel)} == {"–"}
    assert "broken.nrrd" in ui.problemsEdit.plainText
    ui.sourceImagesPath.currentPath = ui.targetImagesPath.currentPath = ""
    ui.sourceLabelsPath.currentPath = str(place / "labels")
    ui.addButton.click()
    settle(panel)
    settle(panel)
    assert sum(row[4].startswith("for ") for row in table(panel)) == 2, ui.messageLabel.text


def test_a_study_that_cannot_be_made_says_why(panel, tmp_path):
    ui = panel._ui
    ui.newPath.currentPath = str(tmp_path / "study")
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "us"
    ui.sourceImagesPath.currentPath = ui.targetImagesPath.currentPath = str(tmp_path)
    ui.newButton.click()
    settle(panel)
    assert ui.messageLabel.text
    assert panel.workplace.study is None
    assert ui.newButton.enabled


def test_a_study_that_was_open_is_among_the_recent_ones(panel, knees):
    panel.open(str(knees))
    settle(panel)
    other = StudyPanel(Workplace(slicer.mrmlScene, panel.workplace.runner))
    assert other._ui.recentBox.count == 2
    other._ui.recentBox.activated.emit(1)
    settle(other)
    assert other.workplace.folder == str(knees)


@pytest.fixture
def widget():
    slicer.mrmlScene.Clear(0)
    opened = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    yield opened
    opened.cleanup()
    slicer.mrmlScene.Clear(0)


def test_the_study_is_kept_in_the_scene_and_comes_back_with_it(widget, knees, tmp_path):
    widget.panels["study"].open(str(knees))
    settle(widget.panels["study"])
    assert widget.strip._ui.studyLabel.text == "Phantom knees"
    scene, path = slicer.mrmlScene, str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit()
    scene.Clear(0)
    widget.enter()
    assert widget.workplace.study is None
    assert widget.strip._ui.studyLabel.text == "no study"
    scene.SetURL(path)
    assert scene.Connect()
    widget.enter()
    settle(widget.panels["study"])
    assert widget.workplace.folder == str(knees)


def test_a_study_that_is_there_only_when_another_module_is_shown_stays_open(widget, knees):
    widget.panels["study"].open(str(knees))
    widget.exit()
    settle(widget.panels["study"])
    widget.enter()
    settle(widget.panels["study"])
    assert widget.workplace.folder == str(knees)


class FakePython:
    def command(self, _):
        return fake_job(
            "tell('progress', stage='segmentation', step=1, of=2, seconds_left=90)\ntime.sleep(60)"
        )

    def environment(self):
        return environment()


def test_a_training_that_outlived_slicer_is_shown_when_its_study_is_opened(widget, tmp_path):
    knees = make_reported_study(tmp_path / "knees", 2, 32).folder
    job = DetachedJob.begin(knees, ("train", str(knees)), JobListener(), FakePython())
    job.leave()
    widget.panels["study"].open(str(knees))
    slicer_harness.process_until(lambda: "segmentation" in widget.strip._ui.jobLabel.text, 60)
    assert widget.strip._ui.jobLabel.text.startswith("Training Phantom knees")
    widget.strip._ui.cancelButton.click()
    settle(widget.panels["study"])
    assert job._child.wait() != 0
