"""Processes of a job on Windows, whose calls are stood in for: nothing of it can be tried elsewhere."""

from __future__ import annotations

import ctypes
import os
import subprocess

import pytest
from slicer_module import slicer

from SegGuidedMMRegGui import DetachedJob, ProcessTree

assert slicer

LAUNCHER, PYTHON, HELPER, OLD, SYSTEM = 900, 700, 100, 50, 4


class Function:
    """A function of kernel32; ctypes lets its result type be set."""

    def __init__(self, call):
        self._call = call

    def __call__(self, *arguments):
        return self._call(*arguments)


class Kernel:
    """kernel32 with these processes: number → (number of the parent, when it began)."""

    def __init__(self, processes):
        self._processes = processes
        self.opened, self._left = [], []
        for name in ("CreateToolhelp32Snapshot", "Process32First", "Process32Next", "OpenProcess",
                     "GetProcessTimes", "CloseHandle"):  # fmt: skip
            setattr(self, name, Function(getattr(self, f"_{name}")))

    def _CreateToolhelp32Snapshot(self, what, _pid):
        assert what == 2
        return 1

    def _Process32First(self, _snapshot, entry):
        self._left = list(self._processes)
        return self._Process32Next(_snapshot, entry)

    def _Process32Next(self, _snapshot, entry):
        if not self._left:
            return 0
        entry._obj.pid = self._left.pop(0)
        entry._obj.parent = self._processes[entry._obj.pid][0]
        return 1

    def _OpenProcess(self, rights, _inherit, pid):
        assert rights == 0x1000
        if pid == SYSTEM:
            return None
        self.opened.append(pid)
        return pid

    def _GetProcessTimes(self, handle, created, *_others):
        created._obj.value = self._processes[handle.value][1]
        return 1

    def _CloseHandle(self, handle):
        if handle.value != 1:
            self.opened.remove(handle.value)
        return 1


@pytest.fixture
def kernel(monkeypatch):
    """A launcher, the Python that it started, and what that started; an older process that the number of
    whose dead parent was given to the launcher."""
    made = Kernel(
        {
            SYSTEM: (0, 0),
            LAUNCHER: (SYSTEM, 20),
            PYTHON: (LAUNCHER, 21),
            HELPER: (PYTHON, 22),
            OLD: (LAUNCHER, 3),
        }
    )
    monkeypatch.setattr(ctypes, "WinDLL", {"kernel32": made}.__getitem__, raising=False)
    monkeypatch.setattr(ProcessTree, "_table", ProcessTree._table_of_windows)
    monkeypatch.setattr(ProcessTree, "_PROC", ProcessTree.Path("/none"))
    return made


def test_the_descendants_are_found_and_no_older_process(kernel):
    found = ProcessTree.processes_of(LAUNCHER)
    assert {process.pid for process in found} == {LAUNCHER, PYTHON, HELPER}
    assert kernel.opened == []


def test_a_number_that_was_given_again_is_another_process(kernel):
    process = ProcessTree.process(PYTHON)
    assert ProcessTree.alive((process,)) == (process,)
    kernel._processes[PYTHON] = (LAUNCHER, 99)
    assert ProcessTree.alive((process,)) == ()


def test_all_processes_are_ended_whatever_their_numbers(kernel, monkeypatch):
    """The launcher has a higher number than what it started; the one of the lowest number is not all."""
    run = []
    processes = ProcessTree.processes_of(LAUNCHER)
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: run.append((command, how)))
    ProcessTree.end_now(processes)
    (command, how) = run[0]
    assert command[0] == "taskkill"
    assert {command[n + 1] for n, word in enumerate(command) if word == "/PID"} == {"100", "700", "900"}
    assert how["creationflags"] == ProcessTree.NO_WINDOW
    ProcessTree.end_now(())
    assert len(run) == 1


def test_a_job_apart_has_a_console_that_nobody_sees():
    """With DETACHED_PROCESS (8) it has none, and Windows opens a window for each of its children."""
    flags = DetachedJob._APART_ON_WINDOWS
    assert flags & ProcessTree.NO_WINDOW
    assert not flags & 8
