"""The table of cases: found by words, sorted, with pictures, changed; thousands of them without a hitch."""

from __future__ import annotations

import csv
import gc
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_module import Gaps, slicer

import qt
from SegGuidedMMRegGui.CaseTable import CaseTable
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.study import Role, Study
from SegGuidedMMRegLib.thumbnails import make_thumbnails


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    yield
    assert not slicer_harness.slot_errors


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    """A study with its small pictures."""
    study = make_reported_study(tmp_path_factory.mktemp("study") / "knees", 2, 32)
    make_thumbnails(study, Reporter())
    return study.folder


@pytest.fixture
def panel(tmp_path, knees):
    """The panel with an open study of its own."""
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = StudyPanel(workplace)
    workplace.watchers.append(made.study_changed)
    made.open(str(shutil.copytree(knees, tmp_path / "knees")))
    settle(made)
    yield made
    made.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()


def settle(panel: StudyPanel) -> None:
    slicer_harness.process_until(lambda: not panel.workplace.runner.running(), 90)


def names(table: CaseTable) -> list[str]:
    cases = table._ui.casesTable
    return [cases.item(row, 1).text() for row in range(cases.rowCount)]


def select(table: CaseTable, *wanted: str) -> None:
    cases = table._ui.casesTable
    cases.setSelectionMode(qt.QAbstractItemView.MultiSelection)
    cases.clearSelection()
    for row, name in enumerate(names(table)):
        if name in wanted:
            cases.selectRow(row)


def find(table: CaseTable, words: str) -> list[str]:
    table._ui.filterEdit.text = words
    slicer_harness.process_until(lambda: not table._typing.isActive() and not table._waiting)
    return names(table)


@pytest.fixture
def frozen():
    """Python's collection of garbage looks through what the test makes alone, not through all of pytest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def case(number: int, **more: object) -> dict:
    name = f"c{number:04d}"
    told = {
        "modality": ("dxa", "xray")[number % 2],
        "name": name,
        "subject": f"s{number // 2}",
        "role": "train",
    }
    told |= {"label_use": None, "label": None, "landmarks": None, "predicted": False, "mirrored": False}
    return {**told, "original": f"/in/{name}.nrrd", "thumbnail": None, **more}


# -- what is seen -----------------------------------------------------------------------------------------
def test_every_case_has_its_picture_also_after_opening_the_study_again(panel):
    table = panel.cases._ui.casesTable
    shutil.rmtree(Path(panel.workplace.folder) / "models" / "cache")
    panel.workplace.read_again()
    settle(panel)
    settle(panel)
    assert all(not table.item(row, 1).icon().isNull() for row in range(table.rowCount))
    started = []
    panel.workplace.runner.watchers.append(lambda job: started.append(job.command) or panel_listener())
    panel.open(panel.workplace.folder)
    settle(panel)
    assert [command for command in started if "--thumbnails" in command] == []


def panel_listener():
    from SegGuidedMMRegGui.JobEvents import JobListener

    return JobListener()


def test_a_picture_that_cannot_be_made_is_asked_for_once(panel):
    study = Study.open(panel.workplace.folder)
    (study.folder / study.case("d1").image).write_bytes(b"NRRD0004\n")
    started = []
    panel.workplace.runner.watchers.append(lambda job: started.append(job.command) or panel_listener())
    for _ in range(2):
        panel.workplace.read_again()
        settle(panel)
    assert len([command for command in started if "--thumbnails" in command]) == 1


def test_cases_are_found_by_words_in_their_rows(panel):
    assert find(panel.cases, "dxa training") == ["d1", "d2"]
    assert panel.cases._ui.countLabel.text == "2 / 8"
    assert find(panel.cases, "no such case") == []
    assert len(find(panel.cases, "")) == 8
    assert panel.cases._ui.countLabel.text == "8"


def test_a_click_on_a_heading_sorts(panel):
    header = panel.cases._ui.casesTable.horizontalHeader()
    select(panel.cases, "d2")
    header.sectionClicked.emit(1)
    header.sectionClicked.emit(1)
    slicer_harness.process_until(lambda: len(panel.cases._places) == 8)
    assert names(panel.cases) == ["r4", "r3", "r2", "r1", "d4", "d3", "d2", "d1"]
    assert panel.cases.selected() == ["dxa/d2"]


def test_numbers_in_names_are_sorted_as_numbers():
    table = CaseTable(lambda keys, said: None)
    table.show([case(n, name=f"k{n}") for n in (10, 2, 1)])
    header = table._ui.casesTable.horizontalHeader()
    header.sectionClicked.emit(1)
    slicer_harness.process_until(lambda: len(table._places) == 3)
    assert names(table) == ["k1", "k2", "k10"]


# -- what is changed --------------------------------------------------------------------------------------
def test_selected_cases_get_another_role_and_stay_selected(panel):
    ui = panel.cases._ui
    assert not ui.editButton.enabled
    assert "selected cases" in ui.editButton.toolTip
    select(panel.cases, "d1", "r1")
    assert ui.selectedLabel.text == "2 selected"
    assert "a role, a subject or a side" in ui.editButton.toolTip
    ui.roleBox.currentIndex = 3
    ui.editButton.click()
    settle(panel)
    study = Study.open(panel.workplace.folder)
    assert {study.case(name).role for name in ("d1", "r1")} == {Role.TEST}
    assert study.case("d1").label_use == "evaluation"
    assert panel.cases.selected() == ["dxa/d1", "radiograph/r1"]
    row = names(panel.cases).index("d1")
    texts = [ui.casesTable.item(row, column).text() for column in range(ui.casesTable.columnCount)]
    assert texts[3:5] == ["test", "for evaluation"]
    assert ui.roleBox.currentIndex == 0


def test_subject_and_side_are_changed_and_what_follows_is_said(panel):
    ui = panel.cases._ui
    select(panel.cases, "r1")
    ui.subjectEdit.text = "d4"
    ui.mirroredBox.currentIndex = 1
    ui.editButton.click()
    settle(panel)
    changed = Study.open(panel.workplace.folder).case("r1")
    assert (changed.subject, changed.mirrored, changed.role) == ("d4", True, Role.TEST)
    assert "is for testing now, as is its subject d4" in panel._ui.problemsEdit.plainText


def test_no_table_of_changes_is_left_behind(panel):
    select(panel.cases, "d2")
    panel.cases._ui.roleBox.currentIndex = 2
    panel.cases._ui.editButton.click()
    settle(panel)
    assert not list(Path(slicer.app.temporaryPath).rglob("cases.csv"))


def test_a_change_that_fails_is_said_and_the_form_can_be_used_again(panel):
    from SegGuidedMMRegLib.locks import working_on

    with working_on(Path(panel.workplace.folder), "cases"):
        select(panel.cases, "d2")
        panel.cases._ui.roleBox.currentIndex = 2
        panel.cases._ui.editButton.click()
        settle(panel)
    assert "process" in panel._ui.messageLabel.text
    panel.cases._ui.roleBox.currentIndex = 2
    assert panel.cases._ui.editButton.enabled


# -- thousands --------------------------------------------------------------------------------------------
def test_five_thousand_cases_are_shown_found_and_changed_without_a_hitch(frozen):
    table = CaseTable(lambda keys, said: None)
    table.widget.show()
    cases = [case(n) for n in range(5000)]
    with Gaps() as gaps:
        gaps.spin(lambda: True)
        qt.QTimer.singleShot(0, lambda: table.show(cases))
        gaps.spin(lambda: len(table._places) == 5000)
        table._ui.filterEdit.text = "xray s99"
        gaps.spin(lambda: table._ui.countLabel.text != "5000" and not table._waiting)
        table._ui.filterEdit.text = ""
        gaps.spin(lambda: len(table._places) == 5000)
        header = table._ui.casesTable.horizontalHeader()
        qt.QTimer.singleShot(0, lambda: header.sectionClicked.emit(2))
        gaps.spin(lambda: table._order and len(table._places) == 5000)
        changed = [case(n, role="test", thumbnail="/no/such.png") for n in range(5000)]
        qt.QTimer.singleShot(0, lambda: table.show(changed))
        gaps.spin(lambda: table._ui.casesTable.item(4999, 3).text() == "test")
    table.stop()
    assert gaps.longest < 0.1


def test_a_study_of_five_thousand_cases_is_opened_without_a_hitch(panel, frozen):
    study = Study.open(panel.workplace.folder)
    first = study.case("d1")
    more = [replace(first, name=f"m{n}", subject=f"m{n}", original="x") for n in range(5000)]
    study.with_cases([*study.cases, *more]).save_record()
    with Gaps() as gaps:
        panel.workplace.read_again()
        gaps.spin(lambda: len(panel.cases._places) == 5008, 60)
    panel._thumbnails.stop()
    settle(panel)
    assert len(panel.cases._places) == 5008
    assert gaps.longest < 0.1


def test_the_changes_of_all_of_thousands_go_into_one_table(panel, monkeypatch):
    ran = []
    monkeypatch.setattr(panel, "_run", lambda title, arguments, *rest: ran.append(arguments))
    panel._edit_cases([f"dxa/c{n}" for n in range(5000)], {"role": "test"})
    (arguments,) = ran
    with Path(arguments[-1]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case", "role"]
    assert len(rows) == 5001
