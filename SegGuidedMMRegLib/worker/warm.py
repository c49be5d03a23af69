"""A study in memory: its networks, and the images that were asked for lately. Loaded anew when it changes.

What is kept depends on the files as they were read; an image file that was written again is read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import spacing_is_known
from SegGuidedMMRegLib.jobs import SegmentedStudy, spacing_note
from SegGuidedMMRegLib.registrar import Registrar
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import NotTrainedError
from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.study_file import resolve_inside
from SegGuidedMMRegLib.worker.requests import ImageRef

MEMORY_BYTES = 512 * 1024 * 1024
"""For images and their probability maps; the two of a pair are kept in any case."""

_WATCHED = ("study.yaml", "config.yaml", "models/prealign/affines.json", "models/prealign/alignments.json")
_Kept = TypeVar("_Kept")


class Recent(Generic[_Kept]):
    """The things that were asked for lately, as many as go into `limit_bytes`, two at least."""

    def __init__(self, limit_bytes: int, size_of: Callable[[_Kept], int]) -> None:
        self._limit, self._size_of = limit_bytes, size_of
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _Kept]) -> _Kept:
        """What is kept under `key`, made where it is not there."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > 2 and sum(map(self._size_of, self._kept.values())) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[key]


class _KeptMaps(SegmentedStudy):
    """Probability maps that are at hand without a file."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self._recent: Recent[tuple[Sample, Tensor]] = Recent(MEMORY_BYTES // 2, lambda kept: kept[1].nbytes)

    def probabilities(self, sample: Sample) -> Tensor:
        """As its parent's; maps of images from outside the study are not written to its folder.

        The same sample is the same object; kept beside its map, it stays so.
        """

        def make() -> tuple[Sample, Tensor]:
            if sample.case is None:
                return sample, self.segmenter.probabilities(sample)
            return sample, super(_KeptMaps, self).probabilities(sample)

        return self._recent.get(id(sample), make)[1]


class WarmStudy:
    """A study as it stood when it was opened, with all that was loaded since."""

    def __init__(self, folder: Path) -> None:
        self.state = state_of(folder)
        self.study = Study.open(folder)
        self._samples: Recent[Sample] = Recent(MEMORY_BYTES // 2, lambda sample: sample.image.array.nbytes)

    @cached_property
    def segmented(self) -> SegmentedStudy:
        """The segmentation networks.

        Raises:
            NotTrainedError: if a stage is not trained.
        """
        return _KeptMaps(self.study)

    @cached_property
    def registrar(self) -> Registrar:
        """The registration network.

        Raises:
            NotTrainedError: if it is not trained.
        """
        return Registrar(self.study)

    def networks(self) -> tuple[SegmentedStudy, Registrar]:
        """All of them.

        Raises:
            NotTrainedError: if a stage is not trained.
        """
        return self.segmented, self.registrar

    def is_trained(self) -> bool:
        """Whether all networks are there; loads them."""
        try:
            self.networks()
            return True
        except NotTrainedError:
            return False

    def sample(self, ref: ImageRef, reporter: Reporter) -> Sample:
        """The image that a request names.

        Raises:
            ValueError: naming the case or the file, if it cannot be used.
        """
        if ref.case is not None:
            case = self.study.case(ref.case)
            path = resolve_inside(self.study.folder, case.image)
            return self._samples.get((case, _stamp(path)), lambda: Sample.of_case(self.study, case))
        path, modality = Path(ref.file or ""), ref.modality or ""
        if not path.exists():
            raise StudyError(f"{path}: there is no such file.")

        def read() -> Sample:
            sample = Sample.of_file(self.study, path, modality, mirrored=ref.mirrored, spacing_mm=ref.spacing)
            if not (ref.spacing or spacing_is_known(path)):
                reporter.log(spacing_note(path))
            return sample

        return self._samples.get((path, modality, ref.mirrored, ref.spacing, _stamp(path)), read)


def state_of(folder: Path) -> Hashable:
    """Changes when the study or a network is written again."""
    trained = (*folder.glob("models/*/stage.json"), *folder.glob("models/*/weights.safetensors"))
    return tuple((path, _stamp(path)) for path in (*(folder / name for name in _WATCHED), *sorted(trained)))


def _stamp(path: Path) -> Hashable:
    """Changes when a file, or one of a folder of DICOM files, is written again; None where there is none."""
    try:
        if path.is_dir():
            return tuple(sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in path.iterdir()))
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size
