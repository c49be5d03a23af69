"""What all commands have in common: their options `--events` and `--traceback`, and how they end.

A command is a frozen dataclass that inherits `Command`; its fields are its options, and `run` does it. The
command line (`cli.py`) opens the reporter, says that the command began and how it ended, and turns what it
raises into a message, an `error` event and an exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter

EVENTS, TRACEBACK = "--events", "--traceback"


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        found: what its `result` event says, by name: texts, numbers, paths, and lists and mappings of them.
        exit_code: 0, or 1 where some of the work failed.
    """

    found: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """The options of every command."""

    always_events: ClassVar[bool] = False
    """Whether only another program can make anything of the command."""

    events: bool = False
    """Tell another program what happens: JSON lines, and nothing else, on the standard output."""
    traceback: bool = False
    """Show where an error came from."""

    def run(self, reporter: Reporter) -> Done:
        """Do it.

        Args:
            reporter: hears what happens.

        Raises:
            Exception: whatever went wrong; `failures.py` says what becomes of it.
        """
        raise NotImplementedError
