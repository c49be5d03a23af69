"""What the user has chosen of the moving or the fixed image, in widgets and kept with the scene."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui.CaseBox import CaseBox
from SegGuidedMMRegGui.PairRegistration import Side
from SegGuidedMMRegGui.Widgets import connect
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.cases import Case

_NODES = {"Volume": "VolumeBox", "Segmentation": "SegmentationBox", "Points": "PointsBox"}


@dataclass(frozen=True)
class Chosen:
    """What was chosen of an image at one moment; later changes of the widgets do not change it.

    Attributes:
        image: the case or the volume node.
        segmentation, segments, points, modality, mirrored: as of `Side`.
    """

    image: Any
    segmentation: Any
    segments: Mapping[str, str] | None
    points: Any
    modality: str | None
    mirrored: bool

    @property
    def name(self) -> str:
        """What the user calls the image."""
        return str(self.image.name if isinstance(self.image, Case) else self.image.GetName())

    def side(self, node: Any) -> Side:
        """What is to be registered, where `node` is the volume or shows the case."""
        return Side(node, self.segmentation, self.segments, self.points, self.modality, self.mirrored)


class SideChoice:
    """The moving or the fixed image: a case or a volume, and what else is given for it.

    Args:
        ui: the widgets of the panel.
        name: moving or fixed, with which the names of the widgets and parameters begin.
        workplace: study, scene and parameters.
        changed: called when the user has changed something.
    """

    def __init__(self, ui: Any, name: str, workplace: Workplace, changed: Callable[[], None]) -> None:
        self._ui, self.name, self._workplace, self._changed = ui, name, workplace, changed
        self._is_showing = False
        self._cases = CaseBox(self._widget("CaseBox"), lambda key: self._keep("Case", key))
        for parameter, widget in _NODES.items():
            box = self._widget(widget)
            box.setMRMLScene(workplace.scene)
            connect(box, "currentNodeIDChanged(QString)", self._taker(parameter, box))
        connect(self._widget("ModalityBox"), "activated(int)", self.onModality)
        connect(self._widget("MirroredBox"), "toggled(bool)", self.onMirrored)

    # -- what is chosen ---------------------------------------------------------------------------------
    @property
    def case(self) -> Case | None:
        """The chosen case; None for a volume of the scene, and without a choice."""
        bridge, key = self._workplace.bridge, self._get("Case", "")
        if bridge is None or not key:
            return None
        return next((case for case in bridge.study.cases if case.key == key), None)

    @property
    def image(self) -> Any:
        """The case or the volume node; None without a choice."""
        return self.case if self.case is not None else self._get("Volume", None)

    @property
    def points(self) -> Any:
        """The point list; None without one."""
        return self._get("Points", None)

    @property
    def segmentation(self) -> Any:
        """The segmentation node to use instead of the prediction; None without one."""
        return self._get("Segmentation", None)

    def chosen(self) -> Chosen | None:
        """All of it as it is now; None without an image."""
        image, bridge = self.image, self._workplace.bridge
        if image is None or bridge is None:
            return None
        is_ours = isinstance(image, Case) or bridge.case_of(image) is not None
        return Chosen(
            image,
            self.segmentation,
            self.segments(),
            self.points,
            None if is_ours else self._modality(),
            not is_ours and self._get("Mirrored", False),
        )

    def segments(self) -> Mapping[str, str] | None:
        """Structure → id of the chosen segment; None where nothing but the names decides."""
        changes = self.changed_segments()
        if not changes:
            return None
        chosen = {s: changes.get(s, self.segment_by_name(s)) for s in self._structures()}
        return {structure: segment for structure, segment in chosen.items() if segment}

    def changed_segments(self) -> dict[str, str]:
        """Structure → id of a segment, or "" for none, where the user does not want the one of its name."""
        try:
            found = json.loads(self._get("Segments", "") or "{}")
        except ValueError:
            return {}
        return {s: str(found[s]) for s in self._structures() if s in found} if isinstance(found, dict) else {}

    def segment_by_name(self, structure: str) -> str:
        """Id of the segment that has the name of a structure; "" if there is none."""
        ids = (identity for identity, name in self.offered() if name.casefold() == structure.casefold())
        return next(ids, "")

    def offered(self) -> list[tuple[str, str]]:
        """Id and name of each segment."""
        if self.segmentation is None:
            return []
        segmentation = self.segmentation.GetSegmentation()
        ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
        return [(identity, segmentation.GetSegment(identity).GetName()) for identity in ids]

    def choose_segment(self, structure: str, segment: str) -> None:
        """Use this segment ("" for none) as a structure."""
        changes = {**self.changed_segments(), structure: segment}
        kept = {s: i for s, i in changes.items() if i != self.segment_by_name(s)}
        self._keep("Segments", json.dumps(kept) if kept else "")

    # -- what is shown ----------------------------------------------------------------------------------
    def show(self) -> None:
        """Show what is chosen."""
        self._is_showing = True
        try:
            self._cases.fill(self._entries(), "" if self.case is None else self.case.key)
            for parameter, widget in _NODES.items():
                self._widget(widget).setCurrentNode(self._get(parameter, None))
            box = self._widget("ModalityBox")
            box.clear()
            box.addItems(self._modalities())
            if self._modality() in self._modalities():
                box.currentIndex = self._modalities().index(self._modality())
            self._widget("MirroredBox").checked = self._get("Mirrored", False)
        finally:
            self._is_showing = False
        self.show_what_is_asked()

    def show_what_is_asked(self) -> None:
        """Ask of a volume what the study cannot know of it, and of a case nothing."""
        bridge, node = self._workplace.bridge, self._get("Volume", None)
        self._widget("VolumeBox").visible = self.case is None
        is_foreign = self.case is None and node is not None and bridge is not None
        self._widget("KindFrame").visible = is_foreign and bridge.case_of(node) is None

    def onModality(self, index: int) -> None:
        self._keep("Modality", self._modalities()[index])

    def onMirrored(self, is_mirrored: bool) -> None:
        self._keep("Mirrored", bool(is_mirrored))

    # -- with the scene ---------------------------------------------------------------------------------
    def _taker(self, parameter: str, box: Any) -> Callable[[], None]:
        def take() -> None:
            node = box.currentNode()
            if node is not self._get(parameter, None):  # told also when the node gets another name
                self._keep(parameter, node)

        return take

    def _keep(self, parameter: str, value: Any) -> None:
        parameters = self._workplace.parameters
        if self._is_showing or parameters is None:
            return
        if parameter == "Segmentation":
            setattr(parameters, f"{self.name}Segments", "")
        setattr(parameters, f"{self.name}{parameter}", value)
        self.show_what_is_asked()
        self._changed()

    def _get(self, parameter: str, otherwise: Any) -> Any:
        parameters = self._workplace.parameters
        return otherwise if parameters is None else getattr(parameters, f"{self.name}{parameter}")

    def _widget(self, what: str) -> Any:
        return getattr(self._ui, f"{self.name}{what}")

    def _structures(self) -> list[str]:
        bridge = self._workplace.bridge
        return [] if bridge is None else [s.name for s in bridge.study.structures]

    def _modalities(self) -> list[str]:
        bridge = self._workplace.bridge
        return [] if bridge is None else [bridge.study.source, bridge.study.target]

    def _modality(self) -> str | None:
        """The chosen one; without a choice moving images are of the source, fixed ones of the target."""
        known = self._modalities()
        wanted = self._get("Modality", "")
        if wanted in known or not known:
            return wanted or None
        return known[0 if self.name == "moving" else 1]

    def _entries(self) -> list[tuple[str, str]]:
        bridge = self._workplace.bridge
        cases = () if bridge is None else bridge.study.cases
        return [("", _("a volume of the scene")), *((case.key, case_title(case)) for case in cases)]


def case_title(case: Case) -> str:
    """What a user reads of a case in a list."""
    return f"{case.key} ({case.role.value})"
