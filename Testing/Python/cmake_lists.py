"""The lists of files in the CMake files of library and module: what they hold, and what they should hold.

Slicer installs a file only if it is listed, and says nothing of the others. `python
Testing/Python/cmake_lists.py` writes the lists; test_extension.py compares them with the tree.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS, RESOURCES = "MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"
BUILDINGS = ("SegGuidedMMRegLib", "SegGuidedMMReg")
_NOT_INSTALLED = ("__pycache__", "Testing", "Screenshots")


def should_hold(building: str) -> dict[str, list[str]]:
    """The files of a building, relative to it: its Python files, and the others that are installed."""
    folder = ROOT / building
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if not set(path.parts) & set(_NOT_INSTALLED)]
    names = sorted(path.as_posix() for path in files if path.name != "CMakeLists.txt")
    return {
        SCRIPTS: [name for name in names if name.endswith(".py")],
        RESOURCES: [name for name in names if not name.endswith(".py")],
    }


def hold(building: str) -> dict[str, list[str]]:
    """The same as the building's CMake file lists it."""
    text = (ROOT / building / "CMakeLists.txt").read_text(encoding="utf-8")
    return {name: _block(name).findall(text)[0].split() for name in (SCRIPTS, RESOURCES)}


def write(building: str) -> None:
    """Put the lists of the tree into the CMake file."""
    path = ROOT / building / "CMakeLists.txt"
    text = path.read_text(encoding="utf-8")
    for name, files in should_hold(building).items():
        lines = "".join(f"  {file}\n" for file in files)
        text = _block(name).sub(f"set({name}\n{lines}  )", text)
    path.write_text(text, encoding="utf-8")


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"set\({name}\n(.*?)  \)", re.DOTALL)


if __name__ == "__main__":
    for each in BUILDINGS:
        write(each)
