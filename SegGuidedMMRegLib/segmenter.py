"""Segmentation by the trained networks of a study, in an image's own physical space.

`Segmenter` gives the probabilities of the structures on the study grid and label maps on the image's own
grid. An image of the study and one from outside are treated alike (`samples.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.fragments import without_fragments
from SegGuidedMMRegLib.images import Image, normalised_study_image, resample
from SegGuidedMMRegLib.locks import holders
from SegGuidedMMRegLib.networks.segmentation import SegmentationNetwork, load_segmentation_network
from SegGuidedMMRegLib.out_of_memory import memory_remedy
from SegGuidedMMRegLib.samples import AnyImage, Sample
from SegGuidedMMRegLib.space import Grid, apply_affine
from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.training.devices import device_of

WITHOUT_ADAPTATION = "segmentation"
"""Stage whose network knows the source modality alone."""

MEMORY_REMEDY = (
    "Set training.device=cpu (`segmmreg train STUDY --set training.device=cpu`) if it was a GPU, close other "
    "programs, or choose a coarser study grid (`segmmreg new --grid-spacing`)."
)

_PADDING_STEP, _LARGEST_PADDING = 16, {2: 64, 3: 16}
"""Voxels by which the study grid grows on each side to cover an image that sticks out of it."""


class NotTrainedError(StudyError):
    """A stage is asked for that has not been trained yet."""

    error_code = ErrorCode.NOT_TRAINED


class Segmenter:
    """The two segmentation networks of a study.

    Args:
        study: a trained one.
        adapted: use the adapted network for the target modality; False gives the source network for both, to
            see what adaptation gains.

    Raises:
        NotTrainedError: if a stage is not trained yet.
    """

    def __init__(self, study: Study, *, adapted: bool = True) -> None:
        self._study = study
        self._device = device_of(study.config.training)
        source = target = self._network(WITHOUT_ADAPTATION)
        if adapted:
            target = self._network("adaptation")
        self._networks: dict[str, SegmentationNetwork] = {study.source: source, study.target: target}

    def segment(self, image: AnyImage, modality: str | None = None) -> Image:
        """Structure values on the image's own grid: `probabilities` and `labels` in one.

        Args:
            image: a case of the study, a file, or an image in memory (`Sample.of`).
            modality: name of its modality; not needed for a case.

        Raises:
            ValueError: naming the image or the modality, if it cannot be used.
        """
        sample = Sample.of(self._study, image, modality)
        return self.labels(sample, self.probabilities(sample))

    def _network(self, stage: str) -> SegmentationNetwork:
        study = self._study
        names = [structure.name for structure in study.structures]
        folder = trained_folder(study, stage)
        network = load_segmentation_network(folder, dimension=study.dimension, structures=names)
        return network.to(self._device)

    @torch.inference_mode()
    def probabilities(self, sample: Sample) -> Tensor:
        """Probabilities [1 + structures, *shape], background first, float32 on the CPU, without fragments.

        On the study grid, padded alike on all sides where the image sticks out of it; `on_study_grid` takes
        the padding off. What lies on the study grid does not depend on the padding: the network normalises by
        the whole of what it sees, so the padding is predicted in a pass of its own.
        """
        grid = self._study.require_grid()
        covering = _covering(grid, sample)
        found = self._predicted(sample, grid)
        if covering == grid:
            return found
        around = self._predicted(sample, covering)
        on_study_grid(around, grid).copy_(found)
        return around

    def _predicted(self, sample: Sample, grid: Grid) -> Tensor:
        with memory_remedy(f"segmenting {sample.name}", MEMORY_REMEDY):
            array = normalised_study_image(sample.image, grid, sample.study_to_case)
            network = self._networks[sample.modality]
            logits = network(torch.from_numpy(array)[None, None].to(self._device))
            found = torch.softmax(logits.float(), dim=1)[0].cpu().numpy()
        return torch.from_numpy(without_fragments(found, network.fragment_limits))

    def labels(self, sample: Sample, probabilities: Tensor) -> Image:
        """Structure values on the image's own grid, the most probable structure of each voxel."""
        values = [0, *(structure.value for structure in self._study.structures)]
        best = np.full(sample.image.grid.shape, -1.0, dtype=np.float32)
        labels = np.zeros(sample.image.grid.shape, dtype=np.uint16)
        for value, share in zip(values, self.on_own_grid(sample, probabilities), strict=True):
            better = share.array > best
            best[better] = share.array[better]
            labels[better] = value
        return Image(labels, sample.image.grid)

    def on_own_grid(self, sample: Sample, probabilities: Tensor) -> Iterator[Image]:
        """Each channel of `probabilities`, background first, on the image's own grid."""
        study_grid = self._study.require_grid()
        grid = study_grid.padded(_padding(probabilities, study_grid))
        case_to_study = np.linalg.inv(sample.study_to_case)
        for channel, values in enumerate(probabilities.numpy()):
            outside = 1.0 if channel == 0 else 0.0
            yield resample(Image(values, grid), sample.image.grid, case_to_study, outside=outside)


def on_study_grid(probabilities: Tensor, grid: Grid) -> Tensor:
    """What `Segmenter.probabilities` gives, [1 + structures, *padded shape], without its padding."""
    padding = _padding(probabilities, grid)
    inner = (slice(padding, -padding) if padding else slice(None),) * grid.dimension
    return probabilities[(slice(None), *inner)]


def _padding(probabilities: Tensor, grid: Grid) -> int:
    return (probabilities.shape[1] - grid.shape[0]) // 2


def _covering(grid: Grid, sample: Sample) -> Grid:
    """The study grid with as much padding as the corners of the image need, within limits."""
    last = np.asarray(sample.image.grid.size) - 1
    corners = np.stack(np.meshgrid(*[(0, n) for n in last]), axis=-1).reshape(-1, 3)
    case_to_study = np.linalg.inv(sample.study_to_case)
    voxels = grid.points_to_voxels(apply_affine(case_to_study, sample.image.grid.voxels_to_points(corners)))
    beyond = np.maximum(-voxels, voxels - (np.asarray(grid.size) - 1))[:, : grid.dimension].max()
    steps = int(np.ceil(max(beyond, 0.0) / _PADDING_STEP))
    return grid.padded(min(steps * _PADDING_STEP, _LARGEST_PADDING[grid.dimension]))


def label_probabilities(study: Study, sample: Sample, labels: Image) -> Tensor:
    """A given segmentation as probabilities [1 + structures, *study shape] on the study grid.

    Args:
        study: knows the structures and the grid.
        sample: the image that the labels belong to.
        labels: structure values, in the space of the image.

    Raises:
        StudyError: if it holds none of the structures.
    """
    grid = study.require_grid()
    channels = []
    for structure in study.structures:
        mask = Image((labels.array == structure.value).astype(np.float32), labels.grid)
        channels.append(np.clip(resample(mask, grid, sample.study_to_case).array, 0, 1))
    structures = np.stack(channels)
    if structures.max() == 0:
        known = ", ".join(f"{s.value} {s.name}" for s in study.structures)
        raise StudyError(
            f"The segmentation given for {sample.name!r} holds none of the structures ({known})."
        )
    background = np.clip(1 - structures.sum(0, keepdims=True), 0, 1)
    return torch.from_numpy(np.concatenate([background, structures]).astype(np.float32))


def on_cpu(study: Study) -> bool:
    """Whether the networks of a study run on the CPU."""
    return device_of(study.config.training).type == "cpu"


def trained_folder(study: Study, stage: str) -> Path:
    """Folder of a trained stage.

    Raises:
        NotTrainedError: if it is not trained yet.
    """
    folder = study.stage_folder(stage)
    if not (folder / "weights.safetensors").is_file():
        at_work = [holder for holder in holders(study.folder) if holder.kind == "train"]
        todo = f"wait for it: {at_work[0]}" if at_work else f"run `segmmreg train {study.folder}`"
        raise NotTrainedError(f"{study.folder}: the stage {stage!r} is not trained yet; {todo}.")
    return folder
