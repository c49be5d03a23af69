"""Step 5, the review: look at registered pairs, decide about them, correct and register them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.Correction import KINDS
from SegGuidedMMRegGui.CorrectPart import CorrectPart
from SegGuidedMMRegGui.LandmarkError import landmark_errors
from SegGuidedMMRegGui.LookPart import LookPart
from SegGuidedMMRegGui.NodeTags import BridgeError, remove_nodes, tag_of
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair
from SegGuidedMMRegGui.PairVersions import pair_folder
from SegGuidedMMRegGui.PairWords import arrow
from SegGuidedMMRegGui.Panel import Panel
from SegGuidedMMRegGui.ReviewList import FILTERS, ReviewList, words
from SegGuidedMMRegGui.ReviewTable import rows, sentences
from SegGuidedMMRegGui.SceneBridge import PairNodes
from SegGuidedMMRegGui.Steps import Steps
from SegGuidedMMRegGui.VolumeNodes import range_of
from SegGuidedMMRegGui.Widgets import connect, fill_table, fit_height, load_ui
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.reviews import Decision, Entry, result_of, user_name
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.study import Study

_REVIEWER = "SegGuidedMMReg/Reviewer"
_MOST_HIGH = 170
_Images = dict[str, tuple[Case, Image, tuple[float, float]]]
"""By side, with the range of most values."""
_Read = tuple[PairResult, _Images]


class ReviewPanel(Panel):
    """The panel; the pair that is looked at is `workplace.pair`."""

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        self.widget, self._ui = load_ui("ReviewPanel")
        self.widget.setMRMLScene(workplace.scene)
        ui = self._ui
        self._purposes: dict[str, str] = {}
        self._list = ReviewList(ui.pairsTable, self.show_entry, self._say_counts)
        self._look = LookPart(workplace, ui, self._message)
        self._correct = CorrectPart(
            workplace,
            ui,
            self._look.views,
            name=self._name,
            look_at=self.look_at,
            say=self._message,
            allow=self._allow,
            result_changed=self._result_changed,
        )
        self._is_open = False
        self._bridge = workplace.bridge
        self._reading: Background | None = None
        self._steps: Iterator[None] = iter(())
        self._stepping = qt.QTimer()
        connect(self._stepping, "timeout()", self._step_on)
        self._ours: dict[str, list[str]] = {}
        for name in FILTERS:
            ui.filterBox.addItem(words(name))
        connect(ui.filterBox, "currentIndexChanged(int)", self.onFilter)
        connect(ui.previousButton, "clicked(bool)", self.onPrevious)
        connect(ui.nextButton, "clicked(bool)", self.onNext)
        for name, slot in (("accept", self.onAccept), ("doubt", self.onDoubt), ("reject", self.onReject)):
            connect(getattr(ui, f"{name}Button"), "clicked(bool)", slot)
        for box in (ui.fixedPointsBox, ui.movingPointsBox):
            connect(box, "currentNodeIDChanged(QString)", self.onPoints)
        ui.reviewerEdit.text = str(qt.QSettings().value(_REVIEWER, "") or user_name())
        for name in ("deformationSection", "correctSection"):
            getattr(ui, name).collapsed = True
        workplace.pair_watchers.append(self.pair_changed)
        self.study_changed()

    # -- the module -------------------------------------------------------------------------------------
    def study_changed(self) -> None:
        if self.workplace.bridge is not self._bridge:
            self._stop_reading()
            self._bridge = self.workplace.bridge
        self._list_pairs()
        self._say_counts()
        self.pair_changed()

    def _list_pairs(self) -> None:
        study = self.workplace.study
        self._list.open(None if study is None else Path(self.workplace.folder) / "registrations")

    def choices_changed(self) -> None:
        self._look.choices_changed()

    def opened(self) -> None:
        self._is_open = True
        self._list_pairs()  # step 4 may have registered others, and others may have reviewed
        self.pair_changed()

    def left(self) -> None:
        self._is_open = False
        self._stop_reading()
        self._correct.close()
        self._look.show(None)

    def cleanup(self) -> None:
        self.left()
        self._correct.forget()
        self._look.close()
        self._list.stop()

    # -- pairs ------------------------------------------------------------------------------------------
    def show_entry(self, entry: Entry) -> None:
        """Show a pair of the study."""
        self.look_at(entry.folder)

    def look_at(self, folder: Path) -> None:
        """Show the result in a folder; it is read beside, and there a moment later."""
        bridge = self.workplace.bridge
        self._message("")
        self._stop_reading()
        if bridge is None:
            return
        self._reading = Background(
            lambda: _read(bridge.study, folder), lambda found: self._show(folder, found), self._failed
        )

    def _stop_reading(self) -> None:
        self._stepping.stop()
        self._steps = iter(())
        if self._reading is not None:
            self._reading.forget()
            self._reading = None

    def _failed(self, message: str) -> None:
        self._stop_reading()
        self._message(message)
        self._list.mark(self._name())

    def _show(self, folder: Path, found: _Read) -> None:
        """Show what was read, a part at a time, so that the window stays free with large volumes."""
        self._steps = self._parts(folder, *found)
        self._stepping.start(0)

    def _step_on(self) -> None:
        try:
            next(self._steps)
        except StopIteration:
            self._stop_reading()
        except (BridgeError, ValueError) as error:
            self._failed(str(error))

    def _parts(self, folder: Path, pair: PairResult, images: _Images) -> Steps[None]:
        bridge, name = self.workplace.bridge, pair_folder(folder).name
        nodes = {side: bridge.volume_of(case) for side, (case, *_) in images.items()}
        made = {key for keys in self._ours.values() for key in keys}
        ours = [case.key for side, (case, *_) in images.items() if nodes[side] is None or case.key in made]
        former = {other: keys for other, keys in self._ours.items() if other != name}
        self._ours[name] = ours
        for side, (case, image, shown) in images.items():
            if nodes[side] is None:
                nodes[side] = yield from bridge.showing_case(case, image, shown)
        if not images:
            nodes = self._volumes_of_now(name)
        shown = yield from bridge.showing_pair(
            pair, subject=name, moving=nodes.get("moving"), fixed=nodes.get("fixed")
        )
        self._ours = {name: ours}
        self._list.refresh(pair_folder(folder))
        self.workplace.show_pair(shown)
        yield
        for other, keys in former.items():
            self._forget(other, [key for key in keys if key not in ours])

    def _volumes_of_now(self, name: str) -> dict[str, Any]:
        """Of a pair from outside the study: the volumes of the scene that its nodes remember."""
        for node in self.workplace.bridge.nodes(name, "forward"):
            roles = {"fixed": node.GetFixedNodeReferenceRole(), "moving": node.GetMovingNodeReferenceRole()}
            return {side: node.GetNodeReference(role) for side, role in roles.items()}
        return {}

    def _forget(self, pair: str, cases: list[str]) -> None:
        """Remove the nodes that were made to show an earlier pair; what somebody drew stays."""
        bridge, scene = self.workplace.bridge, self.workplace.scene
        of_pair = bridge.nodes(pair)
        if not any(tag_of(node).kind in KINDS for node in of_pair):
            remove_nodes(scene, of_pair)
            for key in cases:
                remove_nodes(scene, bridge.nodes(key, "image"))

    def pair_changed(self) -> None:
        """Another pair is looked at."""
        pair, ui = self.workplace.pair, self._ui
        if pair is None or not self._is_there(pair.forward):  # of another study, or a scene that was closed
            self._ours = {}
        report = {} if pair is None else _report_of(pair.folder)
        self._list_new(pair)
        self._list.mark(self._name())
        ui.pairLabel.text = self._title()
        fill_table(ui.measuresTable, rows(report))
        fit_height(ui.measuresTable, _MOST_HIGH)
        dimension = 2 if self.workplace.study is None else int(self.workplace.study["dimension"])
        ui.orientationBox.enabled = dimension == 3
        ui.summaryLabel.text = "\n".join(sentences(report, dimension)) if report else ""
        ui.commentEdit.text = ""
        self._show_decision()
        self.onPoints()
        self._correct.refresh()
        self._look.show(pair if self._is_open else None)

    def _list_new(self, pair: PairNodes | None) -> None:
        """List a pair of the study that has just been registered."""
        name = self._name()
        if pair is None or not name or self._list.is_reading or self._list.entry(name) is not None:
            return
        if pair_folder(pair.folder).parent == Path(self.workplace.folder) / "registrations":
            self._list.refresh(pair_folder(pair.folder))
            self._say_counts()

    def _name(self) -> str:
        """By which decisions about the pair are kept; "" without one."""
        pair = self.workplace.pair
        if pair is None or self._list.record is None:
            return ""
        folder = pair_folder(pair.folder)
        if folder.parent == Path(self.workplace.folder) / "registrations":
            return folder.name
        tag = tag_of(pair.forward) if self._is_there(pair.forward) else None
        return folder.name if tag is None else tag.subject

    def _is_there(self, node: Any) -> bool:
        return node is not None and bool(self.workplace.scene.IsNodePresent(node))

    def _title(self) -> str:
        pair = self.workplace.pair
        if pair is None:
            if self.workplace.study is None:
                return _("Open a study first (step 1).")
            return _("Choose a pair, or register one (step 4).")
        name = arrow(self._name())
        if pair_folder(pair.folder) != pair.folder:
            name = _("{pair}, version {version}").format(pair=name, version=int(pair.folder.name))
        if pair.status == "ok":
            return name
        return _("{pair}: failed. {reasons}").format(pair=name, reasons=" ".join(pair.reasons))

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
            text = _("There is no other pair in this direction: {filter}.")
            self._message(text.format(filter=words(self._list.filter)))
        else:
            self.show_entry(entry)

    def _say_counts(self) -> None:
        count, left = self._list.count, self._list.left_to_review
        self._ui.countLabel.text = _("{count} pairs, {left} not reviewed").format(count=count, left=left)
        self._list.mark(self._name())
        for name in ("previous", "next"):
            self._allow(getattr(self._ui, f"{name}Button"), [] if count else [_("registered pairs (step 4)")])

    def _result_changed(self, folder: Path) -> None:
        """A pair has another result."""
        self._list.refresh(folder)
        self._say_counts()
        self.look_at(folder)

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
        self._message("")
        name, result = self._name(), result_of(pair.folder)
        try:
            record.decide(Decision(name, result, verdict, ui.commentEdit.text.strip(), reviewer))
            record.write_table(self._list.results)
        except OSError as error:
            self._message(str(error))
        entry = self._list.entry(name)
        if entry is not None:
            self._list.refresh(entry.folder)
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
        found = decision or record.outdated(self._name(), result)
        if found is None:
            ui.decisionLabel.text = _("Not reviewed yet.")
            return
        said = ", ".join(
            filter(None, (words(found.verdict), found.date[:16].replace("T", " "), found.reviewer))
        )
        said += f": {found.comment}" if found.comment else ""
        ui.decisionLabel.text = said if decision else _("Another result was {said}").format(said=said)
        if decision is not None and not ui.commentEdit.text:
            ui.commentEdit.text = decision.comment

    # -- landmarks --------------------------------------------------------------------------------------
    def onPoints(self) -> None:
        """Measure the landmarks of the chosen point lists."""
        ui, pair = self._ui, self.workplace.pair
        fixed, moving = ui.fixedPointsBox.currentNode(), ui.movingPointsBox.currentNode()
        ui.pointsLabel.text = ""
        if pair is None or not self._is_there(pair.forward) or fixed is None or moving is None:
            return
        try:
            found = landmark_errors(pair.forward, fixed, moving)
        except BridgeError as error:
            ui.pointsLabel.text = str(error)
            return
        before = "–" if found.before_mm is None else f"{found.before_mm.mean():.2f}"
        text = _(
            "{count} points: {before} mm before, {after} mm after on average, {most} mm at most ({name})."
        )
        most = int(found.after_mm.argmax())
        ui.pointsLabel.text = text.format(
            count=len(found.names),
            before=before,
            after=f"{found.after_mm.mean():.2f}",
            most=f"{found.after_mm[most]:.2f}",
            name=found.names[most],
        )

    # -- words ------------------------------------------------------------------------------------------
    def _message(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    def _allow(self, button: Any, needs: list[str]) -> None:
        purpose = self._purposes.setdefault(button.name, button.toolTip)
        button.enabled = not needs
        button.toolTip = _("Needs {needs}").format(needs=", ".join(needs)) if needs else purpose


def _read(study: Study, folder: Path) -> _Read:
    """A result and the images of its cases; none of a pair from outside the study. No MRML here."""
    pair = read_pair(folder)
    images = {}
    stems = pair_folder(folder).name.split("--")
    for side, stem in zip(("moving", "fixed"), (stems[0], stems[-1]), strict=True):
        modality, name = pair.report.get(f"{side}_modality"), pair.report.get(side)
        found = [case for case in study.cases if (case.modality, case.name) == (modality, name)]
        if found and study.file_name(found[0]) == stem:
            image = study.read_image(found[0])
            images[side] = (found[0], image, range_of(image.array))
    return pair, images if len(images) == 2 else {}


def _report_of(folder: Path) -> dict[str, Any]:
    """The report of a pair; empty if it cannot be read."""
    try:
        found = read_json(folder / "report.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
