"""Large volumes of the scene, some under transforms that bend: the window lives, and what is given up leaves
nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import slicer_harness
from reported_study import make_reported_study
from scene_study import STRUCTURES, linear_parent, placed
from slicer_module import environment, fake_job, longest_turn, slicer
from test_scene_bridge_bending import wave_parent

import qt
from SegGuidedMMReg import SegGuidedMMRegLogic, SegGuidedMMRegParameterNode
from SegGuidedMMRegGui import ReadingJob
from SegGuidedMMRegGui.JobStrip import JobStrip
from SegGuidedMMRegGui.NodeTags import Tag, nodes_of
from SegGuidedMMRegGui.RegisterPanel import RegisterPanel
from SegGuidedMMRegGui.SegmentationNodes import show_labels
from SegGuidedMMRegGui.StudyPanel import StudyPanel
from SegGuidedMMRegGui.VolumeNodes import read_volume, show_image
from SegGuidedMMRegGui.WorkerClient import WorkerClient
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.images import read_image, read_labels, write_labels
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.transform_files import write_transform

LARGE = Grid((160, 160, 64), (1.2, 1.2, 2.0), (-90.0, -100.0, -60.0))
SMALL = Grid((40, 40, 16), (4.8, 4.8, 8.0), (-90.0, -100.0, -60.0))


class Worker:
    """Copies the files that a request to register names; answers with the result in `place` or an error."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def command(self, _):
        code = (
            "import shutil\n"
            "for line in sys.stdin:\n"
            "    asked = json.loads(line)\n"
            "    if asked['do'] == 'segment':\n"
            f"        tell('result', files=[{str(self.place / 'labels.seg.nrrd')!r}], request=asked['id'])\n"
            "    if asked['do'] != 'register': continue\n"
            "    for side in ('moving', 'fixed'):\n"
            "        for what in ('file', 'labels', 'landmarks'):\n"
            "            if what in asked[side]:\n"
            f"                shutil.copy(asked[side][what], {str(self.place)!r} + '/' + side + '-' + what)\n"
            f"    json.dump(asked, open({str(self.place / 'asked.json')!r}, 'w'))\n"
            f"    if os.path.isdir({str(self.place / 'result')!r}):\n"
            f"        shutil.copytree({str(self.place / 'result')!r}, asked['out'])\n"
            "        tell('result', request=asked['id'])\n"
            "    else: tell('error', code='input', message='Asked.', request=asked['id'])\n"
        )
        return fake_job(code)

    def environment(self):
        return environment()


@pytest.fixture
def logic():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    slicer.mrmlScene.Clear(0)
    made = SegGuidedMMRegLogic()
    made.workplace.parameters = SegGuidedMMRegParameterNode(made.getParameterNode())
    yield made
    made.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


@pytest.fixture
def strip(logic):
    made = JobStrip()
    logic.runner.watchers.append(made.watch)
    return made


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the library says of a study that counts as trained."""
    study = make_reported_study(tmp_path_factory.mktemp("large") / "knees", 2, 32)
    for stage in ("segmentation", "adaptation", "registration"):
        study.stage_folder(stage).mkdir(parents=True, exist_ok=True)
        for name in ("weights.safetensors", "network.yaml"):
            (study.stage_folder(stage) / name).write_text("")
    logic = SegGuidedMMRegLogic()
    logic.workplace.open(str(study.folder))
    slicer_harness.process_until(lambda: logic.workplace.study, 90)
    found = logic.workplace.study
    logic.cleanup()
    return found


@pytest.fixture
def panel(logic, strip, told, tmp_path):
    """The step Register, and a worker that keeps what it was given."""
    workplace = logic.workplace
    made = RegisterPanel(workplace)
    workplace.watchers.append(made.study_changed)
    made.choices_changed()
    workplace._take(told)
    workplace._worker = WorkerClient(workplace.folder, logic.runner, Worker(tmp_path))
    yield made
    made.cleanup()


@pytest.fixture
def slowly(monkeypatch):
    """Every step in a turn of its own, so that there is a while in which things can happen."""
    monkeypatch.setattr(ReadingJob, "BUSY_S", 0.0)
    monkeypatch.setattr("SegGuidedMMRegGui.Resampling.BLOCK_VOXELS", 500)


def volume(name: str, grid: Grid, parent=None, seed=1):
    array = np.random.default_rng(seed).integers(0, 2000, grid.shape).astype(np.int16)
    node = show_image(slicer.mrmlScene, Image(array, grid), Tag("a", "b", name), name)
    for attribute in ("Kind", "Study", "Subject", "Content"):
        node.RemoveAttribute(f"SegGuidedMMReg.{attribute}")  # it is the user's
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def drawn(name: str, grid: Grid, structures=STRUCTURES):
    labels = Image(np.zeros(grid.shape, np.uint8), grid)
    i, j, k = grid.size
    labels.array[k // 4 : k // 2, j // 4 : j // 2, i // 4 : i // 2] = structures[0].value
    return show_labels(slicer.mrmlScene, labels, structures, Tag("a", "b", name), name)


def choose_volumes(panel, moving, fixed):
    panel._ui.movingVolumeBox.setCurrentNode(moving)
    panel._ui.fixedVolumeBox.setCurrentNode(fixed)
    assert panel._ui.startButton.enabled


def idle(panel):
    return lambda: not panel._is_busy


def inputs(panel) -> list[Path]:
    place = panel.workplace.bridge._temporary
    return [] if place is None else list(place.glob("register-*"))


def ids() -> list[str]:
    scene = slicer.mrmlScene
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


# -- the window lives -------------------------------------------------------------------------------------
def test_no_turn_is_long_while_a_bent_pair_is_read_for_registering(panel, strip, tmp_path):
    structures = panel.workplace.bridge.study.structures
    moving = volume("m", LARGE, wave_parent(slicer.mrmlScene))
    fixed = volume("f", LARGE, linear_parent(slicer.mrmlScene, placed((0.1, 0, 0), (5, 0, 0))), 2)
    choose_volumes(panel, moving, fixed)
    panel._ui.movingSegmentationBox.setCurrentNode(drawn("theirs", LARGE, structures))
    shown: list[tuple[str, float]] = []

    def is_done():
        shown.append((strip._ui.jobLabel.text, strip._ui.progressBar.value))
        return not panel._is_busy

    before = time.thread_time()
    panel._ui.startButton.click()
    pressed = time.thread_time() - before
    longest = longest_turn(is_done)
    assert max(pressed, longest) < 0.1
    assert panel._ui.messageLabel.text == "Asked."
    world = read_volume(moving).image
    told = read_image(_named(tmp_path / "moving-file"))
    np.testing.assert_array_equal(told.array, world.array)
    assert read_labels(_named(tmp_path / "moving-labels", ".seg.nrrd")).grid.is_close(world.grid)
    assert "Reading m and f: m" in {text for text, _ in shown}
    assert len({value for text, value in shown if text == "Reading m and f: m"}) > 5


def test_no_turn_is_long_while_the_result_of_a_bent_pair_is_shown(panel, tmp_path):
    scene, structures = slicer.mrmlScene, panel.workplace.bridge.study.structures
    moving, fixed = volume("m", LARGE, wave_parent(scene)), volume("f", LARGE, wave_parent(scene), 2)
    world = read_volume(moving).image
    labels = Image((np.indices(LARGE.shape)[0] > 30).astype(np.uint8) * structures[0].value, LARGE)
    for path in (tmp_path / "labels.seg.nrrd", tmp_path / "result" / "warped_labels.seg.nrrd"):
        write_labels(labels, structures, path)
    for name in ("forward", "inverse"):
        field = DisplacementField(LARGE, np.full((*LARGE.shape, 3), 2.0, np.float32))
        write_transform(SpatialTransform(field), tmp_path / "result" / f"{name}.h5")
    (tmp_path / "result" / "report.json").write_text('{"status": "ok", "reasons": []}')
    choose_volumes(panel, moving, fixed)
    panel._ui.startButton.click()
    assert longest_turn(idle(panel)) < 0.1
    nodes = panel.workplace.pair
    assert (nodes.status, panel._ui.messageLabel.text.count("bends it")) == ("ok", 2)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(nodes.shown), world.array)
    assert nodes.shown.GetTransformNodeID() == nodes.forward.GetID()
    assert all(node.IsA("vtkMRMLSegmentationNode") for node in (nodes.moving_labels, nodes.contours))
    assert inputs(panel) == [nodes.folder.parent]


def _named(path: Path, suffix: str = ".nrrd") -> Path:
    return path.rename(path.with_name(path.name + suffix))


def test_no_turn_is_long_while_bent_volumes_become_cases(logic, strip, tmp_path):
    panel = StudyPanel(logic.workplace)
    logic.workplace.watchers.append(panel.study_changed)
    moving = volume("m", LARGE, wave_parent(slicer.mrmlScene))
    volume("f", LARGE, seed=2)
    drawing = drawn("theirs", LARGE)
    drawing.SetAttribute("SegGuidedMMReg.Kind", None)
    ui = panel._ui
    ui.importButton.collapsed = False
    for row in panel.form.scene._rows:
        row.name.setCheckState(qt.Qt.Checked)
        row.modality.currentIndex = int(row.name.text() == "f")
        if row.name.text() == "m":
            row.segmentation.currentIndex = row.segmentation.findText("theirs")
    ui.newPath.currentPath, ui.presetBox.currentIndex = str(tmp_path / "study"), 1
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
    before = time.thread_time()
    ui.newButton.click()
    pressed = time.thread_time() - before
    assert panel.form.is_writing
    longest = longest_turn(lambda: not panel.form.is_writing)
    assert max(pressed, longest) < 0.1
    files = panel.form._files.folder
    world = read_volume(moving).image
    np.testing.assert_array_equal(read_image(files / "1" / "m.nrrd").array, world.array)
    assert set(np.unique(read_labels(files / "1" / "m.seg.nrrd").array)) == {0, 1}
    panel.cleanup()
    assert not files.exists()
    logic.runner.cleanup()


# -- given up ---------------------------------------------------------------------------------------------
def test_cancelled_while_it_is_read_a_pair_leaves_nothing(panel, strip, slowly):
    moving = volume("m", SMALL, wave_parent(slicer.mrmlScene))
    case = panel.workplace.bridge.study.case("r3")
    panel._ui.movingVolumeBox.setCurrentNode(moving)
    panel._sides[1]._keep("Case", case.key)
    there = ids()
    panel._ui.startButton.click()
    slicer_harness.process_until(lambda: strip._ui.jobLabel.text == "Reading m and r3: m", 30)
    assert nodes_of(slicer.mrmlScene, subject=case.key)  # its image has come into the scene
    assert inputs(panel)
    assert strip._ui.cancelButton.enabled
    strip._ui.cancelButton.click()
    assert not panel._is_busy
    assert panel._ui.messageLabel.text == "Cancelled."
    assert ids() == there
    assert inputs(panel) == []
    assert panel._ui.startButton.enabled
    assert not strip._ui.cancelButton.visible
    assert not panel.workplace.runner.running()


@pytest.mark.parametrize("what", ["volume", "segmentation", "scene", "stroke", "module", "study"])
def test_what_happens_while_a_pair_is_read_is_said_and_leaves_nothing(panel, strip, slowly, what):
    scene, structures = slicer.mrmlScene, panel.workplace.bridge.study.structures
    moving, fixed = volume("m", SMALL, wave_parent(scene)), volume("f", SMALL, wave_parent(scene), 2)
    drawing = drawn("theirs", SMALL, structures)
    choose_volumes(panel, moving, fixed)
    panel._ui.fixedSegmentationBox.setCurrentNode(drawing)
    panel._ui.startButton.click()
    slicer_harness.process_until(lambda: "Reading m and f: m" in strip._ui.jobLabel.text, 30)
    place = panel.workplace.bridge._temporary
    there = ids()
    if what == "volume":
        scene.RemoveNode(fixed)
    elif what == "segmentation":
        scene.RemoveNode(drawing)
    elif what == "stroke":
        drawing.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap").Modified()
    elif what == "scene":
        panel.workplace.scene_closed()
        scene.Clear(0)
    elif what == "study":
        panel.workplace.close()
    else:
        panel.cleanup()
    left = ids()
    slicer_harness.process_until(idle(panel), 30)
    said = {
        "volume": "'f' was removed from the scene while it was read, so it is not used.",
        "segmentation": "'theirs' was removed from the scene while it was read, so it is not used.",
        "stroke": "'theirs' was changed while it was read, so it is not used. Begin again.",
        "scene": "The scene was closed before the images were read, so nothing was registered.",
        "study": "The study was closed before the images were read, so nothing was registered.",
        "module": "",
    }
    assert panel._ui.messageLabel.text == said[what]
    assert ids() == left
    assert set(left) <= set(there)
    assert not list(place.glob("register-*"))
    assert not panel.workplace.runner.running()


@pytest.mark.parametrize("what", ["cancel", "volume", "scene"])
def test_an_import_that_is_given_up_while_a_volume_is_read_leaves_nothing(
    logic, strip, slowly, tmp_path, what
):
    panel, scene = StudyPanel(logic.workplace), slicer.mrmlScene
    volume("m", SMALL, wave_parent(scene))
    fixed = volume("f", SMALL)
    ui = panel._ui
    ui.importButton.collapsed = False
    for row in panel.form.scene._rows:
        row.name.setCheckState(qt.Qt.Checked)
        row.modality.currentIndex = int(row.name.text() == "f")
    ui.newPath.currentPath, ui.presetBox.currentIndex = str(tmp_path / "study"), 1
    ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
    panel.form.structures._ui.addRowButton.click()
    ui.newButton.click()
    slicer_harness.process_until(lambda: "scene: m" in strip._ui.jobLabel.text, 30)
    files = panel.form._files.folder
    assert files.exists()
    if what == "cancel":
        strip._ui.cancelButton.click()
    elif what == "volume":
        scene.RemoveNode(fixed)
    else:
        scene.Clear(0)
    slicer_harness.process_until(lambda: not panel.form.is_writing, 30)
    said = {"cancel": "Cancelled.", "volume": "'f' was removed", "scene": "'m' was removed"}
    assert said[what] in ui.messageLabel.text
    assert not files.exists()
    assert not (tmp_path / "study").exists()
    assert ui.newButton.enabled == (what == "cancel")
    assert not logic.runner.running()
    panel.cleanup()


# -- choices ----------------------------------------------------------------------------------------------
def test_choices_are_taken_as_they_were_when_register_was_pressed(panel, strip, slowly, tmp_path):
    import json

    scene, structures = slicer.mrmlScene, panel.workplace.bridge.study.structures
    moving, fixed = volume("m", SMALL, wave_parent(scene)), volume("f", SMALL, wave_parent(scene), 2)
    other = volume("other", SMALL, seed=3)
    drawing, another = drawn("theirs", SMALL, structures), drawn("another", SMALL, structures[::-1])
    points = []
    for n, name in enumerate(("p", "q", "r", "s")):
        points.append(scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name))
        points[n].AddControlPoint([n, 2, 3], "condyle")
    ui = panel._ui
    choose_volumes(panel, moving, fixed)
    ui.movingSegmentationBox.setCurrentNode(drawing)
    ui.movingPointsBox.setCurrentNode(points[0])
    ui.fixedPointsBox.setCurrentNode(points[1])
    ui.movingMirroredBox.click()
    ui.startButton.click()
    slicer_harness.process_until(lambda: "Reading m and f: m" in strip._ui.jobLabel.text, 30)
    choose_later = (
        (ui.movingVolumeBox, other),
        (ui.fixedVolumeBox, moving),
        (ui.movingSegmentationBox, another),
        (ui.fixedSegmentationBox, another),
        (ui.movingPointsBox, points[2]),
        (ui.fixedPointsBox, points[3]),
    )
    for box, node in choose_later:
        box.setCurrentNode(node)
    ui.movingMirroredBox.click()
    ui.fixedMirroredBox.click()
    ui.movingModalityBox.currentIndex = 1
    ui.movingModalityBox.activated.emit(1)
    panel._sides[0].choose_segment(structures[0].name, "")
    slicer_harness.process_until(idle(panel), 60)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert {k: v for k, v in asked["moving"].items() if k in ("modality", "mirrored")} == {
        "modality": panel.workplace.bridge.study.source,
        "mirrored": True,
    }
    assert (Path(asked["moving"]["file"]).name, Path(asked["fixed"]["file"]).name) == ("m.nrrd", "f.nrrd")
    assert "mirrored" not in asked["fixed"]
    assert "labels" not in asked["fixed"]
    labels = read_labels(_named(tmp_path / "moving-labels", ".seg.nrrd"))
    assert set(np.unique(labels.array)) == {0, structures[0].value}
    lists = [json.loads((tmp_path / f"{side}-landmarks").read_text()) for side in ("moving", "fixed")]
    places = [each["markups"][0]["controlPoints"][0]["position"][0] for each in lists]
    assert [abs(round(x)) for x in places] == [0, 1]
