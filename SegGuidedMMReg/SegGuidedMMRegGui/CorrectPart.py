"""The part of the review that corrects: edit, set points, register again, and go through the versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.Correction import SIDES, Correction, SideName
from SegGuidedMMRegGui.DrawPart import DrawPart
from SegGuidedMMRegGui.Editor import has_editor
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.PairVersions import (
    Version,
    new_version,
    pair_folder,
    use,
    versions,
    write_note,
)
from SegGuidedMMRegGui.ReadingJob import ReadingJob, read
from SegGuidedMMRegGui.ReviewViews import ReviewViews
from SegGuidedMMRegGui.WarmRegistration import Outcome, WarmRegistration
from SegGuidedMMRegGui.Widgets import connect, fill_table
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.reviews import result_of


class CorrectPart:
    """Its widgets are those of the review's panel.

    Args:
        workplace: what the steps share.
        ui: the widgets.
        views: in which the pair is seen.
        name: of the pair that is looked at.
        look_at: shows the result in a folder.
        say: shows a message.
        allow: says of a button what it needs.
        result_changed: called when a pair has another result.
    """

    def __init__(
        self,
        workplace: Workplace,
        ui: Any,
        views: ReviewViews,
        *,
        name: Callable[[], str],
        look_at: Callable[[Path], None],
        say: Callable[[str], None],
        allow: Callable[[Any, list[str]], None],
        result_changed: Callable[[Path], None],
    ) -> None:
        self._workplace, self._ui = workplace, ui
        self._name, self._look_at, self._say, self._allow = name, look_at, say, allow
        self._result_changed = result_changed
        self._draw = DrawPart(workplace.scene, ui.editorFrame, ui.editorFrame.layout(), views)
        self._drawn: Any = None
        self._preparing: ReadingJob | None = None
        self._registration = WarmRegistration(workplace)
        self._copying: Background | None = None
        self._versions: list[Version] = []
        self._observed: list[tuple[Any, int]] = []
        self._is_ours = False
        self._side: SideName = "fixed"
        self._settling = qt.QTimer()
        self._settling.setSingleShot(True)
        connect(self._settling, "timeout()", self.onPlaced)
        for button, slot in (
            (ui.editFixedButton, self.onEditFixed),
            (ui.editMovingButton, self.onEditMoving),
            (ui.undoStrokeButton, self._draw.undo),
            (ui.clearPointsButton, self.onDiscard),
            (ui.againButton, self.onAgain),
            (ui.undoButton, self.onUndo),
            (ui.useButton, self.onUse),
        ):
            connect(button, "clicked(bool)", slot)
        connect(ui.placeFixedButton, "clicked(bool)", self.onPlaceFixed)
        connect(ui.placeMovingButton, "clicked(bool)", self.onPlaceMoving)
        connect(ui.versionsTable, "currentCellChanged(int,int,int,int)", self._on_cell)

    def close(self) -> None:
        """The step is left: draw no more, place no point any more, observe nothing."""
        self._end_drawing()
        if self._workplace.scene.IsClosing():
            self._draw.release()
        self._settling.stop()
        if any(self._button("place", side).checked for side in SIDES):
            self._end_placing()
        self._observe_no_more()

    def forget(self) -> None:
        """The module is closed."""
        self.close()
        self._draw.close()
        self._registration.forget()
        if self._copying is not None:
            self._copying.forget()

    # -- what is there ----------------------------------------------------------------------------------
    def refresh(self) -> None:
        """Another pair or version is looked at, or something was given."""
        pair = self._workplace.pair
        if pair is not self._drawn:
            self._end_drawing()
        self._versions = [] if pair is None else versions(pair_folder(pair.folder))
        self._is_ours = True
        fill_table(self._ui.versionsTable, [_row(version) for version in self._versions])
        at = self._current()
        if at is not None:
            self._ui.versionsTable.setCurrentCell(at, 0)
        self._is_ours = False
        self.refresh_given()

    def refresh_given(self) -> None:
        """Say what is given, and which buttons can be pressed."""
        ui, correction = self._ui, self._correction()
        pair = [] if correction is not None else [_("a registered pair that is looked at")]
        is_busy = self._registration.is_running or self._copying is not None
        busy = [_("the job at hand to end")] if is_busy else []
        given = [_("an edited segmentation, or points in both images")]
        editor = [] if has_editor() else [_("Slicer's Segment Editor")]
        for side in SIDES:
            self._allow(self._button("edit", side), pair or editor)
            self._allow(self._button("place", side), pair)
        self._allow(
            ui.againButton, pair or busy or (given if correction is None or correction.is_empty else [])
        )
        self._allow(ui.clearPointsButton, pair or (given if self._has_nothing(correction) else []))
        at = self._current()
        self._allow(
            ui.undoButton, pair or ([] if self._before(at) is not None else [_("an earlier version")])
        )
        is_other = at is not None and not self._versions[at].is_result
        self._allow(
            ui.useButton, pair or busy or ([] if is_other else [_("a version that is not the result")])
        )
        ui.givenLabel.text = "" if correction is None else _given(correction)

    def _has_nothing(self, correction: Correction | None) -> bool:
        return correction is None or (
            correction.is_empty and all(correction.points(side) is None for side in SIDES)
        )

    def _correction(self) -> Correction | None:
        pair, bridge = self._workplace.pair, self._workplace.bridge
        if pair is None or bridge is None or pair.forward is None:
            return None
        if not self._workplace.scene.IsNodePresent(pair.forward):
            return None
        return Correction(bridge, pair, self._name())

    def _current(self) -> int | None:
        pair = self._workplace.pair
        result = "" if pair is None else result_of(pair.folder)
        found = [n for n, version in enumerate(self._versions) if version.result == result]
        return found[0] if found else None

    def _before(self, at: int | None) -> Version | None:
        """The version that this one was made from, else the one that was made before it."""
        if at is None:
            return None
        made_from = self._versions[at].note.get("from")
        found = [version for version in self._versions if version.result == made_from]
        earlier = found or self._versions[:at][-1:]
        return earlier[0] if earlier else None

    # -- segmentations ----------------------------------------------------------------------------------
    def onEditFixed(self) -> None:
        self._edit("fixed")

    def onEditMoving(self) -> None:
        self._edit("moving")

    def _edit(self, side: SideName) -> None:
        """Let a copy of the structures be drawn on, or end that."""
        wanted = self._button("edit", side).checked
        correction, bridge = self._correction(), self._workplace.bridge
        self.close()
        if not wanted or correction is None or bridge is None:
            return
        self._say("")
        pair = self._workplace.pair

        def begin(node: Any) -> None:
            self._preparing = None
            if pair is self._workplace.pair and self._workplace.scene.IsNodePresent(node):
                try:
                    self._begin_drawing(side, node, correction.volume(side), bridge.study.dimension)
                except BridgeError as error:
                    self._say(str(error))

        def failed(message: str) -> None:
            self._preparing = None
            self._say(message)

        try:
            title = _("Copying the structures")
            self._preparing = read(self._workplace.runner, title, correction.editing(side), begin, failed)
        except (ValueError, OSError) as error:
            self._say(str(error))

    def _begin_drawing(self, side: SideName, node: Any, volume: Any, dimension: int) -> None:
        self._button("edit", side).checked = True
        self._drawn = self._workplace.pair
        fixed, moving = (
            _("Draw on the fixed image, in the first view."),
            _("Draw on the moving image, in the second view."),
        )
        self._ui.drawnLabel.text = fixed if side == "fixed" else moving
        self._draw.begin(side, node, volume, dimension)
        self.refresh_given()
        self._warm_up()

    def _end_drawing(self) -> None:
        if self._preparing is not None:
            self._preparing.forget()
            self._preparing = None
        self._drawn = None
        self._draw.end()
        for side in SIDES:
            self._button("edit", side).checked = False

    def _button(self, what: str, side: SideName) -> Any:
        return getattr(self._ui, f"{what}{side.title()}Button")

    # -- points -----------------------------------------------------------------------------------------
    def onPlaceFixed(self) -> None:
        self._place("fixed")

    def onPlaceMoving(self) -> None:
        self._place("moving")

    def _place(self, side: SideName) -> None:
        button, correction = self._button("place", side), self._correction()
        self._end_drawing()
        self._observe_no_more()
        if correction is None or not button.checked:
            self._end_placing()
            return
        for other in SIDES:
            self._button("place", other).checked = other == side
        self._warm_up()
        self._side = side
        node = correction.ready_points(side)
        event = slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent
        self._observed.append((node, node.AddObserver(event, self._on_point)))
        logic = slicer.modules.markups.logic()
        logic.SetActiveList(node)
        logic.StartPlaceMode(False)

    def _on_point(self, *_: Any) -> None:
        """A point was set. Slicer is still at it, and ends its place mode afterwards."""
        self._settling.start(0)

    def onPlaced(self) -> None:
        """After a point in the fixed image its fellow in the moving one is asked for."""
        self._observe_no_more()
        self._end_placing()
        if self._side == "fixed":
            self._ui.placeMovingButton.checked = True
            self._place("moving")
        self.refresh_given()

    def _end_placing(self) -> None:
        for side in SIDES:
            self._button("place", side).checked = False
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction is not None:
            interaction.SwitchToViewTransformMode()

    def _observe_no_more(self) -> None:
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []

    def _warm_up(self) -> None:
        """The worker will be asked soon."""
        try:
            self._workplace.worker.warm_up()
        except RuntimeError as error:
            self._say(str(error))

    def onDiscard(self) -> None:
        if (correction := self._correction()) is not None:
            self.close()
            self._draw.release()
            correction.discard()
            self.refresh_given()

    # -- registering again ------------------------------------------------------------------------------
    def onAgain(self) -> None:
        correction, pair = self._correction(), self._workplace.pair
        if correction is None or pair is None:
            return
        self.close()
        self._say("")
        root, made_from = pair_folder(pair.folder), result_of(pair.folder)
        edited = [side for side in SIDES if correction.edited(side) is not None]
        points = correction.pairs_of_points()
        folder = None
        try:
            folder = new_version(root)
            write_note(folder, made_from, edited, points)
            made = folder
            correction.sides(
                lambda fixed, moving: self._registration.start(
                    fixed, moving, lambda outcome: self._done(outcome, made), out=made
                )
            )
        except (BridgeError, RuntimeError, OSError) as error:
            self._say(str(error))
            _remove_unfinished(folder)
        self.refresh_given()

    def _done(self, outcome: Outcome, folder: Path) -> None:
        _remove_unfinished(folder)
        if outcome.nodes is None:
            self._say(outcome.message)
            self.refresh()
            return
        self._say(" ".join(outcome.notes))
        self._workplace.show_pair(outcome.nodes)

    # -- versions ---------------------------------------------------------------------------------------
    def onUndo(self) -> None:
        earlier = self._before(self._current())
        if earlier is not None:
            self._look_at(earlier.folder)

    def onUse(self) -> None:
        at = self._current()
        if at is None:
            return
        version = self._versions[at]
        pair = pair_folder(version.folder)

        def done(_none: Any) -> None:
            self._copying = None
            self._result_changed(pair)

        def failed(message: str) -> None:
            self._copying = None
            self._say(message)
            self.refresh()

        self._copying = Background(lambda: use(version.folder), done, failed)
        self.refresh_given()

    def _on_cell(self, row: int, _column: int, _former_row: int, _former_column: int) -> None:
        if not self._is_ours and 0 <= row < len(self._versions) and row != self._current():
            self._look_at(self._versions[row].folder)


def _remove_unfinished(folder: Path | None) -> None:
    """Of a registration that came to nothing nothing stays."""
    if folder is not None and folder.is_dir() and not result_of(folder):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _row(version: Version) -> tuple[str, ...]:
    name = version.name or _("first")
    if version.is_result:
        name = _("{name} (result)").format(name=name)
    return (
        name,
        version.made[:16].replace("T", " "),
        _origin(version.note),
        "–" if version.dice is None else f"{version.dice:.3f}",
        "–" if version.landmarks_mm is None else f"{version.landmarks_mm:.2f} mm",
    )


def _origin(note: dict[str, Any]) -> str:
    words = {"fixed": _("fixed edited"), "moving": _("moving edited")}
    parts = [words[side] for side in note.get("edited", ()) if side in words]
    if note.get("points"):
        parts.append(_("{count} points").format(count=note["points"]))
    return ", ".join(parts) or "–"


def _given(correction: Correction) -> str:
    words = {"fixed": _("the fixed structures as edited"), "moving": _("the moving structures as edited")}
    parts = [words[side] for side in SIDES if correction.edited(side) is not None]
    if count := correction.pairs_of_points():
        parts.append(_("{count} points in both images").format(count=count))
    return _("Given: {parts}.").format(parts=", ".join(parts)) if parts else ""
