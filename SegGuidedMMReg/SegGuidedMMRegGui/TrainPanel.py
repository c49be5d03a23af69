"""Step 3, training: how the stages stand, one button for all, live curves, pictures, and all settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer.util
from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.CurvePlots import CurvePlots
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.PictureGrid import PictureGrid
from SegGuidedMMRegGui.SettingsForm import SettingsForm
from SegGuidedMMRegGui.TrainingNeeds import status_needs, study_needs, who_trains
from SegGuidedMMRegGui.TrainingRows import memory_line, row_of, rows_of, time_left
from SegGuidedMMRegGui.TrainingTold import Curves, TrainingTold
from SegGuidedMMRegGui.Widgets import connect, load_ui, update_table
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.events import ErrorCode

STAGES = ("prealign", "augmentation", "segmentation", "adaptation", "registration")
_STEPS = 1000


class TrainPanel(Panel):
    """The panel. It follows every training that the runner knows, whoever started it."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("TrainPanel")
        self._followed: dict[str, tuple[Job, TrainingTold]] = {}
        self._status: Data | None = None
        self._curves, self._titles = Curves(), {}
        self._folder = ""
        self._job: Job | None = None
        self._is_open, self._must_look = False, True
        self._ended: JobEnd | None = None
        self._problem = ""
        ui = self._ui
        self._plots = CurvePlots(ui.plotsLayout)
        self._pictures = PictureGrid(ui.picturesLayout, self.widget)
        self._form = SettingsForm(ui.sectionBox, ui.settingsStack, self.onChanged)
        connect(ui.trainButton, "clicked(bool)", self.onTrain)
        connect(ui.fewerButton, "clicked(bool)", self.onTrainWithFewer)
        connect(ui.cancelButton, "clicked(bool)", self.onCancel)
        connect(ui.lookButton, "clicked(bool)", self.look)
        connect(ui.applyButton, "clicked(bool)", self.onApply)
        connect(ui.undoButton, "clicked(bool)", self.onUndo)
        connect(ui.presetBox, "activated(int)", self.onPreset)
        connect(ui.deviceBox, "activated(int)", self.onDevice)
        connect(ui.stagesTable, "itemSelectionChanged()", self.onStage)
        header = ui.stagesTable.horizontalHeader()
        header.setSectionResizeMode(1, qt.QHeaderView.Stretch)
        ui.advancedButton.collapsed = True
        workplace.runner.watchers.append(self.watch)
        self.study_changed()

    # -- the study --------------------------------------------------------------------------------------
    def study_changed(self) -> None:
        """Another study is open, the same one was read again, or none is open."""
        if self.workplace.folder != self._folder:
            self._folder = self.workplace.folder
            self._status, self._curves, self._ended, self._problem = None, Curves(), None, ""
            self._give_up()
            self._pictures.close()
            self._form.show([])
        self._must_look = True
        if self._is_open:
            self.look()
        self._show()

    def opened(self) -> None:
        self._is_open = True
        if self._must_look:
            self.look()

    def left(self) -> None:
        self._is_open = False
        self._pictures.close()

    def cleanup(self) -> None:
        self._pictures.close()
        self._plots.close()
        if self.watch in self.workplace.runner.watchers:
            self.workplace.runner.watchers.remove(self.watch)

    def look(self) -> None:
        """Ask the library how the study stands, what training needs, and what its settings are."""
        self._must_look = False
        if self.workplace.study is None:
            return
        self._give_up()
        self._start(_("Looking at the training"), ("status", self._folder, "--training"), self._take)

    # -- what the user does -----------------------------------------------------------------------------
    def onChanged(self) -> None:
        """Say which buttons can be pressed, and what the others need."""
        ui, training, busy = self._ui, self._training, self._is_busy
        edited = self._form.edited
        needs = self._needs()
        ui.trainButton.text = _("Continue") if self._is_cut_off else _("Train")
        ui.trainButton.setShortcut(qt.QKeySequence("Ctrl+Return"))  # it goes with another text
        ui.trainButton.enabled = not needs
        purpose = _("Train all stages that are missing or out of date (Ctrl+Return)")
        ui.trainButton.toolTip = _("Needs {needs}").format(needs=", ".join(needs)) if needs else purpose
        ui.cancelButton.enabled = training is not None and not training[0].is_cancelled
        ui.cancelButton.toolTip = (
            _("End the training with all its processes; what is done is kept, and it can be continued")
            if training is not None
            else _("Needs a training that runs")
        )
        ran_out = self._ended is not None and self._ended.code == ErrorCode.OUT_OF_MEMORY.value
        ui.fewerButton.visible = ran_out and training is None
        ui.fewerButton.enabled = not needs
        ui.lookButton.enabled = self.workplace.study is not None and not busy
        changeable = self._status is not None and training is None and not busy
        for box in (ui.presetBox, ui.deviceBox, ui.settingsStack):
            box.enabled = changeable and (box is ui.settingsStack or not edited)
        ui.applyButton.text = (
            _("Apply {count} changes").format(count=len(edited)) if len(edited) > 1 else _("Apply")
        )
        ui.applyButton.enabled = ui.undoButton.enabled = bool(edited) and changeable
        ui.applyButton.toolTip = _("Write what was changed into the study") if edited else _("Needs a change")
        unusual = len(self._form.unusual)
        ui.advancedButton.text = (
            _("All settings ({count} not as in the preset)").format(count=unusual)
            if unusual
            else _("All settings")
        )

    def onTrain(self) -> None:
        self.train()

    def onTrainWithFewer(self) -> None:
        self.train("--auto-batch")

    def train(self, *more: str) -> None:
        """Train the open study; it goes on when Slicer is closed."""
        self._ended, self._problem = None, ""
        folder, name = self._folder, self.workplace.study["name"]
        self._give_up()
        try:
            job = DetachedJob.begin(Path(folder), ("train", folder, *more), JobListener())
        except (RuntimeError, OSError) as error:
            self._problem = str(error)
        else:
            self.workplace.runner.adopt(_("Training {name}").format(name=name), job)
        self._show()

    def onCancel(self) -> None:
        if self._training is not None:
            self._training[0].cancel()
        self._show()

    def onStage(self) -> None:
        self._show_stage()

    def onApply(self) -> None:
        self._set([row.argument() for row in self._form.edited])

    def onUndo(self) -> None:
        self._form.undo()
        self.onChanged()

    def onPreset(self, index: int) -> None:
        """Take another preset; the settings of the machine, which no preset changes, stay."""
        name = self._ui.presetBox.itemText(index)
        rows = self._form.unusual
        own = [row for row in rows if row.name.startswith("training.")]
        lost = [row.name for row in rows if row not in own]
        if name == self._status["training"]["preset"] and not lost:
            return
        question = _("These settings are then as in the preset {preset}:\n\n{names}")
        if lost and not slicer.util.confirmOkCancelDisplay(
            question.format(preset=name, names="\n".join(lost))
        ):
            self._show_choices()
            return
        self._set(["--preset", name, *(row.argument() for row in own)])

    def onDevice(self, index: int) -> None:
        self._set([f"training.device={self._ui.deviceBox.itemText(index)}"])

    def _set(self, changes: list[str]) -> None:
        title = _("Changing settings")
        self._start(title, ("set", self._folder, *changes), self._changed, self._refused)

    def _changed(self, told: Data) -> None:
        self._form.show(told["settings"])
        self.look()

    def _refused(self, message: str) -> None:
        self._problem = self._form.show_errors(message)
        self._show_choices()

    # -- jobs -------------------------------------------------------------------------------------------
    def watch(self, job: Job) -> JobListener:
        """Follow a job that trains a study; others are left alone."""
        if not isinstance(job, DetachedJob) or job.kind != "train":
            return JobListener()
        folder, told = str(job.study), TrainingTold(STAGES)
        self._followed[folder] = (job, told)
        if folder == self._folder:
            self._ended, self._problem = None, ""
            self._show()
        own = told.listener()

        def with_show(name: str) -> Any:
            def hear(data: Any) -> None:
                getattr(own, name)(data)
                if folder == self._folder:
                    self._show_training()

            return hear

        def finished(end: JobEnd) -> None:
            del self._followed[folder]
            if folder == self._folder:
                self._finished(end, told)

        heard = {name: with_show(name) for name in ("started", "progress", "result", "log")}
        return JobListener(**heard, finished=finished)

    def _finished(self, end: JobEnd, told: TrainingTold) -> None:
        self._ended = end
        self._curves = self._known_curves(told).continued_by(told.curves)
        self._must_look = True
        self._show()
        if self._is_open:
            self.look()

    def _start(self, title: str, arguments: tuple[str, ...], then: Any, refused: Any = None) -> None:
        folder = self._folder

        def finished(end: JobEnd) -> None:
            if self._job is not job:
                return
            self._job = None
            if folder == self._folder and not end.cancelled:
                if end.is_done and end.result is not None:
                    self._problem = ""
                    then(end.result)
                elif refused is not None:
                    refused(end.message)
                else:
                    self._problem = end.message
            self._show()

        job: Job | None = None
        try:
            job = self.workplace.runner.start(title, arguments, JobListener(finished=finished))
        except RuntimeError as error:
            self._problem = str(error)
        self._job = job
        self._show()

    def _give_up(self) -> None:
        """Hear no more of a look that is under way."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    def _take(self, status: Data) -> None:
        self._status = status
        self._curves = Curves.of_status(status["training"]["stages"])
        if not self._form.edited:
            self._form.show(status["training"]["settings"])
        self._show_choices()

    # -- what is asked ----------------------------------------------------------------------------------
    @property
    def _training(self) -> tuple[Job, TrainingTold] | None:
        """The training of the open study that runs, with what it has told."""
        return self._followed.get(self._folder)

    @property
    def _is_busy(self) -> bool:
        return self._job is not None

    @property
    def _stages(self) -> list[Data]:
        found = [] if self._status is None else self._status["stages"]
        return [stage for stage in found if stage["name"] in STAGES]

    @property
    def _is_cut_off(self) -> bool:
        return any(stage["state"] == "cut off" for stage in self._stages)

    def _needs(self) -> list[str]:
        """What training needs before it can start."""
        study = self.workplace.study
        if study is None:
            return [_("an open study")]
        if self._training is not None:
            return [_("the training that runs to end")]
        needs = study_needs(study)
        if self._form.edited:
            needs.append(_("the changed settings to be applied or undone"))
        if self._status is not None:
            return needs + status_needs(self._status, self._stages)
        return [*needs, _("a look at the study, which is under way") if self._is_busy else _("a look at it")]

    # -- what is shown ----------------------------------------------------------------------------------
    def _show(self) -> None:
        self._show_training()
        self._ui.summaryLabel.text = self._summary()
        self.onChanged()

    def _summary(self) -> str:
        if self.workplace.study is None:
            return _("Open a study first (step 1).")
        if self._status is None:
            return _("Looking at the study …") if self._is_busy else ""
        training = self._status["training"]
        return training["problem"] or memory_line(training)

    def _show_training(self) -> None:
        ui, training = self._ui, self._training
        told = training[1] if training else None
        source, target = ((self.workplace.study or {}).get(which, "") for which in ("source", "target"))
        rows = rows_of(self._status, STAGES, source, target) if self.workplace.study is not None else []
        self._titles = {row.name: row.title for row in rows}
        update_table(ui.stagesTable, [row_of(row, told) for row in rows])
        ui.progressBar.visible = ui.progressLabel.visible = told is not None
        if told is not None and training is not None:
            ui.progressBar.value = round(_STEPS * told.share)
            ui.progressLabel.text = _("The training is being cancelled …")
            if not training[0].is_cancelled:
                ui.progressLabel.text = f"{told.run or _('it starts')} {told.step}/{told.of}{time_left(told)}"
        message = self._message(told)
        ui.messageLabel.text, ui.messageLabel.visible = message, bool(message)
        self._show_stage()

    def _message(self, told: TrainingTold | None) -> str:
        parts = list(told.warnings) if told is not None else []
        if self._ended is not None and told is None:
            ended = _("Cancelled. Nothing is lost: Continue goes on where it was.")
            parts.append(ended if self._ended.cancelled else self._ended.message)
        elsewhere = who_trains(self._status) if told is None else ""
        return "\n".join(filter(None, (*parts, elsewhere, self._problem)))

    def _show_stage(self) -> None:
        """Curves and pictures of the stage that is selected, else of the one at work, else of the last."""
        told = self._training[1] if self._training else None
        stage = self._shown_stage(told)
        pictures = None if told is None else told.pictures.get(stage)
        pictures = pictures or self._known_pictures(stage, told)
        curves = self._curves if told is None else self._known_curves(told).continued_by(told.curves)
        shown = curves.of_stage(stage)
        self._ui.stageLabel.visible = bool(shown or pictures)
        self._ui.stageLabel.text = _("Stage “{stage}”:").format(stage=self._titles.get(stage, ""))
        if self._is_open:
            self._plots.show(shown)
            self._pictures.show(pictures)

    def _known_pictures(self, stage: str, told: TrainingTold | None) -> list[Data]:
        if self._status is None or (told is not None and stage in self._made_anew(told)):
            return []
        return next((s["pictures"] for s in self._status["training"]["stages"] if s["name"] == stage), [])

    def _known_curves(self, told: TrainingTold) -> Curves:
        curves = self._curves
        for stage in self._made_anew(told):
            curves = curves.without_stage(stage)
        return curves

    def _made_anew(self, told: TrainingTold) -> list[str]:
        """Stages that the training has begun from their beginning: what there was of them is gone."""
        going_on = [stage["name"] for stage in self._stages if stage["state"] in ("cut off", "running")]
        return [stage for stage in told.begun if stage not in going_on]

    def _shown_stage(self, told: TrainingTold | None) -> str:
        row = self._ui.stagesTable.currentRow()
        if row >= 0:
            return STAGES[row]
        if told is not None and told.stage:
            return told.stage
        begun = [stage["name"] for stage in self._stages if stage["state"] not in ("missing", "waits")]
        return begun[-1] if begun else ""

    def _show_choices(self) -> None:
        """Preset and device as they are in the study."""
        if self._status is None:
            return
        training = self._status["training"]
        device = next(s for s in training["settings"] if s["name"] == "training.device")
        for box, choices, value in (
            (self._ui.presetBox, training["presets"], training["preset"]),
            (self._ui.deviceBox, device["choices"], device["value"]),
        ):
            box.clear()
            for choice in choices:
                box.addItem(choice)
            box.currentIndex = list(choices).index(value)
