"""PySide6 with the manners of PythonQt, which Slicer uses: what PythonQt refuses, this refuses too.

As measured in Slicer's desktop:

* properties are attributes, read and written (`button.text`, `button.enabled = False`), so that calling one
  is a TypeError; what is no property stays a method (`box.isChecked()`, `item.text()`);
* an attribute that does not exist can be neither read nor set;
* there are no keyword arguments, in constructors neither;
* `connect("clicked(bool)", f)`; of a signal that does not exist it returns False and says nothing;
* lists come back as tuples; enums are integers;
* the Python classes do not inherit from each other: `isinstance(button, qt.QWidget)` is False.

`slot_errors` holds what slots have raised, which Qt only prints.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.pyside6_option_python_enum = 0x0E  # enums are integers, reachable short and scoped

from PySide6 import QtCore, QtGui, QtSvg, QtUiTools, QtWidgets  # noqa: E402
from shiboken6 import Shiboken  # noqa: E402
from slicer_harness import real_names  # noqa: E402

slot_errors: list[BaseException] = []

_MODULES = (QtCore, QtGui, QtWidgets, QtSvg)
_ClassOfClasses = type(QtCore.QObject)
_PLAIN_GET = QtCore.QObject.__getattribute__
_PLAIN_SET = Shiboken.Object.__setattr__
_connected: dict[int, list[tuple[str, Any, Any]]] = {}
_loading: list[bool] = []
_reading: set[tuple[int, str]] = set()
_NO_KEYWORDS = "PythonQt takes no keyword arguments: {}({})"


if sys.version_info < (3, 12):
    # PySide6 6.12 takes a reference to None too few in each call that returns nothing. From Python 3.12 on
    # None cannot be freed; before, it is after some ten thousand calls, unless there are some to spare.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 48


def like_cpp(cls: type) -> type:
    """Mark a Python class of ours that stands for a C++ class: strict outside, native inside (`native`)."""
    cls._stands_for_cpp = True
    return cls


def native(widget: QtCore.QObject, name: str) -> Any:
    """The attribute as PySide6 has it, for use inside stand-ins."""
    return _PLAIN_GET(widget, name)


def is_python_class(cls: type) -> bool:
    """Whether `cls` was written in Python, by the module under test."""
    return not cls.__module__.startswith(("PySide6", "Shiboken")) and "_stands_for_cpp" not in vars(cls)


def _in_python(cls: type, name: str) -> bool:
    """Whether a class of the module under test defines `name` itself."""
    for each in cls.__mro__:
        if not is_python_class(each):
            return False
        if name in vars(each):
            return True
    return False


def _meta_property(item: QtCore.QObject, name: str) -> QtCore.QMetaProperty | None:
    if name == "singleShot" and isinstance(item, QtCore.QTimer):
        return None  # PythonQt leaves it out, because QTimer.singleShot(…) is a function too
    meta = _PLAIN_GET(item, "metaObject")()
    index = meta.indexOfProperty(name)
    return meta.property(index) if index >= 0 else None


def as_pythonqt(value: Any) -> Any:
    """A value as PythonQt returns it."""
    return tuple(map(as_pythonqt, value)) if isinstance(value, list) else value


class _Method:
    """A method of a C++ object: positional arguments only, tuples for lists."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if keywords:
            raise ValueError(_NO_KEYWORDS.format(self._function.__name__, ", ".join(keywords)))
        return as_pythonqt(self._function(*arguments))


def _get(item: QtCore.QObject, name: str) -> Any:
    if name.startswith("__"):
        return _PLAIN_GET(item, name)
    kind = type(item)
    if is_python_class(kind) and (_in_python(kind, name) or name in _PLAIN_GET(item, "__dict__")):
        return _PLAIN_GET(item, name)
    if name in _SPECIAL:
        return functools.partial(_SPECIAL[name], item)
    asked = "objectName" if name == "name" else name
    if _meta_property(item, asked) is not None and (id(item), asked) not in _reading:
        return _property(item, asked)
    value = _PLAIN_GET(item, name)
    is_for_qt = name.endswith("Event") or name == "eventFilter"  # a stand-in's own: Qt wants it plain
    if isinstance(value, (types.BuiltinMethodType, types.MethodType)) and not is_for_qt:
        _refuse_unwrapped(item, name)
        return _Method(value)
    return value


_wrapped: set[tuple[type, str]] = set()


def _refuse_unwrapped(item: QtCore.QObject, name: str) -> None:
    """PythonQt has neither a wrapper nor a slot for what only PySide6 knows."""
    kind = type(item)
    if (kind, name) in _wrapped:
        return
    is_ours = any("_stands_for_cpp" in vars(each) and name in vars(each) for each in kind.__mro__)
    if not (
        is_ours
        or name.startswith("_")
        or real_names.is_known(kind, name)
        or real_names.in_meta_object(_PLAIN_GET(item, "metaObject")(), name)
    ):
        raise AttributeError(f"{kind.__name__} has no attribute named '{name}' in PythonQt")
    _wrapped.add((kind, name))


def _get_of_value(item: Any, name: str) -> Any:
    """Of what is no QObject: QTableWidgetItem, QPainter, QColor and so on."""
    value = object.__getattribute__(item, name)
    if isinstance(value, types.BuiltinMethodType) and not name.startswith("_"):
        if not real_names.is_known(type(item), name):
            raise AttributeError(f"{type(item).__name__} has no attribute named '{name}' in PythonQt")
        return _Method(value)
    return value


def _property(item: QtCore.QObject, name: str) -> Any:
    _reading.add((id(item), name))  # C++ asks a Python class for its own sizeHint() and the like
    try:
        return as_pythonqt(_PLAIN_GET(item, "property")(name))
    finally:
        _reading.discard((id(item), name))


def _set(item: QtCore.QObject, name: str, value: Any) -> None:
    asked = "objectName" if name == "name" else name
    kind = type(item)
    found = _meta_property(item, asked)
    if found is not None and not _in_python(kind, name):
        if not found.isWritable():
            raise AttributeError(f"{kind.__name__}.{name} can be read only")
        if value is None:
            raise AttributeError(f"{kind.__name__}.{name}: PythonQt makes 'None' of None, or refuses it")
        if isinstance(value, str) and found.typeName() == "QStringList":
            raise ValueError(f"{kind.__name__}.{name} takes a tuple: PythonQt splits a string into letters")
        value = list(value) if isinstance(value, tuple) else value
        if not _PLAIN_GET(item, "setProperty")(asked, value):
            raise AttributeError(f"{kind.__name__}.{name} cannot be set to {value!r}")
        return
    if isinstance(value, QtCore.SignalInstance):  # PySide6 keeps a signal that was asked for
        _PLAIN_SET(item, name, value)
        return
    if not is_python_class(kind):
        if _loading:
            return
        raise AttributeError(f"{kind.__name__}.{name}: creating new attributes on C++ objects is not allowed")
    _PLAIN_SET(item, name, value)


@contextmanager
def loading() -> Iterator[None]:
    """While Qt's loader works, which gives a widget its children as attributes: they are left out."""
    _loading.append(True)
    try:
        yield
    finally:
        _loading.pop()


# -- signals --------------------------------------------------------------------------------------------
def _connect(sender: QtCore.QObject, signal: str, slot: Any, *more: Any) -> bool:
    if not isinstance(signal, str) or more:
        raise ValueError("The harness knows connect('signal(type)', callable) only")
    if not callable(slot):
        raise ValueError(f"{slot!r} is not callable")
    normal = QtCore.QMetaObject.normalizedSignature(signal)
    normal = normal.data().decode() if hasattr(normal, "data") else str(normal)
    meta = _PLAIN_GET(sender, "metaObject")()
    index = meta.indexOfSignal(normal)
    if index < 0:
        return False
    if normal not in real_names.signals():
        raise AssertionError(f"{normal}: has Qt 5 that too? Look it up, then add it to real_signals.txt")
    count = meta.method(index).parameterCount()
    listener = _listener(slot, count)
    if not QtCore.QObject.connect(sender, QtCore.SIGNAL(normal), listener):
        return False
    pointer = Shiboken.getCppPointer(sender)[0]
    if pointer not in _connected:
        QtCore.QObject.connect(sender, QtCore.SIGNAL("destroyed()"), lambda: _connected.pop(pointer, None))
    _connected.setdefault(pointer, []).append((normal, slot, listener))
    return True


def _disconnect(sender: QtCore.QObject, signal: str, slot: Any) -> bool:
    normal = QtCore.QMetaObject.normalizedSignature(signal)
    normal = normal.data().decode() if hasattr(normal, "data") else str(normal)
    entries = _connected.get(Shiboken.getCppPointer(sender)[0], [])
    for entry in entries:
        if entry[0] == normal and entry[1] == slot:
            entries.remove(entry)
            return bool(QtCore.QObject.disconnect(sender, QtCore.SIGNAL(normal), entry[2]))
    return False


def _listener(slot: Any, count: int) -> Any:
    """A function of `count` arguments that hands on as many as `slot` takes, and notes what it raises."""
    takes = _arguments_taken(slot, count)

    def listen(*arguments: Any) -> None:
        try:
            slot(*(as_pythonqt(value) for value in arguments[:takes]))
        except BaseException as error:
            slot_errors.append(error)
            raise

    names = ", ".join(f"a{n}" for n in range(count))
    space = {"listen": listen}
    exec(f"def listener({names}):\n    listen({names})", space)
    return space["listener"]


def _arguments_taken(slot: Any, count: int) -> int:
    function = getattr(slot, "__func__", slot)
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & 0x04:  # *args
        return count
    return min(count, code.co_argcount - (1 if hasattr(slot, "__self__") else 0))


_SPECIAL = {
    "connect": _connect,
    "disconnect": _disconnect,
    "className": lambda item: _PLAIN_GET(item, "metaObject")().className().rpartition("::")[2],
    "children": lambda item: tuple(_PLAIN_GET(item, "children")()),
}


# -- classes --------------------------------------------------------------------------------------------
def _is_instance(cls: type, item: Any) -> bool:
    """PythonQt's classes know only their own objects, and Python classes that inherit from them."""
    for each in type(item).__mro__:
        if each is cls:
            return True
        if not is_python_class(each):
            return False
    return False


def _adapt(cls: type) -> None:
    if "__init__" in vars(cls) and not hasattr(cls.__init__, "_without_keywords"):
        plain = cls.__init__

        def without_keywords(item: Any, *arguments: Any, **keywords: Any) -> None:
            if keywords:
                raise ValueError(_NO_KEYWORDS.format(cls.__name__, ", ".join(keywords)))
            plain(item, *arguments)

        without_keywords._without_keywords = True
        cls.__init__ = without_keywords
    if issubclass(cls, QtCore.QObject):
        cls.__getattribute__ = _get
        cls.__setattr__ = _set
    elif cls.__name__ in real_names.names():
        cls.__getattribute__ = _get_of_value


def make_qt() -> types.ModuleType:
    """The module `qt`, once a process; an application is started."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    module = types.ModuleType("qt")
    if QtWidgets.QApplication.instance() is None:
        module._application = QtWidgets.QApplication(["Slicer"])
    for part in _MODULES:
        for name in dir(part):  # PySide6 makes its classes when they are asked for
            if not name.startswith("_"):
                setattr(module, name, getattr(part, name))
    module.QUiLoader = QtUiTools.QUiLoader
    for value in list(vars(module).values()):
        if isinstance(value, type) and isinstance(value, _ClassOfClasses):
            _adapt(value)
    _ClassOfClasses.__instancecheck__ = _is_instance
    sys.modules["qt"] = module
    return module
