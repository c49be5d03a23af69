"""Two images in one slice view: blended, in turn, as a checkerboard, or one through a hole in the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import slicer

import qt
from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.MixedSlice import Mask, MixedSlice, circle, squares
from SegGuidedMMRegGui.Widgets import connect

Mode = Literal["blend", "flicker", "checkerboard", "reveal"]
MODES: tuple[Mode, ...] = get_args(Mode)

_Point = tuple[float, float, float]
_PAUSE_MS = 15
"""Between two drawings of a mixed slice, in which the window can do other things."""


class Comparison:
    """Compares the images of a view; `close` leaves nothing behind.

    Args:
        scene: the vtkMRMLScene.
        view: name of the slice view.

    Attributes:
        mode: how they are compared.
        opacity: of the moving image when they are blended, 0 to 1.
        flickers_per_s: how often a second the picture changes.
        square_mm: side of a square of the checkerboard.
        radius_mm: of the hole.
    """

    def __init__(self, scene: Any, view: str) -> None:
        self._scene, self._view = scene, view
        self._fixed: Any = None
        self._moving: Any = None
        self._mixed: MixedSlice | None = None
        self._cursor: Callable[[], None] | None = None
        self._point: _Point | None = None
        self.mode: Mode = "blend"
        self.opacity, self.flickers_per_s, self.square_mm, self.radius_mm = 0.5, 2.0, 20.0, 20.0
        self._flicker = _timer(self._turn)
        self._drawing = _timer(self._draw)
        self._drawing.setSingleShot(True)
        self._drawing.setInterval(_PAUSE_MS)

    def show(self, fixed: Any, moving: Any) -> None:
        """Compare these volume nodes; `moving` may be None."""
        self.close()
        self._fixed, self._moving = fixed, moving
        self.update()

    def close(self) -> None:
        """Show nothing more; no timer, observer or node is left."""
        self._flicker.stop()
        self._drawing.stop()
        if self._cursor is not None:
            self._cursor()
            self._cursor = None
        if self._mixed is not None:
            self._mixed.close()
            self._mixed = None
        self._fixed = self._moving = None

    def update(self) -> None:
        """Mode or one of its numbers has changed: show it so."""
        if self._fixed is None:
            return
        self._flicker.stop()
        if self._moving is None or not self._is_there():
            Views.show_volumes(self._view, self._fixed if self._scene.IsNodePresent(self._fixed) else None)
            return
        if self.mode in ("checkerboard", "reveal"):
            self._mix()
            return
        self._unmix()
        Views.show_volumes(self._view, self._fixed, self._moving, self.opacity)
        if self.mode == "flicker":
            self._flicker.start(max(20, round(1000 / self.flickers_per_s)))

    def _is_there(self) -> bool:
        return all(self._scene.IsNodePresent(node) for node in (self._fixed, self._moving))

    def _turn(self) -> None:
        """The other image's turn."""
        node = Views.composite_node(self._view)
        if node is None or not self._is_there():
            self._flicker.stop()
            return
        node.SetForegroundOpacity(0.0 if node.GetForegroundOpacity() > 0.5 else 1.0)

    # -- mixed slices -----------------------------------------------------------------------------------
    def _mix(self) -> None:
        if self._mixed is None:
            self._mixed = MixedSlice(self._scene, Views.slice_node(self._view), self._moving, self._due)
        if self.mode == "reveal" and self._cursor is None:
            self._cursor = _follow_cursor(self._scene, self._moved)
        self._draw()
        Views.show_volumes(self._view, self._fixed, self._mixed.node, 1.0)

    def _unmix(self) -> None:
        if self._cursor is not None:
            self._cursor()
            self._cursor = None
        if self._mixed is not None:
            self._mixed.close()
            self._mixed = None
        self._drawing.stop()

    def _moved(self, point: _Point | None) -> None:
        self._point = point
        if self.mode == "reveal":
            self._due()

    def _due(self) -> None:
        if not self._drawing.active:
            self._drawing.start()

    def _draw(self) -> None:
        if self._mixed is not None:
            self._mixed.update(self._mask(self._mixed))

    def _mask(self, mixed: MixedSlice) -> Mask:
        if self.mode == "checkerboard":
            return squares(self.square_mm)
        if self._point is None:
            return circle((0.0, 0.0), 0.0)
        return circle(mixed.plane_position(self._point), self.radius_mm)


def _timer(slot: Callable[[], None]) -> Any:
    timer = qt.QTimer()
    connect(timer, "timeout()", slot)
    return timer


def _follow_cursor(
    scene: Any, moved: Callable[[tuple[float, float, float] | None], None]
) -> Callable[[], None]:
    """Tell `moved` where the mouse is in the world while it is over a view; a function that ends it."""
    node = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if node is None:
        return lambda: None

    def hear(*_: Any) -> None:
        point = [0.0, 0.0, 0.0]
        moved((point[0], point[1], point[2]) if node.GetCursorPositionRAS(point) else None)

    tag = node.AddObserver(slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, hear)
    return lambda: node.RemoveObserver(tag)
