"""Volumes of the scene as files for `segmmreg new` and `add`: written in short pieces, removed afterwards."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from SegGuidedMMRegGui import SegmentationNodes, VolumeNodes
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.ReadingJob import ReadingJob, read
from SegGuidedMMRegGui.Steps import Progress, Steps, beside
from SegGuidedMMRegGui.Unchanged import Unchanged
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.colours import palette_color
from SegGuidedMMRegLib.images import write_labels
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.study_file import FORBIDDEN_IN_NAMES, is_reserved

_PIECE_BYTES = 8 << 20
_NAME_BYTES = 100
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
    """Writes volumes and segmentations into a temporary folder, a piece at a time; `remove` removes it.

    One volume is in memory at a time, as it is written.
    """

    def __init__(
        self,
        runner: JobRunner,
        volumes: Sequence[SceneVolume],
        structures: Sequence[Structure],
        done: Callable[[Path], None],
        failed: Callable[[str], None],
    ) -> None:
        """
        Args:
            runner: shows what goes on as a job.
            volumes: to be written.
            structures: of the study, for the segmentations.
            done: called with the list to import (`--list`).
            failed: called with what is wrong, or that the user cancelled it; nothing is left behind then.
        """
        place = getattr(getattr(slicer, "app", None), "temporaryPath", None)
        self.folder = Path(tempfile.mkdtemp(prefix="SegGuidedMMReg-import-", dir=place))
        self.notes: list[str] = []
        self._runner, self._volumes, self._structures = runner, tuple(volumes), tuple(structures)
        self._done, self._failed = done, failed
        self._job: ReadingJob | None = None
        self._is_kept = True

    @property
    def is_writing(self) -> bool:
        """Whether it is not done yet."""
        return self._job is not None and self._job.is_running

    def start(self) -> None:
        """Begin; it returns soon."""
        title = _("Writing {count} volumes of the scene").format(count=len(self._volumes))
        written = lambda _none: self._done(self.folder / "list.csv")  # noqa: E731
        try:
            self._job = read(self._runner, title, self._writing(), written, self._stop)
        except (ValueError, OSError) as error:
            self._stop(str(error))

    def remove(self) -> None:
        """Write no more, and remove what was written."""
        self._is_kept = False
        if self._job is not None:
            self._job.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stop(self, message: str) -> None:
        if self._is_kept:
            self.remove()
            self._failed(message or _("Cancelled."))

    def _writing(self) -> Steps[None]:
        guards = [[_presence(node) for node in (v.node, v.segmentation) if node] for v in self._volumes]
        rows = []
        for number, volume in enumerate(self._volumes, 1):
            for guard in guards[number - 1]:
                guard.check()
            rows.append((yield from self._writing_volume(number, volume)))
        with (self.folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])

    def _writing_volume(self, number: int, volume: SceneVolume) -> Steps[tuple[str, ...]]:
        """Its row in the list."""
        place, name = self.folder / str(number), file_name(volume.node.GetName())
        place.mkdir()
        image = (yield from VolumeNodes.reading_volume(volume.node)).image
        yield from write_in_pieces(image, place / f"{name}.nrrd")
        label = ""
        if volume.segmentation is not None:
            found = yield from SegmentationNodes.reading_segments(
                volume.segmentation, self._structures, image.grid
            )
            self.notes += [f"note: {volume.segmentation.GetName()}: {text}" for text in found.problems()]
            label = f"{number}/{name}.seg.nrrd"
            yield from beside(partial(write_labels, found.labels, found.labels.segments, self.folder / label))
        return (
            f"{number}/{name}.nrrd",
            volume.modality,
            name,
            volume.subject,
            volume.role,
            "yes" if volume.mirrored else "no",
            label,
            _original(volume.node),
        )


def _presence(node: Any) -> Unchanged:
    return Unchanged(node, lambda _node: None)


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


def write_in_pieces(image: Image, path: Path) -> Steps[None]:
    """Write an image as NRRD without compression, some megabytes at a go."""
    values = np.ascontiguousarray(image.array).reshape(-1)
    kind = _NRRD_TYPES.get(values.dtype.char)
    written = np.dtype(np.float64 if kind is None else values.dtype).newbyteorder("<")
    count = max(1, _PIECE_BYTES // written.itemsize)
    with path.open("wb") as file:
        file.write(_nrrd_header(image, kind or "double"))
        for start in range(0, values.size, count):
            file.write(values[start : start + count].astype(written, copy=False).data)
            yield Progress(path.stem, start, values.size)


def file_name(text: str) -> str:
    """The name of a volume as one that a case can have."""
    kept = "".join("_" if c in FORBIDDEN_IN_NAMES or not c.isprintable() else c for c in text)
    while "--" in kept:
        kept = kept.replace("--", "-")
    kept = kept.strip(" .").encode()[:_NAME_BYTES].decode(errors="ignore").strip(" .") or _("volume")
    return f"_{kept}" if is_reserved(kept) else kept


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
