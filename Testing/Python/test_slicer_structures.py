"""Structures are named, coloured and given standard terms in a table; those of an open study are changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_module import Gaps, slicer

import qt
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.StructuresTable import StructuresTable, text_of
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.TermChooser import TermChooser
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.importing.labels import parse_structures
from SegGuidedMMRegLib.study import Study

NAME = "Knee terms of the tests"
FEMUR_LEFT = f"{NAME}~SCT^123037004^Anatomical Structure~SCT^71341001^Femur~SCT^7771000^Left~~^^~^^"


def _code(value: str, meaning: str, **more: object) -> dict:
    return {"CodingSchemeDesignator": "SCT", "CodeValue": value, "CodeMeaning": meaning, **more}


@pytest.fixture(scope="module", autouse=True)
def terms(tmp_path_factory):
    """A list of terms in Slicer's module Terminologies: the femur with its sides, and thousands of others."""
    sides = [_code("7771000", "Left", recommendedDisplayRGBValue=[1, 2, 3]), _code("24028007", "Right")]
    kinds = [_code("71341001", "Femur", recommendedDisplayRGBValue=[9, 8, 7], Modifier=sides)]
    kinds += [_code(str(n), f"Bone number {n}") for n in range(4000)]
    category = _code("123037004", "Anatomical Structure", showAnatomy=False, Type=kinds)
    record = {
        "SegmentationCategoryTypeContextName": NAME,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [category]},
    }
    path = tmp_path_factory.mktemp("terms") / "Knee.term.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert slicer.modules.terminologies.logic().LoadTerminologyFromFile(str(path)) == NAME


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    yield
    assert not slicer_harness.slot_errors


@pytest.fixture
def table():
    return StructuresTable(lambda: None)


@pytest.fixture
def panel(tmp_path):
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = StudyPanel(workplace)
    workplace.watchers.append(made.study_changed)
    made.open(str(make_reported_study(tmp_path / "knees", 2, 32).folder))
    settle(made)
    yield made
    made.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()


def settle(panel: StudyPanel) -> None:
    slicer_harness.process_until(lambda: not panel.workplace.runner.running(), 90)


def search(chooser: TermChooser, words: str) -> list[str]:
    slicer_harness.process_until(lambda: not chooser._timer.isActive())
    chooser._ui.findEdit.text = words
    found = chooser._ui.termsList
    return [found.item(row).text() for row in range(found.count)]


# -- the table --------------------------------------------------------------------------------------------
def test_rows_are_added_named_coloured_and_removed(table):
    ui = table._ui
    assert table.structures() == ()
    for _ in range(3):
        ui.addRowButton.click()
    ui.table.item(1, 1).setText("tibia")
    ui.table.item(1, 0).setText("7")
    ui.table.cellWidget(1, 2).color = qt.QColor(1, 2, 3)
    ui.table.setCurrentCell(0, 1)
    ui.removeRowButton.click()
    assert table.structures()[0] == Structure(7, "tibia", (1, 2, 3))
    assert [s.value for s in table.structures()] == [7, 3]
    assert len({s.color for s in table.structures()}) == 2


@pytest.mark.parametrize(
    ("column", "text", "problem"),
    [(0, "x", "whole number"), (0, "2", "same value"), (1, "Structure 2", "same name"), (1, "a/b", "a/b")],
)
def test_what_cannot_be_is_said(table, column, text, problem):
    table._ui.addRowButton.click()
    table._ui.addRowButton.click()
    table._ui.table.item(0, column).setText(text)
    assert problem in table.problem()


def test_its_texts_are_those_of_the_command_line():
    structure = Structure(3, "left femur", (1, 2, 255), FEMUR_LEFT)
    assert parse_structures([text_of(structure)]) == (structure,)


# -- terms ------------------------------------------------------------------------------------------------
def test_a_term_of_slicers_lists_is_found_and_taken(table):
    table._ui.addRowButton.click()
    table._ui.table.item(0, 1).setText("fem")
    table._ui.table.cellWidget(0, 3).click()
    chooser = table._chooser
    assert search(chooser, "fem") == [
        "Femur  (Anatomical Structure)",
        "Femur, Left  (Anatomical Structure)",
        "Femur, Right  (Anatomical Structure)",
    ]
    assert search(chooser, "left femur") == ["Femur, Left  (Anatomical Structure)"]
    chooser._ui.takeButton.click()
    assert not chooser._dialog.visible
    (structure,) = table.structures()
    assert structure == Structure(1, "fem", (1, 2, 3), FEMUR_LEFT)
    assert table._ui.table.cellWidget(0, 3).text == "Femur, Left"
    entry = slicer.vtkSlicerTerminologyEntry()
    assert slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(structure.terminology, entry)
    assert entry.GetTypeModifierObject().GetCodeMeaning() == "Left"


def test_a_term_is_taken_away_again_and_cancel_leaves_it(table):
    table.show([Structure(1, "femur", (5, 5, 5), FEMUR_LEFT)], "s")
    table._ui.table.cellWidget(0, 3).click()
    table._chooser._ui.cancelButton.click()
    assert table.structures()[0].terminology == FEMUR_LEFT
    table._ui.table.cellWidget(0, 3).click()
    table._chooser._ui.noneButton.click()
    assert table.structures()[0] == Structure(1, "femur", (5, 5, 5))


def test_without_a_fitting_term_it_says_what_to_do(table, monkeypatch):
    chooser = TermChooser(table.widget, "", lambda term: None)
    chooser.open()
    assert search(chooser, "no such thing") == []
    assert "No term holds these words" in chooser._ui.messageLabel.text
    assert not chooser._ui.takeButton.enabled
    chooser._ui.cancelButton.click()
    monkeypatch.delattr(slicer.modules, "terminologies")
    alone = TermChooser(table.widget, "", lambda term: None)
    alone.open()
    search(alone, "femur")
    assert "No list of terms is loaded" in alone._ui.messageLabel.text
    alone._ui.cancelButton.click()


def test_thousands_of_terms_are_read_and_found_without_a_hitch(table):
    chooser = TermChooser(table.widget, "", lambda term: None)
    with Gaps() as gaps:
        qt.QTimer.singleShot(0, chooser.open)
        gaps.spin(lambda: len(chooser._entries) == 4003 and chooser._found)
        qt.QTimer.singleShot(0, lambda: chooser._ui.findEdit.setText("bone 39"))
        gaps.spin(lambda: chooser._ui.findEdit.text == "bone 39")
    assert chooser._ui.termsList.count > 100
    chooser._ui.cancelButton.click()
    assert gaps.longest < 0.1


# -- the structures of a study ----------------------------------------------------------------------------
def test_names_colours_and_terms_of_a_study_are_saved_in_it(panel):
    structures = panel.structures
    ui = structures._ui
    assert not ui.saveButton.enabled
    assert ui.saveButton.toolTip == "Nothing is changed"
    ui.table.item(0, 1).setText("thigh bone")
    ui.table.cellWidget(0, 3).click()
    search(structures._chooser, "femur left")
    structures._chooser._ui.takeButton.click()
    assert ui.saveButton.enabled
    ui.saveButton.click()
    settle(panel)
    first = Study.open(panel.workplace.folder).structures[0]
    assert (first.name, first.terminology) == ("thigh bone", FEMUR_LEFT)
    assert "thigh bone" in panel._ui.summaryLabel.text
    assert not ui.saveButton.enabled


def names(panel) -> list[str]:
    return [structure.name for structure in panel.structures.structures()]


def test_a_structure_that_no_labels_hold_is_removed_from_the_study(panel):
    ui = panel.structures._ui
    ui.addRowButton.click()
    ui.table.item(3, 1).setText("patella")
    ui.saveButton.click()
    settle(panel)
    settle(panel)
    assert [s.name for s in Study.open(panel.workplace.folder).structures][3] == "patella"
    ui.table.item(0, 1).setText("thigh bone")
    ui.table.setCurrentCell(3, 1)
    assert ui.removeRowButton.enabled
    ui.removeRowButton.click()
    ui.saveButton.click()
    settle(panel)
    settle(panel)
    assert [s.name for s in Study.open(panel.workplace.folder).structures] == names(panel)
    assert names(panel) == ["thigh bone", "tibia", "fibula"]
    assert not ui.saveButton.enabled
    assert not panel._ui.messageLabel.text


def test_a_structure_that_labels_hold_comes_back_and_the_cases_are_named(panel):
    ui = panel.structures._ui
    before = Study.open(panel.workplace.folder).structures
    ui.table.item(0, 1).setText("thigh bone")
    ui.table.setCurrentCell(1, 1)
    assert "labels of the study hold comes back" in ui.removeRowButton.toolTip
    ui.removeRowButton.click()
    ui.addRowButton.click()
    assert names(panel)[1] == "fibula"
    ui.saveButton.click()
    settle(panel)
    assert "2 tibia stays: it is drawn in the labels of dxa/d1, dxa/d2" in panel._ui.messageLabel.text
    assert names(panel) == ["thigh bone", "tibia", "fibula", "structure 4"]
    assert not ui.table.item(1, 0).flags() & qt.Qt.ItemIsEditable, "values of the study stay"
    assert Study.open(panel.workplace.folder).structures == before


def test_the_last_structure_of_a_study_stays(panel):
    ui = panel.structures._ui
    for _ in range(2):
        ui.table.setCurrentCell(0, 1)
        ui.removeRowButton.click()
    ui.table.setCurrentCell(0, 1)
    assert not ui.removeRowButton.enabled
    assert "Needs another structure" in ui.removeRowButton.toolTip


def test_unsaved_changes_stay_when_the_study_is_read_again(panel):
    ui = panel.structures._ui
    ui.table.item(0, 1).setText("thigh bone")
    panel.workplace.read_again()
    settle(panel)
    assert ui.table.item(0, 1).text() == "thigh bone"


def test_segments_drawn_in_a_study_have_its_terms_also_after_a_change(panel):
    folder = Path(panel.workplace.folder)
    arguments = ("edit", str(folder), "--structures", f"1=femur:#e69f00:{FEMUR_LEFT}")
    panel._run("", arguments, [], lambda: None)
    settle(panel)
    settle(panel)
    bridge = panel.workplace.bridge
    node = bridge.show_labels(bridge.study.case("d1"))
    segment = node.GetSegmentation().GetSegment("Segment_1")
    from SegGuidedMMRegGui.SegmentationNodes import term_of
    from SegGuidedMMRegLib.images import read_labels

    assert term_of(segment) == FEMUR_LEFT
    case = bridge.study.case("d1")
    bridge.save_labels(node, case)
    assert read_labels(bridge.label_path(case)).segments[0].terminology == FEMUR_LEFT
    other = FEMUR_LEFT.replace("7771000^Left", "24028007^Right")
    panel._run("", (*arguments[:-1], f"1=femur:#e69f00:{other}"), [], lambda: None)
    settle(panel)
    settle(panel)
    again = bridge.show_labels(bridge.study.case("d1"))
    assert term_of(again.GetSegmentation().GetSegment("Segment_1")) == other
    bridge.remove()
