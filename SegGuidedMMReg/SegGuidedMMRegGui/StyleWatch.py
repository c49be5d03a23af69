"""Pictures in the colours of the palette are drawn again when the user chooses another style."""

from __future__ import annotations

from collections.abc import Callable

import qt
from SegGuidedMMRegGui.Widgets import connect, let_go


class StyleWatch:
    """Calls `draw` a moment after Slicer got another palette, when widgets have theirs; until `close`."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self._draw = draw
        self._again = qt.QTimer()
        self._again.setSingleShot(True)
        connect(self._again, "timeout()", draw)
        self._application = qt.QApplication.instance()
        connect(self._application, "paletteChanged(QPalette)", self._on_palette)

    def close(self) -> None:
        """Listen no longer."""
        self._again.stop()
        let_go(self._again, {"timeout()": self._draw})
        self._application.disconnect("paletteChanged(QPalette)", self._on_palette)

    def _on_palette(self) -> None:
        self._again.start(0)
