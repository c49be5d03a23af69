"""Which nodes of a scene are ours, and what they stand for: kept as attributes, so saved scenes know it too.

Nothing is remembered outside the scene and nothing is observed: a node that the user deletes, or a scene that
is closed, leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PREFIX = "SegGuidedMMReg."
CONTENT, STATUS, REPORT = f"{PREFIX}Content", f"{PREFIX}Status", f"{PREFIX}Report"


class BridgeError(ValueError):
    """What cannot go between scene and study; the message names the node or file, and the remedy."""


@dataclass(frozen=True)
class Tag:
    """What a node stands for.

    Attributes:
        kind: image, labels, prediction, landmarks of a case; forward, inverse, shown … of a pair.
        study: folder of the study.
        subject: `modality/case`, or `moving--fixed` of a pair.
    """

    kind: str
    study: str
    subject: str


def tag_of(node: Any) -> Tag | None:
    """What `node` stands for; None if it is not ours."""
    values = [node.GetAttribute(f"{PREFIX}{name}") for name in ("Kind", "Study", "Subject")]
    return None if None in values else Tag(*values)


def put_tag(node: Any, tag: Tag) -> None:
    """Make `node` one of ours."""
    for name, value in (("Kind", tag.kind), ("Study", tag.study), ("Subject", tag.subject)):
        node.SetAttribute(f"{PREFIX}{name}", value)


def nodes_of(
    scene: Any, *, study: str | None = None, subject: str | None = None, kind: str | None = None
) -> list[Any]:
    """Our nodes, in the order of the scene; None stands for all."""
    found = []
    for number in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(number)
        tag = tag_of(node)
        if tag is not None and (
            study in (None, tag.study) and subject in (None, tag.subject) and kind in (None, tag.kind)
        ):
            found.append(node)
    return found


def find_node(scene: Any, cls: str, tag: Tag) -> Any | None:
    """The node of class `cls` that stands for `tag`, or None."""
    same = nodes_of(scene, study=tag.study, subject=tag.subject, kind=tag.kind)
    return next((node for node in same if node.GetClassName() == cls), None)


def node_for(scene: Any, cls: str, tag: Tag, name: str) -> Any:
    """The node of class `cls` that stands for `tag`: the one that is there, or a new one called `name`.

    Raises:
        BridgeError: if the scene refuses it.
    """
    found = find_node(scene, cls, tag)
    if found is not None:
        return found
    is_taken = scene.GetFirstNodeByName(name) is not None
    node = scene.AddNewNodeByClass(cls, scene.GenerateUniqueName(name) if is_taken else name)
    if node is None:
        raise BridgeError(f"The scene takes no {cls}: is it a scene of 3D Slicer 5.10 or later?")
    put_tag(node, tag)
    return node


def remove_nodes(scene: Any, nodes: Iterable[Any]) -> None:
    """Remove nodes with their own display and storage nodes, and nothing else."""
    for node in list(nodes):
        helpers = [node.GetNthDisplayNode(n) for n in range(_count(node, "Display"))]
        helpers += [node.GetNthStorageNode(n) for n in range(_count(node, "Storage"))]
        scene.RemoveNode(node)
        for helper in helpers:
            if helper is not None and not _is_used(scene, helper):
                scene.RemoveNode(helper)


def _count(node: Any, what: str) -> int:
    counter = getattr(node, f"GetNumberOf{what}Nodes", None)
    return 0 if counter is None else counter()


def _is_used(scene: Any, helper: Any) -> bool:
    if helper.GetSingletonTag() is not None:
        return True
    roles = ("display", "storage")
    nodes = (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
    return any(node.HasNodeReferenceID(role, helper.GetID()) for node in nodes for role in roles)
