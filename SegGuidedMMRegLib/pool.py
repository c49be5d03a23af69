"""Several processes that work off one queue, and outlive the death of one of them, but not their parent's.

Each has one thread, and is replaced by a new one after `RENEWED_AFTER` items: libraries that lose a little
memory at each call (SimpleITK does with each HDF5 file) then lose a bounded amount. A process that dies
(killed for its memory, say) costs nothing but time: what it had in hand is tried once more, alone; what kills
a process twice is given up. A killed parent takes its children with it; an interrupted one ends them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Sequence[Result]]

RENEWED_AFTER = 1000
_ATTEMPTS, _EARLY_DEATHS = 2, 2
_PATIENCE_S = 1.0
_KILLED = -9
"""Exit code of a process that was ended by SIGKILL, a name that Windows does not know."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Died:
    """Two processes died over an item; `reason` says how."""

    reason: str


@dataclass
class _Task(Generic[Item]):
    items: Sequence[Item]
    attempt: int = 1


@dataclass
class _Child(Generic[Item]):
    process: Any
    connection: Connection
    task: _Task[Item] | None = None
    ready: bool = False
    done: int = 0


def work_off(
    make: Callable[[], Work[Item, Result]], batches: Iterator[Sequence[Item]], processes: int
) -> Generator[tuple[Sequence[Item], Sequence[Result] | Died], None, None]:
    """Do `batches` in `processes` processes; yields each batch with its results, as they come.

    Args:
        make: gives the work, in the child; a module-level function or a `partial` of one.
        batches: asked for one at a time, as processes become free.
        processes: how many.

    Raises:
        Exception: whatever `make` or the work raised; the other processes are stopped.
        MemoryError, RuntimeError: if processes are killed, or end, before they have begun.
    """
    pool: _Pool[Item, Result] = _Pool(make, batches, processes)
    try:
        yield from pool.results()
    finally:
        pool.stop()


class _Pool(Generic[Item, Result]):
    def __init__(
        self, make: Callable[[], Work[Item, Result]], batches: Iterator[Sequence[Item]], processes: int
    ) -> None:
        self._make, self._batches, self._wanted = make, batches, processes
        self._again: deque[_Task[Item]] = deque()
        self._children: list[_Child[Item]] = []
        self._early_deaths = 0

    def results(self) -> Iterator[tuple[Sequence[Item], Sequence[Result] | Died]]:
        while True:
            self._hand_out()
            busy = [child.connection for child in self._children if child.task is not None]
            if not busy:
                return
            for connection in wait(busy):
                child = next(c for c in self._children if c.connection is connection)
                try:
                    kind, value = child.connection.recv()
                except (EOFError, OSError):
                    yield from self._buried(child)
                    continue
                if kind == "ready":
                    child.ready = True
                elif kind == "error":
                    raise value
                else:
                    task, child.task = child.task, None
                    if task is not None:
                        child.done += len(task.items)
                        yield task.items, value
                    if child.done >= RENEWED_AFTER:
                        self._children.remove(child)
                        _end([child])

    def stop(self) -> None:
        _end(self._children)
        self._children.clear()

    def _hand_out(self) -> None:
        """Give every free process something to do; start processes while there is more."""
        idle = [child for child in self._children if child.task is None]
        while idle or len(self._children) < self._wanted:
            task = self._next()
            if task is None:
                return
            child = idle.pop() if idle else self._start()
            child.task = task
            with contextlib.suppress(OSError):  # it has died: `results` will see it
                child.connection.send(task.items)

    def _next(self) -> _Task[Item] | None:
        if self._again:
            return self._again.popleft()
        batch = next(self._batches, None)
        return None if batch is None else _Task(batch)

    def _start(self) -> _Child[Item]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make), daemon=True)
        with _one_thread(), _interrupts_ignored():
            process.start()
        theirs.close()
        child: _Child[Item] = _Child(process, ours)
        self._children.append(child)
        return child

    def _buried(self, child: _Child[Item]) -> Iterator[tuple[Sequence[Item], Died]]:
        """What becomes of the task of a process that has died."""
        self._children.remove(child)
        child.process.join()
        reason = _how(child.process.exitcode)
        task = child.task
        if not child.ready:
            self._early_deaths += 1
            if self._early_deaths > _EARLY_DEATHS:
                raise _cannot_begin(child.process.exitcode, reason)
        if child.process.exitcode == _KILLED and len(self._children) > 0:
            self._wanted = len(self._children)  # too many for the memory, most likely
        if task is None:
            return
        if not child.ready:
            self._again.append(task)
        elif task.attempt < _ATTEMPTS:
            self._again.extend(_Task([item], task.attempt + 1) for item in task.items)
        else:
            yield task.items, Died(reason)


def _end(children: Sequence[_Child[Any]]) -> None:
    for child in children:
        child.connection.close()  # a child that waits ends at once
        if child.task is not None:
            child.process.terminate()
    for child in children:
        child.process.join(_PATIENCE_S)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


def _cannot_begin(exit_code: int | None, reason: str) -> Exception:
    if exit_code == _KILLED:
        return MemoryError(f"working processes cannot begin: {reason}. Give fewer --workers.")
    return RuntimeError(
        f"Working processes cannot begin: {reason}. In a script of your own, start the work under "
        '`if __name__ == "__main__":`.'
    )


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        memory = ", which is what a system without free memory does" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process ended with code {exit_code}"


# -- in the child ---------------------------------------------------------------------------------------
def _serve(connection: Connection, make: Callable[[], Work[Any, Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = make()
        _use_one_thread()
        connection.send(("ready", None))
        while True:
            connection.send(("done", work(connection.recv())))
    except EOFError:
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("error", _sendable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _use_one_thread() -> None:
    """In the libraries that the work has loaded."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if sitk := sys.modules.get("SimpleITK"):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # our own, and the parent's only source
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# -- in the parent --------------------------------------------------------------------------------------
@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The environment of children, whose numerical libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children that start here ignore Ctrl-C from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
