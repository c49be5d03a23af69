"""More labelled images from few, by registering the labelled ones to others (paper, 3.2, B.2).

A labelled source image is registered to another source image and warped onto it together with its labels. How
the pair is registered is one of the methods of this package (`augmentation.method`); what registered badly is
dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from SegGuidedMMRegLib.config import AugmentationConfig, Config
from SegGuidedMMRegLib.deformation import corner_jacobians, lncc, warp
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.training.augmentation.elastic import RandomElastic
from SegGuidedMMRegLib.training.augmentation.gradicon import train_gradicon
from SegGuidedMMRegLib.training.augmentation.resolution import shrink, shrunk_shape
from SegGuidedMMRegLib.training.augmentation.samples import SAMPLES_FILE, AugmentedSamples
from SegGuidedMMRegLib.training.augmentation.velocity import VelocityRegistration
from SegGuidedMMRegLib.training.batches import ImagesAtOnce, in_batches
from SegGuidedMMRegLib.training.checkpoints import CHECKPOINT_FILE, Checkpoints, fingerprint_of
from SegGuidedMMRegLib.training.data import StudyTensors, checksum
from SegGuidedMMRegLib.training.devices import by_first, device_of
from SegGuidedMMRegLib.training.loop import seed_of

__all__ = ["AugmentedSamples", "augment", "load_samples"]

NAME = "augmentation"
_VOXELS_AT_ONCE = 4_000_000
"""Of the study grid, in one batch of pairs: keeps memory in 3D below a few GB."""
_SHOWN = 4
"""Samples whose maps are kept for pictures, spread over all."""


class Method(Protocol):
    """How a labelled image is deformed."""

    def displacement(self, moving: Tensor, fixed: Tensor, generator: torch.Generator, /) -> Tensor:
        """Displacements [N, d, *shape] in voxels of the map from `fixed` to `moving`, [N, 1, *shape] each."""


def augment(tensors: StudyTensors, config: Config, folder: Path, reporter: Reporter) -> AugmentedSamples:
    """Make the augmented samples and write them into `folder` (`load_samples` reads them).

    Args:
        tensors: the study.
        config: `augmentation` and `training` are used.
        folder: of the stage.
        reporter: hears about progress, and how many samples were dropped and why.
    """
    settings = config.augmentation
    generator = torch.Generator().manual_seed(seed_of(config.training.seed, NAME, "pairs"))
    pairs = [] if settings.method == "none" else choose_pairs(tensors, settings.samples, generator)
    if not pairs:
        by_first(lambda: _deliver(AugmentedSamples.none(tensors.grid.shape), 0, settings, folder, reporter))
        return AugmentedSamples.load(folder)
    tensors = tensors.to(device_of(config.training))
    method = _METHODS[settings.method](tensors, config, folder, reporter)

    def make() -> None:
        samples = _make(tensors, pairs, method, config, folder=folder, reporter=reporter)
        _deliver(samples, len(pairs), settings, folder, reporter)

    by_first(make)
    return AugmentedSamples.load(folder)


def _deliver(
    samples: AugmentedSamples, pairs: int, settings: AugmentationConfig, folder: Path, reporter: Reporter
) -> None:
    samples.save(folder)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    dropped = ", ".join(f"{count} {reason}" for reason, count in samples.dropped.items()) or "none"
    reporter.log(f"{NAME}: {len(samples.images)} of {pairs} samples kept; dropped: {dropped}.")
    if pairs and not len(samples.images):
        reporter.log(
            f"{NAME}: no pair registered well enough, training goes on without. Check the pre-alignment, or "
            f"lower augmentation.min_similarity (now {settings.min_similarity})."
        )
    reporter.result(NAME, kept=len(samples.images), made=pairs, dropped=samples.dropped)


def load_samples(folder: Path) -> AugmentedSamples | None:
    """The samples in the stage folder `folder`, or None if there are none.

    Raises:
        ValueError: if the file is damaged.
    """
    if not (folder / SAMPLES_FILE).exists():
        return None
    samples = AugmentedSamples.load(folder)
    return samples if len(samples.images) else None


def choose_pairs(tensors: StudyTensors, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Rows (labelled moving, fixed) of source images, `count` different ones at most; 0 for all there are.

    Fixed are the images without labels (paper, 3.2), or other labelled ones if all have labels. Every
    labelled image is used about equally often.
    """
    labelled = tensors.labelled_rows
    fixed = tensors.unlabelled_rows or labelled
    by_moving = []
    for m in labelled:
        others = [f for f in fixed if f != m]
        order = torch.randperm(len(others), generator=generator).tolist()
        by_moving.append([(m, others[i]) for i in order])
    longest = max((len(pairs) for pairs in by_moving), default=0)
    dealt = [pairs[i] for i in range(longest) for pairs in by_moving if i < len(pairs)]
    return dealt[: count or None]


def _make(
    tensors: StudyTensors,
    pairs: list[tuple[int, int]],
    method: Method,
    config: Config,
    *,
    folder: Path,
    reporter: Reporter,
) -> AugmentedSamples:
    """The samples, batch by batch; what an earlier run that was cut off has made is taken over."""
    settings = config.augmentation
    generator = torch.Generator(tensors.source_images.device)
    at_once = ImagesAtOnce.of(config.training.images_at_once)
    at_once.largest = pairs_at_once(settings, tensors.source_images[0].numel())
    checkpoints = Checkpoints(folder, _fingerprint(tensors, pairs, at_once.largest, config), config.training)
    done, images, labels, kept, dropped, shown = _taken_over(checkpoints.read(reporter.log))
    if done:
        reporter.log(f"{NAME}: continued after {done} of {len(pairs)} pairs.")
    reporter.started(NAME, len(pairs))

    def warped(batch: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor, Tensor, str | None]]:
        generator.manual_seed(seed_of(config.training.seed, NAME, "deformation", done))
        return _warped(tensors, batch, method, settings, generator)

    for batch, made in in_batches(pairs[done:], at_once, warped, name=NAME, log=reporter.log):
        for number, (pair, (image, label, displacement, fault)) in enumerate(
            zip(batch, made, strict=True), start=done
        ):
            if fault:
                dropped[fault] += 1
                continue
            if len(shown) <= number * _SHOWN // len(pairs):
                shown[len(kept)] = displacement.clone()  # not a view, which would be saved with its batch
            images.append(image)
            labels.append(label)
            kept.append(pair)
        done += len(batch)
        if done < len(pairs) and checkpoints.is_due():
            made_so_far = {"images": images, "labels": labels, "kept": kept, "shown": shown}
            checkpoints.write({"done": done, "dropped": dict(dropped), **made_so_far})
        reporter.progress(NAME, done, len(pairs), kept=len(kept))
    if not kept:
        return replace(AugmentedSamples.none(tensors.grid.shape), dropped=dict(dropped))
    has_fixed = settings.method != "elastic"
    return AugmentedSamples(
        images=torch.stack(images),
        labels=torch.stack(labels),
        moving=tuple(tensors.source_names[m] for m, _ in kept),
        fixed=tuple(tensors.source_names[f] if has_fixed else "" for _, f in kept),
        dropped=dict(dropped),
        displacements=shown,
    )


_Parts = tuple[int, list[Tensor], list[Tensor], list[tuple[int, int]], Counter[str], dict[int, Tensor]]
"""Pairs that are done, images, labels and pairs that were kept, how many were dropped, by reason, and maps of
some that were kept."""


def _taken_over(record: dict[str, Any] | None) -> _Parts:
    if record is None:
        return 0, [], [], [], Counter(), {}
    kept = [(int(m), int(f)) for m, f in record["kept"]]
    dropped, shown = Counter(record["dropped"]), record.get("shown", {})
    return record["done"], record["images"], record["labels"], kept, dropped, shown


def _fingerprint(tensors: StudyTensors, pairs: list[tuple[int, int]], size: int, config: Config) -> str:
    """Of all that decides what the samples are."""
    return fingerprint_of(
        {
            "name": NAME,
            "pairs": pairs,
            "size": size,
            "seed": config.training.seed,
            "settings": config.augmentation.model_dump(mode="json"),
            "classes": tensors.classes,
            "images": checksum(tensors.source_images),
            "labels": [checksum(tensors.source_labels[row]) for row in tensors.labelled_rows],
        },
        {},
    )


def pairs_at_once(settings: AugmentationConfig, voxels: int) -> int:
    """Pairs that are registered together, of images of so many voxels."""
    return max(1, min(settings.batch_size, _VOXELS_AT_ONCE // voxels))


def _warped(
    tensors: StudyTensors,
    batch: Sequence[tuple[int, int]],
    method: Method,
    settings: AugmentationConfig,
    generator: torch.Generator,
) -> list[tuple[Tensor, Tensor, Tensor, str | None]]:
    """Of each pair the warped image [1, *shape] and labels [*shape] uint8, on the CPU, its map, its fault."""
    moving = tensors.source_images[[m for m, _ in batch]]
    fixed = tensors.source_images[[f for _, f in batch]]
    displacement = method.displacement(moving, fixed, generator)
    warped = warp(moving, displacement, padding="zeros")
    faults = _faults(moving, fixed, warped, displacement, settings)
    labels = [
        warp_labels(tensors.source_labels[m], u, tensors.classes).to("cpu", torch.uint8)
        for (m, _), u in zip(batch, displacement, strict=True)
    ]
    return list(zip(warped.cpu(), labels, displacement.half().cpu(), faults, strict=True))


def warp_labels(labels: Tensor, displacement: Tensor, classes: int) -> Tensor:
    """Class indices [*shape] warped by a displacement [d, *shape] in voxels: [*shape] int64.

    Each class is warped linearly as a membership and the largest wins: smoother than the nearest voxel.
    """
    memberships = F.one_hot(labels.long(), classes).movedim(-1, 0).float()
    return warp(memberships[None], displacement[None], padding="zeros")[0].argmax(0)


def similarity(a: Tensor, b: Tensor, sigma_voxels: float) -> Tensor:
    """LNCC of images [N, 1, *shape] as a share of what `b` would reach with itself: [N], at most about 1.

    So flat background, which counts as 0 in LNCC, does not matter.
    """
    return lncc(a, b, sigma_voxels) / lncc(b, b, sigma_voxels).clamp(min=1e-6)


def _faults(
    moving: Tensor, fixed: Tensor, warped: Tensor, displacement: Tensor, settings: AugmentationConfig
) -> list[str | None]:
    """Why each sample is not used, None if it is."""
    folds = (corner_jacobians(displacement) <= 0).flatten(1).any(1).tolist()
    if settings.method == "elastic":
        return ["folded" if fold else None for fold in folds]
    working = shrunk_shape(tuple(moving.shape[2:]), settings.working_downsampling)
    small = [shrink(image, working) for image in (moving, fixed, warped)]
    before = similarity(small[0], small[1], settings.lncc_sigma).tolist()
    after = similarity(small[2], small[1], settings.lncc_sigma).tolist()
    return [
        "folded"
        if fold
        else "not more similar than before"
        if b >= a
        else "too dissimilar"
        if a < settings.min_similarity
        else None
        for fold, b, a in zip(folds, before, after, strict=True)
    ]


def _velocity(_tensors: StudyTensors, config: Config, _folder: Path, _reporter: Reporter) -> Method:
    settings = config.augmentation
    return VelocityRegistration(
        downsampling=settings.working_downsampling,
        iterations=settings.iterations,
        smoothness=settings.smoothness,
        lncc_sigma=settings.lncc_sigma,
        learning_rate=settings.learning_rate,
    )


def _gradicon(tensors: StudyTensors, config: Config, folder: Path, reporter: Reporter) -> Method:
    return train_gradicon(tensors.source_images, config, folder, reporter, f"{NAME} network")


def _elastic(_tensors: StudyTensors, config: Config, _folder: Path, _reporter: Reporter) -> Method:
    return RandomElastic(config.augmentation.elastic_control_points, config.augmentation.elastic_sigma)


_METHODS: dict[str, Callable[[StudyTensors, Config, Path, Reporter], Method]] = {
    "velocity": _velocity,
    "gradicon": _gradicon,
    "elastic": _elastic,
}
