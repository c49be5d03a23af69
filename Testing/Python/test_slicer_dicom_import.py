"""Series of Slicer's DICOM database become cases of a study: listed, found, chosen, read by a job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import slicer_harness
from slicer_harness.dicom_database import DicomDatabase
from slicer_module import Gaps, slicer
from test_images import write_slices
from test_slicer_scene_import import left, make, settle, tick, volume

import qt
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.study import Study

UID = "1.2.826.0.1.3680043.2.1125"


@pytest.fixture
def database(monkeypatch):
    made = DicomDatabase()
    monkeypatch.setattr(slicer, "dicomDatabase", made, raising=False)
    return made


@pytest.fixture
def panel():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    slicer.mrmlScene.Clear(0)
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = StudyPanel(workplace)
    workplace.watchers.append(made.study_changed)
    yield made
    made.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors
    assert left() == []


def filled(database: DicomDatabase, place: Path) -> None:
    """Two patients, MR and CT; the MR of both lie in one folder, as linked files may."""
    for number, patient in enumerate(("P1", "P2"), 1):
        write_slices(place / "linked", series=f"{UID}.{number}", patient=patient, description="T1 sag")
        write_slices(place / patient, series=f"{UID}.{number + 4}", patient=patient, description="bone")
        database.add(place / "linked", patient=patient, uid=f"{UID}.{number}", description="T1 sag")
        database.add(
            place / patient, patient=patient, uid=f"{UID}.{number + 4}", description="bone", kind="CT"
        )
    database.add(place / "P1", patient="P1", uid=f"{UID}.9", description="report", kind="SR")


def listed(panel: StudyPanel) -> list[tuple[str, ...]]:
    table = panel.form.dicom._ui.seriesTable
    rows = [row for row in range(table.rowCount) if not table.isRowHidden(row)]
    return [tuple(table.item(row, column).text() for column in range(4)) for row in rows]


def choose(panel: StudyPanel, words: str, button: str) -> None:
    """Find, select all that is shown, and press a button."""
    ui = panel.form.dicom._ui
    ui.findEdit.text = words
    ui.seriesTable.selectAll()
    getattr(ui, f"{button}Button").click()


def test_series_are_listed_found_and_become_cases_of_their_patients(panel, database, tmp_path):
    filled(database, tmp_path / "db")
    ui = panel.form.dicom._ui
    panel._ui.importButton.collapsed = False
    assert ui.listFrame.isHidden()
    ui.listButton.click()
    settle(panel)
    assert listed(panel) == [
        ("–", "P1", "T1 sag", "MR"),
        ("–", "P1", "bone", "CT"),
        ("–", "P2", "T1 sag", "MR"),
        ("–", "P2", "bone", "CT"),
    ]
    panel._ui.sourceEdit.text, panel._ui.targetEdit.text = "mr", "ct"
    assert ui.sourceButton.text == "As mr"
    assert not ui.sourceButton.enabled
    choose(panel, "t1", "source")
    choose(panel, "bone", "target")
    choose(panel, "P2 bone", "not")
    choose(panel, "P2 bone", "target")
    ui.findEdit.text = ""
    assert [row[0] for row in listed(panel)] == ["mr", "ct", "mr", "ct"]
    panel.form.structures._ui.addRowButton.click()
    study = make(panel, tmp_path / "study")
    told = {case.key: (case.subject, study.read_image(case).grid.size) for case in study.cases}
    assert told == {
        "mr/P1 T1 sag": ("P1", (14, 12, 4)),
        "mr/P2 T1 sag": ("P2", (14, 12, 4)),
        "ct/P1 bone": ("P1", (14, 12, 4)),
        "ct/P2 bone": ("P2", (14, 12, 4)),
    }
    assert {row[0] for row in listed(panel)} == {"–"}, "they are cases now"
    assert not panel.form.dicom.chosen()


def test_series_and_volumes_of_the_scene_go_into_one_study(panel, database, tmp_path):
    filled(database, tmp_path / "db")
    volume("scanned", 1, (4, 20, 16))
    panel._ui.importButton.collapsed = False
    panel.form.dicom._ui.listButton.click()
    settle(panel)
    choose(panel, "P1 bone", "target")
    tick(panel, "scanned", 0)
    panel.form.structures._ui.addRowButton.click()
    study = make(panel, tmp_path / "study")
    assert sorted(case.key for case in study.cases) == ["ct/P1 bone", "mr/scanned"]


def test_a_series_whose_files_lie_in_several_folders_is_one_case(panel, database, tmp_path):
    filled(database, tmp_path / "db")
    for file in sorted((tmp_path / "db" / "P1").iterdir())[:2]:
        (tmp_path / "db" / "P1" / "DIR2").mkdir(exist_ok=True)
        file.rename(tmp_path / "db" / "P1" / "DIR2" / file.name)
    panel._ui.importButton.collapsed = False
    panel.form.dicom._ui.listButton.click()
    settle(panel)
    choose(panel, "P1 bone", "target")
    choose(panel, "P2 bone", "source")
    panel.form.structures._ui.addRowButton.click()
    study = make(panel, tmp_path / "study")
    case = study.case("ct/P1 bone")
    assert study.read_image(case).grid.size == (14, 12, 4)
    assert Path(case.original).is_relative_to(tmp_path / "db" / "P1")


def test_files_that_are_gone_are_named_with_the_remedy(panel, database, tmp_path):
    filled(database, tmp_path / "db")
    panel._ui.importButton.collapsed = False
    panel.form.dicom._ui.listButton.click()
    settle(panel)
    choose(panel, "t1", "source")
    choose(panel, "bone", "target")
    shutil.rmtree(tmp_path / "db" / "P2")
    ui = panel._ui
    ui.newPath.currentPath, ui.sourceEdit.text, ui.targetEdit.text = str(tmp_path / "s"), "mr", "ct"
    panel.form.structures._ui.addRowButton.click()
    ui.newButton.click()
    settle(panel)
    assert "The files of the series P2 bone are gone" in ui.messageLabel.text
    assert not (tmp_path / "s").exists()
    assert ui.newButton.enabled


def test_a_series_that_still_lies_on_a_server_is_named(panel, database, tmp_path):
    filled(database, tmp_path / "db")
    database.add(None, patient="P3", uid=f"{UID}.10", description="T1 sag")
    panel._ui.importButton.collapsed = False
    panel.form.dicom._ui.listButton.click()
    settle(panel)
    choose(panel, "P3 t1", "source")
    choose(panel, "bone", "target")
    ui = panel._ui
    ui.newPath.currentPath, ui.sourceEdit.text, ui.targetEdit.text = str(tmp_path / "s"), "mr", "ct"
    panel.form.structures._ui.addRowButton.click()
    ui.newButton.click()
    settle(panel)
    assert "The files of the series P3 T1 sag are gone" in ui.messageLabel.text
    assert not (tmp_path / "s").exists()


def test_without_an_open_database_the_button_says_what_it_needs(panel, database, monkeypatch):
    ui = panel.form.dicom._ui
    panel.form.dicom.refresh()
    assert ui.listButton.enabled
    database.close()
    panel.form.dicom.refresh()
    assert not ui.listButton.enabled
    assert "Slicer's module DICOM" in ui.listButton.toolTip
    monkeypatch.delattr(slicer, "dicomDatabase")
    panel.form.dicom.refresh()
    assert not ui.listButton.enabled


def test_an_empty_database_says_so_and_a_large_one_keeps_nobody_waiting(panel, database, tmp_path):
    ui = panel.form.dicom._ui
    panel._ui.importButton.collapsed = False
    ui.listButton.click()
    settle(panel)
    assert "holds no series of images" in ui.messageLabel.text
    for number in range(3000):
        database.add(tmp_path, patient=f"P{number % 10}", uid=f"{UID}.{number}", description=f"s{number}")
    with Gaps() as gaps:
        qt.QTimer.singleShot(0, ui.listButton.click)
        gaps.spin(lambda: not ui.listFrame.isHidden() and not panel.workplace.runner.running(), 60)
        qt.QTimer.singleShot(0, lambda: ui.findEdit.setText("s299"))
        gaps.spin(lambda: ui.seriesTable.isRowHidden(0))
    assert len(listed(panel)) == 11
    print(f"3000 series listed and found, at most {1000 * gaps.longest:.0f} ms at one go")
    assert gaps.longest < 0.1


def test_a_study_lists_series_by_the_command_line_too(tmp_path):
    from SegGuidedMMRegLib import cli

    write_slices(tmp_path / "db", series=f"{UID}.1", patient="P1", description="T1")
    write_slices(tmp_path / "db", series=f"{UID}.2", patient="P2", description="T1")
    (tmp_path / "a.csv").write_text(f"image,modality,case,series\ndb,source,one,{UID}.2\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text(f"image,modality,case,series\ndb,target,two,{UID}.1\n", encoding="utf-8")
    words = ["new", str(tmp_path / "s"), "--structures", "1=bone", "--list"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert not ended.value.code
    assert [(c.key, c.subject) for c in Study.open(tmp_path / "s").cases] == [
        ("source/one", "P2"),
        ("target/two", "P1"),
    ]
