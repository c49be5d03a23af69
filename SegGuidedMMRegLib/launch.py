"""Training in several processes of this machine, one a device: starts them, follows them, ends all with one.

The processes are started and watched by torch's elastic launcher, as torchrun does it; on several machines
torchrun itself starts `segmmreg train` there (docs/hardware.md).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.events import ErrorCode, Event, JsonLinesReporter, Reporter
from SegGuidedMMRegLib.failures import failure_of
from SegGuidedMMRegLib.interruption import Terminated, end
from SegGuidedMMRegLib.out_of_memory import OutOfMemoryError

_COMMAND = ("-m", "SegGuidedMMRegLib.launch")
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 10
_KILLED = -9
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""That torch's launcher answers."""


class ProcessError(RuntimeError):
    """One of the processes failed, and the others were ended.

    Attributes:
        error_code, exit_code, remedy: as that process gave them.
    """

    def __init__(self, message: str, error_code: ErrorCode, exit_code: int, remedy: str | None) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.exit_code = exit_code
        self.remedy = remedy


def train_on(devices: int, study: Path, stages: Sequence[str], reporter: Reporter) -> None:
    """Train a study in `devices` processes of this machine.

    Args:
        devices: how many, at least 2.
        study: its folder.
        stages: as for `pipeline.train`; empty for all.
        reporter: hears what the first process tells.

    Raises:
        ProcessError: with message and exit code of the process that failed first.
        OutOfMemoryError: if one was killed from outside, as systems do when memory runs out.
        KeyboardInterrupt: if this process was told to end.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in (
        "agent.server.api",
        "multiprocessing.api",
    ):  # they tell at length what `_cause` tells in a line
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="segmmreg-") as place:
        events = Path(place) / "events.jsonl"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=_SECONDS_BETWEEN_LOOKS,
            shutdown_timeout=_SECONDS_TO_END,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(place) / "logs")),
        )
        command = (*_COMMAND, str(os.getpid()), str(study), str(events), *stages)
        try:
            with _followed(events, reporter), _signals_restored():
                elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as failed:
            raise _cause(failed.failures) from None
        except SignalException as told:
            raise (Terminated() if told.sigval == signal.SIGTERM else KeyboardInterrupt()) from None


def _cause(failures: dict[int, Any]) -> Exception:
    """What to say of processes that ended without success: the first to fail took the others with it."""
    told = {rank: f for rank, f in failures.items() if "segmmreg" in f.error_file_data}
    if not told:
        rank, failure = next(iter(failures.items()))
        if failure.exitcode == _KILLED:
            return OutOfMemoryError(
                f"Process {rank} was killed, most often because memory ran out.",
                "Lower the batch size or training.images_at_once, or train on fewer devices.",
            )
        message = f"Process {rank} ended with code {failure.exitcode} and said nothing."
        return ProcessError(message, ErrorCode.INTERNAL, 1, None)
    said = min((f.error_file_data["segmmreg"] for f in told.values()), key=lambda s: s["at"])
    message = f"{said['message']} (process {said['rank']} of {said['of']})"
    return ProcessError(message, ErrorCode(said["code"]), said["exit_code"], said["remedy"])


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Take back what torch's launcher sets: its answer to Ctrl-C would outlive the training."""
    if threading.current_thread() is not threading.main_thread():  # there it sets nothing
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


@contextmanager
def _followed(events: Path, reporter: Reporter) -> Iterator[None]:
    """Pass on to `reporter` what is written into the file `events` meanwhile."""
    ended = threading.Event()

    def follow() -> None:
        read = 0
        while True:
            last = ended.is_set()
            lines = events.read_bytes()[read:].split(b"\n") if events.exists() else [b""]
            for line in lines[:-1]:
                reporter.emit(Event.from_json(line.decode()))
                read += len(line) + 1
            if last:
                return
            ended.wait(_SECONDS_BETWEEN_LOOKS)

    follower = threading.Thread(target=follow, name="events of the processes")
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


# -- in each of the processes ---------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Train as one of several processes; the exit code, after a word to who started this one."""
    starter, folder, events, *stages = arguments
    threading.Thread(target=_end_with, args=(int(starter),), daemon=True).start()
    with Path(events).open("a", encoding="utf-8") as stream:
        try:
            from SegGuidedMMRegLib.pipeline import train
            from SegGuidedMMRegLib.study import Study

            reporter = JsonLinesReporter(stream) if processes.is_first() else Reporter()
            train(Study.open(Path(folder)), stages or None, reporter)
        except (KeyboardInterrupt, Exception) as error:
            return _tell(error)
    return 0


def _tell(error: BaseException) -> int:
    failure = failure_of(error)
    said = {
        "code": failure.code.value,
        "message": failure.message,
        "remedy": failure.remedy,
        "exit_code": failure.exit_code,
        "rank": processes.rank(),
        "of": processes.count(),
        "at": time.time(),
    }
    record = {"message": failure.message, "timestamp": int(time.time()), "segmmreg": said}
    Path(os.environ[_ERROR_FILE]).write_text(json.dumps(record), encoding="utf-8")
    return failure.exit_code


def _end_with(starter: int) -> None:
    """End this process when the one that started it is gone, however and whenever that went."""
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    end(main(sys.argv[1:]))  # the threads of torch.distributed can crash Python's own way to end
