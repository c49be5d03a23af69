"""`segmmreg`: the command line. Errors are one clear message; exit codes tell what happened.

0 done, 1 done in part or a defect of this program, 2 wrong input or usage, 3 out of memory, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import tyro

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.commands.bring import Add, New
from SegGuidedMMRegLib.commands.info import Info
from SegGuidedMMRegLib.commands.transforms import Apply, Export
from SegGuidedMMRegLib.commands.work import Demo, Evaluate, Register, ReportPage, Segment, Train

_DESCRIPTION = (
    "From a few segmentations of one imaging modality to segmentations of two, and fold-free transforms "
    "between them. "
    "The usual way: new, train, segment, register, evaluate, report. `segmmreg COMMAND --help` tells "
    "more; --traceback "
    "(or SEGMMREG_TRACEBACK=1) shows where an error came from; --version prints the version."
)
_TRACEBACK, _VERSION = "--traceback", "--version"

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[New, tyro.conf.subcommand("new")]
    | Annotated[Add, tyro.conf.subcommand("add")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Register, tyro.conf.subcommand("register")]
    | Annotated[Apply, tyro.conf.subcommand("apply")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[ReportPage, tyro.conf.subcommand("report")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `segmmreg` and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == [_VERSION]:
        print(__version__)
        return
    show_traceback = _TRACEBACK in given or bool(os.environ.get("SEGMMREG_TRACEBACK"))
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="segmmreg",
        description=_DESCRIPTION,
        args=[a for a in given if a != _TRACEBACK],
        config=(tyro.conf.ConsolidateSubcommandArgs, tyro.conf.FlagCreatePairsOff),
    )
    sys.exit(run(command, show_traceback))


def run(command: Command, show_traceback: bool = False) -> int:
    """Run one command; its exit code, after one message on stderr where it failed."""
    try:
        return command.run() or 0
    except KeyboardInterrupt:
        code, kind, message = 130, "interrupted", "Interrupted; `segmmreg train` goes on where it was."
    except BrokenPipeError:
        return _pipe_closed()
    except Exception as error:
        code, kind, message = _explained(error)
        if show_traceback:
            traceback.print_exc()
    if getattr(command, "events", False):
        from SegGuidedMMRegLib.events import JsonLinesReporter

        JsonLinesReporter().error(kind, message)
    print(message, file=sys.stderr)
    return code


def _explained(error: Exception) -> tuple[int, str, str]:
    """Exit code, kind of error, and message."""
    if _is_out_of_memory(error):
        return (
            3,
            "out_of_memory",
            (
                f"Out of memory: {_first_line(error)}\nGive a smaller batch (--set "
                "segmentation.batch_size=2) or a coarser "
                "study grid (`segmmreg new --grid-spacing`), or close other programs."
            ),
        )
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("SegGuidedMMRegLib"):
        return (
            2,
            "missing_package",
            f"The package {error.name!r} is missing. `segmmreg info` says how to get it.",
        )
    if isinstance(error, (ValueError, OSError)):
        return 2, "input", str(error)
    text = f"{type(error).__name__}: {error}"
    return 1, "internal", f"Unexpected error, please report it with --traceback: {text}"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no details given").splitlines()[0]


def _pipe_closed() -> int:
    """The reader of our output went away (`segmmreg info | head`): nothing to say, nobody to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
