"""The probability maps of a study's images: each image is segmented once, for every pair that needs it.

They are kept in `models/cache/probabilities`, a file a case, as half floats on the study grid.
"""

from __future__ import annotations

from safetensors.torch import load_file, save_file
from torch import Tensor

from SegGuidedMMRegLib import provenance
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.inference import Sample, Segmenter
from SegGuidedMMRegLib.study import Study


class SegmentedStudy:
    """Probability maps of the cases of a study, made once and kept while the networks stay the same."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.segmenter = Segmenter(study)
        self._networks = [
            provenance.digest_of(study.stage_folder(stage) / "weights.safetensors")
            for stage in ("segmentation", "adaptation")
        ]
        self._folder = study.folder / "models" / "cache" / "probabilities"

    def probabilities(self, sample: Sample) -> Tensor:
        """What `Segmenter.probabilities` gives for this sample."""
        if sample.case is None:
            return self.segmenter.probabilities(sample)
        path = self._folder / f"{sample.case.modality}--{sample.case.name}.safetensors"
        key = self._key(sample)
        if path.is_file():
            kept = load_file(path)
            if key in kept:
                return kept[key].float()
        found = self.segmenter.probabilities(sample)
        with atomic_path(path) as temporary:
            save_file({key: found.half()}, temporary)
        return found.half().float()

    def _key(self, sample: Sample) -> str:
        image = sample.image
        return provenance.digest_of(
            self._networks,
            str(image.grid),
            image.array.tobytes(),
            sample.study_to_case.round(9).tolist(),
            str(self.study.grid),
        )
