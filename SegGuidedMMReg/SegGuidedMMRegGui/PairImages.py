"""Images that are to be in the scene, cases of the study or files, read beside the GUI thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from SegGuidedMMRegGui import NodeTags, VolumeNodes
from SegGuidedMMRegGui.NodeTags import Tag
from SegGuidedMMRegGui.SceneBridge import SceneBridge
from SegGuidedMMRegGui.Steps import Steps, beside
from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.images import read_image
from SegGuidedMMRegLib.sampling import Image

Source = Case | Path | Any
"""A case, an image file, or a volume node, which is in the scene already."""


class PairImages:
    """The two images of a pair on their way into the scene: `read` them in any thread, then show them.

    Args:
        bridge: to the scene; what is there already, as the user has it, is left as it is.
        sources: moving and fixed.
    """

    def __init__(self, bridge: SceneBridge, sources: Sequence[Source]) -> None:
        self._bridge, self._sources = bridge, tuple(sources)
        self._missing = [n for n, source in enumerate(sources) if self._node(source) is None]
        self._images: dict[int, Image] = {}
        self._ranges: dict[int, tuple[float, float]] = {}
        self._made: list[Any] = []

    def read(self) -> None:
        """Read those that are not in the scene.

        Raises:
            ValueError, OSError: naming the file that cannot be read.
        """
        for n in self._missing:
            source = self._sources[n]
            is_case = isinstance(source, Case)
            self._images[n] = self._bridge.study.read_image(source) if is_case else read_image(source)
            self._ranges[n] = VolumeNodes.range_of(self._images[n].array)

    def showing(self) -> Steps[list[Any]]:
        """The volume nodes, in short steps; given up, none is left that was made."""
        nodes: list[Any] = []
        try:
            for n, source in enumerate(self._sources):
                nodes.append((yield from self._showing(n, source)))
                self._made += [nodes[-1]] if n in self._images else []
        except BaseException:
            self.take_back()
            raise
        return nodes

    def reading_and_showing(self) -> Steps[list[Any]]:
        """Both, read in a thread where there is something to read."""
        if self._missing:
            yield from beside(self.read)
        return (yield from self.showing())

    def take_back(self) -> None:
        """Remove the nodes that were made here, if they are still there."""
        made, self._made = self._made, []
        scene = self._bridge.scene
        NodeTags.remove_nodes(scene, [node for node in made if scene.IsNodePresent(node)])

    def _showing(self, number: int, source: Source) -> Steps[Any]:
        image = self._images.get(number)
        if image is None:
            return self._node(source)
        if isinstance(source, Case):
            return (yield from self._bridge.showing_case(source, image, self._ranges[number]))
        scene, tag = self._bridge.scene, self._tag(source)
        return (yield from VolumeNodes.showing_image(scene, image, tag, source.name, self._ranges[number]))

    def _node(self, source: Source) -> Any:
        if isinstance(source, Case):
            return self._bridge.volume_of(source)
        if isinstance(source, Path):
            return NodeTags.find_node(self._bridge.scene, VolumeNodes.VOLUME, self._tag(source))
        return source

    def _tag(self, path: Path) -> Tag:
        return Tag("image", self._bridge.study_key, str(path))
