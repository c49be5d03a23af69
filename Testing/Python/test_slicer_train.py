"""Step 3: stages, one button, curves and pictures; a training that is cancelled, resumed and found again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_module import FOLDER, Gaps, environment, fake_job, slicer
from trained_study import copy_of, make_study, tiny_config

import qt
from SegGuidedMMRegGui import ProcessTree
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.JobPython import JobPython
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.TrainingTold import MOST_POINTS, Curves, TrainingTold
from SegGuidedMMRegGui.TrainPanel import STAGES, TrainPanel
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.freshness import STAGES as LIBRARY_STAGES
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.study import Study

STAGE, STATE, TIME, MEMORY = range(4)
GOES_ON = """
import itertools
tell('started', command='train', schema=1, version='0', pid=os.getpid())
tell('started', stage='segmentation', of=100)
for n in itertools.count(1):
    tell('progress', stage='segmentation', step=min(n, 40), of=100, seconds_left=120, metrics={'loss': 1 / n})
    if os.path.exists('go on'): break
    time.sleep(0.02)
"""
DONE = GOES_ON + "tell('result', command='train', exit_code=0)"


class FakePython:
    """Runs a script as the training, in the folder of the study; everything else as it is."""

    def __init__(self, code: str, study: Path) -> None:
        self.code = f"os.chdir({str(study)!r})\n{code}"

    def command(self, _):
        return fake_job(self.code)

    def environment(self):
        return environment()


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    yield
    assert not slicer_harness.slot_errors


@pytest.fixture
def panel():
    slicer.mrmlScene.Clear(0)
    runner = JobRunner()
    workplace = Workplace(slicer.mrmlScene, runner)
    made = TrainPanel(workplace)
    workplace.watchers.append(made.study_changed)
    made.opened()
    yield made
    made.cleanup()
    workplace.cleanup()
    runner.cleanup()
    slicer.mrmlScene.Clear(0)


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    """Not trained."""
    return make_study(tmp_path_factory.mktemp("train"), config=tiny_config(hurried=True)).folder


class LightPython:
    """The library as it is, but for what takes long and needs torch: the device, and the need of memory."""

    code = (
        "from SegGuidedMMRegLib import training_status\n"
        "training_status._device = lambda study: study.config.training.device\n"
        "training_status._needs = lambda study: {}\n"
        "from SegGuidedMMRegLib.__main__ import main\n"
        "main()"
    )

    def command(self, arguments):
        return (sys.executable, "-c", self.code, *arguments, "--events")

    def environment(self):
        return JobPython(sys.executable, True).environment()


@pytest.fixture
def light(monkeypatch) -> None:
    """A study is looked at soon."""
    monkeypatch.setattr("SegGuidedMMRegGui.JobRunner.chosen_python", LightPython)


class QuickPython(LightPython):
    """Says what the library said of an untrained study, without asking it again."""

    def __init__(self, study: Path, folder: Path) -> None:
        self.told: dict[tuple[str, ...], tuple[str, ...]] = {}
        for arguments in (("info", str(study)), ("status", str(study), "--training")):
            command = JobPython(sys.executable, True).command(arguments)
            told = folder / f"{arguments[0]}.jsonl"
            done = subprocess.run(command, capture_output=True, check=True)
            told.write_bytes(done.stdout)
            self.told[arguments] = ("sh", "-c", f"cat {shlex.quote(str(told))}")

    def command(self, arguments):
        return self.told.get(arguments) or super().command(arguments)


@pytest.fixture(scope="module")
def quick_python(knees, tmp_path_factory) -> QuickPython:
    return QuickPython(knees, tmp_path_factory.mktemp("told"))


@pytest.fixture
def quick(quick_python, monkeypatch) -> None:
    """The study `knees` is looked at in no time."""
    monkeypatch.setattr("SegGuidedMMRegGui.JobRunner.chosen_python", lambda: quick_python)


def settle(panel: TrainPanel, seconds: float = 120) -> None:
    runner = panel.workplace.runner
    slicer_harness.process_until(
        lambda: not [job for job in runner.running() if not isinstance(job, DetachedJob)], seconds
    )


def opened(panel: TrainPanel, folder: Path) -> TrainPanel:
    panel.workplace.open(str(folder))
    slicer_harness.process_until(lambda: panel._status is not None or panel._problem, 120)
    settle(panel)
    return panel


def rows(panel: TrainPanel) -> list[list[str]]:
    table = panel._ui.stagesTable
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def row(panel: TrainPanel, stage: str) -> list[str]:
    return rows(panel)[STAGES.index(stage)]


def setting(panel: TrainPanel, name: str):
    return next(each for each in panel._form.rows if each.name == name)


@pytest.fixture
def trains(monkeypatch):
    """Let a script stand for the training; it ends when the test does."""
    begun: list[Path] = []

    def instead(code: str, study: Path) -> None:
        begun.append(study)
        monkeypatch.setattr("SegGuidedMMRegGui.DetachedJob.chosen_python", lambda: FakePython(code, study))

    yield instead
    for study in begun:
        job = DetachedJob.find(study, "train", JobListener())
        if job is not None:
            job.kill()
        (study / "go on").unlink(missing_ok=True)


# -- before the start -----------------------------------------------------------------------------------
def test_the_stages_are_those_of_the_library():
    assert STAGES == LIBRARY_STAGES


def test_without_a_study_the_button_says_what_it_needs(panel):
    assert not panel._ui.trainButton.enabled
    assert "an open study" in panel._ui.trainButton.toolTip
    assert rows(panel) == []


def test_what_each_stage_needs_is_stated_before_the_start(panel, knees):
    ui = opened(panel, knees)._ui
    assert [r[STATE].split(":")[0] for r in rows(panel)] == ["○ missing"] * 5
    assert "10 images to align" not in row(panel, "segmentation")[STATE]
    assert "images to align" in row(panel, "prealign")[STATE]
    assert all(r[MEMORY].endswith(" GB") for r in rows(panel))
    assert ui.summaryLabel.text.startswith("Trains on cpu; needs up to")
    assert (ui.presetBox.currentText, ui.deviceBox.currentText) == ("quick", "cpu")
    assert (ui.trainButton.text, ui.trainButton.enabled) == ("Train", True)
    assert not ui.cancelButton.enabled
    assert "Needs a training" in ui.cancelButton.toolTip


def test_a_study_without_labels_for_training_cannot_be_trained(light, panel, knees, tmp_path):
    from dataclasses import replace

    study = copy_of(Study.open(knees), tmp_path / "study")
    study.with_cases([replace(c, label_use="evaluation" if c.label else None) for c in study.cases]).save()
    ui = opened(panel, study.folder)._ui
    assert not ui.trainButton.enabled
    assert "a segmentation of dxa for training" in ui.trainButton.toolTip


def test_who_trains_elsewhere_is_named_and_the_button_waits(light, panel, knees):
    with working_on(knees, "train"):
        ui = opened(panel, knees)._ui
        assert "trains this study since" in ui.messageLabel.text
        assert not ui.trainButton.enabled
    ui.lookButton.click()
    settle(panel)
    assert not ui.messageLabel.text
    assert ui.trainButton.enabled


def test_a_device_that_is_not_there_is_told(panel, tmp_path):
    config = tiny_config(hurried=True, training={"device": "mps"})
    ui = opened(panel, make_study(tmp_path, config=config).folder)._ui
    assert "no 'mps' device" in ui.summaryLabel.text


def test_where_a_package_is_missing_the_message_says_so_and_training_waits(panel, knees, monkeypatch):
    error = "tell('error', code='missing_package', message='The package torch is missing.', exit_code=2)"

    class WithoutTorch(FakePython):
        def command(self, arguments):
            own = JobPython(sys.executable, True).command(arguments)
            return super().command(arguments) if arguments[0] == "status" else own

    python = WithoutTorch(f"{error}\nsys.exit(2)", knees)
    monkeypatch.setattr("SegGuidedMMRegGui.JobRunner.chosen_python", lambda: python)
    ui = opened(panel, knees)._ui
    assert "The package torch is missing." in ui.messageLabel.text
    assert not ui.trainButton.enabled
    assert ui.lookButton.enabled


# -- settings -------------------------------------------------------------------------------------------
def test_settings_are_edited_applied_and_put_back(light, panel, knees, tmp_path):
    folder = copy_of(Study.open(knees), tmp_path / "study", tiny_config()).folder
    ui = opened(panel, folder)._ui
    steps = setting(panel, "segmentation.steps")
    assert steps.editor.className() == "QSpinBox"
    assert "training steps of the network" in steps.editor.toolTip
    assert (steps.editor.value, steps.is_unusual, steps.label.font.bold()) == (300, True, True)
    steps.editor.value = 55
    setting(panel, "registration.affine").editor.checked = False
    setting(panel, "segmentation.learning_rate").editor.value = 0.0035
    assert ui.applyButton.text == "Apply 3 changes"
    assert not ui.trainButton.enabled
    assert "changed settings" in ui.trainButton.toolTip
    ui.applyButton.click()
    settle(panel)
    settle(panel)
    config = Study.open(folder).config
    assert (config.segmentation.steps, config.registration.affine) == (55, False)
    assert config.segmentation.learning_rate == 0.0035
    assert ui.trainButton.enabled
    steps = setting(panel, "segmentation.steps")
    steps.reset.click()
    assert (steps.editor.value, steps.is_unusual) == (400, False)
    ui.undoButton.click()
    assert steps.editor.value == 55
    assert panel._form.edited == []


def test_every_setting_has_an_editor_of_its_kind_and_says_what_the_study_says(quick, panel, knees):
    opened(panel, knees)
    kinds = {"flag": "QCheckBox", "whole": "QSpinBox", "number": "QDoubleSpinBox", "choice": "QComboBox"}
    assert len(panel._form.rows) > 50
    for each in panel._form.rows:
        assert each.editor.className() == kinds.get(each.setting["kind"], "QLineEdit")
        assert each.editor.toolTip.startswith(each.setting["help"])
        assert not each.is_edited, each.name
    assert setting(panel, "segmentation.steps").editor.minimum == 1
    share = setting(panel, "segmentation.augmented_share").editor
    assert (share.minimum, share.maximum) == (0, 1)


def test_what_does_not_fit_is_said_beside_its_setting(light, panel, knees, tmp_path):
    folder = copy_of(Study.open(knees), tmp_path / "study", tiny_config()).folder
    ui = opened(panel, folder)._ui
    strides = setting(panel, "segmentation.strides")
    strides.editor.text = "[2, none]"
    ui.applyButton.click()
    settle(panel)
    assert "got 'none'" in strides.error.text
    assert not strides.error.isHidden()
    assert ui.sectionBox.currentText.startswith("segmentation")
    assert strides.editor.text == "[2, none]"
    assert Study.open(folder).config.segmentation.strides == (2, 2, 2)


def test_another_preset_keeps_the_device_and_asks_before_changes_are_lost(
    light, panel, knees, tmp_path, monkeypatch
):
    folder = copy_of(Study.open(knees), tmp_path / "study", tiny_config()).folder
    ui, asked = opened(panel, folder)._ui, []
    answers = [False, True]
    monkeypatch.setattr(
        slicer.util,
        "confirmOkCancelDisplay",
        lambda text: asked.append(text) or answers.pop(0),
        raising=False,
    )
    for _ in range(2):
        ui.presetBox.currentIndex = 1
        ui.presetBox.activated.emit(1)
        settle(panel)
        settle(panel)
    assert "segmentation.steps" in asked[0]
    assert len(asked) == 2
    config = Study.open(folder).config
    assert (config.preset, config.training.device, config.segmentation.steps) == ("default", "cpu", 2000)
    assert ui.presetBox.currentText == "default"


def test_what_was_edited_outlives_a_look(quick, panel, knees):
    ui = opened(panel, knees)._ui
    setting(panel, "segmentation.steps").editor.value = 55
    ui.lookButton.click()
    settle(panel)
    assert setting(panel, "segmentation.steps").editor.value == 55


def test_the_device_is_kept_in_the_study(light, panel, knees, tmp_path):
    folder = copy_of(Study.open(knees), tmp_path / "study", tiny_config()).folder
    ui = opened(panel, folder)._ui
    ui.deviceBox.activated.emit(0)
    settle(panel)
    settle(panel)
    assert Study.open(folder).config.training.device == "auto"


# -- while it trains --------------------------------------------------------------------------------------
def test_progress_time_left_and_curves_are_live(quick, panel, knees, trains):
    ui = opened(panel, knees)._ui
    trains(DONE, knees)
    ui.trainButton.click()
    slicer_harness.process_until(lambda: "40 %" in row(panel, "segmentation")[STATE])
    assert row(panel, "segmentation")[TIME] == "2 min left"
    assert "segmentation 40/100, 2 min left" in ui.progressLabel.text
    assert ui.progressBar.value == 400
    assert not panel._plots._labels[0].isHidden()
    assert panel._ui.stageLabel.text == "Stage “Segment dxa”:"
    assert panel._plots._labels[0].toolTip.startswith("segmentation, loss")
    assert not ui.trainButton.enabled
    assert not ui.settingsStack.enabled
    assert ui.cancelButton.enabled
    (knees / "go on").touch()
    slicer_harness.process_until(lambda: panel._training is None)
    settle(panel)
    assert ui.progressBar.isHidden()


def test_the_module_that_is_opened_again_finds_the_training(quick, panel, knees, trains, reopened):
    opened(panel, knees)
    trains(GOES_ON, knees)
    panel._ui.trainButton.click()
    slicer_harness.process_until(lambda: "40 %" in row(panel, "segmentation")[STATE])
    later = reopened(panel, knees)
    slicer_harness.process_until(lambda: later._training[1].stage == "segmentation", 60)
    assert "running" in row(later, "segmentation")[STATE]
    later._ui.cancelButton.click()
    slicer_harness.process_until(lambda: later._training is None, 60)
    assert "Continue goes on" in later._ui.messageLabel.text
    assert DetachedJob.find(knees, "train", JobListener()) is None


def test_a_study_that_is_left_and_opened_again_shows_its_training(quick, panel, knees, trains, tmp_path):
    other = make_reported_study(tmp_path / "other", 2, 32).folder
    opened(panel, knees)
    trains(GOES_ON, knees)
    panel._ui.trainButton.click()
    slicer_harness.process_until(lambda: "40 %" in row(panel, "segmentation")[STATE])
    opened(panel, other)
    slicer_harness.process_until(lambda: panel._folder == str(other), 60)
    assert panel._training is None
    assert panel._ui.progressBar.isHidden()
    panel.workplace.open(str(knees))
    slicer_harness.process_until(lambda: panel._folder == str(knees), 60)
    assert "running" in row(panel, "segmentation")[STATE]


def test_where_memory_runs_out_the_remedy_is_shown_and_fewer_images_are_offered(quick, panel, knees, trains):
    ui = opened(panel, knees)._ui
    error = "tell('error', code='out_of_memory', message='Out of memory.', remedy='Lower it.', exit_code=3)"
    trains(f"{error}\nsys.exit(3)", knees)
    ui.trainButton.click()
    slicer_harness.process_until(lambda: panel._training is None and panel._ended is not None)
    settle(panel)
    assert "Out of memory. Lower it." in ui.messageLabel.text
    assert not ui.fewerButton.isHidden()
    ran = []
    begin = DetachedJob.begin
    trains(DONE, knees)
    DetachedJob.begin = staticmethod(
        lambda study, arguments, *rest: ran.append(arguments) or begin(study, arguments, *rest)
    )
    try:
        ui.fewerButton.click()
    finally:
        DetachedJob.begin = begin
    assert ran == [("train", str(knees), "--auto-batch")]
    assert ui.fewerButton.isHidden()


def test_a_training_that_dies_says_so(quick, panel, knees, trains):
    ui = opened(panel, knees)._ui
    trains("os.kill(os.getpid(), signal.SIGKILL)", knees)
    ui.trainButton.click()
    slicer_harness.process_until(lambda: panel._ended is not None)
    settle(panel)
    assert "ended without saying why" in ui.messageLabel.text
    assert ui.trainButton.enabled


def test_the_gui_stays_free_while_a_training_tells_much(quick, panel, knees, trains):
    opened(panel, knees)
    trains(
        "for s in ('segmentation', 'adaptation/teacher', 'registration'):\n"
        "    for n in range(3000):\n"
        "        metrics = {m: n * 0.1 for m in 'abcdef'}\n"
        "        tell('progress', stage=s, step=n, of=3000, seconds_left=9, metrics=metrics)",
        knees,
    )
    panel._ui.trainButton.click()
    with Gaps() as gaps:
        gaps.spin(lambda: panel._training is None, 60)
    assert panel._training is None
    assert gaps.longest < 0.1


def test_the_gui_stays_free_while_a_study_is_looked_at(quick, panel, knees):
    panel.workplace.open(str(knees))
    with Gaps() as gaps:
        gaps.spin(lambda: panel._status is not None and not panel._is_busy, 60)
    assert len(panel._form.rows) > 50
    assert gaps.longest < 0.1


# -- a true one -----------------------------------------------------------------------------------------
@pytest.fixture
def reopened():
    """Slicer is closed and opened again, with the same study: the panel of the new one."""
    widgets = []

    def reopen(panel: TrainPanel, folder: Path) -> TrainPanel:
        panel.workplace.runner.cleanup()
        widgets.append(slicer_harness.open_module(FOLDER, "SegGuidedMMReg"))
        later = widgets[-1].panels["train"]
        widgets[-1].ui.trainButton.collapsed = False
        return opened(later, folder)

    yield reopen
    for widget in widgets:
        widget.cleanup()


@pytest.mark.xdist_group("slicer_train")
def test_a_training_is_found_again_cancelled_goes_on_and_ends_with_curves_and_pictures(
    panel, tmp_path, reopened
):
    sections = {
        "segmentation": {"steps": 1500, "batch_size": 2},
        "training": {"checkpoint_seconds": 0.2, "checkpoint_share": 1},
    }
    study = make_study(tmp_path, config=tiny_config(hurried=True, **sections))
    ui = opened(panel, study.folder)._ui
    ui.trainButton.click()
    checkpoint = study.stage_folder("segmentation") / "checkpoint.pt"
    slicer_harness.process_until(checkpoint.is_file, 200)
    assert row(panel, "augmentation")[STATE] == "✓ done"

    panel = reopened(panel, study.folder)
    ui = panel._ui
    slicer_harness.process_until(lambda: panel._training[1].step > 0, 60)
    assert row(panel, "segmentation")[STATE].startswith("▶ running")
    assert panel._curves.points["segmentation", "loss"][0][0] < 50
    tree = panel._training[0]._processes()
    ui.cancelButton.click()
    slicer_harness.process_until(lambda: panel._training is None, 60)
    assert not ProcessTree.alive(tree)
    settle(panel)
    assert ui.trainButton.text == "Continue"
    assert ui.trainButton.shortcut.toString() == "Ctrl+Return"
    assert row(panel, "segmentation")[STATE].startswith("◐")

    ui.trainButton.click()
    slicer_harness.process_until(lambda: panel._training is None, 300)
    assert panel._ended.is_done, panel._ended.message
    settle(panel)
    assert [r[STATE] for r in rows(panel)] == ["✓ done"] * 5
    assert "continued after step" in (study.stage_folder("segmentation") / "log.txt").read_text()
    steps = [step for step, _ in panel._curves.points["segmentation", "loss"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 1500
    assert not ui.trainButton.enabled
    assert "all are done" in ui.trainButton.toolTip

    for number, (stage, pictures) in enumerate(zip(STAGES, (4, None, 3, 6, 4), strict=True)):
        ui.stagesTable.setCurrentCell(number, 0)
        slicer_harness.process_until(lambda: not panel._pictures._left)
        shown = [b for b in panel._pictures._buttons if not b.isHidden()]
        assert pictures is None or len(shown) == pictures, stage
        assert all(not b.icon.isNull() for b in shown)
    panel._pictures._buttons[0].click()
    assert panel._pictures._dialog.windowTitle.endswith("predicted")
    panel.left()
    assert panel._pictures._dialog is None


# -- what was told ----------------------------------------------------------------------------------------
def test_curves_have_a_bounded_number_of_points_and_keep_both_ends():
    curves = Curves()
    for step in range(5000):
        curves.add("segmentation", step, {"loss": step, "text": "x"})
    points = curves.points["segmentation", "loss"]
    assert len(points) <= MOST_POINTS
    assert (points[0], points[-1]) == ((0, 0), (4999, 4999))
    assert list(curves.points) == [("segmentation", "loss")]


def test_a_run_that_is_set_back_goes_on_from_there():
    curves = Curves()
    for step in (1, 2, 3, 2, 3):
        curves.add("r", step, {"loss": 10 * step})
    assert curves.points["r", "loss"] == [(1, 10), (2, 20), (3, 30)]


def test_what_the_study_knows_and_what_is_told_live_make_one_curve():
    told = [{"curves": [{"run": "r", "metric": "loss", "steps": [1, 5, 9], "values": [3, 2, 1]}]}]
    live = Curves()
    live.add("r", 6, {"loss": 7})
    assert Curves.of_status(told).continued_by(live).points == {("r", "loss"): [(1, 3), (5, 2), (6, 7)]}


def test_runs_belong_to_their_stages():
    told = TrainingTold(STAGES)
    listener = told.listener()
    listener.started({"stage": "augmentation", "of": 3})
    listener.started({"stage": "registering images", "of": 7})
    assert (told.stage, told.run) == ("augmentation", "registering images")
    listener.progress({"stage": "augmentation network stage 1", "step": 1, "of": 2, "metrics": {}})
    assert told.stage == "augmentation"
    listener.result({"stage": "augmentation", "pictures": []})
    assert (told.stage, told.done) == ("", ["augmentation"])
    listener.progress({"stage": "adaptation/teacher", "step": 1, "of": 2, "metrics": {}})
    assert told.stage == "adaptation"
