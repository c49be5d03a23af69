"""What a job has told so far, from the bytes it wrote: events, the log, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from SegGuidedMMRegLib.events import Event

Data = dict[str, Any]
LOG_LINES = 5000
_LAST_WORDS = 15
_OF_THE_LAUNCHER = "exit abnormally"
"""PythonSlicer starts the Python itself, and says so where that is ended; its own exit code is 1 then."""


def _nothing(*_: Any) -> None:
    """For those who do not want to hear it."""


@dataclass
class JobListener:
    """Who hears of a job, always in the GUI thread.

    `started`, `progress`, `result` and `error` get the data of their event (docs/events.md), `log` a line,
    `finished` the `JobEnd`, last and once.
    """

    started: Callable[[Data], None] = _nothing
    progress: Callable[[Data], None] = _nothing
    log: Callable[[str], None] = _nothing
    result: Callable[[Data], None] = _nothing
    error: Callable[[Data], None] = _nothing
    finished: Callable[[JobEnd], None] = _nothing

    def with_others(self, others: Sequence[JobListener]) -> JobListener:
        """One that hands everything to this one and then to the others."""
        everyone = (self, *others)

        def to_all(name: str) -> Callable[[Any], None]:
            def tell(told: Any) -> None:
                for each in everyone:
                    getattr(each, name)(told)

            return tell

        return JobListener(*(to_all(each.name) for each in fields(JobListener)))


@dataclass(frozen=True)
class JobEnd:
    """How a job ended; its exit code decides.

    Attributes:
        exit_code: of the process; None if it is not known (it could not be started, or was found again).
        cancelled: whether the user ended it.
        result: what the command found, if it came to its end.
        message: what went wrong, and what to do about it; "" if nothing.
        code: of the error (docs/events.md), "" if none was told.
    """

    exit_code: int | None
    cancelled: bool
    result: Data | None
    message: str = ""
    code: str = ""

    @property
    def is_done(self) -> bool:
        """Whether all of it succeeded."""
        return self.exit_code == 0 and not self.cancelled


@dataclass
class JobEvents:
    """Takes what the process writes, in pieces of any size, and hands whole lines to the listener."""

    listener: JobListener
    result: Data | None = None
    error: Data | None = None
    pid: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    _rest: bytes = b""
    _waiting: deque[bytes] = field(default_factory=deque)

    def feed(self, data: bytes) -> None:
        """Take more of standard output; `deliver` hands it on."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._waiting.extend(whole)

    def feed_log(self, data: bytes) -> None:
        """Take more of standard error."""
        for line in data.decode("utf-8", errors="replace").splitlines():
            self.note(line)

    def deliver(self, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Tell the listener, until nothing is left or `is_over()`; whether nothing is left.

        Of progress that has piled up only the newest of each stage is told.
        """
        newest: dict[Any, Data] = {}
        while self._waiting and not is_over():
            event = self._event(self._waiting.popleft())
            if event is None:
                continue
            if event.kind == "progress":
                newest[event.data.get("stage")] = event.data
                continue
            self._tell_progress(newest)
            self._tell(event)
        self._tell_progress(newest)
        return not self._waiting

    def finish(self) -> None:
        """There is no more to come: a last line without an end counts too."""
        if self._rest:
            self._waiting.append(self._rest)
            self._rest = b""
        self.deliver()

    def end(self, exit_code: int | None, cancelled: bool) -> JobEnd:
        """How it ended, by what was told and the exit code."""
        if cancelled or exit_code == 0:
            return JobEnd(exit_code, cancelled, self.result)
        if self.error is not None:
            message = " ".join(filter(None, (self.error.get("message"), self.error.get("remedy"))))
            return JobEnd(exit_code, False, self.result, message, self.error.get("code", ""))
        if exit_code == 1 and self.result is not None:
            return JobEnd(exit_code, False, self.result)
        return JobEnd(exit_code, False, None, self._without_a_word(exit_code))

    def note(self, line: str) -> None:
        """Keep a line in the log, and tell it."""
        self.lines.append(line)
        self.listener.log(line)

    def _without_a_word(self, exit_code: int | None) -> str:
        last = "\n".join(list(self.lines)[-_LAST_WORDS:])
        how = "it was ended from outside" if exit_code is None else f"exit code {exit_code}"
        if exit_code in (-9, 9, 137):
            how += ", ended from outside, most often because memory ran out"
        elif _OF_THE_LAUNCHER in last:
            how += ", it crashed, or was ended from outside, most often because memory ran out"
        return f"The job ended without saying why ({how})." + (f" Its last lines:\n{last}" if last else "")

    def _event(self, line: bytes) -> Event | None:
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        if not text.strip():
            return None
        try:
            return Event.from_json(text)
        except ValueError:
            self.note(text)
            return None

    def _tell_progress(self, newest: dict[Any, Data]) -> None:
        for data in newest.values():
            self.listener.progress(data)
        newest.clear()

    def _tell(self, event: Event) -> None:
        data = event.data
        if event.kind == "log":
            self.note(str(data.get("message", "")))
        elif event.kind == "started":
            self.pid = data.get("pid", self.pid)
            self.listener.started(data)
        elif event.kind == "result":
            self.result = data if "command" in data else self.result
            self.listener.result(data)
        elif event.kind == "error":
            self.error = data
            self.listener.error(data)
