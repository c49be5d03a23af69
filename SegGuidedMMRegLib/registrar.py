"""Registration of a pair by its segmentations, between the two images' own physical spaces.

`Registrar` turns two probability maps, as `Segmenter` gives them, into a pair of transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.fields import DisplacementField, SpatialTransform, field_from_study
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.inversion import pair_transforms
from SegGuidedMMRegLib.networks.registration import RegistrationNetwork, load_registration_network
from SegGuidedMMRegLib.networks.segmentation import read_uncertainty
from SegGuidedMMRegLib.out_of_memory import memory_remedy
from SegGuidedMMRegLib.pair_points import MatchedPoints
from SegGuidedMMRegLib.points import MatchedLandmarks
from SegGuidedMMRegLib.refinement import PairResult, register_batch
from SegGuidedMMRegLib.samples import AnyImage, Sample
from SegGuidedMMRegLib.segmenter import (
    MEMORY_REMEDY,
    Segmenter,
    label_probabilities,
    on_cpu,
    on_study_grid,
    trained_folder,
)
from SegGuidedMMRegLib.space import FloatArray, Grid, apply_affine
from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.training.devices import device_of
from SegGuidedMMRegLib.transform_files import write_transform

_ERROR = 2.0
"""How many times further predictions are from the truth than they change under small changes of their image.
Measured, as 1 - Dice: 2.4 for drawn knees, 2 in 3D, 4 for radiographs, 2.5 for spines, 4 for prostates."""

_LITTLE = 0.5
"""Share of the way below which a pair comes with a warning."""

_PAIRS_AT_ONCE = {True: {2: 8, 3: 1}, False: {2: 16, 3: 4}}
"""By device (CPU or not) and dimension. On a CPU, eight pictures take half the time of one after the other,
small ones a fifth; volumes gain nothing."""


@dataclass(frozen=True)
class Registration:
    """What registering a pair gives.

    Attributes:
        forward: fixed points to moving points, on the fixed grid.
        inverse: moving points to fixed points, on the moving grid.
        prealignment_lps: 4x4, fixed points to moving points by the pre-alignment alone.
        warnings: in words, such as a structure that only one image shows.
        problems: why the result must not be used, if anything.
    """

    forward: SpatialTransform
    inverse: SpatialTransform
    prealignment_lps: FloatArray
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def save(self, folder: Path | str, suffixes: Sequence[str] = (".h5",)) -> None:
        """Write `forward` and `inverse` into a folder, each whole or not at all, a file a suffix.

        Raises:
            TransformFileError: for a suffix that is none of a transform.
        """
        for name, transform in (("forward", self.forward), ("inverse", self.inverse)):
            for suffix in suffixes:
                write_transform(transform, Path(folder) / f"{name}{suffix}")


@dataclass(frozen=True)
class PairTask:
    """A pair to register.

    Attributes:
        moving, fixed: the images.
        moving_map, fixed_map: as `Segmenter.probabilities` gives them, or [1 + structures, *study shape].
        landmarks: that shall come to lie on each other, if any.
        given: which of the two maps is a segmentation of a person: moving, fixed.
    """

    moving: Sample
    fixed: Sample
    moving_map: Tensor
    fixed_map: Tensor
    landmarks: MatchedLandmarks | None = None
    given: tuple[bool, bool] = (False, False)


class Registrar:
    """The registration network of a study, and the refinement of a pair.

    Raises:
        NotTrainedError: if the stage is not trained yet.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._config = study.config.registration
        self._device = device_of(study.config.training)
        self._network: RegistrationNetwork | None = None
        self._segmenter: Segmenter | None = None
        if self._config.steps > 0:
            folder = trained_folder(study, "registration")
            network = load_registration_network(folder)
            if (network.dimension, network.channels) != (study.dimension, 1 + len(study.structures)):
                raise StudyError(
                    f"{folder}: the network was trained for {network.channels - 1} structures in "
                    f"{network.dimension}D, the study has {len(study.structures)} in {study.dimension}D. Run "
                    f"`segmmreg train {study.folder}`."
                )
            self._network = network.to(self._device)
        self._uncertainty = 0.0
        if self._config.cautious:
            self._uncertainty = _ERROR * read_uncertainty(trained_folder(study, "adaptation"))

    def register(
        self,
        moving: Sample,
        fixed: Sample,
        moving_map: Tensor,
        fixed_map: Tensor,
        *,
        landmarks: MatchedLandmarks | None = None,
        given: tuple[bool, bool] = (False, False),
        spacing_mm: float | None = None,
        reporter: Reporter | None = None,
    ) -> Registration:
        """Register a pair by its segmentations (paper, 3.4), refine it, and bring it into physical space.

        T = A_moving · A_pair · φ · A_fixed⁻¹, where the A of an image is its pre-alignment, A_pair an affine
        fit of the two segmentations, and φ the exponential of a velocity field.

        Args:
            moving, fixed: the two images. moving_map, fixed_map: probabilities [1 + structures, *study
            shape], or padded as `Segmenter` gives them.
            landmarks: that shall come to lie on each other; they count beside the segmentations.
            given: as in `PairTask`.
            spacing_mm: of the delivered fields; None for that of the images.
            reporter: hears about the steps of the refinement.
        """
        task = PairTask(moving, fixed, moving_map, fixed_map, landmarks, given)
        return self.delivered(task, self.solve([task], reporter)[0], spacing_mm=spacing_mm)

    def register_images(
        self,
        moving: AnyImage,
        fixed: AnyImage,
        *,
        moving_labels: Image | Path | str | None = None,
        fixed_labels: Image | Path | str | None = None,
        landmarks: MatchedLandmarks | None = None,
        spacing_mm: float | None = None,
        reporter: Reporter | None = None,
    ) -> Registration:
        """Segment two images, or take the segmentations that are given, and register them.

        Args:
            moving, fixed: cases of the study, files, or images in memory (`Sample.of`). Files and images in
                memory are of the source modality where they move, and of the target modality where they
                stay; a `Sample` says something else.
            moving_labels, fixed_labels: structure values in the space of the image, or a file of them.
            landmarks, spacing_mm, reporter: as for `register`.

        Raises:
            ValueError: naming the image or the segmentation, if it cannot be used.
        """
        sides = (
            Sample.of(self._study, moving, self._study.source),
            Sample.of(self._study, fixed, self._study.target),
        )
        given = (moving_labels, fixed_labels)
        moving_map, fixed_map = (self._map(side, labels) for side, labels in zip(sides, given, strict=True))
        return self.register(
            *sides,
            moving_map,
            fixed_map,
            landmarks=landmarks,
            given=(moving_labels is not None, fixed_labels is not None),
            spacing_mm=spacing_mm,
            reporter=reporter,
        )

    def _map(self, sample: Sample, labels: Image | Path | str | None) -> Tensor:
        if labels is None:
            self._segmenter = self._segmenter or Segmenter(self._study)
            return self._segmenter.probabilities(sample)
        if not isinstance(labels, Image):
            labels = read_matching_labels(Path(labels), sample.image, self._study.structures)
        return label_probabilities(self._study, sample, labels)

    def solve(self, tasks: Sequence[PairTask], reporter: Reporter | None = None) -> list[PairResult]:
        """Register pairs together, on the study grid.

        What becomes of a pair does not depend on those beside it, but for rounding: their number changes the
        order in which numbers are added. Multiples of four were found to give the same, bit for bit.

        Args:
            tasks: the pairs; one with landmarks is a batch of its own.
            reporter: hears about the steps of the refinement.
        """
        grid = self._study.require_grid()

        def stacked(tensors: Iterable[Tensor]) -> Tensor:
            return torch.stack(list(tensors)).to(self._device)

        with memory_remedy(f"registering {_spoken(tasks)}", MEMORY_REMEDY):
            return register_batch(
                stacked(on_study_grid(t.moving_map, grid) for t in tasks),
                stacked(on_study_grid(t.fixed_map, grid) for t in tasks),
                self._network,
                self._config,
                spacing_mm=grid.axis_spacing,
                moving_inside=stacked(_inside(t.moving, grid) for t in tasks),
                fixed_inside=stacked(_inside(t.fixed, grid) for t in tasks),
                points=_points(tasks[0], grid) if len(tasks) == 1 else None,
                uncertainty=[self._uncertainty_of(task) for task in tasks],
                reporter=reporter,
            )

    def delivered(self, task: PairTask, pair: PairResult, *, spacing_mm: float | None = None) -> Registration:
        """A pair as `solve` gives it, in physical space; `spacing_mm` as in `register`."""
        grid, moving, fixed = self._study.require_grid(), task.moving, task.fixed
        with memory_remedy(f"registering {_spoken([task])}", MEMORY_REMEDY):
            forward, inverse = pair_transforms(
                _field(pair.displacement, grid),
                _field(pair.inverse_displacement, grid),
                fixed.study_to_case,
                moving.study_to_case @ pair.affine_lps,
                fixed.image.grid,
                moving.image.grid,
                spacing_mm=spacing_mm,
            )
        names = [s.name for s in self._study.structures]
        absent = [names[channel - 1] for channel in pair.diagnostics.absent]
        warnings = [f"took no part, one image lacks it: {', '.join(absent)}"] if absent else []
        if (followed := pair.diagnostics.followed) < _LITTLE:
            warnings.append(
                f"followed only {followed:.0%} of the way from the pre-alignment, as the predicted "
                "segmentations are uncertain: correct them, or set landmarks"
            )
        points = _points(task, grid)
        if task.landmarks is not None and points is not None:
            warnings += self._landmark_warnings(task.landmarks, len(points))
        problems = (pair.diagnostics.failure,) if pair.diagnostics.failure else ()
        prealignment = moving.study_to_case @ np.linalg.inv(fixed.study_to_case)
        return Registration(forward, inverse, prealignment, tuple(warnings), problems)

    def _uncertainty_of(self, task: PairTask) -> float:
        """1 - Dice to be expected of target predictions; 0 where people say what is where."""
        if task.landmarks is not None:
            return 0.0
        sides = zip((task.moving, task.fixed), task.given, strict=True)
        predicted = sum(side.modality == self._study.target and not given for side, given in sides)
        return math.sqrt(predicted) * self._uncertainty

    def _landmark_warnings(self, landmarks: MatchedLandmarks, used: int) -> list[str]:
        found = []
        if landmarks.unmatched:
            found.append(f"landmarks that only one image has: {', '.join(landmarks.unmatched)}")
        if used < len(landmarks.names):
            found.append(f"{len(landmarks.names) - used} landmarks lie outside the study grid: took no part")
        if not (self._config.affine or self._config.refinement_steps) or self._config.landmark_weight == 0:
            found.append(
                "landmarks took no part: registration.affine and refinement_steps, or the weight, are 0"
            )
        return found


def pairs_at_once(study: Study) -> int:
    """How many pairs `Registrar.solve` is best given at a time."""
    return _PAIRS_AT_ONCE[on_cpu(study)][study.dimension]


def _spoken(tasks: Sequence[PairTask]) -> str:
    first = f"{tasks[0].moving.name} to {tasks[0].fixed.name}"
    return first if len(tasks) == 1 else f"{len(tasks)} pairs at once ({first}, ...)"


def _points(task: PairTask, grid: Grid) -> MatchedPoints | None:
    """The landmarks of a pair in study space."""
    if task.landmarks is None:
        return None
    return MatchedPoints.of_pair(
        apply_affine(np.linalg.inv(task.moving.study_to_case), task.landmarks.moving_lps_mm),
        apply_affine(np.linalg.inv(task.fixed.study_to_case), task.landmarks.fixed_lps_mm),
        grid,
    )


def _inside(sample: Sample, grid: Grid) -> Tensor:
    """Which study voxels the image covers, bool [*study shape]."""
    voxels = sample.image.grid.points_to_voxels(
        grid.points() @ sample.study_to_case[:3, :3].T + sample.study_to_case[:3, 3]
    )
    last = np.asarray(sample.image.grid.size) - 0.5
    d = grid.dimension
    return torch.from_numpy(np.all((voxels >= -0.5) & (voxels <= last), axis=-1, where=np.arange(3) < d))


def _field(displacement: Tensor, grid: Grid) -> DisplacementField:
    return field_from_study(displacement.cpu().numpy(), grid)
