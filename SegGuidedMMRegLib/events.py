"""What a job tells the outside while it runs: a small vocabulary of events, and who listens.

A `Reporter` is handed down to everything that takes time. Who listens decides what becomes of an event: a
progress bar on a terminal, JSON lines for a parent process (`JsonLinesReporter`), or nothing (`Reporter`).
What each event holds is said in `events.schema.json`, and in words in docs/events.md.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TextIO, TypeVar

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.documents import DocumentError, parse_json

Item = TypeVar("Item")

SCHEMA_VERSION = 1
"""Of the events; it grows when a program that reads them has to change."""


class ErrorCode(str, Enum):
    """Why a job ended without success, for programs; the codes stay, their messages may change.

    An exception says its code in an attribute `error_code`, and what to do about it in `remedy`; without
    them it is judged by its class (`failures.py`).
    """

    USAGE = "usage"
    INPUT = "input"
    NOT_TRAINED = "not_trained"
    STUDY_LOCKED = "study_locked"
    MISSING_PACKAGE = "missing_package"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    INTERRUPTED = "interrupted"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Event:
    """One event. `kind` is one of started, progress, log, result, error; `data` depends on it.

    started: command, schema, version, pid, or stage, of. progress: stage, step, of, seconds_left (or None),
    metrics (name → number). log: message, and memory where it is about what a stage needs. result: command
    and exit_code, or stage, and what was found. error: code, message, remedy (or None), exit_code.
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line. Numbers that are not finite become null: JSON has none."""
        return json.dumps(_plain({"event": self.kind, **self.data}), allow_nan=False)

    @staticmethod
    def from_json(line: str) -> Event:
        """Parse one line.

        Raises:
            ValueError: if the line is not a JSON object with an `event`.
        """
        try:
            record = parse_json(line, "event")
        except DocumentError as error:
            raise ValueError(f"Not an event line: {line[:80]!r} ({error}).") from None
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            raise ValueError(f"Not an event line, 'event' is missing: {line[:80]!r}.")
        kind = record.pop("event")
        return Event(kind, record)


def _plain(value: Any) -> Any:
    """`value` as JSON holds it: a number of numpy or torch is a number, anything unknown its text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)


class Reporter:
    """Sends events to nobody; subclasses override `emit`."""

    def __init__(self) -> None:
        self._stage_start: dict[str, tuple[float, int]] = {}

    def emit(self, event: Event) -> None:
        """Deliver one event."""

    def nobody_reads(self) -> bool:
        """Whether it is known that whoever read the events is gone."""
        return False

    def command_started(self, command: str) -> None:
        """The first event of a command: who speaks, and how."""
        about = {"schema": SCHEMA_VERSION, "version": __version__, "pid": os.getpid()}
        self.emit(Event("started", {"command": command, **about}))

    def command_done(self, command: str, exit_code: int = 0, **found: Any) -> None:
        """The last event of a command that came to its end."""
        self.emit(Event("result", {"command": command, "exit_code": exit_code, **found}))

    def started(self, stage: str, of: int | None = None) -> None:
        """A stage begins; `of` is its number of steps where known."""
        self._stage_start.pop(stage, None)
        self.emit(Event("started", {"stage": stage, "of": of}))

    def progress(self, stage: str, step: int, of: int, **metrics: float) -> None:
        """`step` of `of` steps are done. The time left is measured from the first report of the stage on."""
        now = time.monotonic()
        start, first_step = self._stage_start.setdefault(stage, (now, step))
        done = step - first_step
        left = (now - start) / done * (of - step) if done > 0 else None
        finite = {name: float(value) for name, value in metrics.items() if abs(float(value)) < float("inf")}
        self.emit(
            Event(
                "progress", {"stage": stage, "step": step, "of": of, "seconds_left": left, "metrics": finite}
            )
        )

    def each(self, stage: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items one by one, each a step of the stage."""
        self.started(stage, len(items))
        for done, item in enumerate(items, start=1):
            yield item
            self.progress(stage, done, len(items))

    def log(self, message: str) -> None:
        """A line for people."""
        self.emit(Event("log", {"message": message}))

    def memory(self, stage: str, message: str, needed: int, free: int | None, device: str) -> None:
        """A line about what a stage is going to need, in bytes, and what is free, where that is known."""
        need = {"stage": stage, "device": device, "bytes": needed, "free_bytes": free}
        self.emit(Event("log", {"message": message, "memory": need}))

    def result(self, stage: str, **found: Any) -> None:
        """A stage ended with this."""
        self.emit(Event("result", {"stage": stage, **found}))

    def error(
        self, code: ErrorCode, message: str, *, remedy: str | None = None, exit_code: int | None = None
    ) -> None:
        """A job ended without success; `exit_code` where the process ends with it."""
        told = {"code": code, "message": message, "remedy": remedy, "exit_code": exit_code}
        self.emit(Event("error", told))


class ReaderGoneError(BrokenPipeError):
    """Nobody reads any more what a reporter writes."""


def write_line(text: str, stream: TextIO) -> None:
    """Write a line, at once.

    Raises:
        ReaderGoneError: if the other end of a pipe is closed.
        OSError: if the disk is full.
    """
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError as error:
        raise ReaderGoneError(*error.args) from None


class JsonLinesReporter(Reporter):
    """Writes each event as one line of JSON to a stream, flushed at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout

    def emit(self, event: Event) -> None:
        write_line(event.to_json(), self._stream)

    def nobody_reads(self) -> bool:
        """Whether the other end of the pipe is closed; where the system cannot say, writing to it will."""
        if not hasattr(select, "poll"):
            return False
        pipe = select.poll()
        pipe.register(self._stream.fileno(), 0)  # errors are always told
        return any(told & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, told in pipe.poll(0))


class RecordingReporter(Reporter):
    """Keeps the events in `events`, for tests and for callers that look afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)
