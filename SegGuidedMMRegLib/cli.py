"""`segmmreg`: the command line. A failure is one clear message and an `error` event; exit codes say its kind.

0 done, 1 done in part or a defect of this program, 2 wrong input or usage, 3 out of memory, 4 no room on the
disk, 130 interrupted, 141 nobody reads the output any more (docs/events.md).
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from io import StringIO
from typing import Annotated, Union

import tyro

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.commands.apply import Apply
from SegGuidedMMRegLib.commands.assist import Propagate, Suggest, Worker
from SegGuidedMMRegLib.commands.base import EVENTS, Command
from SegGuidedMMRegLib.commands.bring import Add, Edit, New
from SegGuidedMMRegLib.commands.export import Export
from SegGuidedMMRegLib.commands.info import Info, SetSettings, ShowStatus
from SegGuidedMMRegLib.commands.jacobian import Jacobian
from SegGuidedMMRegLib.commands.label import Label
from SegGuidedMMRegLib.commands.register import Register
from SegGuidedMMRegLib.commands.work import Demo, Evaluate, ReportPage, Segment, Train
from SegGuidedMMRegLib.console import reporting
from SegGuidedMMRegLib.events import ErrorCode, ReaderGoneError, Reporter
from SegGuidedMMRegLib.failures import EXIT_CODES, Failure, failure_of
from SegGuidedMMRegLib.interruption import interruption

_DESCRIPTION = (
    "From a few segmentations of one imaging modality to segmentations of two, and fold-free transforms "
    "between them. "
    "The usual way: new, train, segment, register, evaluate, report. `segmmreg COMMAND --help` tells "
    "more; --version prints the version."
)
_VERSION = "--version"
_NOBODY_READS = 141
"""128 + SIGPIPE, as other programs end whose reader went away (`segmmreg info | head -1`)."""

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "new": New,
    "add": Add,
    "edit": Edit,
    "label": Label,
    "train": Train,
    "segment": Segment,
    "register": Register,
    "apply": Apply,
    "jacobian": Jacobian,
    "evaluate": Evaluate,
    "report": ReportPage,
    "export": Export,
    "status": ShowStatus,
    "info": Info,
    "set": SetSettings,
    "suggest": Suggest,
    "propagate": Propagate,
    "worker": Worker,
}
_NAMES = {command: name for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `segmmreg` and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == [_VERSION]:
        print(__version__)
        return
    try:
        command = _parsed(given)
    except BrokenPipeError:  # `segmmreg --help | head`
        sys.exit(_nobody_reads())
    sys.exit(run(command))


def run(command: Command) -> int:
    """Run one command; its exit code, after one message on stderr where it failed."""
    name = _NAMES[type(command)]
    try:
        with reporting(command.events or command.always_events) as reporter:
            try:
                reporter.command_started(name)
                done = command.run(reporter)
                if stopped := interruption():  # a library has swallowed it, and may have done half its work
                    raise stopped
                reporter.command_done(name, done.exit_code, **done.found)
                return done.exit_code
            except ReaderGoneError:
                raise
            except (KeyboardInterrupt, Exception) as error:
                if command.traceback or os.environ.get("SEGMMREG_TRACEBACK"):
                    traceback.print_exc()
                failure = failure_of(error)
                _tell(reporter, failure)
    except ReaderGoneError:
        return _nobody_reads()
    print(failure, file=sys.stderr)
    return failure.exit_code


def _tell(reporter: Reporter, failure: Failure) -> None:
    with suppress(OSError):  # the reader is gone, or the disk is full: stderr remains
        reporter.error(failure.code, failure.message, remedy=failure.remedy, exit_code=failure.exit_code)


def _parsed(given: list[str]) -> Command:
    told = StringIO()
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items()]
    try:
        with redirect_stderr(told) if EVENTS in given else nullcontext():
            command: Command = tyro.cli(
                Union[tuple(kinds)],  # type: ignore[call-overload]  # noqa: UP007
                prog="segmmreg",
                description=_DESCRIPTION,
                args=given,
                config=(tyro.conf.ConsolidateSubcommandArgs, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as ended:
        if ended.code and EVENTS in given:
            sys.exit(_not_understood(told.getvalue()))
        raise
    return command


def _not_understood(told: str) -> int:
    """Tell a program what tyro tells people in a box."""
    words = re.sub(r"[╭╮╰╯│─\s]+", " ", told).strip()
    failure = Failure(ErrorCode.USAGE, words, None, EXIT_CODES[ErrorCode.USAGE])
    with reporting(True) as reporter:
        _tell(reporter, failure)
    print(failure, file=sys.stderr)
    return failure.exit_code


def _nobody_reads() -> int:
    """There is nothing to say, and nobody to say it to; nothing may be flushed at the end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _NOBODY_READS
