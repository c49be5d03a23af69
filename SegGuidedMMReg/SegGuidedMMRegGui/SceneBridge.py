"""Between a study on disk and the scene of 3D Slicer: cases, labels, landmarks and transforms as nodes.

Geometry is exact in both directions. The user's nodes are read, never changed; nodes that the bridge makes
are tagged (`NodeTags.py`), so the next call uses them again instead of making more, also in a scene that was
saved and loaded. The bridge observes nothing and keeps no node: deleted nodes and closed scenes do not
concern it. Main thread only. It imports floors 0 to 2 of the library: neither torch nor monai is needed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import slicer

from SegGuidedMMRegGui import NodeTags, PointNodes, SegmentationNodes, TransformNodes, VolumeNodes
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.PairFiles import PairResult
from SegGuidedMMRegGui.PairShowing import About, PairNodes, showing_pair
from SegGuidedMMRegGui.SegmentationNodes import SegmentsRead
from SegGuidedMMRegGui.Steps import Steps, at_once
from SegGuidedMMRegGui.VolumeNodes import WorldImage
from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.images import LabelMap, read_labels, write_image, write_labels
from SegGuidedMMRegLib.points import write_points
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study


class SceneBridge:
    """A study and a scene.

    Args:
        scene: the vtkMRMLScene, such as `slicer.mrmlScene`.
        study: what is shown; its structures are the segments.
    """

    def __init__(self, scene: Any, study: Study) -> None:
        self.scene, self.study = scene, study
        self._temporary: Path | None = None

    def __enter__(self) -> SceneBridge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files; the nodes stay (`remove`)."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def temporary_folder(self, prefix: str = "") -> Path:
        """A new folder, removed by `close`."""
        if self._temporary is None:
            place = getattr(getattr(slicer, "app", None), "temporaryPath", None)
            self._temporary = Path(tempfile.mkdtemp(prefix="SegGuidedMMReg-", dir=place))
        return Path(tempfile.mkdtemp(prefix=prefix, dir=self._temporary))

    # -- cases ------------------------------------------------------------------------------------------
    def show_case(
        self, case: Case, image: Image | None = None, shown: tuple[float, float] | None = None
    ) -> Any:
        """The image of a case as a volume node; `image` where it is read already, `shown` as `show_image`."""
        image = self.study.read_image(case) if image is None else image
        return at_once(self.showing_case(case, image, shown))

    def showing_case(self, case: Case, image: Image, shown: tuple[float, float] | None = None) -> Steps[Any]:
        """`show_case` of an image that is read already, in short steps."""
        tag = self._tag("image", case)
        return VolumeNodes.showing_image(self.scene, image, tag, _title(case), shown)

    def volume_of(self, case: Case) -> Any | None:
        """The volume node of a case that is in the scene, as it is now; None if there is none."""
        return NodeTags.find_node(self.scene, VolumeNodes.VOLUME, self._tag("image", case))

    def case_of(self, node: Any) -> Case | None:
        """The case of this study that a node belongs to; None for all other nodes."""
        tag = NodeTags.tag_of(node)
        if tag is None or tag.study != self.study_key:
            return None
        return next((case for case in self.study.cases if case.key == tag.subject), None)

    def show_labels(self, case: Case, labels: Image | None = None, *, predicted: bool = False) -> Any:
        """The hand segmentation of a case, or the predicted one, as a segmentation node, as its file has it.

        What was drawn in the node since `save_labels` is lost. With `labels`, the node shows these instead:
        those of the file where they are read already, or others, such as a draft.

        Raises:
            BridgeError: if there is none yet.
        """
        labels = self._read_labels(case, predicted) if labels is None else labels
        return at_once(self.showing_labels(case, labels, predicted=predicted))

    def showing_labels(self, case: Case, labels: Image, *, predicted: bool = False) -> Steps[Any]:
        """`show_labels` of labels that are read already, in short steps."""
        return SegmentationNodes.showing_labels(
            self.scene,
            labels,
            self.study.structures,
            self._tag("prediction" if predicted else "labels", case),
            f"{_title(case)} {'prediction' if predicted else 'labels'}",
            terms=self._terms_in(labels),
            volume=self.volume_of(case),
        )

    def showing_prediction(
        self, labels: Image, side: str, *, case: str | None = None, subject: str = ""
    ) -> Steps[Any]:
        """A predicted segmentation that was read already, in short steps: of a case, or of another volume.

        Args:
            labels: in the world.
            side: moving or fixed.
            case: key of the case, if it is one.
            subject: `moving--fixed`, for a volume that is none; it goes with that pair.
        """
        if case is not None:
            found = self.study.case(case)
            tag, name, volume = self._tag("prediction", found), _title(found), self.volume_of(found)
        else:
            tag, volume = self._pair_tag(f"{side}_prediction", subject), None
            name = dict(zip(("moving", "fixed"), subject.split("--"), strict=False))[side]
        name = f"{name} prediction"
        structures = self.study.structures
        return SegmentationNodes.showing_labels(self.scene, labels, structures, tag, name, volume=volume)

    def _read_labels(self, case: Case, predicted: bool) -> Image:
        path = self.study.prediction_path(case) if predicted else self.label_path(case)
        if not path.is_file():
            what = "prediction; run Segment in the step Train" if predicted else "segmentation; draw one"
            raise BridgeError(f"The case {case.key} has no {what} ({path} is missing).")
        return read_labels(path) if predicted else self.read_drawn_labels(case)

    def read_drawn_labels(self, case: Case) -> Image:
        """The labels in `label_path(case)`, also where `study.yaml` does not know them yet. No node is asked.

        Raises:
            StudyError, ImageError: naming the file, if they are no labels of the study.
        """
        return self.study.read_evaluation_labels(_labelled(case, self.label_path(case)))

    def labels_node(self, case: Case) -> Any | None:
        """The segmentation node of a case that is in the scene; None if none is."""
        return NodeTags.find_node(self.scene, SegmentationNodes.SEGMENTATION, self._tag("labels", case))

    def new_labels(self, case: Case, terms: Mapping[str, str] | None = None) -> Any:
        """A segmentation to draw in: empty, with the structures of the study, on the image of the case.

        One that is in the scene already is kept, with what was drawn.

        Raises:
            BridgeError: if the case has a segmentation in the study.
        """
        return at_once(self.showing_new_labels(case, terms))

    def showing_new_labels(self, case: Case, terms: Mapping[str, str] | None = None) -> Steps[Any]:
        """`new_labels` in short steps."""
        tag = self._tag("labels", case)
        if (path := self.label_path(case)).is_file():
            raise BridgeError(f"The case {case.key} has a segmentation already ({path}); show that one.")
        if (found := self.labels_node(case)) is not None:
            return found
        volume = self.volume_of(case)
        grid = VolumeNodes.read_own_grid(self.show_case(case) if volume is None else volume)
        return (
            yield from SegmentationNodes.showing_labels(
                self.scene,
                SegmentationNodes.nothing_on(grid),
                self.study.structures,
                tag,
                f"{_title(case)} labels",
                terms=terms,
                volume=self.volume_of(case),
            )
        )

    def save_labels(self, node: Any, case: Case) -> SegmentsRead:
        """Write a segmentation as the hand segmentation of `case`, on the grid of its image.

        The file is `label_path(case)`; that the study uses it is said in `study.yaml`, elsewhere.

        Returns:
            what was written; its `problems()` say what is missing or was left out.

        Raises:
            BridgeError: naming the node and the remedy; nothing is written then.
        """
        volume = self.volume_of(case)
        grid = self.study.read_image(case).grid
        parent = None if volume is None else volume.GetParentTransformNode()
        return self.write_segments(node, self.label_path(case), grid, parent=parent)

    def label_path(self, case: Case) -> Path:
        """Where the hand segmentation of a case lies, or will."""
        return self.study.label_path(case)

    def show_landmarks(self, case: Case) -> Any:
        """The landmarks of a case as a point list.

        Raises:
            StudyError: if it has none.
        """
        points = self.study.read_landmarks(case)
        return PointNodes.show_points(
            self.scene, points, self._tag("landmarks", case), f"{_title(case)} landmarks"
        )

    # -- from the scene to files ------------------------------------------------------------------------
    def write_volume(self, node: Any, path: Path) -> WorldImage:
        """Write a volume node as it lies in the world, with all its parent transforms (see `read_volume`)."""
        world = VolumeNodes.read_volume(node)
        write_image(world.image, path)
        return world

    def write_segments(
        self,
        node: Any,
        path: Path,
        grid: Grid | None = None,
        *,
        parent: Any | None = None,
        chosen: Mapping[str, str] | None = None,
    ) -> SegmentsRead:
        """Write a segmentation node as labels of the study's structures (arguments as of `read_segments`)."""
        found = SegmentationNodes.read_segments(
            node, self.study.structures, grid, parent=parent, chosen=chosen
        )
        write_labels(found.labels, found.labels.segments, path)
        return found

    def write_points(self, node: Any, path: Path) -> tuple[str, ...]:
        """Write a point list in world coordinates (.csv, .mrk.json, .fcsv).

        Returns:
            the names of points that have no position yet, left out.
        """
        found = PointNodes.read_points(node)
        write_points(found.points, path)
        return found.unplaced

    # -- pairs ------------------------------------------------------------------------------------------
    def show_pair(
        self,
        pair: PairResult,
        *,
        subject: str | None = None,
        fixed: Any = None,
        moving: Any = None,
        world: WorldImage | None = None,
    ) -> PairNodes:
        """The result of a registration as nodes, which remember their volumes, status and report.

        Args:
            pair: as `read_pair` found it.
            subject: `moving--fixed`, by which the nodes are found again; the name of the folder without it.
            fixed, moving: volume nodes of the scene. With `moving` the warped image is shown.
            world: what was registered, where `moving` has changed since.
        """
        return at_once(self.showing_pair(pair, subject=subject, fixed=fixed, moving=moving, world=world))

    def showing_pair(
        self,
        pair: PairResult,
        *,
        subject: str | None = None,
        fixed: Any = None,
        moving: Any = None,
        world: WorldImage | None = None,
    ) -> Steps[PairNodes]:
        """`show_pair` in short steps, between which the window lives."""
        subject = pair.folder.name if subject is None else subject
        about = About(self.study_key, subject, self.study.structures)
        return showing_pair(self.scene, pair, about, fixed=fixed, moving=moving, world=world)

    def show_volume_change(self, pair: PairResult, subject: str | None = None) -> Any:
        """The map of the Jacobian determinant of a pair, folds marked, on the grid of its field."""
        subject = pair.folder.name if subject is None else subject
        if pair.forward is None:
            raise BridgeError(f"{pair.folder}: has no transform. {' '.join(pair.reasons)}")
        name = f"{subject.replace('--', ' to ')} change of volume"
        tag = self._pair_tag("jacobian", subject)
        return TransformNodes.show_volume_change(self.scene, pair.forward.field, tag, name)

    def showing_volume_change_map(self, image: Image, pair: PairNodes) -> Steps[Any]:
        """The same for a map that was made already (`segmmreg jacobian`), in short steps."""
        found = NodeTags.tag_of(pair.forward)
        subject = pair.folder.name if found is None else found.subject
        name = f"{subject.replace('--', ' to ')} change of volume"
        return TransformNodes.showing_volume_change_map(
            self.scene, image, self._pair_tag("jacobian", subject), name
        )

    # -- manners ----------------------------------------------------------------------------------------
    def nodes(self, subject: str | None = None, kind: str | None = None) -> list[Any]:
        """The nodes that stand for this study, or of one case (`modality/case`) or pair (`moving--fixed`)."""
        return NodeTags.nodes_of(self.scene, study=self.study_key, subject=subject, kind=kind)

    def remove(self, subject: str | None = None) -> None:
        """Remove exactly those, with their display and storage nodes."""
        NodeTags.remove_nodes(self.scene, self.nodes(subject))

    def scene_loaded(self) -> None:
        """To be called when a scene was loaded: its transforms get ITK's linear interpolation."""
        TransformNodes.make_linear(self.scene)

    @property
    def study_key(self) -> str:
        """By which nodes know the study."""
        return str(self.study.folder.resolve())

    def _terms_in(self, labels: Image) -> dict[str, str]:
        """The terms that a file of this study has, by structure."""
        terms = {s.value: s.terminology for s in labels.segments} if isinstance(labels, LabelMap) else {}
        return {s.name: terms[s.value] for s in self.study.structures if terms.get(s.value)}

    def _tag(self, kind: str, case: Case) -> Tag:
        return Tag(kind, self.study_key, case.key)

    def _pair_tag(self, kind: str, subject: str) -> Tag:
        return Tag(kind, self.study_key, subject)


def _title(case: Case) -> str:
    return f"{case.name} ({case.modality})"


def _labelled(case: Case, path: Path) -> Case:
    """The case with the labels that lie beside it, where `study.yaml` does not know them yet."""
    if case.label is not None:
        return case
    relative = "/".join(path.parts[-3:])
    return replace(case, label=relative, label_use="evaluation")
