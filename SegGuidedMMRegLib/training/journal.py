"""What people and programs read of a training run: events, log.txt and metrics.jsonl."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import append_line, read_json_lines, write_text_atomically

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
_REPORT_SECONDS = 0.5


class TrainingError(ValueError):
    """Training cannot go on; the message says what to change."""


class Journal:
    """Keeps the metrics of a run on the device, and writes their means down now and then.

    Only writing waits for the device; progress repeats the last means. Of several processes, the first writes
    files.
    """

    def __init__(self, name: str, folder: Path, reporter: Reporter) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.reporter = reporter
        self._name = name
        self._folder = folder
        self._pending: list[Tensor] = []
        self._keys: list[str] = []
        self._latest: dict[str, float] = {}
        self._told_at = -math.inf

    def log(self, message: str) -> None:
        """A line for people, to the reporter and to log.txt."""
        self.reporter.log(message)
        self._append(LOG_FILE, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")

    def begin(self, step: int) -> None:
        """Forget what is known and what metrics.jsonl says about steps after `step`."""
        self._pending.clear()
        if not processes.is_first():
            return
        path = self._folder / METRICS_FILE
        records = read_json_lines(path) if path.exists() and step else ()
        kept = [record for record in records if record.get("step", math.inf) <= step]
        write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take the metrics of one step, scalars on the device."""
        self._keys = list(metrics)
        self._pending.append(torch.stack([value.detach().float() for value in metrics.values()]))

    def write(self, step: int) -> None:
        """Append the means since the last line to metrics.jsonl.

        Raises:
            TrainingError: if one of the values is not finite.
        """
        if not self._pending:
            return
        rows = torch.stack(self._pending).tolist()
        for before, row in enumerate(reversed(rows)):
            for key, value in zip(self._keys, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{self._name}: {key} became {value} by step {step - before}. Lower the learning "
                        "rate of this stage, or set training.precision to 32-true; if it happens at once, "
                        "look at the images for values that are not numbers."
                    )
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        self._latest.update(zip(self._keys, means, strict=True))
        self._pending.clear()
        self._append(
            METRICS_FILE, json.dumps({"step": step, **{key: self._latest[key] for key in self._keys}})
        )

    def write_validation(self, step: int, score: float) -> None:
        """Append a validation score to metrics.jsonl."""
        self._latest["validation"] = score
        self._append(METRICS_FILE, json.dumps({"step": step, "validation": score}))

    def progress(self, step: int, steps: int) -> None:
        """Tell the reporter, about twice a second and after the last step."""
        now = time.monotonic()
        if step == steps or now - self._told_at >= _REPORT_SECONDS:
            self._told_at = now
            self.reporter.progress(self._name, step, steps, **self._latest)

    def _append(self, file: str, line: str) -> None:
        if processes.is_first():
            append_line(self._folder / file, line)
