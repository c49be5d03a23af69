"""What a job tells the outside while it runs: a small vocabulary of events, and who listens.

A `Reporter` is handed down to everything that takes time. Who listens decides what becomes of an event: a
progress bar on a terminal, JSON lines for a parent process (`JsonLinesReporter`), or nothing (`Reporter`).
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True)
class Event:
    """One event. `kind` is one of started, progress, log, result, error; `data` depends on it.

    started: stage. progress: stage, step, of, seconds_left (or None), metrics (name → number). log: message.
    result: stage and what it found. error: code, message.
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"event": self.kind, **self.data}, allow_nan=False, default=str)

    @staticmethod
    def from_json(line: str) -> Event:
        """Parse one line.

        Raises:
            ValueError: if the line is not a JSON object with an `event`.
        """
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Not an event line: {line[:80]!r} ({error}).") from None
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            raise ValueError(f"Not an event line, 'event' is missing: {line[:80]!r}.")
        kind = record.pop("event")
        return Event(kind, record)


class Reporter:
    """Sends events to nobody; subclasses override `emit`."""

    def __init__(self) -> None:
        self._stage_start: dict[str, tuple[float, int]] = {}

    def emit(self, event: Event) -> None:
        """Deliver one event."""

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

    def log(self, message: str) -> None:
        """A line for people."""
        self.emit(Event("log", {"message": message}))

    def result(self, stage: str, **found: Any) -> None:
        """A stage ended with this."""
        self.emit(Event("result", {"stage": stage, **found}))

    def error(self, code: str, message: str) -> None:
        """A job ended without success."""
        self.emit(Event("error", {"code": code, "message": message}))


class JsonLinesReporter(Reporter):
    """Writes each event as one line of JSON to a stream, flushed at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout

    def emit(self, event: Event) -> None:
        print(event.to_json(), file=self._stream, flush=True)


class RecordingReporter(Reporter):
    """Keeps the events in `events`, for tests and for callers that look afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)
