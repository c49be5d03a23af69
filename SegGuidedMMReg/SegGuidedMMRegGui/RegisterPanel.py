"""Step 4, register: a pair by the warm worker, its result in the scene; many pairs, with resume."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.ManyPairs import ManyPairs
from SegGuidedMMRegGui.PairImages import PairImages
from SegGuidedMMRegGui.PairRegistration import PairRegistration, Request
from SegGuidedMMRegGui.PairWords import needs_for_registering, summary
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.SideChoice import Chosen, SideChoice
from SegGuidedMMRegGui.Steps import Steps
from SegGuidedMMRegGui.WarmRegistration import Outcome, WarmRegistration
from SegGuidedMMRegGui.Widgets import connect, load_ui
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Case


class RegisterPanel(Panel):
    """The panel."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("RegisterPanel")
        ui = self._ui
        self._registration = WarmRegistration(workplace)
        self._segment_boxes: list[Any] = []
        self._segments_shown: Any = None
        self._sides = [SideChoice(ui, name, workplace, self.onChanged) for name in ("moving", "fixed")]
        self._many = ManyPairs(ui, workplace)
        connect(ui.startButton, "clicked(bool)", self.onStart)
        connect(ui.reviewButton, "clicked(bool)", self.onReview)
        connect(ui.ownButton, "contentsCollapsed(bool)", self.onOwnFolded)
        ui.ownButton.collapsed = True
        header = ui.segmentsTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.Stretch)
        self._folder = ""
        self._say("")
        self._show_result(None)
        self.choices_changed()

    def study_changed(self) -> None:
        if self.workplace.folder != self._folder:
            self._folder = self.workplace.folder
            self._say("")
            self._show_result(None)
        self.choices_changed()
        self._many.study_changed()

    def choices_changed(self) -> None:
        self._segments_shown = None
        for side in self._sides:
            side.show()
        self.onChanged()
        self._many.choices_changed()

    def opened(self) -> None:
        study = self.workplace.study
        if study is not None and study.get("untrained"):  # it may be trained by now
            self.workplace.read_again()
        self.onChanged()
        self._many.opened()

    def left(self) -> None:
        self._many.left()

    def cleanup(self) -> None:
        self._registration.forget()
        self._many.cleanup()

    # -- what the user does -----------------------------------------------------------------------------
    def onChanged(self) -> None:
        """Say whether the pair can be registered, and what it needs."""
        needs, button = self._needs(), self._ui.startButton
        button.enabled = not needs and not self._is_busy
        if needs:
            button.toolTip = _("Needs {needs}").format(needs=", ".join(needs))
        elif self._is_busy:
            button.toolTip = _("Wait until this registration has ended, or cancel it in the strip on top")
        else:
            button.toolTip = _("Register the moving image to the fixed one")
        given = sum(each is not None for side in self._sides for each in (side.segmentation, side.points))
        heading = _("Own segmentations and landmarks")
        self._ui.ownButton.text = f"{heading} ({given})" if given else heading
        self._show_segments()

    def onOwnFolded(self, is_folded: bool) -> None:
        if not is_folded:
            self._show_segments()

    def onStart(self) -> None:
        """Register what is chosen now, whatever is chosen while the images are read."""
        moving, fixed = (side.chosen() for side in self._sides)
        if moving is None or fixed is None:
            return
        self._say("")
        self._show_result(None)
        title = _("Reading {moving} and {fixed}").format(moving=moving.name, fixed=fixed.name)
        try:
            self._registration.begin(
                title, lambda bridge: self._describing(bridge, moving, fixed), self._ended
            )
        except (ValueError, RuntimeError) as error:
            self._failed(str(error))
        self.onChanged()

    def onReview(self) -> None:
        self.workplace.go_to("review")

    def _describing(self, bridge: SceneBridge, moving: Chosen, fixed: Chosen) -> Steps[Request]:
        """Bring the images into the scene, and read from it; given up, the scene is as it was."""
        images = PairImages(bridge, [moving.image, fixed.image])
        try:
            nodes = yield from images.reading_and_showing()
            sides = [chosen.side(node) for chosen, node in zip((moving, fixed), nodes, strict=True)]
            return (yield from PairRegistration(bridge).describing(sides[1], sides[0]))
        except BaseException:
            images.take_back()
            raise

    # -- what came of it --------------------------------------------------------------------------------
    def _ended(self, outcome: Outcome) -> None:
        nodes = outcome.nodes
        if nodes is None:
            self._say(outcome.message or (_("Cancelled.") if self.workplace.study is not None else ""))
        else:
            self._say("\n".join(outcome.notes))
            self._show_result(nodes)
            self.workplace.show_pair(nodes)
        self.onChanged()

    def _show_result(self, nodes: PairNodes | None) -> None:
        ui = self._ui
        ui.resultLabel.text = "" if nodes is None else summary(nodes.status, nodes.reasons, nodes.report)
        ui.resultLabel.visible = nodes is not None
        ui.reviewButton.visible = nodes is not None and "review" in self.workplace.steps

    def _failed(self, message: str) -> None:
        self._say(message)
        self.onChanged()

    def _say(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    # -- what it needs ----------------------------------------------------------------------------------
    @property
    def _is_busy(self) -> bool:
        return self._registration.is_running

    def _needs(self) -> list[str]:
        moving, fixed = (self._shown(side.image) for side in self._sides)
        needs = needs_for_registering(self.workplace.study)
        if self.workplace.study is None:
            return needs
        needs += [] if moving is not None else [_("a moving image")]
        needs += [] if fixed is not None else [_("a fixed image")]
        if moving is not None and moving == fixed:
            needs.append(_("two different images"))
        if (self._sides[0].points is None) != (self._sides[1].points is None):
            needs.append(_("landmarks of both images, or of none"))
        return needs

    def _shown(self, image: Any) -> Any:
        """The node of a case that is in the scene, so that a case and its own volume count as the same."""
        bridge = self.workplace.bridge
        found = bridge.volume_of(image) if bridge is not None and isinstance(image, Case) else None
        return image if found is None else found

    # -- which segment is which -------------------------------------------------------------------------
    def _show_segments(self) -> None:
        """A row a structure, with a box a side for the segment that shall be it."""
        table, bridge = self._ui.segmentsTable, self.workplace.bridge
        offered = [[("", "–"), *side.offered()] for side in self._sides]
        names = [] if bridge is None else [s.name for s in bridge.study.structures]
        is_asked = bool(names) and any(len(each) > 1 for each in offered)
        table.visible = is_asked
        if not is_asked or self._ui.ownButton.collapsed:
            return
        shown = (names, offered, [side.segmentation for side in self._sides])
        if shown == self._segments_shown:  # a box that was just used is not made anew
            return
        self._segments_shown = shown
        self._segment_boxes = []
        table.setRowCount(len(names))
        for row, name in enumerate(names):
            item = qt.QTableWidgetItem(name)
            item.setFlags(qt.Qt.ItemIsEnabled)
            table.setItem(row, 0, item)
            for column, (side, segments) in enumerate(zip(self._sides, offered, strict=True), 1):
                table.setCellWidget(row, column, self._segment_box(side, name, segments))

    def _segment_box(self, side: SideChoice, structure: str, segments: list[tuple[str, str]]) -> Any:
        box, ids = qt.QComboBox(), [segment[0] for segment in segments]
        box.addItems([segment[1] for segment in segments])
        wanted = side.changed_segments().get(structure, side.segment_by_name(structure))
        box.currentIndex = ids.index(wanted) if wanted in ids else 0
        box.enabled = side.segmentation is not None
        connect(box, "activated(int)", lambda index: side.choose_segment(structure, ids[index]))
        self._segment_boxes.append(box)
        return box
