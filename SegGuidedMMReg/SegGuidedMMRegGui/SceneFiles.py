"""Volumes of the scene as files for `segmmreg new` and `add`: written in short pieces, removed afterwards."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

import qt
from SegGuidedMMRegGui import SegmentationNodes, VolumeNodes
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.Widgets import connect, let_go
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.colours import palette_color
from SegGuidedMMRegLib.images import write_labels
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.study_file import FORBIDDEN_IN_NAMES, StudyError

_PIECE_BYTES = 8 << 20
_COLUMNS = ("image", "modality", "case", "subject", "role", "mirrored", "label", "original")
_NRRD_TYPES = {"b": "signed char", "h": "short", "i": "int", "B": "unsigned char", "H": "unsigned short"}
_NRRD_TYPES |= {"I": "unsigned int", "f": "float", "d": "double"}


@dataclass(frozen=True)
class SceneVolume:
    """A volume that shall become a case.

    Attributes:
        node: the volume.
        modality: source or target.
        segmentation: the segmentation that belongs to it, or None.
        subject: whom it shows; "" for a subject of its own.
        role: train, validation or test; "" to be drawn.
        mirrored: whether it shows the other side of the body.
    """

    node: Any
    modality: str
    segmentation: Any
    subject: str
    role: str
    mirrored: bool


class SceneFiles:
    """Writes volumes and segmentations into a temporary folder, a piece at a time; `remove` removes it."""

    def __init__(
        self,
        volumes: Sequence[SceneVolume],
        structures: Sequence[Structure],
        done: Callable[[Path], None],
        failed: Callable[[str], None],
    ) -> None:
        """
        Args:
            volumes: to be written.
            structures: of the study, for the segmentations.
            done: called with the list to import (`--list`).
            failed: called with what is wrong; nothing is left behind then.
        """
        place = getattr(getattr(slicer, "app", None), "temporaryPath", None)
        self.folder = Path(tempfile.mkdtemp(prefix="SegGuidedMMReg-import-", dir=place))
        self.notes: list[str] = []
        self._done, self._failed = done, failed
        self._work = self._write(volumes, structures)
        self._is_kept = True
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        connect(self._timer, "timeout()", self._step)

    @property
    def is_writing(self) -> bool:
        """Whether it is not done yet."""
        return self._is_kept and bool(self._timer.isActive())

    def start(self) -> None:
        """Begin; it returns at once."""
        self._timer.start(0)

    def remove(self) -> None:
        """Write no more, and remove what was written."""
        if self._is_kept:
            self._is_kept = False
            self._timer.stop()
            let_go(self._timer, {"timeout()": self._step})
        self._work.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self) -> None:
        try:
            next(self._work)
        except StopIteration:
            self._done(self.folder / "list.csv")
        except (BridgeError, StudyError, ValueError, OSError) as error:
            self.remove()
            self._failed(str(error))
        else:
            self._timer.start(0)

    def _write(self, volumes: Sequence[SceneVolume], structures: Sequence[Structure]) -> Iterator[None]:
        rows = []
        for number, volume in enumerate(volumes, 1):
            place, name = self.folder / str(number), file_name(volume.node.GetName())
            place.mkdir()
            image = VolumeNodes.read_volume(volume.node).image
            yield
            yield from write_in_pieces(image, place / f"{name}.nrrd")
            label = ""
            if volume.segmentation is not None:
                found = SegmentationNodes.read_segments(volume.segmentation, structures, image.grid)
                self.notes += [f"note: {volume.segmentation.GetName()}: {text}" for text in found.problems()]
                yield
                write_labels(found.labels, found.labels.segments, place / f"{name}.seg.nrrd")
                label = f"{number}/{name}.seg.nrrd"
            mirrored = "yes" if volume.mirrored else "no"
            image_path = f"{number}/{name}.nrrd"
            said = (
                volume.modality,
                name,
                volume.subject,
                volume.role,
                mirrored,
                label,
                _original(volume.node),
            )
            rows.append((image_path, *said))
            yield
        with (self.folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])


def structures_of(volumes: Sequence[SceneVolume]) -> tuple[Structure, ...]:
    """The segments of the chosen segmentations, each name once, numbered from 1; their colours and terms.

    Raises:
        StudyError: for a name that no structure can have.
    """
    found: dict[str, Structure] = {}
    for volume in volumes:
        if volume.segmentation is None:
            continue
        segmentation = volume.segmentation.GetSegmentation()
        for n in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(n)
            color = tuple(round(255 * c) for c in segment.GetColor())
            term, name = SegmentationNodes.term_of(segment), segment.GetName()
            structure = Structure(len(found) + 1, name, color or palette_color(len(found) + 1), term)
            found.setdefault(name.casefold(), structure)
    return tuple(found.values())


def write_in_pieces(image: Image, path: Path) -> Iterator[None]:
    """Write an image as NRRD without compression, some megabytes at a go."""
    array = np.ascontiguousarray(image.array).reshape(image.grid.size[::-1])
    kind = _NRRD_TYPES.get(array.dtype.char)
    if kind is None:
        array = array.astype(np.float64)
        kind = "double"
    content = memoryview(array.astype(array.dtype.newbyteorder("<"), copy=False)).cast("B")
    with path.open("wb") as file:
        file.write(_nrrd_header(image, kind))
        for start in range(0, len(content), _PIECE_BYTES):
            file.write(content[start : start + _PIECE_BYTES])
            yield


def file_name(text: str) -> str:
    """The name of a volume as one that a case can have."""
    kept = "".join("_" if c in FORBIDDEN_IN_NAMES or not c.isprintable() else c for c in text)
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept.strip(" .")[:100].strip(" .") or _("volume")


def _nrrd_header(image: Image, kind: str) -> bytes:
    grid = image.grid
    steps = grid.direction_matrix * np.asarray(grid.spacing)
    directions = " ".join("({:.17g},{:.17g},{:.17g})".format(*steps[:, axis]) for axis in range(3))
    lines = (
        "NRRD0004",
        f"type: {kind}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, grid.size))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        "space origin: ({:.17g},{:.17g},{:.17g})".format(*grid.origin),
    )
    return ("\n".join(lines) + "\n\n").encode()


def _original(node: Any) -> str:
    """Where a volume came from, for the record."""
    storage = node.GetStorageNode()
    path = "" if storage is None else str(storage.GetFullNameFromFileName() or "")
    return path or f"3D Slicer: {node.GetName()}"
