"""The set-up card: what is there, what is missing, which Python runs the jobs; installs when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import slicer.util
from slicer.i18n import tr as _

import ctk
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobPython import JobPython, choose_python, chosen_python
from SegGuidedMMRegGui.JobRunner import Job, JobRunner
from SegGuidedMMRegGui.SetupCheck import (
    Package,
    Way,
    free_disk_gb,
    packages_here,
    packages_told,
    requirements,
)
from SegGuidedMMRegGui.SetupInstall import InstallError, install
from SegGuidedMMRegGui.Widgets import connect, connect_path, copy_text, fill_table, load_ui

_DEVICES = ("CUDA", "Apple MPS")


class SetupPanel:
    """The card.

    Attributes:
        widget: to be put somewhere.
        is_ready: whether the chosen Python has all that the library needs.
        device: what the jobs compute with, in words; "" as long as that is not known.
    """

    def __init__(self, runner: JobRunner, changed: Callable[[], None]) -> None:
        """
        Args:
            runner: runs the looks at this machine.
            changed: called when `is_ready` or `device` may have changed.
        """
        self.widget, self._ui = load_ui("SetupPanel")
        self.is_ready, self.device = False, ""
        self._runner, self._changed = runner, changed
        self._wanted = requirements()
        self._packages: tuple[Package, ...] = ()
        self._facts: dict[str, str] = {}
        self._look: Job | None = None
        self._asked: JobPython | None = None
        ui = self._ui
        ui.otherPythonPath.filters = ctk.ctkPathLineEdit.Files | ctk.ctkPathLineEdit.Executable
        connect(ui.installButton, "clicked(bool)", self.onInstall)
        connect(ui.checkButton, "clicked(bool)", self.onCheck)
        connect(ui.reportButton, "clicked(bool)", self.onCopyReport)
        connect(ui.otherPythonButton, "toggled(bool)", self.onOtherPythonToggled)
        connect_path(ui.otherPythonPath, self.onPathChanged)

    def refresh(self) -> None:
        """Look again, with the Python that is chosen now."""
        self._forget()
        try:
            python = chosen_python()
        except RuntimeError as error:
            self._show_message(str(error))
            return
        self._show_choice(python)
        if python.is_slicers:
            self._show(packages_here(self._wanted))
        else:
            self._show(())
        if not python.is_slicers or self.is_ready:
            self._ask(python)

    # -- what the user does -----------------------------------------------------------------------------
    def onOtherPythonToggled(self, is_other: bool) -> None:
        self._ui.otherPythonPath.enabled = is_other
        self.onPathChanged()
        if not is_other:
            choose_python("")
            self.refresh()

    def onPathChanged(self) -> None:
        ui = self._ui
        ui.checkButton.enabled = bool(ui.otherPythonPath.currentPath) or not ui.otherPythonButton.isChecked()
        ui.checkButton.toolTip = (
            _("Look at the packages and devices of the chosen Python")
            if ui.checkButton.enabled
            else _("Needs the program python of the other Python")
        )

    def onCheck(self) -> None:
        """Look again; another Python is chosen if it can run the library."""
        if not self._ui.otherPythonButton.isChecked():
            self.refresh()
            return
        path = self._ui.otherPythonPath.currentPath
        if not Path(path).is_file():
            self._show_message(_("{path} is no file: choose the program python itself.").format(path=path))
            return
        self._forget()
        self._show(())
        self._ask(JobPython(path, False))

    def onInstall(self) -> None:
        missing = [package for package in self._packages if not package.is_fine]
        names = "\n".join(str(package.requirement) for package in missing)
        question = _("These packages are downloaded and installed into Slicer's Python:\n\n{names}")
        if not slicer.util.confirmOkCancelDisplay(question.format(names=names)):
            return
        self._ui.installButton.enabled = False
        try:
            install(missing, self._show_installing)
        except InstallError as error:
            self.refresh()
            self._show_message(str(error))
        else:
            self.refresh()

    def onCopyReport(self) -> None:
        copy_text(self.report())

    def report(self) -> str:
        """All that the card knows, for who can help."""
        rows = [f"{p.requirement}: {p.found or 'missing'}" for p in self._packages]
        facts = [f"{name}: {value}" for name, value in self._facts.items()]
        job = [] if self._look is None else [self._look.report()]
        return "\n".join([self._ui.summaryLabel.text, self._ui.messageLabel.text, *rows, *facts, *job])

    # -- what a look found ------------------------------------------------------------------------------
    def _forget(self) -> None:
        """What an earlier look has found, or finds from now on, is not about what is looked at next."""
        if self._look is not None:
            self._look.cancel()
        self._facts, self.device, self._asked = {}, "", None

    def _ask(self, python: JobPython) -> None:
        """Let the chosen Python tell what it has: it loads torch, so it does it in a process of its own."""
        self._show_message(_("Looking at the packages and devices of {path} …").format(path=python.path))
        self._asked = python
        listener = JobListener(result=self._told(python), finished=lambda end: self._looked(end, python))
        self._look = self._runner.start(_("Looking at this machine"), ("info",), listener, python)

    def _told(self, python: JobPython) -> Callable[[Data], None]:
        def told(data: Data) -> None:
            if python is not self._asked:
                return
            self._facts = {fact["name"]: str(fact["value"]) for fact in data.get("facts", ())}
            if not python.is_slicers:
                self._show(packages_told(self._wanted, self._facts))

        return told

    def _looked(self, end: JobEnd, python: JobPython) -> None:
        if end.cancelled or python is not self._asked:
            return
        if not self._facts:
            self._show(() if not python.is_slicers else self._packages)
            self.is_ready = False
            told = _("{path} cannot run the library: {message}").format(path=python.path, message=end.message)
            self._show_message(told)
        else:
            if not python.is_slicers:
                choose_python(python.path)
            self._show_message("")
            self.device = _device(self._facts)
        self._show_machine()
        self._changed()

    def _show(self, packages: tuple[Package, ...]) -> None:
        self._packages = packages
        missing = [package for package in packages if not package.is_fine]
        self.is_ready = bool(packages) and not missing
        fill_table(self._ui.packagesTable, [_row(package) for package in packages])
        self._ui.packagesTable.visible = bool(packages)
        self._ui.summaryLabel.text = _summary(packages, missing)
        is_slicers = not self._ui.otherPythonButton.isChecked()
        self._ui.installButton.visible = is_slicers
        self._ui.installButton.enabled = bool(missing) and is_slicers
        self._ui.installButton.toolTip = (
            _("Download and install what is missing") if missing else _("Nothing is missing")
        )
        self._show_message("")
        self._show_machine()
        self._changed()

    def _show_machine(self) -> None:
        parts = [f"{name}: {self._facts[name]}" for name in (*_DEVICES, "memory") if name in self._facts]
        free = _("free disk space: {free:.0f} GB").format(free=free_disk_gb(Path.home()))
        self._ui.machineLabel.text = "\n".join([*parts, free])

    def _show_choice(self, python: JobPython) -> None:
        ui = self._ui
        ui.otherPythonPath.enabled = not python.is_slicers
        was_blocked = ui.otherPythonButton.blockSignals(True)
        ui.otherPythonButton.checked = not python.is_slicers
        ui.slicersPythonButton.checked = python.is_slicers
        ui.otherPythonButton.blockSignals(was_blocked)
        if not python.is_slicers:
            ui.otherPythonPath.currentPath = python.path

    def _show_installing(self, text: str) -> None:
        """Slicer's pip keeps the window busy, so it is drawn before."""
        self._show_message(text)
        slicer.app.processEvents()

    def _show_message(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)


def _row(package: Package) -> tuple[str, ...]:
    requirement = package.requirement
    if package.is_fine:
        state = _("there")
    elif package.found is None:
        state = _("missing")
    else:
        state = _("another version is needed")
    return requirement.name, package.found or "–", requirement.versions, state


def _summary(packages: tuple[Package, ...], missing: list[Package]) -> str:
    if not packages:
        return _("It is not known yet what this Python has.")
    if not missing:
        return _("All is there.")
    if any(package.requirement.way is Way.BY_PYTORCH for package in missing):
        return _("{count} packages are missing, PyTorch among them: everything but computing works.").format(
            count=len(missing)
        )
    return _("{count} packages are missing: everything but computing works.").format(count=len(missing))


def _device(facts: Mapping[str, Any]) -> str:
    """What the jobs will compute with: the GPU if there is one."""
    cuda = facts.get("CUDA", "no")
    if not cuda.startswith(("no", "broken")):
        return cuda
    if facts.get("Apple MPS") == "yes":
        return "Apple MPS"
    return _("CPU, {cores} cores").format(cores=facts.get("CPU cores", "?"))
