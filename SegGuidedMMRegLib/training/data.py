"""What training learns from: images of a study and labels meant for training, as tensors in study space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.images import Image, normalised_study_image, resample, smooth_for_grid
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.study import Case, TrainingView
from SegGuidedMMRegLib.study_file import resolve_inside


@dataclass(frozen=True)
class StudyTensors:
    """Images and labels of a study on its grid.

    Attributes:
        grid: the study grid; `grid.axis_spacing` is in mm, in the order of the tensors' spatial axes.
        structures: names of the label classes; class index c is `structures[c - 1]`, 0 is background.
        source_names: names of the source training cases.
        source_images: [N, 1, *shape] float32 in [0, 1], in the order of `source_names`.
        source_labels: by row of `source_images`, [*shape] int64 class indices; only rows that have labels.
        target_names, target_images: the target training cases, [M, 1, *shape].
        validation_names, validation_images, validation_labels: source validation cases that have labels,
            [V, 1, *shape] and [V, *shape]; V may be 0.
    """

    grid: Grid
    structures: tuple[str, ...]
    source_names: tuple[str, ...]
    source_images: Tensor
    source_labels: dict[int, Tensor]
    target_names: tuple[str, ...]
    target_images: Tensor
    validation_names: tuple[str, ...]
    validation_images: Tensor
    validation_labels: Tensor

    @staticmethod
    def load(
        view: TrainingView,
        device: torch.device | str = "cpu",
        reporter: Reporter | None = None,
        digests: FileDigests | None = None,
    ) -> StudyTensors:
        """Read what training may see of a study and bring it to study space; kept in `models/cache`.

        Raises:
            ValueError: if no source image has labels for training, or an image cannot be read.
        """
        source, target = view.source_cases, view.target_cases
        validation = view.validation_labelled_cases
        if not view.labelled_cases:
            raise ValueError(
                f"{view.folder}: no training image of {view.source!r} has labels. Add label files for some "
                "of its training cases."
            )
        cases = len(source) + len(target) + len(validation)
        reader = _Reader(view, reporter or Reporter(), digests or FileDigests.of_study(view.folder), cases)
        source_images = reader.images(source)
        source_labels = {row: reader.labels(case) for row, case in enumerate(source) if case.label}
        target_images, validation_images = reader.images(target), reader.images(validation)
        validation_labels = [reader.labels(case) for case in validation]
        reader.forget_unused()
        shape = view.grid.shape
        tensors = StudyTensors(
            grid=view.grid,
            structures=tuple(structure.name for structure in view.structures),
            source_names=_names(source),
            source_images=source_images,
            source_labels=source_labels,
            target_names=_names(target),
            target_images=target_images,
            validation_names=_names(validation),
            validation_images=validation_images,
            validation_labels=torch.stack(validation_labels) if validation else torch.empty(0, *shape).long(),
        )
        return tensors.to(device)

    @property
    def classes(self) -> int:
        """Number of classes: background and structures."""
        return 1 + len(self.structures)

    @property
    def labelled_rows(self) -> list[int]:
        """Rows of `source_images` that have labels."""
        return sorted(self.source_labels)

    @property
    def unlabelled_rows(self) -> list[int]:
        """Rows of `source_images` without labels."""
        return [row for row in range(len(self.source_images)) if row not in self.source_labels]

    @property
    def labelled_images(self) -> Tensor:
        """[L, 1, *shape], in the order of `labelled_rows`."""
        return self.source_images[self.labelled_rows]

    @property
    def labelled_labels(self) -> Tensor:
        """[L, *shape] int64, in the order of `labelled_rows`."""
        return torch.stack([self.source_labels[row] for row in self.labelled_rows])

    def to(self, device: torch.device | str) -> StudyTensors:
        """The same on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved["source_labels"] = {row: labels.to(device) for row, labels in self.source_labels.items()}
        return replace(self, **moved)


def checksum(rows: Tensor) -> float:
    """The sum of all values, to notice that data are others: without a copy of them all in double precision.

    Row by row and on the CPU, because not every device has numbers of double precision (MPS).
    """
    return float(sum(float(row.cpu().double().sum()) for row in rows))


def study_labels(
    indices: NDArray[Any], image_grid: Grid, grid: Grid, study_to_case: ArrayLike, classes: int
) -> NDArray[np.int64]:
    """A label map in study space: each class as a smooth membership, resampled linearly; the largest wins.

    Args:
        indices: class indices below `classes` on `image_grid`.
        image_grid: of the label map.
        grid: the study grid.
        study_to_case: 4x4 from study LPS mm to the label map's LPS mm.
        classes: number of classes, background included.

    Returns:
        shape `grid.shape`, class indices; background outside the label map.
    """
    matrix = np.asarray(study_to_case, dtype=float)
    best = np.full(grid.shape, 0.0, dtype=np.float32)
    background = np.ones(grid.shape, dtype=np.float32)
    winner = np.zeros(grid.shape, dtype=np.int64)
    for index in np.unique(indices):
        if not 0 < index < classes:
            continue
        mask = Image((indices == index).astype(np.float32), image_grid)
        share = resample(smooth_for_grid(mask, grid, matrix), grid, matrix).array
        background -= share
        winner[share > best] = index
        best = np.maximum(best, share)
    winner[background > best] = 0
    return winner


def _names(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(case.name for case in cases)


class _Reader:
    """Reads cases into study space, or takes them from the cache if file, affine and grid are the same."""

    def __init__(self, view: TrainingView, reporter: Reporter, digests: FileDigests, cases: int) -> None:
        self._view = view
        self._reporter = reporter
        self._digests = digests
        self._cases = cases
        self._read = 0
        self._folder = view.folder / "models" / "cache"
        self._used: set[Path] = set()
        reporter.started("reading", cases)

    def images(self, cases: Sequence[Case]) -> Tensor:
        """[N, 1, *shape] float32."""
        out = np.zeros((len(cases), 1, *self._view.grid.shape), dtype=np.float32)
        for row, case in enumerate(cases):
            out[row, 0] = self._image(case)
            self._read += 1
            self._reporter.progress("reading", self._read, self._cases)
        return torch.from_numpy(out)

    def labels(self, case: Case) -> Tensor:
        """[*shape] int64."""
        view, affine = self._view, self._view.study_to_case(case)
        classes = 1 + len(view.structures)

        def compute() -> NDArray[Any]:
            labels = view.labels(case)
            return study_labels(labels.array, labels.grid, view.grid, affine, classes).astype(np.uint16)

        values = [structure.value for structure in view.structures]
        cached = self._cached(self._key(str(case.label), affine, f"labels {values}"), compute)
        return torch.from_numpy(cached.astype(np.int64))

    def forget_unused(self) -> None:
        """Remove what no case of the study needs any more."""
        for path in self._folder.glob("*.npy"):
            if path not in self._used:
                path.unlink(missing_ok=True)

    def _image(self, case: Case) -> NDArray[Any]:
        view, affine = self._view, self._view.study_to_case(case)
        return self._cached(
            self._key(case.image, affine, "image"),
            lambda: normalised_study_image(view.image(case), view.grid, affine),
        )

    def _key(self, file: str, affine: FloatArray, kind: str) -> str:
        what = (kind, repr(self._view.grid), np.round(affine, 9).tolist())
        return digest_of(what, self._digests(resolve_inside(self._view.folder, file)))[:32]

    def _cached(self, key: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        path = self._folder / f"{key}.npy"
        self._used.add(path)
        if path.exists():
            try:
                return np.load(path, allow_pickle=False)
            except (OSError, ValueError):
                path.unlink()  # damaged: made again below
        array = compute()
        with atomic_path(path) as temporary:
            np.save(temporary, array)
        return array
