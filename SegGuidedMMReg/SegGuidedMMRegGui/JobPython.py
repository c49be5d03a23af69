"""Which Python runs the jobs, and in which environment: Slicer's own, or another one of the user's choice."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import slicer.util

import qt
from SegGuidedMMRegGui import LIBRARY_HOME

_SETTING = "SegGuidedMMReg/Python"
_OF_SLICERS_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE")


@dataclass(frozen=True)
class JobPython:
    """A Python that can run jobs.

    Attributes:
        path: of the program.
        is_slicers: whether it is Slicer's own, whose packages Slicer manages.
    """

    path: str
    is_slicers: bool

    def environment(self) -> dict[str, str]:
        """Variables for its processes: the library is found, texts are UTF-8, output comes at once."""
        variables = dict(os.environ) if self.is_slicers else _without_slicer()
        places = [str(LIBRARY_HOME), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        variables.update(PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1")
        return variables

    def command(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """The whole command line of a job of the library."""
        return (self.path, "-m", "SegGuidedMMRegLib", *arguments, "--events")


def slicers_python() -> JobPython:
    """The Python that comes with Slicer.

    Raises:
        RuntimeError: if it is not where Slicer has it.
    """
    path = shutil.which("PythonSlicer")
    if path is None and "python" in Path(sys.executable).name.lower():
        path = sys.executable
    if path is None:
        raise RuntimeError(
            "PythonSlicer was not found: this Slicer is incomplete. Install Slicer again, or choose another "
            "Python in the set-up card."
        )
    return JobPython(path, True)


def chosen_python() -> JobPython:
    """The one that the user has chosen, else Slicer's."""
    chosen = str(qt.QSettings().value(_SETTING, "") or "")
    return JobPython(chosen, False) if chosen else slicers_python()


def choose_python(path: str) -> None:
    """Remember another Python for this user on this machine; "" for Slicer's own."""
    qt.QSettings().setValue(_SETTING, path)


def _without_slicer() -> dict[str, str]:
    """What the environment was before Slicer's launcher changed it for Slicer's libraries."""
    variables = dict(slicer.util.startupEnvironment())
    for name in _OF_SLICERS_PYTHON:
        variables.pop(name, None)
    return variables
