"""Brings in what is missing, when the user asks for it, and leaves Slicer's own packages as they are.

torch comes through the extension PyTorch, which picks the one for the GPU; the rest by pip, held by the
versions of Slicer's packages. Main thread only: Slicer's pip shows its progress in Qt.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import slicer.util
from slicer.i18n import tr as _

from SegGuidedMMRegGui.SetupCheck import Package, Requirement, Way, held_versions, packages_here


class InstallError(RuntimeError):
    """Something could not be installed; the message says why and what to do."""


def install(missing: Sequence[Package], progress: Callable[[str], None]) -> None:
    """Install what can be installed of `missing`.

    Args:
        missing: as `SetupCheck` found it.
        progress: told what is done now.

    Raises:
        InstallError: with what went wrong.
    """
    wanted = {way: [p.requirement for p in missing if p.requirement.way is way] for way in Way}
    if wanted[Way.WITH_SLICER]:
        names = ", ".join(map(str, wanted[Way.WITH_SLICER]))
        raise InstallError(_("This Slicer is too old: {names} is needed.").format(names=names))
    for requirement in wanted[Way.BY_PYTORCH]:
        progress(_("PyTorch is being installed: some gigabytes, some minutes."))
        _install_torch(requirement)
    try:
        _install_by_pip(wanted[Way.BY_PIP], wanted[Way.ALONE], progress)
    except Exception as error:  # pip, the network, the disk: Slicer hands on whatever it was
        raise InstallError(_("The packages could not be installed: {error}").format(error=error)) from error
    left = [str(p.requirement) for p in packages_here([p.requirement for p in missing]) if not p.is_fine]
    if left:
        raise InstallError(
            _("Still missing after the installation: {names}. The Python console says more.").format(
                names=", ".join(left)
            )
        )


def _install_torch(requirement: Requirement) -> None:
    try:
        utilities = importlib.import_module("PyTorchUtils")
    except ImportError:
        raise InstallError(
            _(
                "PyTorch comes through the extension PyTorch. Install it in the Extensions Manager (View "
                "menu), restart Slicer, and press this button again."
            )
        ) from None
    logic = utilities.PyTorchUtilsLogic()
    try:
        torch = logic.installTorch(askConfirmation=False, torchVersionRequirement=requirement.versions)
    except Exception as error:
        raise InstallError(_("PyTorch could not be installed: {error}").format(error=error)) from error
    if torch is None:
        raise InstallError(_("PyTorch was not installed; the module PyTorch Utils says more."))


def _install_by_pip(
    together: Sequence[Requirement], alone: Sequence[Requirement], progress: Callable[[str], None]
) -> None:
    """First those that come alone: after the others Slicer may offer to restart, and do it at once."""
    said = _("Packages are being installed: {names}")
    if alone:
        names = [str(requirement) for requirement in alone]
        progress(said.format(names=", ".join(names)))
        slicer.util.pip_install(["--no-deps", *names])
    if not together:
        return
    with tempfile.TemporaryDirectory() as place:
        held = Path(place) / "held.txt"
        held.write_text("\n".join(held_versions()) + "\n", encoding="utf-8")
        progress(said.format(names=", ".join(map(str, together))))
        _pip([str(requirement) for requirement in together], held)


def _pip(names: list[str], held: Path) -> None:
    """Slicer's own way: `pip_ensure` from 5.12 on, with a window that shows the progress."""
    try:
        ensure = importlib.import_module("slicer.packaging").pip_ensure
    except (ImportError, AttributeError):
        slicer.util.pip_install(["--constraint", str(held), *names])
        return
    ensure(names, constraints=str(held), requester="SegGuidedMMReg", prompt_install=False)
