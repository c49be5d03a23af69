"""The other end of `segmmreg worker`: a real process, its pipes, and what it says."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from event_lines import checked

Event = dict[str, Any]


_HANGS = """
import time
from SegGuidedMMRegLib.worker import answers
answers.answer = lambda *_: time.sleep(600)
from SegGuidedMMRegLib.__main__ import main
main()
"""


class Worker:
    """A worker of `study`; use it as a context, which closes its input and waits for its end.

    Every event must follow the schema. One that `hangs` begins a request and hears of nothing more, as
    in a call of a library that does not return. `cwd` is where its relative paths begin.
    """

    def __init__(
        self,
        study: Path,
        *,
        ready: bool = True,
        read: bool = True,
        hangs: bool = False,
        cwd: Path | None = None,
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *(["-c", _HANGS] if hangs else ["-m", "SegGuidedMMRegLib"])]
        self.process = subprocess.Popen(
            [*command, "worker", str(study)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=cwd,
        )
        self._events: queue.Queue[Event] = queue.Queue()
        if read:
            threading.Thread(target=self._read, daemon=True).start()
            self.first = self.next()
        if ready:
            self.loaded = self.until(lambda e: e.get("event") == "result" and e.get("stage") == "load")[-1]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))

    def send(self, **request: Any) -> None:
        """Ask for something, as JSON; paths become texts."""
        self.send_line(json.dumps(request, default=str).encode())

    def send_line(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def next(self, seconds: float = 60.0) -> Event:
        """The next event."""
        try:
            event = self._events.get(timeout=seconds)
            (checked_event,) = checked([json.dumps(event)])
            return checked_event
        except queue.Empty:
            self.process.kill()
            stderr = self.process.stderr.read().decode() if self.process.stderr else ""
            raise AssertionError(f"The worker said nothing for {seconds} s. {stderr}") from None

    def until(self, wanted: Any, seconds: float = 60.0) -> list[Event]:
        """Events up to the first that is wanted."""
        told = [self.next(seconds)]
        while not wanted(told[-1]):
            told.append(self.next(seconds))
        return told

    def answer(self, request: str | int, seconds: float = 60.0) -> Event:
        """The result or error of a request."""
        ends = ("result", "error")
        return self.until(lambda e: e.get("request") == request and e["event"] in ends, seconds)[-1]

    def ask(self, **request: Any) -> Event:
        """Ask, and wait for the answer."""
        self.send(**request)
        return self.answer(request["id"])

    def close(self) -> int:
        """Close its input; its exit code."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        return self.process.wait(20)

    def seconds_to_end(self, most: float = 20.0) -> float:
        """How long it takes until the process is gone."""
        start = time.monotonic()
        try:
            self.process.wait(most)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return time.monotonic() - start
