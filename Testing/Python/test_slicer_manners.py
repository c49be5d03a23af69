"""What the module's source must not do, because the PythonQt of a desktop does not bear it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from slicer_harness import real_names
from slicer_module import FOLDER

import qt

SOURCES = sorted([FOLDER / "SegGuidedMMReg.py", *(FOLDER / "SegGuidedMMRegGui").glob("*.py")])
_PARTS = {"cellWidget", "clipboard", "completer", "horizontalHeader", "item", "itemAt", "layout", "lineEdit"}
_PARTS |= {
    "model",
    "palette",
    "selectionModel",
    "style",
    "verticalHeader",
    "verticalScrollBar",
    "viewport",
    "widget",
}
"""What hands out a part of a widget."""


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def chained(call: ast.Call) -> str:
    """`a.item(0).setText("b")`: the name of the part that is asked for and used in one expression."""
    outer = call.func
    if not isinstance(outer, ast.Attribute) or not isinstance(outer.value, ast.Call):
        return ""
    inner = outer.value.func
    return inner.attr if isinstance(inner, ast.Attribute) and inner.attr in _PARTS else ""


def of_qt(call: ast.Call) -> str:
    """`qt.QLabel(…)`: the name of the class; "" for other calls."""
    function = call.func
    is_qt = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return function.attr if is_qt and function.value.id in ("qt", "ctk") else ""


def test_chained_calls_and_classes_of_qt_are_seen():
    """The looks below would find something."""
    tree = ast.parse('table.item(0, 1).setText("a")').body[0].value
    assert chained(tree) == "item"
    assert of_qt(ast.parse('qt.QLabel("a")').body[0].value) == "QLabel"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_parts_of_widgets_are_held_while_they_are_used(path):
    """A wrapper that nobody holds may be destroyed within the expression."""
    assert not [f"line {call.lineno}: {chained(call)}" for call in calls(path) if chained(call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_classes_of_qt_get_no_keywords(path):
    assert not [f"line {call.lineno}" for call in calls(path) if of_qt(call) and call.keywords]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_names_of_all_classes_of_qt_are_known(path):
    """`real_names` has them, so that a method that PythonQt lacks is an error in the tests."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    asked = {n.attr for n in tree if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "qt"}
    classes = {name for name in asked - {"Qt"} if isinstance(getattr(qt, name), type)}
    assert classes <= set(real_names.names())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_is_called_a_moment_later_is_not_held_for_good(path):
    """Slicer replaces `QTimer.singleShot` by one that keeps what it calls; there is `Widgets.later`."""
    names = [call.func.attr for call in calls(path) if isinstance(call.func, ast.Attribute)]
    assert "singleShot" not in names
