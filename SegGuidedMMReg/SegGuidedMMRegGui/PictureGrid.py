"""Pictures from files as thumbnails with captions; a click shows one larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.JobEvents import Data
from SegGuidedMMRegGui.Widgets import connect

SIDE = 124
_COLUMNS, _MOST = 3, 9


class PictureGrid:
    """Thumbnails in a grid; they are read one at a time, so that nothing has to wait for them.

    Args:
        layout: that they shall lie in.
        parent: widget that the large picture belongs to.
    """

    def __init__(self, layout: Any, parent: Any) -> None:
        self._parent = parent
        self._pictures: list[Data] = []
        self._left: list[int] = []
        self._dialog: Any = None
        self._buttons, self._captions = [], []
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self._read_next)
        for number in range(_MOST):
            button, caption = qt.QPushButton(), qt.QLabel()
            button.flat = True
            button.toolTip = _("A picture of what the stage made")
            button.iconSize = qt.QSize(SIDE, SIDE)
            caption.wordWrap = True
            caption.setAlignment(qt.Qt.AlignHCenter | qt.Qt.AlignTop)
            caption.setMaximumWidth(SIDE + 8)
            row, column = 2 * (number // _COLUMNS), number % _COLUMNS
            layout.addWidget(button, row, column)
            layout.addWidget(caption, row + 1, column)
            button.visible = caption.visible = False
            connect(button, "clicked(bool)", self._opener(number))
            self._buttons.append(button)
            self._captions.append(caption)

    def show(self, pictures: Sequence[Data]) -> None:
        """Show these, `path` and `caption` each, instead of what was shown."""
        if list(pictures) == self._pictures:
            return
        self._pictures = list(pictures)
        for number, (button, caption) in enumerate(zip(self._buttons, self._captions, strict=True)):
            button.visible = caption.visible = number < len(self._pictures)
            button.setIcon(qt.QIcon())
            if number < len(self._pictures):
                words = self._pictures[number]["caption"]
                caption.text = words
                button.toolTip = _("{caption}. Press to see it larger.").format(caption=words)
        self._left = list(range(min(len(self._pictures), _MOST)))
        self._timer.start(0)

    def close(self) -> None:
        """Close the large picture."""
        self._timer.stop()
        if self._dialog is not None:
            self._dialog.close()
            self._dialog.deleteLater()
            self._dialog = None

    def _opener(self, number: int) -> Any:
        return lambda: self.open(number)

    def open(self, number: int) -> None:
        """Show one larger, in a window of its own."""
        self.close()
        picture, dialog = self._pictures[number], qt.QDialog(self._parent)
        dialog.windowTitle = picture["caption"]
        layout, label = qt.QVBoxLayout(dialog), qt.QLabel()
        label.setPixmap(qt.QPixmap(picture["path"]))
        layout.addWidget(label)
        self._dialog = dialog
        dialog.show()
        if self._left:
            self._timer.start(0)

    def _read_next(self) -> None:
        if not self._left:
            return
        number = self._left.pop(0)
        pixmap = qt.QPixmap(self._pictures[number]["path"])
        if pixmap.isNull():
            self._captions[number].text = _("{path} cannot be read").format(
                path=self._pictures[number]["path"]
            )
        else:
            small = pixmap.scaled(SIDE, SIDE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
            self._buttons[number].setIcon(qt.QIcon(small))
        self._timer.start(0)
