"""The probability maps of a study's images: each image is segmented once, for every pair that needs it.

They are kept in `models/cache/probabilities` as half floats on the study grid: a file a case, which a newer
one replaces, so that the cases of a study take a bounded place; a file an image from outside it, of which the
oldest go (`forget_outside_images`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from SegGuidedMMRegLib import provenance
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import Segmenter, trained_folder
from SegGuidedMMRegLib.study import Study

SEGMENTING_STAGES = ("segmentation", "adaptation")
OUTSIDE_BYTES = 2 * 1024**3
"""How much disk the maps of images from outside the study take at most, between two runs."""

_OUTSIDE = "outside--"


def maps_folder(study: Study) -> Path:
    """Where the maps lie."""
    return study.folder / "models" / "cache" / "probabilities"


def networks_digest(study: Study, stages: Iterable[str]) -> str:
    """Digest of the weights of trained stages.

    Raises:
        StudyError: if one is not trained yet.
    """
    return provenance.digest_of(*(trained_folder(study, stage) / "weights.safetensors" for stage in stages))


class SegmentedStudy:
    """Probability maps of images, made once and kept while the networks stay the same."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.segmenter = Segmenter(study)
        self._networks = networks_digest(study, SEGMENTING_STAGES)
        self._folder = maps_folder(study)

    def probabilities(self, sample: Sample) -> Tensor:
        """What `Segmenter.probabilities` gives for this sample."""
        key = self._key(sample)
        path = self._folder / self._file_name(sample, key)
        kept = _read(path, key)
        if kept is not None:
            return kept.float()
        found = self.segmenter.probabilities(sample).half()
        with atomic_path(path) as temporary:
            save_file({key: found}, temporary)
        return found.float()

    def _file_name(self, sample: Sample, key: str) -> str:
        if sample.case is None:
            return f"{_OUTSIDE}{key[:32]}.safetensors"
        return f"{sample.case.modality}--{sample.case.name}.safetensors"

    def _key(self, sample: Sample) -> str:
        image = sample.image
        return provenance.digest_of(
            self._networks,
            str(image.grid),
            image.array.tobytes(),
            sample.study_to_case.round(9).tolist(),
            str(self.study.grid),
        )


def forget_outside_images(study: Study, limit_bytes: int = OUTSIDE_BYTES) -> None:
    """Remove the oldest maps of images from outside the study until the rest takes `limit_bytes` at most."""
    found = []
    for path in maps_folder(study).glob(f"{_OUTSIDE}*.safetensors"):
        with suppress(FileNotFoundError):  # another process has removed it
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    taken = 0
    for _, size, path in sorted(found, reverse=True):
        taken += size
        if taken > limit_bytes:
            path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Tensor | None:
    """The map in a file; None if it is of something else, damaged, or not there."""
    try:
        return load_file(path).get(key)
    except (OSError, SafetensorError):
        return None
