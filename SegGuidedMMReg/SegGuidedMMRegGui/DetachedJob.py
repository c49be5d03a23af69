"""Training outlives Slicer: started apart from it, followed through its files, found again later.

In `<study>/.jobs/` lie `train.jsonl` (its events), `train.log` (what libraries print) and `train.json` (which
process it is). The library's own lock tells of those that others have started.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from SegGuidedMMRegGui import ProcessTree
from SegGuidedMMRegGui.JobEvents import JobListener
from SegGuidedMMRegGui.JobPython import JobPython, chosen_python
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegLib.files import write_text_atomically

JOBS = ".jobs"
_AT_ONCE = 1 << 18
_APART_ON_WINDOWS = ProcessTree.NO_WINDOW | 0x00000200  # CREATE_NEW_PROCESS_GROUP
"""A console that nobody sees; the children of a process without one would get windows of their own."""


class DetachedJob(Job):
    """A job on a study that goes on when Slicer is closed. One a kind and study."""

    def __init__(self, study: Path, kind: str, command: Sequence[str], listener: JobListener) -> None:
        super().__init__(command, listener)
        self.study, self.kind = study, kind
        self._first: ProcessTree.Process | None = None
        self._child: subprocess.Popen | None = None
        self._read = {"jsonl": 0, "log": 0}

    @staticmethod
    def begin(
        study: Path, arguments: Sequence[str], listener: JobListener, python: JobPython | None = None
    ) -> DetachedJob:
        """Start `segmmreg ARGUMENTS` apart from Slicer; its first argument names the kind of job.

        Raises:
            RuntimeError: if such a job runs already, or there is no Python to run it.
            OSError: if it cannot be started, or the study is read-only.
        """
        if (other := DetachedJob.find(study, arguments[0], JobListener())) is not None:
            other.leave()
            raise RuntimeError(f"{study}: such a job ({arguments[0]}) runs already.")
        python = python or chosen_python()
        job = DetachedJob(study, arguments[0], python.command(tuple(arguments)), listener)
        job._begin(python.environment())
        return job

    @staticmethod
    def find(study: Path, kind: str, listener: JobListener) -> DetachedJob | None:
        """The job of this kind that runs on the study, started here earlier; None if there is none.

        What it has told so far is told again.
        """
        try:
            record = json.loads((study / JOBS / f"{kind}.json").read_text(encoding="utf-8"))
            first = ProcessTree.Process(int(record["pid"]), str(record["began"]))
            command, mark, host = map(record.get, ("command", "mark", "host"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if host != socket.gethostname() or not ProcessTree.alive((first,)):
            return None
        job = DetachedJob(study, kind, command, listener)
        job._first, job._mark = first, str(mark)
        job._plan(0)
        return job

    def leave(self) -> None:
        """Follow it no longer; it goes on."""
        self._let_go()

    def _begin(self, environment: dict[str, str]) -> None:
        folder = self.study / JOBS
        folder.mkdir(exist_ok=True)
        apart = {"creationflags": _APART_ON_WINDOWS} if os.name == "nt" else {"start_new_session": True}
        with self._path("jsonl").open("wb") as events, self._path("log").open("wb") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=events,
                stderr=log,
                env={**environment, ProcessTree.MARK: self._mark},
                **apart,
            )
        self._first = ProcessTree.process(self._child.pid)
        record = {
            "pid": self._child.pid,
            "began": self._first.began if self._first else "",
            "host": socket.gethostname(),
            "mark": self._mark,
            "command": self.command,
        }
        write_text_atomically(self._path("json"), json.dumps(record, indent=1) + "\n")
        self._plan(0)

    def _path(self, ending: str) -> Path:
        return self.study / JOBS / f"{self.kind}.{ending}"

    def _pid(self) -> int | None:
        alive = self._first is not None and ProcessTree.alive((self._first,))
        return self._first.pid if alive else None

    def _look(self) -> bool:
        """Read on in its files; it has ended when its process is gone and all is read."""
        has_ended = self._child.poll() is not None if self._child else self._pid() is None
        more = self._more("jsonl")
        self.events.feed(more)
        self.events.feed_log(self._more("log"))
        if has_ended and not more:
            self._has_exited = True
            self._exit_code = self._child.returncode if self._child else self._told_exit_code()
        return True

    def _told_exit_code(self) -> int | None:
        """The exit code of a job that is no child of ours, as it told it."""
        last = self.events.error or self.events.result or {}
        return last.get("exit_code")

    def _more(self, ending: str) -> bytes:
        try:
            with self._path(ending).open("rb") as file:
                file.seek(self._read[ending])
                data = file.read(_AT_ONCE)
        except OSError:
            return b""
        self._read[ending] += len(data)
        return data

    def _conclude(self) -> None:
        if self.end is None and self._exit_code is None:
            self._exit_code = self._told_exit_code()
        super()._conclude()
        self._path("json").unlink(missing_ok=True)
