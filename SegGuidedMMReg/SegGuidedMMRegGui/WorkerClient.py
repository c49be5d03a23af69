"""Asks the warm worker of a study (docs/worker.md): a process that keeps the networks in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.JobEvents import Data, JobEnd, JobListener
from SegGuidedMMRegGui.JobPython import JobPython, chosen_python
from SegGuidedMMRegGui.JobRunner import GRACE_S, ChildJob, Job, JobRunner

_LOOK_MS = 200


class WorkerClient:
    """The worker of one study. It starts with the first request, and again after it has ended.

    Args:
        folder: of the study.
        runner: is told of each request as of a job, so that the strip shows it.
        python: runs the worker; the chosen one without it.
    """

    def __init__(self, folder: str, runner: JobRunner, python: JobPython | None = None) -> None:
        self._folder, self._runner, self._python = folder, runner, python
        self._process: _WorkerProcess | None = None
        self._requests: dict[int, WorkerRequest] = {}
        self._count = 0

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.is_running

    def ask(self, title: str, request: Mapping[str, Any], listener: JobListener) -> WorkerRequest:
        """Ask for something; requests are done one after the other.

        Args:
            title: what the user reads of it.
            request: as docs/worker.md says, without an id.
            listener: hears what happens; `result` gets what the worker found, as does `finished`.

        Raises:
            RuntimeError: if there is no Python to run the worker.
        """
        if not self.is_running:
            self._start()
        self._count += 1
        made = WorkerRequest(self, self._count, request, listener)
        self._requests[self._count] = made
        self._runner.adopt(title, made)
        self.send({"id": self._count, **request})
        return made

    def warm_up(self) -> None:
        """Let its process start and load the study, so that the next request need not wait for that.

        Raises:
            RuntimeError: if there is no Python to run the worker.
        """
        if not self.is_running:
            self._start()

    def send(self, request: Mapping[str, Any]) -> None:
        """Write a line to the process."""
        if self._process is not None:
            self._process.write(json.dumps(request).encode("utf-8") + b"\n")

    def cancel(self, number: int) -> None:
        """Give up the request with this number."""
        self._count += 1
        self.send({"id": self._count, "do": "cancel", "request": number})

    def close(self) -> None:
        """Ask nothing more; the process ends by itself within a second or so."""
        if self._process is not None:
            self._process.end_input()
        self._end_all(JobEnd(None, True, None))

    def kill(self, message: str = "") -> None:
        """End the process now; requests that are not done end with the message."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
        self._end_all(JobEnd(None, not message, None, message, "interrupted"))

    def _start(self) -> None:
        python = self._python or chosen_python()

        def hand_on(kind: str) -> Any:
            return lambda data: self._hand_on(kind, data)

        kinds = ("started", "progress", "result", "error")
        listener = JobListener(**{kind: hand_on(kind) for kind in kinds})
        process = _WorkerProcess(python.command(("worker", self._folder)), python.environment(), listener)
        listener.log = self._log
        listener.finished = lambda end: self._ended(process, end)
        self._process = process
        process.start()

    def _hand_on(self, kind: str, data: Data) -> None:
        request = self._requests.get(data.get("request", 0))
        if request is None:
            return
        if kind in ("result", "error"):
            del self._requests[data["request"]]
        request.hear(kind, data)

    def _log(self, line: str) -> None:
        """What it says belongs to the request that it does, the oldest."""
        for request in list(self._requests.values())[:1]:
            request.events.note(line)

    def _ended(self, process: _WorkerProcess, end: JobEnd) -> None:
        if process is not self._process:
            return
        self._process = None
        message = end.message or _("The worker has ended.")
        self._end_all(JobEnd(end.exit_code, False, None, message, end.code))

    def _end_all(self, end: JobEnd) -> None:
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.conclude(end)


class WorkerRequest(Job):
    """Something the worker was asked for; to the module it is a job like others."""

    def __init__(
        self, client: WorkerClient, number: int, request: Mapping[str, Any], listener: JobListener
    ) -> None:
        super().__init__((json.dumps(dict(request)),), listener)
        self._client, self._number = client, number

    def start(self) -> None:
        """It was sent when it was made."""

    def cancel(self) -> None:
        """Give it up; a worker that does not hear is ended after a while."""
        if self.end is None and not self.is_cancelled:
            self._cancelled_at = time.monotonic()
            self._client.cancel(self._number)
            self._plan(_LOOK_MS)

    def kill(self) -> None:
        """As `cancel`: its process serves others too."""
        self.cancel()

    def leave(self) -> None:
        """The module is closed, and with it the worker."""
        self._client.kill()

    def hear(self, kind: str, data: Data) -> None:
        """Take an event of it; `result` and `error` are the last."""
        getattr(self.events.listener, kind)(data)
        if kind == "result":
            self.conclude(JobEnd(0, False, data))
        elif kind == "error":
            message = " ".join(filter(None, (data.get("message"), data.get("remedy"))))
            given_up = self.is_cancelled and data.get("code") == "interrupted"
            self.conclude(JobEnd(1, given_up, None, "" if given_up else message, data.get("code", "")))

    def conclude(self, end: JobEnd) -> None:
        """It has ended."""
        if self.end is None:
            self.end = end
            self._let_go()
            self.events.listener.finished(end)

    def _step(self) -> None:
        assert self._cancelled_at is not None
        if time.monotonic() - self._cancelled_at > GRACE_S:
            self._client.kill(
                _("The worker did not answer and was ended, so all it was asked for is undone. Ask again.")
            )
        else:
            self._plan(_LOOK_MS)


class _WorkerProcess(ChildJob):
    """A child process whose standard input stays open."""

    def write(self, data: bytes) -> None:
        """Give it more to read."""
        self._process.write(qt.QByteArray(data))

    def end_input(self) -> None:
        """Let it see the end of its input."""
        self._process.closeWriteChannel()

    def _after_start(self) -> None:
        """Its input is for requests."""
