"""A warm process for other programs: JSON requests in, events out (docs/worker.md).

`inbox.py` hears, `requests.py` understands, `warm.py` remembers, `answers.py` does the work; `serve` is the
loop that joins them. A request that fails is answered with an `error` event, and the next one is taken.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from SegGuidedMMRegLib.events import ErrorCode, Event, Reporter
from SegGuidedMMRegLib.failures import failure_of
from SegGuidedMMRegLib.worker.inbox import Cancelled, Inbox, Listener, Reply
from SegGuidedMMRegLib.worker.requests import Work

if TYPE_CHECKING:
    from SegGuidedMMRegLib.worker.warm import WarmStudy

_SECONDS_BETWEEN_PROGRESS = 0.1


def serve(folder: Path, reporter: Reporter, *, show_traceback: bool = False) -> None:
    """Answer requests until stdin is closed.

    Args:
        folder: of the study, trained or not.
        reporter: writes the events.
        show_traceback: write on stderr where errors came from.

    Raises:
        ValueError: if there is no readable study.
    """
    inbox = Inbox()
    Listener(inbox, reporter.nobody_reads)
    _Server(folder, reporter, inbox, show_traceback).run()


class _Server:
    """The working thread."""

    def __init__(self, folder: Path, reporter: Reporter, inbox: Inbox, show_traceback: bool) -> None:
        self._folder, self._reporter, self._inbox = folder, reporter, inbox
        self._show_traceback = show_traceback
        self._warm: WarmStudy | None = None

    def run(self) -> None:
        from SegGuidedMMRegLib.worker.warm import WarmStudy  # brings torch

        self._reporter.started("load")
        warm = self._warm = WarmStudy(self._folder)
        self._reporter.result("load", study=warm.study.name, trained=warm.is_trained())
        while (request := self._inbox.next(self._give)) is not None:
            self._answer(request)

    def _answer(self, request: Work) -> None:
        from SegGuidedMMRegLib.worker.answers import answer

        talk = _RequestReporter(self._reporter, self._inbox, request.id, self._give)
        talk.started(request.do)
        start = time.process_time()
        try:
            found = answer(request, self._current(talk), talk)
            self._inbox.done()
            talk.result(request.do, **found, cpu_seconds=round(time.process_time() - start, 3))
        except Cancelled:
            self._inbox.done()
            if not self._inbox.closed:
                talk.error(ErrorCode.INTERRUPTED, "Cancelled.")
        except BrokenPipeError:
            raise
        except Exception as error:
            if self._show_traceback:
                traceback.print_exc(file=sys.stderr)
            failure = failure_of(error)
            if failure.code is ErrorCode.OUT_OF_MEMORY:
                self._warm = None
            self._inbox.done()
            talk.error(failure.code, failure.message, remedy=failure.remedy)

    def _current(self, talk: Reporter) -> WarmStudy:
        """The study as it stands on disk."""
        from SegGuidedMMRegLib.worker.warm import WarmStudy, state_of

        if self._warm is None or state_of(self._folder) != self._warm.state:
            talk.log("The study is loaded again.")
            self._warm = None
            self._warm = WarmStudy(self._folder)
        return self._warm

    def _give(self, reply: Reply) -> None:
        about = {} if reply.request is None else {"request": reply.request}
        if reply.code is None:
            self._reporter.emit(Event("result", {"stage": "cancel", **about}))
            return
        told = {"code": reply.code, "message": reply.message, "remedy": None, "exit_code": None}
        self._reporter.emit(Event("error", {**told, **about}))


class _RequestReporter(Reporter):
    """Marks events with the request that they belong to, and stops a request that is cancelled."""

    def __init__(
        self, outer: Reporter, inbox: Inbox, request: str | int, give: Callable[[Reply], None]
    ) -> None:
        super().__init__()
        self._outer, self._inbox, self._request, self._give = outer, inbox, request, give
        self._last = 0.0

    def emit(self, event: Event) -> None:
        if event.kind == "progress":
            self._inbox.give_replies(self._give)
            self._inbox.check()
            if not self._is_due(event):
                return
        self._outer.emit(Event(event.kind, {**event.data, "request": self._request}))

    def _is_due(self, event: Event) -> bool:
        now = time.monotonic()
        due = now - self._last >= _SECONDS_BETWEEN_PROGRESS or event.data["step"] >= event.data["of"]
        if due:
            self._last = now
        return due
