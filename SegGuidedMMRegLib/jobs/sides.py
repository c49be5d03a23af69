"""The images of pairs in memory: each prepared once, the most recent ones kept, in a bounded place.

What an image brings to its pairs has a digest (`Digests`), so that a pair is done again when, and only when,
something that it was made from has changed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
from SegGuidedMMRegLib.jobs.pairs import Pair, Side
from SegGuidedMMRegLib.pair_report import PairSide
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import label_probabilities
from SegGuidedMMRegLib.space import FloatArray
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.study_file import resolve_inside

MEMORY_BYTES = 256 * 1024 * 1024
"""For images and their maps, a process; the two of a pair are kept in any case."""


GIVEN = {"segmentations", "landmarks"}
"""Entries of what a pair was made from that are files which a person gave with it."""


@dataclass(frozen=True)
class Prepared:
    """An image ready to be registered.

    Attributes:
        sample: the image and its place.
        maps: probabilities, as `Segmenter.probabilities` gives them or made of a given segmentation.
        known: what the report is told.
        warnings: for the reports of its pairs.
        given_labels: the segmentation that was given for it, if any.
    """

    sample: Sample
    maps: Tensor
    known: PairSide
    warnings: tuple[str, ...]
    given_labels: Image | None = None

    @property
    def bytes(self) -> int:
        images = (self.sample.image, self.known.truth, self.known.prediction)
        return self.maps.nbytes + sum(i.array.nbytes for i in images if i is not None)


class Images:
    """Prepares images of pairs, and keeps the most recent ones."""

    def __init__(self, segmented: SegmentedStudy, limit_bytes: int = MEMORY_BYTES) -> None:
        self._study, self._segmented, self._limit = segmented.study, segmented, limit_bytes
        self._kept: OrderedDict[Side, Prepared] = OrderedDict()
        self._bytes = 0
        self._affines: dict[Side, FloatArray] = {}

    def __call__(self, side: Side) -> Prepared:
        """The image, from memory where it is there.

        Raises:
            ValueError: naming the file, if it cannot be used.
        """
        if side in self._kept:
            self._kept.move_to_end(side)
            return self._kept[side]
        prepared = self._prepare(side)
        self._kept[side] = prepared
        self._bytes += prepared.bytes
        while self._bytes > self._limit and len(self._kept) > 2:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return prepared

    def _prepare(self, side: Side) -> Prepared:
        sample, case = self._sample(side), side.case
        if side.labels is None:
            maps = self._segmented.probabilities(sample)
            labels = self._segmented.segmenter.labels(sample, maps)
        else:
            labels = read_matching_labels(side.labels, sample.image, self._study.structures)
            maps = label_probabilities(self._study, sample, labels)
        truth = self._study.read_evaluation_labels(case) if case is not None and case.label else None
        landmarks = self._study.read_landmarks(case) if case is not None and case.landmarks else None
        known = PairSide(
            sample.name, sample.modality, sample.image, truth, labels, landmarks, side.labels is not None
        )
        return Prepared(sample, maps, known, side.warnings, None if side.labels is None else labels)

    def _sample(self, side: Side) -> Sample:
        sample = sample_of(self._study, side, self._affines.get(side))
        if side.case is None:
            self._affines[side] = sample.study_to_case
        return sample


def sample_of(study: Study, side: Side, study_to_case: FloatArray | None = None) -> Sample:
    """The image of a side, read; `study_to_case` of an image file where it is known already.

    Raises:
        ValueError: naming the file, if it cannot be used.
    """
    if side.case is not None:
        return Sample.of_case(study, side.case)
    if side.path is None:
        raise ValueError(f"{side.name}: neither a case nor a file.")
    return Sample.of_file(
        study,
        side.path,
        side.modality,
        mirrored=side.mirrored,
        spacing_mm=side.spacing_mm,
        study_to_case=study_to_case,
    )


class Digests:
    """What a pair is made from, by a name for people; digests of files are taken once."""

    def __init__(self, study: Study, output: Any, networks: str) -> None:
        self._study = study
        self._images: dict[Side, str] = {}
        self._files = FileDigests.of_study(study.folder)
        config = study.config
        self._shared = {
            "networks": networks,
            "settings": _short(
                config.registration.model_dump(mode="json"),
                [{"value": s.value, "name": s.name, "color": s.color} for s in study.structures],
                str(study.grid),
            ),
            "output": _short(output.__dict__),
        }
        self._outside = _short(
            config.prealign.model_dump(mode="json"),
            *(
                self._files(study.stage_folder("prealign") / f"reference_{m}.nrrd")
                for m in (study.source, study.target)
            ),
        )

    def __call__(self, pair: Pair) -> dict[str, str]:
        """Of a pair.

        Raises:
            OSError: if a file is not there.
        """
        sides = pair.moving, pair.fixed
        found = {**self._shared, "moving": self.of_image(sides[0]), "fixed": self.of_image(sides[1])}
        if any(side.labels is not None for side in sides):
            found["segmentations"] = _short(*(side.labels and self._files(side.labels) for side in sides))
        if pair.landmarks is not None:
            found["landmarks"] = _short(*map(self._files, pair.landmarks))
        return found

    def of_image(self, side: Side) -> str:
        """Of one image, but for a segmentation that is given with it."""
        image = replace(side, labels=None)
        if image not in self._images:
            self._images[image] = self._made(image)
        return self._images[image]

    def _made(self, side: Side) -> str:
        case = side.case
        if case is None:
            said = (side.name, side.modality, side.mirrored, side.spacing_mm)
            return _short(self._outside, *said, self._content(side.path))
        files = [
            None if path is None else self._files(resolve_inside(self._study.folder, path))
            for path in (case.image, case.label, case.landmarks)
        ]
        place = np.round(self._study.study_to_case(case), 9).tolist()
        return _short(case.name, case.modality, case.mirrored, place, *files)

    def _content(self, path: Path | None) -> str | None:
        """Digest of a file, or of all files of a folder (a DICOM series)."""
        if path is None:
            return None
        if path.is_dir():
            return self._files.of_all(sorted(p for p in path.iterdir() if p.is_file()))
        return self._files(path)


def _short(*parts: Any) -> str:
    return digest_of(*parts)[:16]
