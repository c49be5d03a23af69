"""Jobs in child processes: started, followed, cancelled with all their processes. Never waits.

Everything happens in the GUI thread, in short pieces: Qt says when there is something to read, and what a job
tells is handed on for at most `BUSY_S` at a time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

import qt
from SegGuidedMMRegGui import ProcessTree
from SegGuidedMMRegGui.JobEvents import JobEnd, JobEvents, JobListener
from SegGuidedMMRegGui.JobPython import JobPython, chosen_python
from SegGuidedMMRegGui.Widgets import connect, let_go

BUSY_S = 0.03
GRACE_S = 6.0
_LOOK_MS = 200
_FAILED_TO_START = 0


class Job:
    """A job that is followed until it and all its processes have ended; subclasses know how it starts."""

    def __init__(self, command: Sequence[str], listener: JobListener) -> None:
        self.command = tuple(command)
        self.events = JobEvents(listener)
        self.end: JobEnd | None = None
        self.title = ""
        self._mark = uuid.uuid4().hex
        self._exit_code: int | None = None
        self._has_exited = False
        self._cancelled_at: float | None = None
        self._tree: tuple[ProcessTree.Process, ...] = ()
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self._step)

    @property
    def is_running(self) -> bool:
        return self.end is None

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled_at is not None

    def start(self) -> None:
        """Start it; how it goes, the listener hears."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask all its processes to end, and end those that have not done so after `GRACE_S`."""
        if self.end is not None or self.is_cancelled:
            return
        self._cancelled_at = time.monotonic()
        self._tree = self._processes()
        ProcessTree.ask_to_end(self._tree)
        self._plan(_LOOK_MS)

    def kill(self) -> None:
        """End all its processes at once; no file is half written, because the library writes whole files."""
        if self.end is not None:
            return
        self._cancelled_at = self._cancelled_at or time.monotonic()
        ProcessTree.end_now(self._processes())
        self._has_exited = True
        self._conclude()

    def leave(self) -> None:
        """The module is closed: end it, unless it is one that goes on without Slicer."""
        self.kill()

    def report(self) -> str:
        """What to send to who can help: the command, how it ended, the log."""
        ended = "running" if self.end is None else self.end.message or f"exit code {self.end.exit_code}"
        return "\n".join(
            ["command: " + " ".join(self.command), f"ended: {ended}", "log:", *self.events.lines]
        )

    def _pid(self) -> int | None:
        """The number of its first process, if it has one now."""
        raise NotImplementedError

    def _look(self) -> bool:
        """Look for what Qt does not tell; whether to look again later."""
        return False

    # -- in short pieces --------------------------------------------------------------------------------
    def _plan(self, milliseconds: int) -> None:
        if self.end is None and not (self._timer.isActive() and milliseconds > 0):
            self._timer.start(milliseconds)

    def _step(self) -> None:
        must_look = self._look()
        until = time.monotonic() + BUSY_S
        is_all_told = self.events.deliver(lambda: time.monotonic() > until)
        if not is_all_told:
            self._plan(0)
        elif self._has_exited and self._is_tree_gone():
            self._conclude()
        elif self._has_exited or self.is_cancelled or must_look:
            if self.is_cancelled:
                self._is_tree_gone()
            self._plan(_LOOK_MS)

    def _is_tree_gone(self) -> bool:
        """Whether no process of the job is left; those that do not want to end are ended."""
        left = ProcessTree.alive(self._tree) or self._processes()
        if not left:
            return True
        if not self.is_cancelled or time.monotonic() - self._cancelled_at > GRACE_S:
            ProcessTree.end_now(left)
        return False

    def _conclude(self) -> None:
        if self.end is not None:
            return
        self.events.finish()
        self.end = self.events.end(self._exit_code, self.is_cancelled)
        self._let_go()
        self.events.listener.finished(self.end)

    def _let_go(self) -> None:
        """It has ended: Qt keeps nothing of it."""
        self._timer.stop()
        let_go(self._timer, {"timeout()": self._step})

    def _processes(self) -> tuple[ProcessTree.Process, ...]:
        return ProcessTree.processes_of(self._pid() or -1, self._mark)


class ChildJob(Job):
    """A job in a child process of Slicer, which ends with Slicer."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], listener: JobListener) -> None:
        super().__init__(command, listener)
        self._environment = {**environment, ProcessTree.MARK: self._mark}
        self._process = qt.QProcess()
        self._slots = {
            "readyReadStandardOutput()": self._onOutput,
            "readyReadStandardError()": self._onLog,
            "errorOccurred(QProcess::ProcessError)": self._onFailure,
            "finished(int,QProcess::ExitStatus)": self._onExit,
        }

    def start(self) -> None:
        process, environment = self._process, qt.QProcessEnvironment()
        for name, value in self._environment.items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        for signal, slot in self._slots.items():
            connect(process, signal, slot)
        process.start(self.command[0], list(self.command[1:]))
        self._after_start()

    def _after_start(self) -> None:
        self._process.closeWriteChannel()

    def _let_go(self) -> None:
        super()._let_go()
        let_go(self._process, self._slots)
        self._slots = {}

    def kill(self) -> None:
        was_running = self.end is None
        super().kill()
        if was_running:
            self._process.waitForFinished(1000)  # it is being reaped: Qt warns of processes that it lost

    def _pid(self) -> int | None:
        return self._process.processId() or None

    def _onOutput(self) -> None:
        self.events.feed(self._process.readAllStandardOutput().data())
        self._plan(0)

    def _onLog(self) -> None:
        self.events.feed_log(self._process.readAllStandardError().data())

    def _onFailure(self, kind: int) -> None:
        if int(kind) == _FAILED_TO_START:
            self.events.note(f"{self.command[0]}: {self._process.errorString()}")
            self._has_exited = True
            self._plan(0)

    def _onExit(self, exit_code: int, status: int) -> None:
        self._onOutput()
        self._onLog()
        self._exit_code = exit_code if int(status) == 0 else -abs(exit_code)
        self._has_exited = True
        self._plan(0)


class JobRunner:
    """Starts jobs, knows those that run, and tells the watchers of each.

    Attributes:
        watchers: called with every job that begins; what they return hears of it too.
    """

    def __init__(self) -> None:
        self.watchers: list[Callable[[Job], JobListener]] = []
        self._jobs: list[Job] = []

    def start(
        self, title: str, arguments: Sequence[str], listener: JobListener, python: JobPython | None = None
    ) -> Job:
        """Run `python -m SegGuidedMMRegLib ARGUMENTS --events`.

        Args:
            title: what the user reads of it.
            arguments: such as ("status", "/data/knees").
            listener: hears what happens.
            python: the chosen one without it.

        Raises:
            RuntimeError: if there is no Python to run it.
        """
        python = python or chosen_python()
        job = ChildJob(python.command(tuple(arguments)), python.environment(), listener)
        self.adopt(title, job)
        job.start()
        return job

    def adopt(self, title: str, job: Job) -> None:
        """Let the watchers hear of a job, and care for it when the module is closed."""
        job.title = title
        self._jobs = [*self.running(), job]
        job.events.listener = job.events.listener.with_others([watch(job) for watch in self.watchers])

    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self._jobs if job.is_running]

    def cleanup(self) -> None:
        """The module is closed: nothing of a child is left behind, and what goes on is let go."""
        for job in self.running():
            job.leave()
        self._jobs = []
