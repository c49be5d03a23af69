"""What PythonQt knows of Qt's classes: less than PySide6, so the rest is refused here as it is in Slicer.

`pythonqt_names.json` holds, by class, the methods of PythonQt's own wrappers; beside them an object has the
properties, slots and signals of its meta-object. They are those of MeVisLab/pythonqt for Qt 5.15: v3.6.1 as
in Slicer 5.10, and v4.1.0 as in 5.12, which have the same. When the module begins to use another class,
add it:
`python -m slicer_harness.real_names generated_cpp_515 QNewClass`.

`real_signals.txt` holds the signals that were looked up in the headers of Qt 5.15 and Qt 6, of CTK, and of
Slicer 5.10 and 5.12: the classes of PySide6 are those of Qt 6 alone.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("pythonqt_names.json")
_SIGNALS = Path(__file__).with_name("real_signals.txt")
_OF_PYTHONQT = {
    "className",
    "connect",
    "delete",
    "disconnect",
    "findChild",
    "findChildren",
    "help",
    "inherits",
}
_OF_PYTHONQT |= {"children", "metaObject", "parent", "property", "setParent", "setProperty", "tr"}
_OF_TESTS = {"grab", "render", "connectNotify", "disconnectNotify"}


@functools.cache
def names() -> dict[str, frozenset[str]]:
    """Methods by class."""
    return {cls: frozenset(found) for cls, found in json.loads(_FILE.read_text(encoding="utf-8")).items()}


@functools.cache
def signals() -> frozenset[str]:
    """Signals, with the types of their arguments."""
    return frozenset(_SIGNALS.read_text(encoding="utf-8").split("\n"))


@functools.cache
def is_known(cls: type, name: str) -> bool:
    """Whether PythonQt wraps the method of this class, or of one that it inherits from.

    Of classes that are not in the file nothing is known: the module uses none of them.
    """
    of_classes = names()
    first = next(each for each in cls.__mro__ if each.__module__.startswith("PySide6"))
    if first.__name__ not in of_classes or name in _OF_PYTHONQT or name in _OF_TESTS:
        return True
    return any(name in of_classes.get(each.__name__, ()) for each in cls.__mro__)


def in_meta_object(meta: Any, name: str) -> bool:
    """Whether a slot or signal of the meta-object has this name; PythonQt finds those by itself."""
    return any(meta.method(n).name().data().decode() == name for n in range(meta.methodCount()))


def _read(generated: Path, classes: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {cls: set() for cls in sorted(classes)}
    for path in sorted(generated.rglob("*.h")):
        cls = ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if begin := re.match(r"class PythonQtWrapper_(\w+) : public", line):
                cls = begin[1]
            elif cls in found and (method := re.match(r"\s+[\w:<>,\s*&]+?\b(\w+)\(", line)):
                found[cls].add(method[1].removeprefix(f"static_{cls}_"))
    made = re.compile(r"(new|delete|py|PythonQtShell)_|Q_|PythonQt")
    return {cls: sorted(n for n in methods if not made.match(n)) for cls, methods in found.items()}


if __name__ == "__main__":
    read = _read(Path(sys.argv[1]), {*names(), *sys.argv[2:]})
    _FILE.write_text(json.dumps(read, indent=0) + "\n", encoding="utf-8")
