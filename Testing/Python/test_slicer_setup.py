"""The set-up card: the module opens with nothing installed, says what is missing, and installs only that."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import slicer_harness
from slicer_module import FOLDER, slicer

import qt
from SegGuidedMMRegGui import LIBRARY_HOME, SetupCheck, SetupInstall
from SegGuidedMMRegGui.JobPython import choose_python, chosen_python
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.SetupCheck import Requirement, Way
from SegGuidedMMRegGui.SetupPanel import SetupPanel


@pytest.fixture(autouse=True)
def clean():
    slicer_harness.slot_errors.clear()
    slicer_harness.displays.clear()
    choose_python("")
    yield
    choose_python("")
    assert not slicer_harness.slot_errors


@pytest.fixture
def card():
    runner = JobRunner()
    made = SetupPanel(runner, lambda: None)
    yield made
    runner.cleanup()


@pytest.fixture
def nothing_installed(monkeypatch):
    """Of what the library needs only Slicer's own is there."""
    real = SetupCheck._version
    there = ("numpy", "SimpleITK", "vtk", "requests")
    monkeypatch.setattr(SetupCheck, "_version", lambda name: real(name) if name in there else None)


def test_the_requirements_are_those_of_the_library():
    text = (LIBRARY_HOME / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    assert [str(r) for r in SetupCheck.requirements() if r.way is not Way.ALONE] == re.findall(
        r'"(.+?)"', block
    )


@pytest.mark.parametrize(
    ("versions", "version", "fits"),
    [
        (">=2.8", "2.10.0+cu126", True),
        (">=2.8", "2.7.1", False),
        (">=2.8", "2.8", True),
        (">=1.5.1,<2", "1.5", False),
        (">=1.5.1,<2", "1.6rc1", True),
        (">=1.5.1,<2", "2.0.0", False),
        (">=6", "", False),
    ],
)
def test_a_version_fits_or_not(versions, version, fits):
    assert Requirement("x", versions).fits(version) is fits


def test_a_line_that_is_no_requirement_is_named(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("numpy>=1\nmonai ~= 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="monai ~= 2"):
        SetupCheck.requirements(path)


def test_the_module_imports_nothing_but_slicers_own_before_it_is_used():
    code = """
import sys; sys.path.insert(0, {tests!r})
import slicer_harness
from pathlib import Path
before = set(sys.modules)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
widget = slicer_harness.open_module(Path({folder!r}), "SegGuidedMMReg")
assert widget.setupPanel._ui.summaryLabel.text
widget.cleanup()
print(sorted({refused!r} & {{name.partition(".")[0] for name in set(sys.modules) - before}}))
assert not slicer_harness.slot_errors
"""
    packages = "torch monai pydantic yaml tyro rich jinja2 matplotlib h5py safetensors lightning_fabric"
    refused = {*packages.split(), "icon_registration", "footsteps"}
    filled = code.format(tests=str(Path(__file__).parent), folder=str(FOLDER), refused=refused)
    done = subprocess.run([sys.executable, "-c", filled], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_with_nothing_installed_the_card_says_what_is_missing(card, nothing_installed):
    card.refresh()
    ui = card._ui
    assert not card.is_ready
    assert "PyTorch among them" in ui.summaryLabel.text
    states = {
        ui.packagesTable.item(r, 0).text(): ui.packagesTable.item(r, 3).text()
        for r in range(ui.packagesTable.rowCount)
    }
    assert states["numpy"] == "there"
    assert states["torch"] == states["monai"] == "missing"
    assert ui.installButton.enabled
    assert "free disk space" in ui.machineLabel.text
    assert "torch>=2.8: missing" in card.report()


def test_with_everything_there_the_device_is_told(card):
    card.refresh()
    assert card.is_ready
    slicer_harness.process_until(lambda: card.device, 120)
    assert not card._ui.installButton.enabled
    assert "CUDA" in card._ui.machineLabel.text or "MPS" in card._ui.machineLabel.text


class Pip:
    """Stands for Slicer's pip and the extension PyTorch; what it installs is there afterwards."""

    def __init__(self, monkeypatch, *, pytorch: bool = True, ensure: bool = True) -> None:
        self.calls: list[tuple[str, list[str], str]] = []
        self._restarts = False
        self.there = {"numpy": "2.4.6", "SimpleITK": "2.5.7", "vtk": "9.6.0", "requests": "2.32"}
        monkeypatch.setattr(SetupCheck, "_version", self.there.get)
        monkeypatch.setattr(slicer.util, "pip_install", self._pip, raising=False)
        modules = {"PyTorchUtils": self} if pytorch else {}
        if ensure:
            modules["slicer.packaging"] = self
        monkeypatch.setattr(SetupInstall.importlib, "import_module", lambda name: _found(modules, name))

    def PyTorchUtilsLogic(self):
        return self

    def installTorch(self, askConfirmation, torchVersionRequirement):
        self.calls.append(("torch", [torchVersionRequirement], ""))
        self.there["torch"] = "2.9.0+cu126"
        return self

    def pip_ensure(self, requirements, constraints=None, requester=None, prompt_install=True):
        """It may restart Slicer at the end, so nothing can come after it."""
        assert not prompt_install
        self._take("ensure", requirements, constraints)
        self._restarts = True

    def _pip(self, arguments):
        assert type(arguments) is list, "Slicer's pip takes a list, and no other sequence"
        assert not self._restarts
        held = arguments[arguments.index("--constraint") + 1] if "--constraint" in arguments else ""
        self._take("pip", arguments, held)

    def _take(self, how, arguments, held):
        self.calls.append((how, list(arguments), Path(held).read_text(encoding="utf-8") if held else ""))
        known = {str(r): r for r in SetupCheck.requirements()}
        self.there.update(
            {known[a].name: known[a].versions[2:].split(",")[0] for a in arguments if a in known}
        )


def _found(modules, name):
    if name not in modules:
        raise ModuleNotFoundError(name, name=name)
    return modules[name]


@pytest.mark.parametrize("ensure", [True, False], ids=["Slicer 5.12", "Slicer 5.10"])
def test_the_button_installs_what_is_missing_and_holds_what_is_slicers(card, monkeypatch, ensure):
    monkeypatch.setattr(SetupPanel, "_ask", lambda *_: None)
    pip = Pip(monkeypatch, ensure=ensure)
    card.refresh()
    card._ui.installButton.click()
    assert [kind for kind, _ in slicer_harness.displays] == ["question"]
    (torch, _, _), (alone, others, _), (how, names, held) = pip.calls
    assert (torch, how, alone) == ("torch", "ensure" if ensure else "pip", "pip")
    assert "monai>=1.5.1,<2" in names
    assert not any(name.startswith(("numpy", "SimpleITK", "torch", "vtk", "requests")) for name in names)
    assert {"numpy==2.4.6", "SimpleITK==2.5.7", "vtk==9.6.0", "torch==2.9.0+cu126"} <= set(held.split())
    assert others[0] == "--no-deps"
    assert others[1].startswith("icon_registration")
    assert card.is_ready
    assert not card._ui.messageLabel.text


def test_without_the_extension_pytorch_the_user_is_told_how_to_get_it(card, monkeypatch):
    Pip(monkeypatch, pytorch=False)
    card.refresh()
    card._ui.installButton.click()
    assert "Extensions Manager" in card._ui.messageLabel.text
    assert card._ui.installButton.enabled


def test_the_true_error_of_pip_is_shown(card, monkeypatch):
    pip = Pip(monkeypatch)

    def fail(*_, **more):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(pip, "pip_ensure", fail)
    card.refresh()
    card._ui.installButton.click()
    assert "No space left on device" in card._ui.messageLabel.text
    assert "No space left on device" in card.report()


def test_a_slicer_that_is_too_old_is_told(card, monkeypatch):
    pip = Pip(monkeypatch)
    pip.there["numpy"] = "1.20.0"
    card.refresh()
    card._ui.installButton.click()
    assert "too old" in card._ui.messageLabel.text
    assert pip.calls == []


def test_nothing_is_installed_if_the_user_says_no(card, monkeypatch):
    pip = Pip(monkeypatch)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: False)
    card.refresh()
    card._ui.installButton.click()
    assert pip.calls == []


def test_another_python_is_looked_at_once_its_program_is_named(card):
    card._ui.otherPythonButton.click()
    assert not card._ui.checkButton.enabled
    assert "Needs the program python" in card._ui.checkButton.toolTip
    card._ui.otherPythonPath.currentPath = sys.executable
    assert card._ui.checkButton.enabled
    card._ui.slicersPythonButton.click()
    assert card._ui.checkButton.enabled


def choose(card, path: str) -> None:
    card._ui.otherPythonButton.click()
    card._ui.otherPythonPath.currentPath = path
    card._ui.checkButton.click()


def test_another_python_that_has_everything_is_taken(card):
    card.refresh()
    choose(card, sys.executable)
    slicer_harness.process_until(lambda: card.device, 120)
    assert card.is_ready
    assert chosen_python().path == sys.executable
    card._ui.slicersPythonButton.click()
    assert chosen_python().is_slicers


def test_another_python_with_nothing_installed_says_what_it_lacks(card, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    card.refresh()
    choose(card, str(bare))
    slicer_harness.process_until(lambda: "packages are missing" in card._ui.summaryLabel.text, 60)
    assert not card.is_ready
    assert not card._ui.installButton.enabled


@pytest.mark.parametrize(
    ("script", "message"),
    [(None, "is no file"), ("#!/bin/sh\necho no such thing >&2; exit 3\n", "no such thing")],
)
def test_a_program_that_is_no_python_is_told(card, tmp_path, script, message):
    path = tmp_path / "python"
    if script:
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
    card.refresh()
    choose(card, str(path))
    slicer_harness.process_until(lambda: message in card._ui.messageLabel.text, 60)
    assert chosen_python().is_slicers


def test_the_report_reaches_the_clipboard(card, nothing_installed):
    card.refresh()
    card._ui.reportButton.click()
    assert qt.QApplication.clipboard().text() == card.report()
