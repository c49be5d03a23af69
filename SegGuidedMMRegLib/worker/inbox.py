"""Requests on their way in: read by a thread of its own, so that a cancel or a closed pipe is heard at once.

The reading thread never writes and never waits for anybody; answers that it has are written by the working
thread, which looks after them between the steps of a job. A pipe that is closed, a parent that is gone or an
output that nobody reads end the process within `GRACE_SECONDS`, in order if that can be.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.worker.requests import (
    MAX_LINE_BYTES,
    Cancel,
    Request,
    RequestError,
    Work,
    parse_request,
)

GRACE_SECONDS = 0.6
MOST_WAITING = 1000
"""Requests that may wait; more are refused. As many answers wait at most."""

LOOK_SECONDS = 0.2
"""Time between two looks after parent and reader."""

_CHUNK = 1 << 16
_STDIN = 0


class Cancelled(BaseException):
    """The request at hand is not wanted any more; no `except Exception` may swallow it."""


@dataclass(frozen=True)
class Reply:
    """An answer that needs no work: to a cancel, or to a line that is no request.

    Attributes:
        request: the id, if the line gave one.
        code: of the error; None for a cancel that was heard.
        message: for people, and empty without an error.
    """

    request: str | int | None
    code: ErrorCode | None
    message: str = ""


class Inbox:
    """Requests that wait, and what is known of the one at hand."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._replies: deque[Reply] = deque(maxlen=MOST_WAITING)
        self._at_hand: str | int | None = None
        self._cancelled = False
        self._closed = False

    # -- the reading thread ---------------------------------------------------------------------------
    def receive(self, line: bytes) -> None:
        """Take in a line."""
        with self._changed:
            try:
                self._take(parse_request(line))
            except RequestError as error:
                self._replies.append(Reply(error.request, ErrorCode.USAGE, str(error)))
            except Exception as error:  # a defect must not leave the worker deaf
                self._replies.append(Reply(None, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
            self._changed.notify()

    def close(self) -> None:
        """Nobody asks any more: what waits is dropped, what is at hand is cancelled."""
        with self._changed:
            self._closed = self._cancelled = True
            self._waiting.clear()
            self._changed.notify()

    def _take(self, request: Request) -> None:
        if isinstance(request, Cancel):
            self._cancel(request)
        elif request.id in self._open_ids():
            raise RequestError(f"A request {request.id!r} waits or runs already; give each its own id.")
        elif len(self._waiting) >= MOST_WAITING:
            raise RequestError(f"{MOST_WAITING} requests wait already; ask again later.", request.id)
        else:
            self._waiting.append(request)

    def _cancel(self, request: Cancel) -> None:
        wanted = request.request
        waiting = [other for other in self._waiting if other.id == wanted]
        if waiting:
            self._waiting.remove(waiting[0])
            self._replies.append(Reply(wanted, ErrorCode.INTERRUPTED, "Cancelled before it began."))
        elif wanted is not None and wanted == self._at_hand:
            self._cancelled = True
        else:
            raise RequestError(f"No request {wanted!r} waits or runs.", request.id)
        self._replies.append(Reply(request.id, None))

    def _open_ids(self) -> set[str | int | None]:
        return {self._at_hand, *(request.id for request in self._waiting)}

    # -- the working thread ---------------------------------------------------------------------------
    def next(self, answer: Callable[[Reply], None]) -> Work | None:
        """The next request, waited for; None when nobody asks any more. Replies go to `answer` meanwhile."""
        while True:
            with self._changed:
                self._at_hand, self._cancelled = None, False
                self._changed.wait_for(lambda: self._closed or self._replies or self._waiting)
                if self._closed:
                    return None
                if not self._replies:
                    request = self._waiting.popleft()
                    self._at_hand = request.id
                    return request
            self.give_replies(answer)

    def done(self) -> None:
        """Nothing is at hand: its answer is about to be given, and its id is free again."""
        with self._changed:
            self._at_hand = None

    def give_replies(self, answer: Callable[[Reply], None]) -> None:
        """Hand over what can be answered at once."""
        while self._replies:
            answer(self._replies.popleft())

    def check(self) -> None:
        """Raise Cancelled if the request at hand is not wanted any more."""
        if self._cancelled:
            raise Cancelled

    @property
    def closed(self) -> bool:
        """Whether nobody asks any more."""
        return self._closed


# -- the pipe -------------------------------------------------------------------------------------------
class Listener:
    """A thread that fills an inbox from stdin, and ends the process when nobody is there any more.

    Args:
        inbox: to fill.
        nobody_reads: whether the other end of stdout is closed.
    """

    def __init__(self, inbox: Inbox, nobody_reads: Callable[[], bool]) -> None:
        self._inbox, self._nobody_reads = inbox, nobody_reads
        self._parent = os.getppid()
        threading.Thread(target=self._listen, name="requests", daemon=True).start()

    def _listen(self) -> None:
        lines = Lines()
        while self._wait_for_input() and (chunk := os.read(_STDIN, _CHUNK)):
            for line in lines.completed_by(chunk):
                self._inbox.receive(line)
        self._inbox.close()
        time.sleep(GRACE_SECONDS)  # for what is at hand to come to its end, and for Python
        os._exit(0)

    def _wait_for_input(self) -> bool:
        """Whether there is something to read; False if parent or reader of our output is gone."""
        if os.name != "posix":  # pipes cannot be waited for; there the end of stdin has to do
            return True
        while not select.select([_STDIN], [], [], LOOK_SECONDS)[0]:
            if os.getppid() != self._parent or self._nobody_reads():
                return False
        return True


class Lines:
    """Cuts what is read into lines of bounded length; of a longer one only the start is kept."""

    def __init__(self) -> None:
        self._begun = b""

    def completed_by(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their ends; empty ones are left out."""
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            lines.append(self._grown(end))
            self._begun = b""
        self._begun = self._grown(rest)
        return [line for line in lines if line.strip()]

    def _grown(self, part: bytes) -> bytes:
        room = MAX_LINE_BYTES + 1 - len(self._begun)
        return self._begun + part[:room]
