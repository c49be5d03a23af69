"""All processes of a job: found, asked to end, ended. Without packages, and without waiting.

A job carries a mark in its environment that its children inherit, so that on Linux also those are found whose
parent has gone. On other systems it is the descendants of the first process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

MARK = "SEGMMREG_JOB"
NO_WINDOW = 0x08000000
"""CREATE_NO_WINDOW: no console flashes up on Windows."""
_ASK_LITTLE = 0x1000
"""PROCESS_QUERY_LIMITED_INFORMATION, of Windows."""
_PROC = Path("/proc")
_PS = ["ps", "-axo", "pid=,ppid=,stat=,lstart="]


@dataclass(frozen=True)
class Process:
    """A process: its number, and when it began, which tells it from a later one of the same number."""

    pid: int
    began: str


def processes_of(first: int, mark: str = "") -> tuple[Process, ...]:
    """The process `first` and all its descendants, and whoever carries `mark`; only those that live."""
    table = _table()
    wanted = {first} if first in table else set()
    if mark and _PROC.is_dir():
        wanted |= {pid for pid in table if _carries(pid, mark)}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in table.items() if parent in wanted} - wanted
        wanted |= more
        grown = bool(more)
    return tuple(Process(pid, table[pid][1]) for pid in sorted(wanted))


def process(pid: int) -> Process | None:
    """The process of this number, None if there is none."""
    found = _table().get(pid)
    return None if found is None else Process(pid, found[1])


def alive(processes: tuple[Process, ...]) -> tuple[Process, ...]:
    """Those that still run."""
    table = _table()
    return tuple(p for p in processes if p.pid in table and table[p.pid][1] == p.began)


def ask_to_end(processes: tuple[Process, ...]) -> None:
    """SIGTERM; on Windows, where nothing like it reaches a process without a window, as `end_now`."""
    _signal(processes, signal.SIGTERM)


def end_now(processes: tuple[Process, ...]) -> None:
    """SIGKILL; on Windows taskkill, of each with its children."""
    _signal(processes, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal(processes: tuple[Process, ...], number: int) -> None:
    if os.name == "nt":
        named = [word for each in processes for word in ("/PID", str(each.pid))]
        if named:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            quiet["creationflags"] = NO_WINDOW
            subprocess.Popen(["taskkill", *named, "/T", "/F"], **quiet)
        return
    for each in alive(processes):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each.pid, number)


def _table() -> dict[int, tuple[int, str]]:
    """Number → number of the parent, when it began; without the dead that wait for their parent to notice."""
    if _PROC.is_dir() and (_PROC / "self" / "stat").exists():
        return _table_of_proc()
    if os.name == "nt":
        return _table_of_windows()
    plain = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}  # the same times after a journey, and in summer
    told = subprocess.run(_PS, capture_output=True, text=True, check=False, env=plain)
    rows = (line.split(None, 3) for line in told.stdout.splitlines())
    return {int(pid): (int(parent), began) for pid, parent, state, began in rows if state[0] != "Z"}


def _table_of_proc() -> dict[int, tuple[int, str]]:
    table = {}
    for name in os.listdir(_PROC):  # noqa: PTH208  a Path for each is slow
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it has gone
        if fields[0] not in "ZX":
            table[int(name)] = (int(fields[1]), fields[19])
    return table


def _table_of_windows() -> dict[int, tuple[int, str]]:
    """The same on Windows, where a number is soon given again: a parent that is younger is none."""
    import ctypes
    from ctypes import wintypes

    class Entry(ctypes.Structure):
        _fields_ = (
            ("size", wintypes.DWORD),
            ("usage", wintypes.DWORD),
            ("pid", wintypes.DWORD),
            ("heap", ctypes.c_void_p),
            ("module", wintypes.DWORD),
            ("threads", wintypes.DWORD),
            ("parent", wintypes.DWORD),
            ("priority", wintypes.LONG),
            ("flags", wintypes.DWORD),
            ("name", ctypes.c_char * 260),
        )

    kernel = ctypes.WinDLL("kernel32")  # our own: others may set types of the functions of ctypes.windll
    kernel.CreateToolhelp32Snapshot.restype = kernel.OpenProcess.restype = wintypes.HANDLE

    def began(pid: int) -> int:
        """When, in units of 100 ns; 0 for processes of the system, which nobody may ask."""
        handle = wintypes.HANDLE(kernel.OpenProcess(_ASK_LITTLE, False, pid))
        created, *others = (ctypes.c_uint64() for _ in range(4))
        if handle:
            kernel.GetProcessTimes(handle, ctypes.byref(created), *map(ctypes.byref, others))
            kernel.CloseHandle(handle)
        return created.value

    snapshot = wintypes.HANDLE(kernel.CreateToolhelp32Snapshot(0x2, 0))
    entry = Entry(size=ctypes.sizeof(Entry))
    found: dict[int, tuple[int, int]] = {}
    more = kernel.Process32First(snapshot, ctypes.byref(entry))
    while more:
        found[entry.pid] = (entry.parent, began(entry.pid))
        more = kernel.Process32Next(snapshot, ctypes.byref(entry))
    kernel.CloseHandle(snapshot)
    return {
        pid: (parent if found.get(parent, (0, 0))[1] <= start else 0, str(start))
        for pid, (parent, start) in found.items()
    }


def _carries(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False  # somebody else's, or gone
