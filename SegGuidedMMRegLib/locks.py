"""Who works on a study: lock files that name the holder, and that a crash does not leave behind for ever.

A job is of a kind, and holds `<study>/.locks/<kind>.json` while it runs:

* `cases` (new, add, edit) changes `study.yaml` and what was imported; `train` writes `models/`; `segment`
  writes `predictions/`. One job of each kind at a time.
* `register` is shared: as many processes as one likes, each with a lock file of its own, so that all can be
  seen; who does which pair they settle among themselves.

Who only reads needs no lock: every file is replaced whole. Jobs of different kinds do not exclude each other.

A lock is made by `link`, which also on network folders succeeds for one process alone. It is stale when its
process is gone (same machine: no process of this number that began at the same time) or, on another machine,
when it has shown no sign of life for two minutes: a holder touches its file every few seconds, and the file
server's own clock is what is compared.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import getpass
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.files import WriteError, remove_temporaries, write_text_atomically

Kind = Literal["cases", "train", "segment", "register"]

LOCKS = ".locks"
_SHARED = ("register",)
_BEAT_S = 10.0
_SILENT_S = 120.0
_GUARD_S = 0.02
_OLD_S = 3600.0
_OWNED: dict[str, tuple[str, ...]] = {
    "cases": ("images", "labels", "landmarks"),
    "train": ("models",),
    "segment": ("predictions", "predictions_without_adaptation"),
    "register": (),
}
_OWN_FILES: dict[str, tuple[str, ...]] = {
    "cases": ("study.yaml", "import.csv"),
    "train": ("config.yaml",),
    "segment": (),
    "register": (),
}
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EXDEV)


class BusyError(ValueError):
    """Another job of the same kind works on the study; the message says who, since when, and what to do."""

    error_code = ErrorCode.STUDY_LOCKED


@dataclass(frozen=True)
class Holder:
    """A job that works on a study.

    Attributes:
        kind: of the job.
        command: as it was typed.
        since: local time, ISO 8601 with its offset.
        user, host, pid: whose process, on which machine, with which number.
        began: when the process began, in the machine's own units, so that a later process of the same number
            is told apart; "" where that is not known.
        place: within what the number means one process: the boot of the machine and the container; "" where
            that is not known.
        folder: number of the study's folder in the file system of that machine: a copy of a study that is
            worked on is not worked on.
        token: of this holding.
    """

    kind: str
    command: str
    since: str
    user: str
    host: str
    pid: int
    began: str
    place: str
    folder: str
    token: str

    @staticmethod
    def this_process(kind: str, folder: Path) -> Holder:
        """The process that runs this."""
        return Holder(
            kind=kind,
            command=shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            user=_user(),
            host=socket.gethostname(),
            pid=os.getpid(),
            began=_began(os.getpid()) or "",
            place=_place(),
            folder=_number(folder),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        since = self.since.replace("T", " ")[:16]
        return f"`{self.command}` of {self.user}, process {self.pid} on {self.host}, since {since}"


@contextmanager
def working_on(folder: Path, kind: Kind) -> Iterator[None]:
    """Hold the study in `folder` for a job of a kind; what a killed job left half written is cleared away.

    The other processes of one `torchrun` job work under the lock of its first.

    Raises:
        BusyError: if another job of this kind, which is not shared, works on it.
        WriteError: if the folder is read-only.
    """
    if int(os.environ.get("RANK") or 0) > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    holder = Holder.this_process(kind, folder)
    name = f"{kind}-{holder.token[:12]}.json" if kind in _SHARED else f"{kind}.json"
    path = folder / LOCKS / name
    _acquire(path, holder, folder)
    beat = _Heartbeat(path, holder)
    beat.start()
    try:
        _clear_up(folder, kind)
        yield
    except KeyboardInterrupt:
        if not beat.lost:
            raise
        raise BusyError(_taken_over(folder, path)) from None
    finally:
        beat.stop()
        if (now := _read(path)) is not None and now.token == holder.token:
            path.unlink(missing_ok=True)
    if beat.lost:
        raise BusyError(_taken_over(folder, path))


def holders(folder: Path) -> list[Holder]:
    """The jobs that work on the study in `folder` now. Changes nothing."""
    found = []
    for path in sorted((folder / LOCKS).glob("*.json")):
        holder = _read(path)
        if holder is not None and _is_alive(holder, path):
            found.append(holder)
    return found


# -- taking a lock --------------------------------------------------------------------------------------
def _acquire(path: Path, holder: Holder, folder: Path) -> None:
    """Make `path` ours, over a stale lock if need be."""
    ours = path.with_name(f".{holder.token[:8]}-{path.name}")
    try:
        while True:
            write_text_atomically(ours, json.dumps(asdict(holder), indent=1, ensure_ascii=False) + "\n")
            if _put(ours, path):
                return
            other = _read(path)
            if other is None and _silence_s(path) < _SILENT_S:
                raise BusyError(f"{path} has just been made by somebody else: try again in a moment.")
            if other is not None and _is_alive(other, path):
                raise BusyError(_busy(folder, path, other))
            _take_away(path)
    finally:
        ours.unlink(missing_ok=True)


def _put(ours: Path, path: Path) -> bool:
    """Give the finished file `ours` the name `path`, unless somebody has it."""
    try:
        os.link(ours, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise WriteError(f"{path} could not be made: {error.strerror}.") from error
    else:
        return True
    try:  # a file system without links: the name is made first, the words follow
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(ours.read_bytes())
    return True


def _take_away(path: Path) -> None:
    """Remove a lock that is stale, unless another process is just looking at it for the same reason.

    One at a time, by a guard beside it: who has found a lock stale, and removes it later, could else remove
    the one that another has put in its place meanwhile. A guard that a crash left is removed when it is old.
    """
    guard = path.with_name(f"{path.name}.guard")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        if _silence_s(guard) >= _SILENT_S:
            guard.unlink(missing_ok=True)
        time.sleep(_GUARD_S)
        return
    try:
        if _is_stale(path):
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


class _Heartbeat(threading.Thread):
    """Touches a lock now and then; ends the job if another machine has taken the lock over."""

    def __init__(self, path: Path, holder: Holder) -> None:
        super().__init__(daemon=True, name="lock of a study")
        self._path, self._holder = path, holder
        self._done = threading.Event()
        self._of_main = threading.current_thread() is threading.main_thread()
        self.lost = False

    def run(self) -> None:
        while not self._done.wait(_BEAT_S):
            now = _read(self._path)
            if now is not None and now.token == self._holder.token:
                with contextlib.suppress(OSError):  # the server is away for a while: the next beat tells
                    os.utime(self._path)
            elif now is not None:  # somebody else's; that there is none may be a server that is away
                self.lost = True
                if self._of_main:
                    _interrupt_main_thread()
                return

    def stop(self) -> None:
        self._done.set()
        self.join()


def _interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # also wakes it if it waits
    else:
        _thread.interrupt_main()


def _clear_up(folder: Path, kind: Kind) -> None:
    """Remove what killed jobs of this kind left half written, and locks that nobody holds."""
    for place in _OWNED[kind]:
        for inner in (folder / place).glob("*"):
            if inner.is_dir() and not inner.is_symlink() and inner.name != "cache":
                remove_temporaries(inner, older_than_s=0)
    remove_temporaries(folder, _OLD_S, deep=False)
    remove_temporaries(folder / "models" / "cache", _OLD_S)
    for name in _OWN_FILES[kind]:
        for path in folder.glob(f".????????-{name}"):
            path.unlink(missing_ok=True)
    for path in (folder / LOCKS).glob("*.json"):
        if _is_stale(path):
            _take_away(path)


# -- is it alive? ---------------------------------------------------------------------------------------
def _read(path: Path) -> Holder | None:
    try:
        record = read_json(path)
        return Holder(**{name: type_(record[name]) for name, type_ in _FIELDS.items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


_FIELDS: dict[str, type] = {name: int if name == "pid" else str for name in Holder.__annotations__}


def _is_alive(holder: Holder, path: Path) -> bool:
    if holder.host == socket.gethostname() and holder.place == _place() and holder.began:
        began = _began(holder.pid)
        if began != "":
            return began == holder.began and _number(path.parent.parent) == holder.folder
    return _silence_s(path) < _SILENT_S


def _is_stale(path: Path) -> bool:
    """Whether nobody holds this lock any more; a damaged one is held until it is old."""
    holder = _read(path)
    return _silence_s(path) >= _SILENT_S if holder is None else not _is_alive(holder, path)


def _silence_s(path: Path) -> float:
    """Seconds since the holder touched `path`, endless if it is gone.

    By the clock that dates the files there; where we may not write, by our own.
    """
    probe = path.with_name(f".{uuid.uuid4().hex[:8]}-clock")
    now = time.time()
    with contextlib.suppress(OSError):
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        probe.unlink()
    try:
        return now - path.stat().st_mtime
    except OSError:
        return math.inf


def _began(pid: int) -> str | None:
    """When the process began, in units of its machine; None if there is no such process, "" if unknown."""
    if os.name != "posix" or pid <= 0:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is somebody else's
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # hidden from us
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # Z: dead, and its parent has not noticed yet
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    in_english = {**os.environ, "LC_ALL": "C"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=in_english)
    state, _, began = found.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else began.strip()


def _place() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _number(folder: Path) -> str:
    """Number of a folder on this machine, "" before it is made."""
    try:
        state = folder.stat()
    except FileNotFoundError:
        return ""
    return f"{state.st_dev}:{state.st_ino}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "somebody"  # a container whose user has no name


# -- what to tell ---------------------------------------------------------------------------------------
def _busy(folder: Path, path: Path, other: Holder) -> str:
    return (
        f"{folder}: another job works on it: {other}. Wait until it ends, or stop it, and run this again. "
        f"If it is certain that it does not run any more, delete {path}."
    )


def _taken_over(folder: Path, path: Path) -> str:
    return (
        f"{folder}: this job was silent for so long that another took over: {_read(path) or 'it has ended'}. "
        "What is done is kept; run this again when the other has ended."
    )
