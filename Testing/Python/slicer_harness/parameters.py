"""Stand-in for slicer.parameterNodeWrapper: typed attributes kept in a node, bound to widgets by name.

Of types it knows bool, int, float, str, Path, Enum and node classes; anything else is refused.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SIMPLE = (bool, int, float, str, Path)
_UNSET = object()
_DEFAULTS: dict[type, Any] = {bool: False, int: 0, float: 0.0, str: "", Path: Path()}


def _is_node(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__name__.startswith("vtkMRML")


def _to_text(kind: type, value: Any) -> str:
    return value.name if issubclass(kind, enum.Enum) else str(value)


def _from_text(kind: type, text: str) -> Any:
    if kind is bool:
        return text == "True"
    return kind[text] if issubclass(kind, enum.Enum) else kind(text)


def parameterNodeWrapper(cls: type) -> type:
    """Make of an annotated class one whose objects keep their attributes in a parameter node."""
    kinds = typing.get_type_hints(cls)
    for name, kind in kinds.items():
        known = kind in _SIMPLE or _is_node(kind) or (isinstance(kind, type) and issubclass(kind, enum.Enum))
        if not known:
            raise TypeError(f"{cls.__name__}.{name}: no serializer for {kind!r}")
    defaults = {name: getattr(cls, name, _UNSET) for name in kinds}
    return type(
        cls.__name__, (_Wrapper,), {"_kinds": kinds, "_defaults": defaults, "__module__": cls.__module__}
    )


class _Wrapper:
    _kinds: dict[str, Any]
    _defaults: dict[str, Any]

    def __init__(self, node: Any) -> None:
        if node is None or not node.IsA("vtkMRMLScriptedModuleNode"):
            raise ValueError(f"A parameter node is needed, got {node!r}")
        object.__setattr__(self, "parameterNode", node)
        object.__setattr__(self, "_connected", {})
        for name, kind in self._kinds.items():
            if not _is_node(kind) and not node.GetParameter(name):
                default = self._defaults[name]
                value = _first(kind) if default is _UNSET else default
                node.SetParameter(name, _to_text(kind, value))

    def __getattribute__(self, name: str) -> Any:
        kinds = object.__getattribute__(self, "_kinds")
        if name not in kinds:
            return object.__getattribute__(self, name)
        node = object.__getattribute__(self, "parameterNode")
        if _is_node(kinds[name]):
            return node.GetNodeReference(name)
        return _from_text(kinds[name], node.GetParameter(name))

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._kinds.get(name)
        if kind is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}")
        if _is_node(kind):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
            self.parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())
            return
        if value is None:
            raise ValueError(f"{name} must not be None")
        if (
            type(value) is not kind
            and not (kind is float and type(value) is int)
            and not (kind is Path and isinstance(value, Path))
        ):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
        self.parameterNode.SetParameter(name, _to_text(kind, kind(value) if kind is float else value))

    def connectGui(self, gui: Any) -> int:
        """Bind the widgets of `gui` that have the property SlicerParameterName; a tag for `disconnectGui`."""
        from slicer_harness.bindings import bindings

        undo: list[Callable[[], None]] = []
        for widget in vars(gui).values() if not hasattr(gui, "metaObject") else gui.findChildren():
            name = widget.property("SlicerParameterName") if hasattr(widget, "property") else None
            if name:
                if name not in self._kinds:
                    raise ValueError(f"{widget.objectName}: there is no parameter {name!r}")
                undo.append(bindings(self, name, self._kinds[name], widget))
        tag = len(self._connected) + 1
        self._connected[tag] = undo
        return tag

    def disconnectGui(self, tag: int) -> None:
        for end in self._connected.pop(tag):
            end()


def _first(kind: type) -> Any:
    return next(iter(kind)) if issubclass(kind, enum.Enum) else _DEFAULTS[kind]


def module() -> types.ModuleType:
    """slicer.parameterNodeWrapper."""
    made = types.ModuleType("slicer.parameterNodeWrapper")
    made.parameterNodeWrapper = parameterNodeWrapper
    made.__all__ = ["parameterNodeWrapper"]
    return made
