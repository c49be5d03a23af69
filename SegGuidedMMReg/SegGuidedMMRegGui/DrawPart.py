"""The part of a correction that draws: the structures of one image in the Segment Editor, beside the pair."""

from __future__ import annotations

from typing import Any

from SegGuidedMMRegGui.Correction import SideName
from SegGuidedMMRegGui.Editor import Editor
from SegGuidedMMRegGui.ReviewViews import ReviewViews


class DrawPart:
    """Its frame is that of the review's panel; what is drawn on is seen in the review's views.

    Args:
        scene: where.
        frame: that the Segment Editor lies in; it is seen while something is drawn.
        layout: of the frame.
        views: those of the review.

    Attributes:
        side: the image whose structures are drawn; None while none are.
    """

    def __init__(self, scene: Any, frame: Any, layout: Any, views: ReviewViews) -> None:
        self._scene, self._frame, self._layout, self._views = scene, frame, layout, views
        self._editor: Editor | None = None
        self.side: SideName | None = None
        frame.visible = False

    def begin(self, side: SideName, segmentation: Any, volume: Any, dimension: int) -> None:
        """Let the user draw in a segmentation on the image of a side."""
        if self._editor is None:
            self._editor = Editor(self._scene, "SegGuidedMMReg.Correction")
            if self._editor.widget is not None:
                self._layout.addWidget(self._editor.widget)
        self.side, self._frame.visible = side, True
        self._views.show_drawing(segmentation, side)
        self._editor.offer(dimension)
        self._editor.edit(segmentation, volume)
        self._editor.enter()

    def end(self) -> None:
        """Draw no more; what was drawn stays, and can be undone when it is drawn on."""
        self.side, self._frame.visible = None, False
        self._views.show_drawing(None)
        if self._editor is not None:
            self._editor.leave()

    def undo(self) -> None:
        """Take back the last stroke."""
        if self._editor is not None and self.side is not None:
            self._editor.undo()

    def release(self) -> None:
        """Draw no more, and hold nothing that was drawn."""
        self.end()
        if self._editor is not None:
            self._editor.release()

    def close(self) -> None:
        """The module is closed: leave nothing in the scene."""
        self.end()
        if self._editor is not None:
            self._editor.close()
            self._editor = None
