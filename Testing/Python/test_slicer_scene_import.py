"""Volumes of the scene become cases of a study: with their place, transforms and segmentations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer_harness
from slicer_module import Gaps, slicer

import qt
from SegGuidedMMRegGui import ReadingJob
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.Places import to_vtk
from SegGuidedMMRegGui.SceneFiles import SceneFiles, SceneVolume, file_name, write_in_pieces
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.VolumeNodes import read_volume
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import read_image, read_labels
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Role, Study

TURNED = np.array([[0.0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 30], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    slicer.mrmlScene.Clear(0)
    yield
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors
    assert left() == []


@pytest.fixture
def panel():
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    made = StudyPanel(workplace)
    workplace.watchers.append(made.study_changed)
    yield made
    made.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()


def left() -> list[Path]:
    """Temporary files of an import."""
    return list(Path(slicer.app.temporaryPath).glob("SegGuidedMMReg-import-*"))


def settle(panel: StudyPanel) -> None:
    idle = lambda: not panel.workplace.runner.running() and not panel.form.is_writing  # noqa: E731
    slicer_harness.process_until(idle, 90)


def volume(name: str, seed: int, size: tuple[int, int, int] = (1, 40, 32)):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    array = np.random.default_rng(seed).integers(0, 255, size).astype(np.int16)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetSpacing(0.5, 0.4, 2.0)
    return node


def drawn(on, names: tuple[str, ...] = ("femur", "tibia")):
    """A segmentation on a volume: a stripe a segment."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{on.GetName()} drawn")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(on)
    matrix = to_vtk(np.eye(4))
    on.GetIJKToRASMatrix(matrix)
    for n, name in enumerate(names):
        array = np.zeros(slicer.util.arrayFromVolume(on).shape, np.uint8)
        array[:, 10 * n + 2 : 10 * n + 9, 4:20] = 1
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*array.shape[::-1])
        from vtk.util.numpy_support import numpy_to_vtk

        image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
        image.SetImageToWorldMatrix(matrix)
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.SetColor(0.2 * n, 0.4, 1.0)
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment, name)
    return node


def tick(panel: StudyPanel, name: str, modality: int, segmentation: str = "", **said: object) -> None:
    for row in panel.form.scene._rows:
        if row.name.text() == name:
            row.name.setCheckState(qt.Qt.Checked)
            row.modality.currentIndex = modality
            row.segmentation.currentIndex = max(0, row.segmentation.findText(segmentation))
            row.subject.setText(str(said.get("subject", "")))
            row.role.currentIndex = int(said.get("role", 0))
            row.mirrored.setCheckState(qt.Qt.Checked if said.get("mirrored") else qt.Qt.Unchecked)


def make(panel: StudyPanel, folder: Path) -> Study:
    """A study of the ticked volumes."""
    ui = panel._ui
    ui.newPath.currentPath = str(folder)
    ui.sourceEdit.text, ui.targetEdit.text, ui.presetBox.currentIndex = "mr", "ct", 1
    assert ui.newButton.enabled, ui.newButton.toolTip
    ui.newButton.click()
    assert not ui.newButton.enabled
    settle(panel)
    settle(panel)
    assert panel.workplace.study is not None, ui.messageLabel.text
    return Study.open(folder)


# -- a study from the scene -------------------------------------------------------------------------------
def test_a_study_is_made_of_volumes_and_segmentations_of_the_scene(panel, tmp_path):
    ui = panel._ui
    first, _second = volume("knee one", 1), volume("knee/two", 2)
    third = volume("ct: three", 3)
    drawn(first)
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turned")
    parent.SetMatrixTransformToParent(to_vtk(TURNED))
    third.SetAndObserveTransformNodeID(parent.GetID())
    ui.importButton.collapsed = False
    tick(panel, "knee one", 0, "knee one drawn", role=1)
    tick(panel, "knee/two", 0, subject="anna", mirrored=True, role=3)
    tick(panel, "ct: three", 1)
    wanted = read_volume(third).image
    study = make(panel, tmp_path / "study")
    assert [(s.name, s.color) for s in study.structures] == [
        ("femur", (0, 102, 255)),
        ("tibia", (51, 102, 255)),
    ]
    cases = {c.name: c for c in study.cases}
    assert set(cases) == {"knee one", "knee_two", "ct_ three"}
    assert (cases["knee one"].role, cases["knee one"].label_use) == (Role.TRAIN, "training")
    two = cases["knee_two"]
    assert (two.subject, two.mirrored, two.role) == ("anna", True, Role.TEST)
    read = study.read_image(cases["ct_ three"])
    assert read.grid.is_close(wanted.grid)
    np.testing.assert_array_equal(read.array, wanted.array)
    labels = read_labels(study.folder / str(cases["knee one"].label))
    assert (labels.array == 2).sum() == 7 * 16
    assert cases["knee one"].original == "3D Slicer: knee one"
    assert panel.form.scene.chosen() == []
    assert third.GetParentTransformNode() is parent


def test_volumes_are_added_to_the_open_study_with_its_structures(panel, tmp_path):
    ui = panel._ui
    first = volume("one", 1)
    drawn(first)
    volume("two", 2)
    ui.importButton.collapsed = False
    tick(panel, "one", 0, "one drawn", role=1)
    tick(panel, "two", 1, role=1)
    make(panel, tmp_path / "study")
    third = volume("three", 3)
    drawn(third, ("tibia", "a cyst"))
    panel.opened()
    assert not ui.addButton.enabled
    tick(panel, "three", 0, "three drawn", role=1)
    assert [panel.form.scene._rows[0].modality.itemText(n) for n in (0, 1)] == ["mr", "ct"]
    ui.addButton.click()
    settle(panel)
    settle(panel)
    study = Study.open(tmp_path / "study")
    labels = read_labels(study.folder / str(study.case("three").label))
    assert set(np.unique(labels.array)) == {0, 2}
    assert "no structure of the study: a cyst" in ui.problemsEdit.plainText


# -- what can go wrong ------------------------------------------------------------------------------------
def test_a_segmentation_that_does_not_fit_is_said_and_nothing_is_left(panel, tmp_path):
    ui = panel._ui
    first = volume("one", 1)
    volume("two", 2)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    ui.importButton.collapsed = False
    tick(panel, "one", 0, empty.GetName())
    tick(panel, "two", 1)
    ui.newPath.currentPath = str(tmp_path / "study")
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
    ui.newButton.click()
    settle(panel)
    assert "'empty' has no segment" in ui.messageLabel.text
    assert ui.newButton.enabled
    assert left() == []
    assert first.GetName() == "one"
    assert not (tmp_path / "study").exists()


def test_an_import_that_the_library_refuses_leaves_nothing(panel, tmp_path):
    ui = panel._ui
    volume("one", 1)
    slicer.util.arrayFromVolume(volume("two", 2))[:] = 7
    ui.importButton.collapsed = False
    tick(panel, "one", 0)
    tick(panel, "two", 1)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").write_text("mine", encoding="utf-8")
    ui.newPath.currentPath = str(tmp_path / "study")
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
    panel.form.structures._ui.addRowButton.click()
    ui.newButton.click()
    settle(panel)
    assert "not empty" in ui.messageLabel.text
    assert left() == []
    assert len(panel.form.scene.chosen()) == 2


def test_closing_the_module_while_volumes_are_written_leaves_nothing(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(ReadingJob, "BUSY_S", 0.0)  # a step at a go, however fast the disk
    ui = panel._ui
    volume("one", 1)
    volume("two", 2)
    ui.importButton.collapsed = False
    tick(panel, "one", 0)
    tick(panel, "two", 1)
    ui.newPath.currentPath = str(tmp_path / "study")
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
    ui.newButton.click()
    assert len(left()) == 1
    panel.cleanup()
    assert left() == []
    assert not panel.workplace.runner.running()


# -- the list ---------------------------------------------------------------------------------------------
def test_the_list_follows_the_scene_and_keeps_what_was_said(panel):
    scene = panel.form.scene
    one = volume("one", 1)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    volume("hidden", 3).SetHideFromEditors(True)
    panel._ui.importButton.collapsed = False
    assert [row.name.text() for row in scene._rows] == ["one"]
    tick(panel, "one", 1, subject="anna", role=2, mirrored=True)
    volume("two", 2)
    drawn(one)
    scene._ui.lookButton.click()
    assert [row.name.text() for row in scene._rows] == ["one", "two"]
    (chosen,) = scene.chosen()
    assert chosen == SceneVolume(one, "target", None, "anna", "validation", True)
    slicer.mrmlScene.RemoveNode(one)
    assert scene.chosen() == []
    slicer.mrmlScene.Clear(0)
    scene._ui.lookButton.click()
    assert scene._rows == []


# -- files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("MR: knee/left", "MR_ knee_left"),
        ("a--b", "a-b"),
        ("con.1", "_con.1"),
        (" . ", "volume"),
        ("膝" * 90, "膝" * 33),
    ],
)
def test_the_name_of_a_volume_becomes_one_that_files_can_have_everywhere(called, name):
    assert file_name(called) == name
    assert len(f"{name}.seg.nrrd".encode()) < 255


def test_without_a_folder_for_temporary_files_the_import_says_so(panel, tmp_path, monkeypatch):
    volume("scanned", 1, (4, 20, 16))
    volume("photographed", 2, (4, 20, 16))
    panel._ui.importButton.collapsed = False
    tick(panel, "scanned", 0)
    tick(panel, "photographed", 1)
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path / "gone"))
    ui = panel._ui
    ui.newPath.currentPath, ui.sourceEdit.text, ui.targetEdit.text = str(tmp_path / "s"), "mr", "ct"
    panel.form.structures._ui.addRowButton.click()
    ui.newButton.click()
    assert "gone" in ui.messageLabel.text
    assert ui.newButton.enabled


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64, np.uint32])
def test_an_image_in_pieces_is_the_image(tmp_path, kind, monkeypatch):
    from SegGuidedMMRegGui import SceneFiles as module

    monkeypatch.setattr(module, "_PIECE_BYTES", 100)
    turn = np.array([[0.0, 0.6, 0.8], [1, 0, 0], [0, 0.8, -0.6]])
    grid = Grid((5, 6, 7), (0.5, 1.25, 3.0), (-3.5, 2.25, 100.125), tuple(turn.ravel()))
    image = Image(np.random.default_rng(0).integers(0, 200, grid.shape).astype(kind), grid)
    assert len(list(write_in_pieces(image, tmp_path / "a.nrrd"))) > 1
    read = read_image(tmp_path / "a.nrrd")
    assert read.grid.is_close(grid)
    assert read.array.dtype == kind
    np.testing.assert_array_equal(read.array, image.array)


def test_large_volumes_are_written_without_a_hitch():
    nodes = [volume(f"v{n}", n, (96, 256, 256)) for n in range(2)]
    chosen = [SceneVolume(node, "source", None, "", "", False) for node in nodes]
    done: list[Path] = []
    files = SceneFiles(JobRunner(), chosen, (), done.append, pytest.fail)
    with Gaps() as gaps:
        files.start()
        gaps.spin(lambda: done)
    assert read_image(files.folder / "2" / "v1.nrrd").grid.size == (256, 256, 96)
    files.remove()
    assert gaps.longest < 0.1
