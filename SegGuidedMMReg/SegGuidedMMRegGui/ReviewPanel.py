"""Step 5, the review: look at registered pairs, decide about them, correct and register them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.Comparison import MODES
from SegGuidedMMRegGui.NodeTags import BridgeError, tag_of
from SegGuidedMMRegGui.PairFiles import read_pair
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.ReviewList import FILTERS, ReviewList, words
from SegGuidedMMRegGui.ReviewRecord import Decision, Entry, result_of, user_name
from SegGuidedMMRegGui.ReviewTable import rows, sentences
from SegGuidedMMRegGui.ReviewViews import Brightness, ReviewViews, Shown
from SegGuidedMMRegGui.Widgets import connect, fill_table, load_ui
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.documents import read_json

_REVIEWER = "SegGuidedMMReg/Reviewer"
_NOT_YET = ("correctSection", "changeCheck", "changeSlider", "fixedPointsBox", "movingPointsBox")
_LOOKS = ("off", "grid", "arrows")
_AMOUNTS = {
    "blend": ("opacity", 0.01, _("{value:.0f} %"), 100.0, (0, 100)),
    "flicker": ("flickers_per_s", 0.1, _("{value:.1f} / s"), 1.0, (5, 100)),
    "checkerboard": ("square_mm", 0.5, _("{value:.1f} mm"), 1.0, (2, 200)),
    "reveal": ("radius_mm", 0.5, _("{value:.1f} mm"), 1.0, (2, 200)),
}
"""Of each way to compare: what the slider sets, in which steps, how that is said, and how far it goes."""


class ReviewPanel(Panel):
    """The panel; the pair that is looked at is `workplace.pair`."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("ReviewPanel")
        self.widget.setMRMLScene(workplace.scene)
        self._views = ReviewViews(workplace.scene)
        self._brightness = {"fixed": Brightness(), "moving": Brightness()}
        self._list = ReviewList(self._ui.pairsTable, self.show_entry, self._say_counts)
        self._is_open = self._is_ours = False
        self._loaded: tuple[str, ...] = ()
        self._images: list[str] = []
        self._report: dict[str, Any] = {}
        self._purposes: dict[str, str] = {}
        self._connect()
        workplace.pair_watchers.append(self.pair_changed)
        self.study_changed()

    def _connect(self) -> None:
        ui = self._ui
        for name in FILTERS:
            ui.filterBox.addItem(words(name))
        connect(ui.filterBox, "currentIndexChanged(int)", self.onFilter)
        connect(ui.previousButton, "clicked(bool)", self.onPrevious)
        connect(ui.nextButton, "clicked(bool)", self.onNext)
        for name, slot in (("accept", self.onAccept), ("doubt", self.onDoubt), ("reject", self.onReject)):
            connect(getattr(ui, f"{name}Button"), "clicked(bool)", slot)
        connect(ui.modeBox, "currentIndexChanged(int)", self.onMode)
        connect(ui.amountSlider, "valueChanged(int)", self.onAmount)
        connect(ui.orientationBox, "currentIndexChanged(int)", self.onOrientation)
        for layer in self._brightness:
            for what in ("Brightness", "Contrast"):
                slot = self.onFixedBrightness if layer == "fixed" else self.onMovingBrightness
                connect(getattr(ui, f"{layer}{what}Slider"), "valueChanged(int)", slot)
        connect(ui.plainButton, "clicked(bool)", self.onPlain)
        for box in (ui.contoursCheck, ui.unwarpedCheck):
            connect(box, "toggled(bool)", self.onChecks)
        connect(ui.lookBox, "currentIndexChanged(int)", self.onLook)
        connect(ui.spacingBox, "valueChanged(double)", self.onLook)
        ui.reviewerEdit.text = str(qt.QSettings().value(_REVIEWER, "") or user_name())
        ui.deformationSection.collapsed = True
        for name in _NOT_YET:
            getattr(ui, name).visible = False

    # -- the module -------------------------------------------------------------------------------------
    def study_changed(self) -> None:
        study = self.workplace.study
        self._list.open(None if study is None else Path(self.workplace.folder) / "registrations")
        self._say_counts()
        self.pair_changed()

    def opened(self) -> None:
        self._is_open = True
        if self._list.record is not None:
            self._list.record.read()
        self._look()

    def left(self) -> None:
        self._is_open = False
        self._views.hide()

    def cleanup(self) -> None:
        self.left()
        self._list.stop()

    # -- pairs ------------------------------------------------------------------------------------------
    def show_entry(self, entry: Entry) -> None:
        """Show a pair of the study."""
        self._message("")
        bridge = self.workplace.bridge
        if bridge is None:
            return
        before, images = self._loaded, self._images
        try:
            pair = read_pair(entry.folder)
            moving, fixed = (self._case(pair.report, side, entry.pair) for side in ("moving", "fixed"))
            kept = {node.GetID() for node in bridge.nodes(kind="image")}
            nodes = [None if case is None else bridge.show_case(case) for case in (moving, fixed)]
            shown = bridge.show_pair(pair, moving=nodes[0], fixed=nodes[1])
        except (BridgeError, ValueError, OSError) as error:
            self._message(str(error))
            return
        self._loaded = (entry.pair,)
        self._images = [
            n.GetID() for n in nodes if n is not None and (n.GetID() not in kept or n.GetID() in images)
        ]
        self._list.refresh(entry.folder)
        self.workplace.show_pair(shown)
        self._forget(before, images)

    def _case(self, report: Any, side: str, pair: str) -> Case | None:
        """The case on one side of a pair of the study; None for an image from outside it."""
        modality, name = report.get(f"{side}_modality"), report.get(side)
        found = [c for c in self.workplace.bridge.study.cases if (c.modality, c.name) == (modality, name)]
        stem = pair.split("--")[0 if side == "moving" else -1]
        is_same = found and self.workplace.bridge.study.file_name(found[0]) == stem
        return found[0] if is_same else None

    def _forget(self, pairs: tuple[str, ...], images: list[str]) -> None:
        """Remove the nodes that were shown for an earlier pair alone."""
        bridge, scene = self.workplace.bridge, self.workplace.scene
        for pair in pairs:
            if pair not in self._loaded:
                bridge.remove(pair)
        for number in images:
            node = scene.GetNodeByID(number)
            if number not in self._images and node is not None and (tag := tag_of(node)) is not None:
                bridge.remove(tag.subject)

    def pair_changed(self) -> None:
        """Another pair is looked at."""
        pair, ui = self.workplace.pair, self._ui
        self._report = {} if pair is None else _report_of(pair.folder)
        self._list.mark(self._name())
        ui.pairLabel.text = self._title()
        fill_table(ui.measuresTable, rows(self._report))
        dimension = 2 if self.workplace.study is None else int(self.workplace.study["dimension"])
        ui.orientationBox.enabled = dimension == 3
        ui.summaryLabel.text = "\n".join(sentences(self._report, dimension)) if self._report else ""
        ui.commentEdit.text = ""
        self._show_decision()
        self._look()

    def _name(self) -> str:
        """By which decisions about the pair are kept; "" without one."""
        pair = self.workplace.pair
        if pair is None or self._list.record is None:
            return ""
        registrations = Path(self.workplace.folder) / "registrations"
        if pair.folder.parent == registrations:
            return pair.folder.name
        tag = None if pair.forward is None else tag_of(pair.forward)
        return pair.folder.name if tag is None else tag.subject

    def _title(self) -> str:
        pair = self.workplace.pair
        if pair is None:
            if self.workplace.study is None:
                return _("Open a study first (step 1).")
            return _("Choose a pair, or register one (step 4).")
        if pair.status == "ok":
            return self._name().replace("--", " → ")
        return _("{pair}: failed. {reasons}").format(pair=self._name(), reasons=" ".join(pair.reasons))

    def onFilter(self, index: int) -> None:
        self._list.filter = FILTERS[index]
        self._list.fill()

    def onNext(self) -> None:
        self._step(1)

    def onPrevious(self) -> None:
        self._step(-1)

    def _step(self, by: int) -> None:
        entry = self._list.step(by, self._name())
        if entry is None:
            self._message(
                _("There is no other pair in this direction: {filter}.").format(
                    filter=words(self._list.filter)
                )
            )
        else:
            self.show_entry(entry)

    def _say_counts(self) -> None:
        count, left = self._list.count, self._list.left_to_review
        self._ui.countLabel.text = _("{count} pairs, {left} not reviewed").format(count=count, left=left)
        self._list.mark(self._name())
        for name in ("previous", "next"):
            self._allow(getattr(self._ui, f"{name}Button"), [] if count else [_("registered pairs (step 4)")])

    # -- decisions --------------------------------------------------------------------------------------
    def onAccept(self) -> None:
        self._decide("accepted")

    def onDoubt(self) -> None:
        self._decide("doubtful")

    def onReject(self) -> None:
        self._decide("rejected")

    def _decide(self, verdict: str) -> None:
        ui, record, pair = self._ui, self._list.record, self.workplace.pair
        if record is None or pair is None:
            return
        reviewer = ui.reviewerEdit.text.strip()
        qt.QSettings().setValue(_REVIEWER, reviewer)
        result = result_of(pair.folder)
        self._message("")
        try:
            record.decide(Decision(self._name(), result, verdict, ui.commentEdit.text.strip(), reviewer))
            record.write_table({**self._list.results, self._name(): result})
        except OSError as error:
            self._message(str(error))
        self._list.refresh(pair.folder) if self._list.entry(self._name()) else None
        self._say_counts()
        self._show_decision()

    def _show_decision(self) -> None:
        ui, record, pair = self._ui, self._list.record, self.workplace.pair
        needs = [] if record is not None else [_("an open study")]
        needs += [] if pair is not None else [_("a pair that is looked at")]
        for name in ("accept", "doubt", "reject"):
            self._allow(getattr(ui, f"{name}Button"), needs)
        ui.decisionLabel.text = ""
        if record is None or pair is None:
            return
        result = result_of(pair.folder)
        decision = record.of(self._name(), result)
        earlier = record.outdated(self._name(), result)
        found = decision or earlier
        if found is None:
            ui.decisionLabel.text = _("Not reviewed yet.")
            return
        said = _("{verdict}, {date}").format(
            verdict=words(found.verdict), date=found.date[:16].replace("T", " ")
        )
        said += f", {found.reviewer}" if found.reviewer else ""
        said += f": {found.comment}" if found.comment else ""
        ui.decisionLabel.text = said if decision else _("An earlier result was {said}").format(said=said)
        if decision is not None and not ui.commentEdit.text:
            ui.commentEdit.text = decision.comment

    # -- what is seen -----------------------------------------------------------------------------------
    def _look(self) -> None:
        """Show the pair in the views, if the step is open."""
        pair = self.workplace.pair
        if not self._is_open or pair is None or pair.forward is None:
            self._views.hide()
            return
        shown = Shown.of(pair)
        self._take_choices()
        try:
            self._views.show(shown)
        except BridgeError as error:
            self._message(str(error))
            return
        for layer, node in (("fixed", shown.fixed), ("moving", shown.warped)):
            self._brightness[layer].of(self.workplace.scene, node)
        self._put_sliders_back()

    def _take_choices(self) -> None:
        ui, views = self._ui, self._views
        views.comparison.mode = MODES[ui.modeBox.currentIndex]
        views.shows_contours, views.shows_unwarped = ui.contoursCheck.checked, ui.unwarpedCheck.checked
        views.look, views.spacing_mm = _LOOKS[ui.lookBox.currentIndex], ui.spacingBox.value  # type: ignore[assignment]
        views.orientation = ("", *Views.ORIENTATIONS)[ui.orientationBox.currentIndex]
        self._show_amount()

    def onMode(self) -> None:
        self._views.comparison.mode = MODES[self._ui.modeBox.currentIndex]
        self._show_amount()
        self._views.comparison.update()

    def _show_amount(self) -> None:
        """The slider says what it sets in this way of comparing."""
        name, step, _text, _factor, (low, high) = _AMOUNTS[self._views.comparison.mode]
        slider = self._ui.amountSlider
        self._is_ours = True
        slider.setRange(low, high)
        slider.value = round(getattr(self._views.comparison, name) / step)
        self._is_ours = False
        self._say_amount()

    def _say_amount(self) -> None:
        name, _step, text, factor, _range = _AMOUNTS[self._views.comparison.mode]
        self._ui.amountLabel.text = text.format(value=getattr(self._views.comparison, name) * factor)

    def onAmount(self, value: int) -> None:
        if self._is_ours:
            return
        name, step, *_rest = _AMOUNTS[self._views.comparison.mode]
        setattr(self._views.comparison, name, value * step)
        self._say_amount()
        self._views.comparison.update()

    def onOrientation(self) -> None:
        self._take_choices()
        self._views.fit()

    def onChecks(self) -> None:
        self._take_choices()
        self._views.update()
        self._views.fit()

    def onLook(self) -> None:
        self._take_choices()
        self._views.update()

    def onFixedBrightness(self) -> None:
        self._set_brightness("fixed")

    def onMovingBrightness(self) -> None:
        self._set_brightness("moving")

    def _set_brightness(self, layer: str) -> None:
        if not self._is_ours:
            sliders = [getattr(self._ui, f"{layer}{what}Slider") for what in ("Brightness", "Contrast")]
            self._brightness[layer].set(*(slider.value / 100 for slider in sliders))

    def onPlain(self) -> None:
        self._put_sliders_back()
        for brightness in self._brightness.values():
            brightness.set(0.0, 0.0)

    def _put_sliders_back(self) -> None:
        self._is_ours = True
        for layer in self._brightness:
            for what in ("Brightness", "Contrast"):
                getattr(self._ui, f"{layer}{what}Slider").value = 0
        self._is_ours = False

    # -- words ------------------------------------------------------------------------------------------
    def _message(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    def _allow(self, button: Any, needs: list[str]) -> None:
        button.enabled = not needs
        purpose = self._purposes.setdefault(button.name, button.toolTip)
        button.toolTip = _("Needs {needs}").format(needs=", ".join(needs)) if needs else purpose


def _report_of(folder: Path) -> dict[str, Any]:
    """The report of a pair; empty if it cannot be read."""
    try:
        found = read_json(folder / "report.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
