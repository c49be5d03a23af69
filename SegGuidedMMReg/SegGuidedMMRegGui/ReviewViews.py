"""The three views of a review: fixed, moving (warped), and both; contours, grid, arrows, change of volume.

What is shown in them are the nodes of a pair; they are never hardened. `hide` gives the user's layout back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.Comparison import Comparison
from SegGuidedMMRegGui.NodeTags import nodes_of
from SegGuidedMMRegGui.SceneBridge import PairNodes
from SegGuidedMMRegGui.TransformNodes import Look, remove_legend, show_displacement, show_legend
from SegGuidedMMRegGui.Views import Layout, View
from SegGuidedMMRegGui.Widgets import connect

FIXED = View("SegGuidedMMRegFixed", "F", "#6EB04B")
MOVING = View("SegGuidedMMRegMoving", "M", "#F34A33")
OVERLAY = View("SegGuidedMMRegOverlay", "F+M", "#EDD54C")
LAYOUT = 73501
_COVERING = ("labels", "prediction", "contours", "fixed_edited", "moving_edited")
_ALONE = LAYOUT + 1
"""View group of a view that is not linked to the others."""


@dataclass(frozen=True)
class Shown:
    """The nodes that are looked at; None for what is not there.

    Attributes:
        fixed: the fixed image.
        moving: the moving image as it is.
        warped: the moving image under the forward transform.
        contours: the moving structures, warped.
        forward: the transform.
    """

    fixed: Any = None
    moving: Any = None
    warped: Any = None
    contours: Any = None
    forward: Any = None

    @staticmethod
    def of(pair: PairNodes) -> Shown:
        """The nodes of a pair and the images that its transforms remember."""
        forward = pair.forward
        if forward is None:
            return Shown(contours=pair.contours)
        roles = (forward.GetFixedNodeReferenceRole(), forward.GetMovingNodeReferenceRole())
        fixed, moving = (forward.GetNodeReference(role) for role in roles)
        return Shown(fixed, moving, pair.shown, pair.contours, forward)

    def still_there(self, scene: Any) -> Shown:
        """The same without what was deleted from the scene."""
        nodes = (self.fixed, self.moving, self.warped, self.contours, self.forward)
        return Shown(*(node if node is not None and scene.IsNodePresent(node) else None for node in nodes))


def review_layout(scene: Any) -> Layout:
    """The three views side by side."""
    return Layout(scene, LAYOUT, (FIXED, MOVING, OVERLAY))


class ReviewViews:
    """One a panel.

    Attributes:
        comparison: of the two images in the third view.
        shown: what is looked at.
        orientation: one of `Views.ORIENTATIONS`; "" for that of the images.
        shows_unwarped: whether the second view shows the moving image as it is, unlinked.
        shows_contours: of the warped moving structures, over the fixed image.
        look: of the transform, in the second view.
        spacing_mm: of grid lines or arrows.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._layout = review_layout(scene)
        self._layout.register()
        self.comparison = Comparison(scene, OVERLAY.name)
        self.shown = Shown()
        self.orientation = ""
        self.shows_unwarped, self.shows_contours = False, True
        self.look: Look = "off"
        self.spacing_mm = 10.0
        self._change: Any = None
        self._change_opacity = 0.6
        self._drawing: Any = None
        self._drawn_on = ""
        self._put_aside: list[str] = []
        self._fitting = qt.QTimer()
        self._fitting.setSingleShot(True)
        connect(self._fitting, "timeout()", self.fit)

    @property
    def is_shown(self) -> bool:
        """Whether the views are seen."""
        return self._layout.is_shown

    def show(self, shown: Shown) -> None:
        """Look at these nodes.

        Raises:
            BridgeError: if this Slicer has no views.
        """
        self._forget_looks()
        self.shown = shown.still_there(self._scene)
        self._put_others_aside()
        self._layout.show()
        self.update()
        self.fit()
        self._fitting.start(0)  # the views have their sizes only when the window has laid them out

    def hide(self) -> None:
        """Show again what was shown before the review."""
        self._fitting.stop()
        self.comparison.close()
        self.show_drawing(None)
        self._forget_looks()
        self._bring_back()
        if self._layout.is_shown:
            self._layout.empty()
        self._layout.leave()
        self.shown = Shown()

    def update(self) -> None:
        """What is to be seen has changed, but not where."""
        if not self._layout.is_shown:
            return
        shown = self.shown = self.shown.still_there(self._scene)
        change = (
            self._change if self._change is not None and self._scene.IsNodePresent(self._change) else None
        )
        Views.show_volumes(FIXED.name, shown.fixed, change, self._change_opacity)
        unwarped = self._is_unwarped
        Views.show_volumes(MOVING.name, shown.moving if unwarped else shown.warped)
        Views.slice_node(MOVING.name).SetViewGroup(_ALONE if unwarped else LAYOUT)
        self.comparison.show(shown.fixed, shown.warped)
        self._show_contours()
        self._show_drawing()
        self._show_look()

    def fit(self) -> None:
        """Turn the views to the images, and fit these into them."""
        shown = self.shown.still_there(self._scene)
        if not self._layout.is_shown or (shown.fixed or shown.moving) is None:
            return
        reference = shown.fixed if shown.fixed is not None else shown.moving
        for view in (FIXED, MOVING, OVERLAY):
            alone = view is MOVING and self._is_unwarped
            Views.look_at(view.name, shown.moving if alone else reference, self.orientation)

    def show_drawing(self, segmentation: Any, side: str = "") -> None:
        """Show a segmentation that is drawn on the `fixed` or the `moving` image; None hides it again.

        While one is drawn on the moving image, the second view shows that as it is.
        """
        was_unwarped, former = self._is_unwarped, self._drawing
        if segmentation is None and former is None:
            return
        self._drawing, self._drawn_on = segmentation, side if segmentation is not None else ""
        if former is not None and former is not segmentation and self._scene.IsNodePresent(former):
            former.GetDisplayNode().SetVisibility(False)
        self.update()
        if self._is_unwarped != was_unwarped:
            self.fit()

    def show_change(self, node: Any, opacity: float = 0.6) -> None:
        """Lay a map of the change of volume over the fixed image, with its legend; None takes both away."""
        self._remove_legends()
        self._change, self._change_opacity = node, opacity
        self.update()
        if node is not None and self._layout.is_shown:
            show_legend(node, _("Volume change"), self._ids(FIXED))  # Slicer looks only now where the map is

    def set_change_opacity(self, opacity: float) -> None:
        """How much that map covers the image, 0 to 1."""
        self._change_opacity = opacity
        self.update()

    @property
    def _is_unwarped(self) -> bool:
        """Whether the second view shows the moving image as it is."""
        is_asked = self.shows_unwarped or self._drawn_on == "moving"
        return is_asked and self.shown.moving is not None

    def _show_contours(self) -> None:
        node = self.shown.contours
        display = None if node is None else node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(self.shows_contours)
            self._show_in(display, FIXED, OVERLAY)

    def _show_drawing(self) -> None:
        node = self._drawing
        if node is not None and self._scene.IsNodePresent(node):
            display = node.GetDisplayNode()
            self._show_in(display, *((FIXED, OVERLAY) if self._drawn_on == "fixed" else (MOVING,)))
            display.SetVisibility(True)

    def _show_in(self, display: Any, *views: View) -> None:
        """Let a display node be seen in these views alone."""
        wanted = self._ids(*views)
        if tuple(display.GetViewNodeIDs()) != wanted:
            display.RemoveAllViewNodeIDs()
            for view_id in wanted:
                display.AddViewNodeID(view_id)

    def _show_look(self) -> None:
        if self.shown.forward is None or self.shown.fixed is None:
            return
        views = self._ids(MOVING)
        show_displacement(
            self.shown.forward, self.look, region=self.shown.fixed, spacing_mm=self.spacing_mm, views=views
        )

    def _forget_looks(self) -> None:
        """Contours are seen in all views again, and nothing of the deformation."""
        shown, self._change = self.shown.still_there(self._scene), None
        self._remove_legends()
        if shown.forward is not None:
            show_displacement(shown.forward, "off", region=None)
        if shown.contours is not None and shown.contours.GetDisplayNode() is not None:
            shown.contours.GetDisplayNode().RemoveAllViewNodeIDs()

    def _remove_legends(self) -> None:
        """Of all maps that we have shown, also in a scene that was loaded."""
        for node in nodes_of(self._scene, kind="jacobian"):
            remove_legend(node)

    def _put_others_aside(self) -> None:
        """What we have shown of other images and pairs would cover this one: it is hidden for the time."""
        self._bring_back()
        for kind in _COVERING:
            for node in nodes_of(self._scene, kind=kind):
                display = node.GetDisplayNode()
                is_ours = node is self.shown.contours or node is self._drawing
                if not is_ours and display is not None and display.GetVisibility():
                    display.SetVisibility(False)
                    self._put_aside.append(display.GetID())

    def _bring_back(self) -> None:
        for display in map(self._scene.GetNodeByID, self._put_aside):
            if display is not None:
                display.SetVisibility(True)
        self._put_aside = []

    def _ids(self, *views: View) -> tuple[str, ...]:
        return tuple(Views.slice_node(view.name).GetID() for view in views)


class Brightness:
    """Brightness and contrast of an image, from -1 to 1, beside what Slicer has found to be good (0)."""

    def __init__(self) -> None:
        self._node: Any = None
        self._window, self._level = 1.0, 0.0

    def of(self, scene: Any, volume: Any) -> None:
        """Begin with this volume node, or None, as it is shown now."""
        display = None if volume is None else volume.GetDisplayNode()
        self._scene, self._node = scene, display
        if display is not None:
            self._window, self._level = display.GetWindow(), display.GetLevel()

    def set(self, brightness: float, contrast: float) -> None:
        """Show it so."""
        display = self._node
        if display is None or not self._scene.IsNodePresent(display):
            return
        was_modifying = display.StartModify()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(self._window * 4.0**-contrast, self._level - brightness * self._window)
        display.EndModify(was_modifying)
