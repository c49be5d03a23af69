"""Stand-ins for slicer.ScriptedLoadableModule and slicer.i18n: what we rely on."""

from __future__ import annotations

import inspect
import sys
import types
import unittest
from pathlib import Path
from typing import Any


class ScriptedLoadableModule:
    """What Slicer makes of the class NAME: its metadata, its icon, its self-test."""

    def __init__(self, parent: Any) -> None:
        import slicer

        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.helpText, parent.acknowledgementText = "", "", ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        icon = Path(parent.path).parent / "Resources/Icons" / f"{self.moduleName}.png"
        if icon.is_file():
            parent.icon = sys.modules["qt"].QIcon(str(icon))
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def runTest(self, msec: int = 100, **keywords: Any) -> None:
        test = getattr(sys.modules[self.__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**keywords)


class ScriptedLoadableModuleWidget:
    """The class NAMEWidget; `parent` is the place for it, with a layout."""

    def __init__(self, parent: Any = None) -> None:
        import slicer

        if parent is None:
            raise ValueError("The harness gives a parent")
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        manager = slicer.app.moduleManager()
        if not manager.connect("moduleAboutToBeUnloaded(QString)", self._unloaded):
            raise AssertionError("the module manager has no such signal")

    def _unloaded(self, name: str) -> None:
        import slicer

        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._unloaded)

    def resourcePath(self, filename: str) -> str:
        import slicer

        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        pass

    def enter(self) -> None:
        pass

    def exit(self) -> None:
        pass

    def cleanup(self) -> None:
        pass


class ScriptedLoadableModuleLogic:
    """The class NAMELogic."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        import slicer

        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetName(self.moduleName)
            node.SetModuleName(self.moduleName)
            node = scene.AddNode(node)
        node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The class NAMETest."""

    messageDelay = 0

    def delayDisplay(self, message: str, msec: int | None = None, **_: Any) -> None:
        sys.modules["qt"].QApplication.processEvents()

    def runTest(self) -> None:
        raise NotImplementedError


def tr(text: str) -> str:
    """`from slicer.i18n import tr as _`: a literal text, as lupdate finds it; formatted afterwards.

    It takes as long as Slicer's, some 20 µs: the source file of who asks is looked for at each call.
    """
    frame = inspect.currentframe()
    asking = None if frame is None else frame.f_back
    context = Path(inspect.getsourcefile(asking) or inspect.getfile(asking)).stem  # type: ignore[arg-type]
    return translate(context, text)


def translate(context: str, text: str) -> str:
    """The same with its context."""
    if not isinstance(text, str):
        raise TypeError(f"_() takes a string, got {text!r}")
    return text


def modules() -> tuple[types.ModuleType, ...]:
    """slicer.ScriptedLoadableModule and slicer.i18n."""
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic,
               ScriptedLoadableModuleTest)  # fmt: skip
    for cls in classes:
        setattr(module, cls.__name__, cls)
    module.__all__ = [cls.__name__ for cls in classes]
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = tr, translate
    return module, i18n
