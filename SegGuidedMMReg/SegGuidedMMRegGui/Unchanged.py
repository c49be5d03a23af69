"""A node that is read in several steps: what was removed or changed between two of them is not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SegGuidedMMRegGui.NodeTags import BridgeError


class Unchanged:
    """Sees to it that a node is the same from now on; it observes nothing, `check` looks.

    Args:
        node: of a scene.
        stamp: changes when what is read of the node changes.
    """

    def __init__(self, node: Any, stamp: Callable[[Any], object]) -> None:
        self._node, self._scene, self._name = node, node.GetScene(), node.GetName()
        self._stamp, self._was = stamp, stamp(node)

    def check(self) -> None:
        """Look at it again.

        Raises:
            BridgeError: naming the node, if it was removed or changed.
        """
        if self._scene is not None and not self._scene.IsNodePresent(self._node):
            raise BridgeError(
                f"{self._name!r} was removed from the scene while it was read, so it is not used."
            )
        if self._stamp(self._node) != self._was:
            raise BridgeError(
                f"{self._name!r} was changed while it was read, so it is not used. Begin again."
            )


def place_stamp(node: Any) -> tuple[object, ...]:
    """Changes when a parent transform of the node changes, or it gets another one."""
    parent = node.GetParentTransformNode()
    return ("", 0) if parent is None else (parent.GetID(), parent.GetTransformToWorldMTime())
