"""A `Reporter` for people: progress bars on a terminal, now and then a line where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.events import Event, JsonLinesReporter, Reporter, write_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 30.0
_METRICS_SHOWN = 3


@contextmanager
def reporting(events: bool = False, stream: TextIO | None = None) -> Iterator[Reporter]:
    """JSON lines if `events`, else bars if `stream` (None: stdout) is a terminal, else plain lines.

    Of several processes of one job, only the first speaks.

    With `events` stdout is for them alone: what libraries print goes to stderr meanwhile.
    """
    if not processes.is_first():
        yield Reporter()
        return
    if events:
        with _stdout_for_events() if stream is None else nullcontext(stream) as lines:
            yield JsonLinesReporter(lines)
        return
    stream = stream or sys.stdout
    if stream.isatty():
        reporter = BarReporter(stream)
        try:
            yield reporter
        finally:
            reporter.close()
    else:
        yield PlainReporter(stream)


@contextmanager
def _stdout_for_events() -> Iterator[TextIO]:
    """Yield stdout; until the end, print statements and C code that writes to stdout write to stderr."""
    stdout, is_replaced = sys.stdout, sys.stdout is not sys.__stdout__
    if is_replaced:
        with redirect_stdout(sys.stderr):
            yield stdout
        return
    stdout.flush()
    descriptor = stdout.fileno()
    kept = os.dup(descriptor)
    os.dup2(sys.stderr.fileno(), descriptor)
    lines = open(kept, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - closed below
    try:
        with redirect_stdout(sys.stderr):
            yield lines
    finally:
        with suppress(OSError):  # of a line that could not be written, which was raised then
            lines.close()
        os.dup2(kept, descriptor)
        os.close(kept)


def _metrics_text(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in list(metrics.items())[:_METRICS_SHOWN])


def _result_text(data: dict[str, Any]) -> str | None:
    def short(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    told = {k: v for k, v in data.items() if k not in ("stage", "command", "exit_code")}
    found = ", ".join(f"{k} {short(v)}" for k, v in told.items() if _is_plain(v))
    if "command" in data:
        return f"{data['command']}: {found}" if found else None
    return f"{data['stage']}: {found or 'done'}"


def _is_for_programs(event: Event) -> bool:
    """People know which command they gave, and read errors on stderr."""
    return event.kind == "error" or (event.kind == "started" and "command" in event.data)


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, Path)) and value != ""


class PlainReporter(Reporter):
    """A line when a stage of several steps begins and ends, and every half minute between."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout
        self._last: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        text = None if _is_for_programs(event) else self._text(event)
        if text:
            write_line(text, self._stream)

    def _text(self, event: Event) -> str | None:
        data = event.data
        if data.get("of") == 1:
            return None
        if event.kind == "progress":
            return self._progress_text(data)
        if event.kind == "started":
            self._last[data["stage"]] = time.monotonic()
            return f"{data['stage']}: begins" + (f" ({data['of']} steps)" if data.get("of") else "")
        if event.kind == "result":
            return _result_text(data)
        return str(data.get("message", ""))

    def _progress_text(self, data: dict[str, Any]) -> str | None:
        stage, now = data["stage"], time.monotonic()
        done = data["step"] >= data["of"]
        if not done and now - self._last.setdefault(stage, now) < _SECONDS_BETWEEN_LINES:
            return None
        self._last[stage] = now
        left = data.get("seconds_left")
        parts = [f"{stage}: {data['step']}/{data['of']}", _metrics_text(data.get("metrics", {}))]
        if left is not None and not done:
            parts.append(f"about {_duration(left)} left")
        return "  ".join(p for p in parts if p)


class BarReporter(Reporter):
    """A bar a stage, with its metrics and the time left; other lines scroll above the bars."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        self._console = Console(file=stream, highlight=False)
        self._bars: Progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()

    def emit(self, event: Event) -> None:
        data = event.data
        if _is_for_programs(event):
            return
        if event.kind == "started":
            self._restart(data["stage"], data.get("of"))
        elif event.kind == "progress":
            task = self._task(data["stage"], data["of"])
            left = data.get("seconds_left")
            text = "" if left is None or data["step"] >= data["of"] else f"{_duration(left)} left"
            metrics = _metrics_text(data.get("metrics", {}))
            self._bars.update(task, completed=data["step"], total=data["of"], left=text, metrics=metrics)
        elif event.kind == "result":
            if found := _result_text(data):
                self._console.print(found, markup=False)
        else:
            self._console.print(str(data.get("message", "")), markup=False)

    def _restart(self, stage: str, of: int | None) -> None:
        self._tasks.pop(stage, None)
        self._task(stage, of)

    def _task(self, stage: str, of: int | None) -> TaskID:
        if stage not in self._tasks:
            self._bars.start()
            self._tasks[stage] = self._bars.add_task(stage, total=of, left="", metrics="")
        return self._tasks[stage]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
