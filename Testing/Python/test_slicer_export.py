"""Step 6: pairs are ticked, what is written where is shown first, nothing is replaced without a word."""

from __future__ import annotations

import gc
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer_harness
from reported_study import make_reported_study, with_warped_images
from slicer_module import FOLDER, Gaps, slicer
from trained_study import moved_by, voxel_centres

import qt
from SegGuidedMMRegGui import JobRunner as runner_module
from SegGuidedMMRegGui.ExportPairs import ExportablePair, PairsTable
from SegGuidedMMRegGui.ExportPanel import ExportPanel
from SegGuidedMMRegGui.ExportWords import size_of
from SegGuidedMMRegGui.JobPython import chosen_python
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.PairFiles import read_pair
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.reviews import Decision, ReviewRecord, result_of

GOOD, FOLDED = "d3--r3", "d4--r4"


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    yield
    assert not slicer_harness.slot_errors
    slicer.mrmlScene.Clear(0)


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    return with_warped_images(make_reported_study(tmp_path_factory.mktemp("study") / "knees")).folder


def panel_of(folder: Path) -> ExportPanel:
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = ExportPanel(workplace)
    workplace.watchers.append(made.study_changed)
    made.opened()
    workplace.open(str(folder))
    slicer_harness.process_until(lambda: made._table.pairs, 60)
    return made


def end(panel: ExportPanel) -> None:
    panel.cleanup()
    panel.workplace.cleanup()
    panel.workplace.runner.cleanup()


@pytest.fixture
def panel(knees):
    made = panel_of(knees)
    yield made
    end(made)


def planned(panel: ExportPanel) -> list[list[str]]:
    """The table of files, once it is of what is chosen."""
    slicer_harness.process_until(lambda: panel._current_plan() is not None, 60)
    return rows(panel._ui.planTable)


def exported(panel: ExportPanel) -> str:
    """Press the button; what the panel says in the end."""
    planned(panel)
    assert panel._ui.exportButton.enabled, panel._ui.exportButton.toolTip
    panel._ui.exportButton.click()
    assert panel._ui.exportButton.text == "Cancel"
    slicer_harness.process_until(lambda: panel._exporting is None, 90)
    return panel._ui.messageLabel.text


def rows(table) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def tick(panel: ExportPanel, *titles: str) -> None:
    """Leave a tick at these pairs alone."""
    panel._ui.noneButton.click()
    for row, (title, *_) in enumerate(rows(panel._ui.pairsTable)):
        if title in titles:
            panel._ui.pairsTable.item(row, 0).setCheckState(qt.Qt.Checked)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_pairs_of_the_study_are_listed_and_the_failed_one_has_no_tick(panel):
    found = rows(panel._ui.pairsTable)
    assert [row[0] for row in found] == ["d3 → r3", "d3 → r4", "d4 → r3", "d4 → r4"]
    assert [row[3].split(":")[0] for row in found] == ["ok", "ok", "ok", "failed"]
    assert 0 < float(found[0][1]) < 1
    assert panel._table.chosen() == ["d3--r3", "d3--r4", "d4--r3"]
    assert "4 registered pairs, 1 of them failed" in panel._ui.summaryLabel.text
    assert "folds" in panel._ui.pairsTable.item(3, 3).toolTip()
    panel._ui.failedBox.click()
    assert len(panel._table.chosen()) == 4


def test_the_button_says_what_is_missing(panel, tmp_path):
    ui = panel._ui
    assert not ui.exportButton.enabled
    assert "a folder to write to" in ui.exportButton.toolTip
    ui.noneButton.click()
    ui.h5Box.click()
    assert "a pair with a tick" in ui.exportButton.toolTip
    assert "a format of the transforms" in ui.exportButton.toolTip
    for name in ("forwardBox", "inverseBox", "imageBox", "labelsBox"):
        getattr(ui, name).click()
    assert "something to write" in ui.exportButton.toolTip
    assert not ui.spacingBox.enabled
    assert not ui.folderButton.enabled


def test_what_was_shown_is_what_is_written_and_points_map_alike(panel, knees, tmp_path, monkeypatch):
    ui, out = panel._ui, tmp_path / "handed over"
    tick(panel, "d3 → r3")
    for name in ("nrrdBox", "niftiBox", "reportBox", "tableBox"):
        getattr(ui, name).click()
    ui.spacingBox.value = 3.0
    ui.folderPath.currentPath = str(out)
    shown = planned(panel)
    assert not out.exists()
    assert {row[2] for row in shown} == {"new"}
    assert "Files: 10, of pairs: 1" in ui.planLabel.text
    said = exported(panel)
    assert said.startswith(f"Written to {out}. Files: 10, of pairs: 1;")
    planned(panel)
    assert ui.messageLabel.text == said
    assert not ui.messageLabel.isHidden()
    assert set(tree(out)) == {row[0] for row in shown}
    points = voxel_centres(sitk.ReadImage(str(out / GOOD / "warped_image.nrrd")))
    true = moved_by(sitk.ReadTransform(str(knees / "registrations" / GOOD / "forward.h5")), points)
    field = sitk.Cast(sitk.ReadImage(str(out / GOOD / "forward.nrrd")), sitk.sitkVectorFloat64)
    assert np.linalg.norm(np.array(field.GetSpacing()[:2])) > 3
    moved = moved_by(sitk.ReadTransform(str(out / GOOD / "forward.h5")), points)
    assert np.median(np.linalg.norm(moved - true, axis=1)) < 0.2
    by_field = moved_by(sitk.DisplacementFieldTransform(field), points)
    assert np.median(np.linalg.norm(moved - by_field, axis=1)) < 1e-3
    opened = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    ui.folderButton.click()
    assert opened == [str(out)]


def test_a_file_that_exists_is_replaced_only_after_a_word(panel, tmp_path):
    ui, mine = panel._ui, tmp_path / GOOD / "inverse.h5"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    tick(panel, "d3 → r3")
    ui.folderPath.currentPath = str(tmp_path)
    shown = planned(panel)
    assert shown[0][0] == f"{GOOD}/inverse.h5"
    assert [row[2] for row in shown] == ["exists", "new", "new", "new"]
    assert not ui.replaceBox.isHidden()
    assert "(1, listed first)" in ui.replaceBox.text
    assert not ui.exportButton.enabled
    assert "your word" in ui.exportButton.toolTip
    ui.replaceBox.click()
    assert ui.exportButton.enabled
    ui.imageBox.click()  # another choice: the word was not given for that
    planned(panel)
    assert not ui.exportButton.enabled
    assert mine.read_bytes() == b"mine"
    ui.replaceBox.click()
    assert "older files replaced: 1" in exported(panel)
    assert mine.read_bytes() != b"mine"
    assert {row[2] for row in planned(panel)} == {"exists"}
    assert not ui.replaceBox.checked


def test_an_export_can_be_cancelled_and_leaves_whole_files(panel, tmp_path):
    ui = panel._ui
    ui.spacingBox.value = 0.1
    for name in ("niftiBox", "nrrdBox"):
        getattr(ui, name).click()
    ui.folderPath.currentPath = str(tmp_path / "out")
    planned(panel)
    ui.exportButton.click()
    slicer_harness.process_until(lambda: list(tmp_path.glob("out/*/[!.]*.h5")), 60)
    ui.exportButton.click()
    assert not ui.exportButton.enabled
    slicer_harness.process_until(lambda: panel._exporting is None, 60)
    assert "none is half written" in ui.messageLabel.text
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert 0 < len(left) < 24
    for path in left:
        if path.name.startswith(".unfinished-"):  # the note that lets the same export go on
            continue
        assert not path.name.startswith(".")
        assert sitk.ReadTransform(str(path)) if path.suffix == ".h5" else sitk.ReadImage(str(path))
    assert ui.exportButton.text == "Export"


def test_a_folder_that_cannot_be_written_to_is_named(panel, tmp_path):
    ui, file = panel._ui, tmp_path / "file"
    file.write_text("no folder")
    ui.folderPath.currentPath = str(file / "deeper")
    slicer_harness.process_until(lambda: ui.messageLabel.text, 60)
    assert f"{file} is a file" in ui.messageLabel.text
    assert "other choices" in ui.exportButton.toolTip


class WithoutPowers:
    """The Python of the jobs, to which a read-only folder is one even where root runs it."""

    _DROP = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, python) -> None:
        self._python = python

    def command(self, arguments):
        return (sys.executable, "-c", self._DROP, *self._python.command(arguments))

    def environment(self):
        return self._python.environment()


@pytest.mark.skipif(sys.platform != "linux", reason="drops a right of root as Linux knows it")
def test_a_read_only_folder_is_named_with_a_remedy(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "chosen_python", lambda: WithoutPowers(chosen_python()))
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    panel._ui.folderPath.currentPath = str(out)
    said = exported(panel)
    assert str(out) in said
    assert "Allow writing to" in said
    assert panel._ui.exportButton.text == "Export"
    assert list(out.iterdir()) == []


def test_a_result_of_the_scene_is_exported_too(panel, knees, tmp_path):
    result = tmp_path / "elsewhere"
    shutil.copytree(knees / "registrations" / GOOD, result)
    bridge = panel.workplace.bridge
    panel.workplace.show_pair(bridge.show_pair(read_pair(result), subject="my knee--its fellow"))
    panel.workplace.show_pair(bridge.show_pair(read_pair(knees / "registrations" / "d3--r4")))
    titles = [row[0] for row in rows(panel._ui.pairsTable)]
    assert titles[4:] == ["my knee → its fellow (scene)"]
    tick(panel, titles[4])
    panel._ui.folderPath.currentPath = str(tmp_path / "out")
    assert "Files: 4, of pairs: 1" in exported(panel)
    a, b = (sitk.ReadTransform(str(p / "forward.h5")) for p in (result, tmp_path / "out" / GOOD))
    points = np.array([[0.0, 0.0, 0.0], [5.0, -7.0, 0.0]])
    np.testing.assert_allclose(moved_by(a, points), moved_by(b, points), atol=1e-6)
    shutil.rmtree(result)
    panel.opened()
    assert rows(panel._ui.pairsTable)[4][3].startswith("cannot be used")
    assert panel._table.chosen() == []


def test_only_accepted_pairs_when_that_is_wanted(knees, tmp_path):
    study = tmp_path / "knees"
    shutil.copytree(knees, study)
    record = ReviewRecord(study / "registrations")
    panel = panel_of(study)
    try:
        assert panel._ui.acceptedBox.isHidden()
        assert panel._ui.pairsTable.isColumnHidden(2)
        for pair, verdict in ((GOOD, "accepted"), ("d3--r4", "rejected")):
            record.decide(Decision(pair, result_of(study / "registrations" / pair), verdict))
        record.decide(Decision("d4--r3", "of an earlier one", "accepted"))
        panel.opened()
        assert not panel._ui.acceptedBox.isHidden()
        found = [row[2] for row in rows(panel._ui.pairsTable)]
        assert found == ["accepted", "rejected", "earlier result accepted", "–"]
        panel._ui.acceptedBox.click()
        assert panel._table.chosen() == [GOOD]
    finally:
        end(panel)


def test_without_a_study_the_panel_says_so():
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    panel = ExportPanel(workplace)
    panel.opened()
    assert "step 1" in panel._ui.summaryLabel.text
    assert not panel._ui.lookButton.enabled
    assert "an open study" in panel._ui.exportButton.toolTip
    end(panel)


def test_choices_are_kept_in_the_scene_and_come_back_with_it(knees, tmp_path):
    widget = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    try:
        panel = widget.panels["export"]
        widget.panels["study"].open(str(knees))
        widget.ui.exportButton.collapsed = False
        slicer_harness.process_until(lambda: panel._table.pairs, 60)
        ui = panel._ui
        tick(panel, "d3 → r4")
        ui.inverseBox.click()
        ui.tableBox.click()
        ui.spacingBox.value = 2.5
        ui.volumesBox.currentText = ".nii.gz"
        ui.folderPath.currentPath = str(tmp_path / "out")
        planned(panel)
        scene, path = slicer.mrmlScene, str(tmp_path / "scene.mrml")
        scene.SetURL(path)
        assert scene.Commit()
        scene.Clear(0)
        widget.enter()
        assert ui.inverseBox.checked
        assert ui.folderPath.currentPath == ""
        scene.SetURL(path)
        assert scene.Connect()
        widget.enter()
        slicer_harness.process_until(lambda: panel._table.pairs, 60)
        assert not ui.inverseBox.checked
        assert ui.tableBox.checked
        assert ui.spacingBox.value == 2.5
        assert ui.volumesBox.currentText == ".nii.gz"
        assert ui.folderPath.currentPath == str(tmp_path / "out")
        assert panel._table.chosen() == ["d3--r4"]
    finally:
        widget.cleanup()


def test_a_thousand_pairs_are_shown_within_a_moment(panel):
    many = [ExportablePair(f"a{n}--b{n}", f"a{n} → b{n}", "ok", "", 0.9) for n in range(1000)]
    table = PairsTable(panel._ui.pairsTable, lambda: None)
    gc.collect()  # what other tests have left would be cleared away in this time
    before = time.thread_time()
    table.show(many, lambda _: True, ())
    assert time.thread_time() - before < 0.1
    assert len(table.chosen()) == 1000


def test_the_gui_stays_free_while_it_is_exported(panel, tmp_path):
    panel._ui.folderPath.currentPath = str(tmp_path / "out")
    with Gaps() as gaps:
        gaps.spin(lambda: panel._current_plan() is not None, 60)
        panel._ui.exportButton.click()
        gaps.spin(lambda: panel._exporting is None, 60)
    assert gaps.longest < 0.1
    assert (tmp_path / "out" / GOOD / "forward.h5").is_file()


@pytest.mark.parametrize(("count", "text"), [(500, "0.5 kB"), (98304, "98.3 kB"), (2.5e8, "250 MB")])
def test_sizes_are_short(count, text):
    assert size_of(count) == text
