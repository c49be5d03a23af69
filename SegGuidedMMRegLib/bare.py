"""What `segmmreg` says where packages of its command line are missing: `info` answers, all else is an error.

Needs the standard library alone, so that a program (3D Slicer) can ask a Python that has nothing installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from SegGuidedMMRegLib.console import PlainReporter, reporting
from SegGuidedMMRegLib.environment import facts, lines
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.failures import failure_of

_EVENTS = "--events"


def answer(arguments: Sequence[str], missing: ModuleNotFoundError) -> int:
    """Answer a command line that cannot be understood because the package `missing` is not there.

    Returns:
        The exit code: 1 for `info`, 2 for everything else.
    """
    if _EVENTS not in arguments:
        return _answer(arguments, missing, PlainReporter())
    with reporting(True) as reporter:
        return _answer(arguments, missing, reporter)


def _answer(arguments: Sequence[str], missing: ModuleNotFoundError, reporter: Reporter) -> int:
    if [word for word in arguments if word != _EVENTS] == ["info"]:
        found = facts()
        reporter.command_started("info")
        for line in lines(found):
            reporter.log(line)
        reporter.command_done("info", 1, facts=[asdict(fact) for fact in found])
        return 1
    failure = failure_of(missing)
    reporter.error(failure.code, failure.message, remedy=failure.remedy, exit_code=failure.exit_code)
    print(failure, file=sys.stderr)
    return failure.exit_code
