"""docs/slicer-tutorial.md as a user follows it: six steps, by their widgets, true jobs, drawn knees."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer_harness
from slicer_harness import layouts
from slicer_harness.segment_editor import draw
from slicer_module import module_opened, slicer
from trained_study import input_file, three_dimensional, values

from SegGuidedMMRegLib.study import Study

TUTORIAL = Path(__file__).parents[2] / "docs/slicer-tutorial.md"
SUBJECTS, LABELLED, SIZE = 6, 3, 64
HURRIED = {
    "training.device": "cpu",
    "prealign.method": "moments",
    "augmentation.samples": 6,
    "augmentation.iterations": 5,
    "segmentation.steps": 20,
    "adaptation.randomised_steps": 20,
    "adaptation.teacher_steps": 4,
    "registration.steps": 2,
}


@pytest.fixture
def widget():
    layouts.start(slicer)
    with module_opened() as opened:
        yield opened


@pytest.fixture
def brought(tmp_path, monkeypatch) -> Path:
    """The images that the tutorial's code draws, fewer and smaller ones; all their labels in `truth`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    for told, hurried in {
        "subjects=12": f"subjects={SUBJECTS}",
        "size=96": f"size={SIZE}",
        "[5:]": f"[{LABELLED}:]",
    }.items():
        assert told in code
        code = code.replace(told, hurried)
    *drawing, leaving_out = code.splitlines()
    space: dict = {}
    exec("\n".join(drawing), space)
    folder = space["place"]
    shutil.copytree(folder / "labels", folder / "truth/labels")
    exec(leaving_out, space)
    return folder


def wait(widget, reached=lambda: True, seconds: float = 120) -> None:
    """Until it is reached and no job runs."""
    runner = widget.logic.runner
    slicer_harness.process_until(lambda: reached() and not runner.running(), seconds)


def choose(box, text: str) -> None:
    index = next(n for n in range(box.count) if box.itemText(n).startswith(text))
    box.currentIndex = index
    box.activated.emit(index)


def rows(table) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def press(button) -> None:
    """A button that cannot be pressed fails, with what it needs."""
    assert button.enabled, f"{button.objectName}: {button.toolTip}"
    button.click()


def test_from_folders_to_an_exported_transform(widget, brought, tmp_path):
    study = make_study(widget, brought, tmp_path / "knees")
    annotate(widget, brought)
    train(widget)
    register(widget)
    review(widget, study)
    export(widget, study, tmp_path / "exported")


def make_study(widget, brought: Path, folder: Path) -> Path:
    panel = widget.panels["study"]
    ui = panel._ui
    assert not widget.ui.studyButton.collapsed
    ui.importButton.collapsed = False
    assert "names of both modalities" in ui.newButton.toolTip
    ui.newPath.currentPath = str(folder)
    ui.sourceEdit.text, ui.targetEdit.text = "dxa", "radiograph"
    ui.sourceImagesPath.currentPath = str(brought / "images/dxa")
    ui.sourceLabelsPath.currentPath = str(brought / "labels/dxa")
    ui.targetImagesPath.currentPath = str(brought / "images/radiograph")
    ui.targetLabelsPath.currentPath = str(brought / "labels/radiograph")
    ui.mirroredEdit.text = "L$"
    choose(ui.presetBox, "quick")
    press(ui.newButton)
    wait(widget, lambda: widget.workplace.folder == str(folder))
    assert f"{SUBJECTS} images of dxa ({LABELLED} labelled for training), {SUBJECTS}" in ui.summaryLabel.text
    assert "femur" in ui.summaryLabel.text
    assert panel.cases._ui.casesTable.rowCount == 2 * SUBJECTS
    return folder


def annotate(widget, brought: Path) -> None:
    """The suggested image is opened, filled with a draft, corrected, saved."""
    widget.ui.annotateButton.collapsed = False
    panel = widget.panels["annotate"]
    wait(widget)
    press(panel._ui.suggestButton)
    wait(widget, lambda: panel.desk.case is not None and not panel.desk.is_busy)
    case = panel.desk.case
    name = case.case.name
    assert case.case.label is None
    assert f"Most helpful next: {name}" in panel._ui.summaryLabel.text
    press(panel._ui.prefillButton)
    wait(widget, lambda: "A draft from" in panel._ui.messageLabel.text)
    true = values(three_dimensional(input_file(brought / "truth", "labels", "dxa", name)))
    inside = tuple(np.argwhere(true == 1)[len(np.argwhere(true == 1)) // 2])
    panel.desk.editor.remember()
    draw(case.segmentation, "Segment_1", tuple(slice(int(n), int(n) + 1) for n in inside))
    panel.onLook()
    press(panel._ui.saveButton)
    wait(widget, lambda: not panel.desk.is_busy)
    assert f"{name} is saved" in panel._ui.messageLabel.text
    wait(widget, lambda: f"{LABELLED + 1} of" in panel._ui.summaryLabel.text)


def train(widget) -> None:
    widget.ui.trainButton.collapsed = False
    panel = widget.panels["train"]
    ui = panel._ui
    wait(widget, lambda: panel._status is not None)
    assert "memory" in ui.summaryLabel.text
    for name, value in HURRIED.items():
        row = next(row for row in panel._form.rows if row.name == name)
        row.put(value)
        row.onEdited()
    press(ui.applyButton)
    wait(widget, lambda: not panel._form.edited)
    press(ui.trainButton)
    wait(widget, lambda: panel._ended is not None, 300)
    assert panel._ended.is_done, panel._ended.message
    wait(widget, lambda: all("done" in row[1] for row in rows(ui.stagesTable)))
    assert not ui.stageLabel.isHidden()


def register(widget) -> None:
    widget.ui.registerButton.collapsed = False
    panel = widget.panels["register"]
    ui, cases = panel._ui, widget.workplace.study["cases"]
    wait(widget, lambda: "trained" not in ui.startButton.toolTip)
    moving = next(c for c in cases if c["modality"] == "dxa" and c["label_use"] == "training")
    fixed = next(c for c in cases if c["modality"] == "radiograph" and c["role"] == "test")
    choose(ui.movingCaseBox, f"dxa/{moving['name']}")
    choose(ui.fixedCaseBox, f"radiograph/{fixed['name']}")
    press(ui.startButton)
    wait(widget, lambda: ui.resultLabel.text or ui.messageLabel.text)
    assert "Overlap of the structures (Dice)" in ui.resultLabel.text
    names = {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLTransformNode")}
    pair = f"{moving['name']} to {fixed['name']}"
    assert {f"{pair} forward", f"{pair} inverse"} <= names


def review(widget, study: Path) -> None:
    press(widget.panels["register"]._ui.reviewButton)
    panel = widget.panels["review"]
    assert not widget.ui.reviewButton.collapsed
    slicer_harness.process_until(lambda: panel._list.count and not panel._list._timer.active)
    panel._ui.pairsTable.setCurrentCell(0, 0)
    slicer_harness.process_until(lambda: panel._name() == panel._list.pairs[0])
    assert rows(panel._ui.measuresTable)
    panel._ui.commentEdit.text = "joint line fits"
    press(panel._ui.acceptButton)
    table = list(csv.DictReader((study / "registrations/reviews.csv").open(encoding="utf-8")))
    assert [(row["verdict"], row["comment"]) for row in table] == [("accepted", "joint line fits")]
    assert "accepted, " in panel._ui.decisionLabel.text


def export(widget, study: Path, out: Path) -> None:
    widget.ui.exportButton.collapsed = False
    panel = widget.panels["export"]
    ui = panel._ui
    wait(widget, lambda: panel._table.pairs)
    ui.acceptedBox.checked = True
    ui.failedBox.checked = True  # networks that hardly learnt may fold
    ui.folderPath.currentPath = str(out)
    wait(widget, lambda: panel._current_plan() is not None)
    press(ui.exportButton)
    wait(widget, lambda: panel._exporting is None and ui.messageLabel.text)
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    written = {path.name for path in folder.iterdir()}
    assert {"forward.h5", "inverse.h5", "warped_image.nrrd", "warped_labels.seg.nrrd"} <= written
    forward = sitk.ReadTransform(str(folder / "forward.h5"))
    opened = Study.open(study)
    moving, fixed = (opened.case(name) for name in folder.name.split("--"))
    images = [three_dimensional(study / case.image) for case in (moving, fixed)]
    warped = sitk.Resample(images[0], images[1], forward, sitk.sitkLinear, 0.0)
    assert np.abs(values(warped) - values(three_dimensional(folder / "warped_image.nrrd"))).mean() < 5
