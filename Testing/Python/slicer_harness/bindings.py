"""What `connectGui` binds: exact classes only, each with its signal and its property, both ways."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KNOWN: dict[tuple[Any, str], tuple[str, str]] = {
    (bool, "QCheckBox"): ("toggled(bool)", "checked"),
    (bool, "QPushButton"): ("toggled(bool)", "checked"),
    (int, "QSpinBox"): ("valueChanged(int)", "value"),
    (float, "QDoubleSpinBox"): ("valueChanged(double)", "value"),
    (str, "QLineEdit"): ("textChanged(QString)", "text"),
    (str, "QComboBox"): ("currentTextChanged(QString)", "currentText"),
    (enum.Enum, "QComboBox"): ("currentTextChanged(QString)", "currentText"),
    (Path, "ctkPathLineEdit"): ("currentPathChanged(QString)", "currentPath"),
    ("node", "qMRMLNodeComboBox"): ("currentNodeIDChanged(QString)", "currentNodeID"),
}


def bindings(wrapper: Any, name: str, kind: type, widget: Any) -> Callable[[], None]:
    """Bind the parameter `name` and the widget to each other; a function that undoes it.

    Raises:
        ValueError: if there is no connector for this class and this type.
    """
    key = (
        "node" if kind.__name__.startswith("vtkMRML") else enum.Enum if issubclass(kind, enum.Enum) else kind
    )
    if (key, widget.className()) not in _KNOWN:
        raise ValueError(f"{widget.objectName}: no connector of {widget.className()} for {kind.__name__}")
    signal, attribute = _KNOWN[key, widget.className()]
    if widget.className() == "QPushButton" and not widget.checkable:
        raise ValueError(f"{widget.objectName}: the button is not checkable")

    def to_node() -> None:
        if key == "node":
            setattr(wrapper, name, widget.currentNode())
            return
        shown = getattr(widget, attribute)
        setattr(wrapper, name, kind[shown] if key is enum.Enum else kind(shown))

    def to_widget(*_: Any) -> None:
        value = getattr(wrapper, name)
        if key == "node":
            widget.setCurrentNode(value)
        elif value != getattr(widget, attribute):
            setattr(
                widget, attribute, value.name if key is enum.Enum else str(value) if key is Path else value
            )

    to_widget()
    assert widget.connect(signal, to_node), signal
    node = wrapper.parameterNode
    observed = node.AddObserver("ModifiedEvent", to_widget)

    def undo() -> None:
        widget.disconnect(signal, to_node)
        node.RemoveObserver(observed)

    return undo
