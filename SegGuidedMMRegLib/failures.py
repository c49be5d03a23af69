"""What becomes of an exception at the edge of the program: an exit code, an error code, a message, a remedy.

An exception of ours may carry an `error_code` (`events.ErrorCode`) and a `remedy`; others are judged by
their class.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.interruption import interruption
from SegGuidedMMRegLib.out_of_memory import is_out_of_memory

EXIT_CODES = {
    ErrorCode.USAGE: 2,
    ErrorCode.INPUT: 2,
    ErrorCode.NOT_TRAINED: 2,
    ErrorCode.STUDY_LOCKED: 2,
    ErrorCode.MISSING_PACKAGE: 2,
    ErrorCode.OUT_OF_MEMORY: 3,
    ErrorCode.DISK_FULL: 4,
    ErrorCode.INTERRUPTED: 130,
    ErrorCode.INTERNAL: 1,
}
"""How a command ends that failed so. A command that came to its end gives 0, or 1 where some of it failed."""

_REMEDIES = {
    ErrorCode.MISSING_PACKAGE: "`segmmreg info` says how to get it.",
    ErrorCode.OUT_OF_MEMORY: (
        "Give a smaller batch (--set segmentation.batch_size=2) or a coarser study grid (`segmmreg new "
        "--grid-spacing`), or close other programs."
    ),
    ErrorCode.DISK_FULL: (
        "Make room there, then run the same command again; what was there before is untouched."
    ),
    ErrorCode.INTERRUPTED: "No file is half written; run the same command again to go on.",
    ErrorCode.INTERNAL: "This is a defect of the program: please report it with what --traceback shows.",
}
"""What to do, where the exception does not say it itself; the messages of input errors hold their remedy."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Failure:
    """Why something ended without success."""

    code: ErrorCode
    message: str
    remedy: str | None
    exit_code: int

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message} {self.remedy}"


def failure_of(error: BaseException) -> Failure:
    """What is said of `error`, and how the program ends."""
    if not hasattr(error, "error_code"):
        error = interruption() or error  # a library may have made another error of it
    code = _code(error)
    remedy = getattr(error, "remedy", None) or _REMEDIES.get(code)
    return Failure(code, _message(code, error), remedy, getattr(error, "exit_code", EXIT_CODES[code]))


def _code(error: BaseException) -> ErrorCode:
    said = getattr(error, "error_code", None)
    if isinstance(said, ErrorCode):
        return said
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return ErrorCode.DISK_FULL
    known: tuple[tuple[bool, ErrorCode], ...] = (
        (isinstance(error, KeyboardInterrupt), ErrorCode.INTERRUPTED),
        (is_out_of_memory(error), ErrorCode.OUT_OF_MEMORY),
        (_is_missing_package(error), ErrorCode.MISSING_PACKAGE),
        (isinstance(error, (ValueError, OSError)), ErrorCode.INPUT),
    )
    return next((code for true, code in known if true), ErrorCode.INTERNAL)


def _is_missing_package(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("SegGuidedMMRegLib")


def _message(code: ErrorCode, error: BaseException) -> str:
    told = str(error).strip()
    if code is ErrorCode.INTERRUPTED:
        return told or "Interrupted."
    if code is ErrorCode.OUT_OF_MEMORY and not hasattr(error, "error_code"):
        return f"Out of memory: {(told or 'no details given').splitlines()[0]}"
    if code is ErrorCode.MISSING_PACKAGE and isinstance(error, ImportError):
        return f"The package {error.name!r} is missing."
    if code is ErrorCode.DISK_FULL and isinstance(error, OSError) and error.filename:
        return f"{error.filename}: there is no room to write it ({error.strerror})."
    if code is ErrorCode.INTERNAL:
        return f"Unexpected error: {type(error).__name__}: {told}"
    return told or type(error).__name__
