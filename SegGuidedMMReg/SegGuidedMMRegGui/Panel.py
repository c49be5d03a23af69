"""What all steps of the module have in common."""

from __future__ import annotations

from typing import Any

from SegGuidedMMRegGui.Workplace import Workplace


class Panel:
    """A step; it leaves out what it need not hear of.

    Attributes:
        widget: to be put somewhere.
        workplace: what it shares with the others.
    """

    widget: Any

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace

    def study_changed(self) -> None:
        """Another study is open, the same one was read again, or none is open."""

    def choices_changed(self) -> None:
        """The scene is another one: take up what `workplace.parameters` says."""

    def opened(self) -> None:
        """Its section was unfolded, or the module entered while it is."""

    def left(self) -> None:
        """Its section was folded, the module left, or the scene is about to be closed."""

    def cleanup(self) -> None:
        """The module is closed: leave nothing behind."""
