"""The application around a scripted module: scene, logics, settings, dialogs (noted, not shown), modules."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer_harness import parameters, scripted, segment_editor, ui_files, widgets
from slicer_harness.pythonqt import make_qt

REAL_PYTHON = "SEGMMREG_SLICER_PYTHON"

displays: list[tuple[str, str]] = []
"""What dialogs would have said: (error | warning | info | question, text)."""

_LOGICS = {
    "volumes": ("Volumes", "vtkSlicerVolumesLogic"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    "transforms": ("Transforms", "vtkSlicerTransformLogic"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic"),
    "colors": ("Colors", "vtkSlicerColorLogic"),
    "terminologies": ("Terminologies", "vtkSlicerTerminologiesModuleLogic"),
}


def start() -> types.ModuleType:
    """Make `qt`, `ctk` and `slicer` importable; the module `slicer`, the same at every call."""
    import slicer

    if hasattr(slicer, "_harness"):
        return slicer
    make_qt()
    sys.modules["ctk"] = widgets.make_ctk()
    widgets.add_to(slicer)
    segment_editor.add_to(slicer)
    slicer.mrmlScene, logic = _scene(slicer)
    slicer.modules = _Modules(slicer)
    slicer.app = _Application(logic)
    slicer.selfTests = {}
    _replace_utilities(slicer)
    _add_submodules(slicer)
    slicer._harness = True
    return slicer


def _scene(slicer: Any) -> tuple[Any, Any]:
    import vtk

    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    application._logics = []  # it holds them weakly
    for name, kind in _LOGICS.values():
        logic = getattr(slicer, kind)()
        logic.SetMRMLApplicationLogic(application)
        if name not in ("Terminologies", "Colors"):  # with a scene they load Slicer's own lists
            logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        application._logics.append(logic)
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())  # as the Colors logic does
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return scene, application


class _Application:
    """`slicer.app`: what a module may ask it; anything else is an AttributeError."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic
        self._temporary = tempfile.TemporaryDirectory(prefix="slicer-harness-")
        self.temporaryPath = self._temporary.name
        self.majorVersion, self.minorVersion = 5, 12
        self._modules = widgets.ModuleManager()

        self._startup_slots: list[Callable[[], None]] = []

    def connect(self, signal: str, slot: Callable[[], None]) -> bool:
        if signal != "startupCompleted()":
            return False
        self._startup_slots.append(slot)
        return True

    def applicationLogic(self) -> Any:
        return self._logic

    def moduleManager(self) -> Any:
        return self._modules

    def testingEnabled(self) -> bool:
        return True

    def translate(self, context: str, text: str) -> str:
        if not isinstance(context, str) or not isinstance(text, str):
            raise TypeError("translate(context, text) takes two strings")
        return text

    def processEvents(self) -> None:
        process_events()

    def userSettings(self) -> Any:
        return settings()

    def settings(self) -> Any:
        return settings()


class _Module:
    def __init__(self, logic: Callable[[], Any], path: str = "") -> None:
        self.logic, self.path = logic, path


class _Modules(types.SimpleNamespace):
    """`slicer.modules`: those of Slicer that we use, and scripted modules that were opened."""

    def __init__(self, slicer: Any) -> None:
        super().__init__()
        for attribute, (name, _) in _LOGICS.items():
            setattr(
                self, attribute, _Module(lambda name=name: slicer.app.applicationLogic().GetModuleLogic(name))
            )


def settings() -> Any:
    """`qt.QSettings()` of this process, in a file of its own."""
    return sys.modules["qt"].QSettings()


def _replace_utilities(slicer: Any) -> None:
    qt = sys.modules["qt"]
    qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
    qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, slicer.app.temporaryPath)
    qt.QCoreApplication.setOrganizationName("harness")

    def noted(kind: str, answer: Any = None) -> Callable[..., Any]:
        def display(text: str, *_: Any, **more: Any) -> Any:
            displays.append((kind, text))
            return answer

        return display

    util = slicer.util
    util.errorDisplay, util.warningDisplay = noted("error"), noted("warning")
    util.infoDisplay = noted("info")
    util.confirmYesNoDisplay = util.confirmOkCancelDisplay = noted("question", True)
    util.loadUI = ui_files.load
    util.mainWindow = lambda *_, **more: None
    util.modulePath = lambda name: getattr(slicer.modules, name.lower()).path
    util.startupEnvironment = lambda: dict(os.environ)
    qt.QTimer.singleShot = staticmethod(_single_shot)


def _single_shot(milliseconds: int, slot: Callable[[], Any]) -> None:
    """As Base/Python/slicerqt.py of Slicer: the timer and what it calls are kept as long as Slicer runs."""
    timer = sys.modules["qt"].QTimer(sys.modules["slicer"].app.moduleManager())
    timer.setSingleShot(True)
    timer.connect("timeout()", slot)
    timer.start(milliseconds)


def _add_submodules(slicer: Any) -> None:
    real = os.environ.get(REAL_PYTHON)
    if real:
        for module, start in ((sys.modules["ctk"], "ctk"), (slicer, "q")):
            module.__getattr__ = _named_only(module.__name__, start)
        slicer.__path__.append(str(Path(real) / "slicer"))
        for name in ("i18n", "ScriptedLoadableModule", "parameterNodeWrapper"):
            setattr(slicer, name, importlib.import_module(f"slicer.{name}"))
        return
    for module in (*scripted.modules(), parameters.module()):
        sys.modules[module.__name__] = module
        setattr(slicer, module.__name__.rpartition(".")[2], module)


def _named_only(module: str, start: str) -> Callable[[str], type]:
    """For the widgets that Slicer's own files name and we have no stand-in of: classes of that name alone."""
    made: dict[str, type] = {}

    def get(name: str) -> type:
        if not name.startswith(start):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return made.setdefault(name, type(name, (), {}))

    return get


def add_module_path(folder: Path) -> None:
    """As Slicer does for each of its module paths."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def open_module(folder: Path, name: str) -> Any:
    """Register the scripted module `name` in `folder` and open it: its widget, set up and entered."""
    slicer = start()
    add_module_path(folder)
    python = _register(folder, name)
    place = slicer.qMRMLWidget()
    place.setLayout(sys.modules["qt"].QVBoxLayout())
    place.setMRMLScene(slicer.mrmlScene)
    widget = getattr(python, f"{name}Widget")(place)
    setattr(slicer.modules, f"{name}Widget", widget)
    widget.setup()
    widget.enter()
    return widget


def start_with_module(folder: Path, name: str) -> None:
    """As Slicer starts: the scripted module `name` in `folder` is there, and not opened."""
    slicer = start()
    add_module_path(folder)
    _register(folder, name)
    for slot in slicer.app._startup_slots:
        slot()


def _register(folder: Path, name: str) -> Any:
    slicer, python = sys.modules["slicer"], importlib.import_module(name)
    parent = widgets.ModuleParent(str(folder / f"{name}.py"))
    module = getattr(python, name)(parent)
    setattr(slicer.modules, name.lower(), _Module(lambda: None, parent.path))
    setattr(slicer.modules, f"{name}Instance", module)
    return python


def process_events() -> None:
    """Let Qt work; what is to be deleted later is deleted, as in the desktop's own event loop."""
    qt = sys.modules["qt"]
    qt.QApplication.processEvents()
    qt.QApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)


def process_until(reached: Callable[[], Any], seconds: float = 20.0) -> None:
    """Let Qt work until `reached()` is true.

    Raises:
        TimeoutError: if that takes longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"Not reached within {seconds:g} s.")
        process_events()
        time.sleep(0.002)
