"""The result of a registration in the scene: transforms, the warped image, the contours of its structures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from SegGuidedMMRegGui import NodeTags, SegmentationNodes, TransformNodes
from SegGuidedMMRegGui.NodeTags import PREFIX, BridgeError, Tag
from SegGuidedMMRegGui.PairFiles import PairResult
from SegGuidedMMRegGui.Steps import Steps
from SegGuidedMMRegGui.VolumeNodes import WorldImage
from SegGuidedMMRegLib.cases import Structure


@dataclass(frozen=True)
class PairNodes:
    """The nodes of a registered pair; None for what is not there.

    Attributes:
        forward: from fixed to moving points; warps the moving image.
        inverse: from moving to fixed points.
        shown: the moving image, warped (a volume under `forward`).
        contours: the moving structures, warped, over the fixed image.
        status: ok or failed.
        reasons: why it failed.
        folder: where its files lie.
        report: `report.json` (docs/formats.md).
        moving_labels, fixed_labels: segmentations by which it was registered: the user's, or predicted ones.
    """

    forward: Any
    inverse: Any
    shown: Any
    contours: Any
    status: str
    reasons: tuple[str, ...]
    folder: Path
    report: Mapping[str, Any] = field(default_factory=dict)
    moving_labels: Any = None
    fixed_labels: Any = None


@dataclass(frozen=True)
class About:
    """What the nodes of a pair stand for.

    Attributes:
        study: by which nodes know the study.
        subject: `moving--fixed`, by which they are found again.
        structures: of the study.
    """

    study: str
    subject: str
    structures: Sequence[Structure]

    def tag(self, kind: str) -> Tag:
        return Tag(kind, self.study, self.subject)

    def name(self, what: str) -> str:
        return f"{self.subject.replace('--', ' to ')} {what}"


def showing_pair(
    scene: Any, pair: PairResult, about: About, *, fixed: Any, moving: Any, world: WorldImage | None
) -> Steps[PairNodes]:
    """Show a result in short steps (`SceneBridge.show_pair`); volumes removed meanwhile are left out."""
    found: dict[str, Any] = dict.fromkeys(("forward", "inverse", "shown", "contours"))
    for kind, transform, ends in (
        ("forward", pair.forward, (fixed, moving)),
        ("inverse", pair.inverse, (moving, fixed)),
    ):
        if transform is not None:
            found[kind] = yield from _showing_transform(scene, pair, about, kind, ends)
            yield None
    if found["forward"] is not None and _is_in(scene, moving):
        found["shown"] = yield from _showing_through(scene, about, moving, world, found["forward"])
        yield None
    if pair.labels is not None:
        found["contours"] = yield from SegmentationNodes.showing_labels(
            scene, pair.labels, about.structures, about.tag("contours"), about.name("contours")
        )
        SegmentationNodes.as_outlines(found["contours"])
        yield None
    for kind, node in found.items():  # an earlier result of the pair may have had others
        if node is None:
            old = NodeTags.nodes_of(scene, study=about.study, subject=about.subject, kind=kind)
            NodeTags.remove_nodes(scene, old)
    return PairNodes(
        **found, status=pair.status, reasons=pair.reasons, folder=pair.folder, report=pair.report
    )


def _showing_transform(
    scene: Any, pair: PairResult, about: About, kind: str, ends: tuple[Any, Any]
) -> Steps[Any]:
    """`kind` is forward or inverse; `ends` the volumes that it leads from and to."""
    fixed, moving = (end if _is_in(scene, end) else None for end in ends)
    node = yield from TransformNodes.showing_transform(
        scene,
        getattr(pair, kind),
        about.tag(kind),
        about.name(kind),
        vectors=pair.vectors_ras_mm[kind],
        fixed=fixed,
        moving=moving,
    )
    node.SetAttribute(NodeTags.STATUS, pair.status)
    node.SetAttribute(NodeTags.REPORT, json.dumps(pair.report))
    node.SetAttribute(f"{PREFIX}Folder", str(pair.folder))
    return node


def _showing_through(
    scene: Any, about: About, moving: Any, world: WorldImage | None, forward: Any
) -> Steps[Any]:
    """None if the moving volume was removed meanwhile."""
    tag, name = about.tag("shown"), about.name("warped")
    try:
        node = yield from TransformNodes.showing_through(
            scene, moving, tag, name, world=world, transform=forward
        )
    except BridgeError:
        if _is_in(scene, moving):
            raise
        return None
    return node


def _is_in(scene: Any, node: Any | None) -> bool:
    return node is not None and bool(scene.IsNodePresent(node))
