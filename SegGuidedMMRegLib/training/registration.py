"""The registration network on segmentations of both modalities (paper, 3.4, Eq. 4, B.4).

What it reads are probabilities of background and structures, one channel each: given labels where training
may see them, predictions elsewhere. Images of both modalities are moving and fixed in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from SegGuidedMMRegLib.config import Config, RegistrationConfig
from SegGuidedMMRegLib.deformation import identity_voxels, sample, soft_dice, warp
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.networks.registration import (
    SMALLEST_AXIS,
    both_ways,
    build_registration_network,
    describe_registration_network,
    gradient_inverse_consistency,
)
from SegGuidedMMRegLib.networks.segmentation import load_segmentation_network
from SegGuidedMMRegLib.pair_affine import shrink
from SegGuidedMMRegLib.training.data import StudyTensors, checksum
from SegGuidedMMRegLib.training.devices import by_first, device_of
from SegGuidedMMRegLib.training.loop import (
    FitResult,
    Run,
    TrainableStage,
    constant,
    fit,
    one_cycle,
    seed_of,
)
from SegGuidedMMRegLib.training.spatial import SpatialAugmentation

NAME = "registration"
_PRESENT = 0.5
_SMALLEST_MASS = 1.0


class SegmentationRegistration(TrainableStage):
    """Eq. 4 on random pairs of maps.

    Args:
        source: maps of the source modality, [N, 1 + structures, *working shape], background first.
        target: maps of the target modality, [M, 1 + structures, *working shape].
        spacing_mm: of the working grid, in the order of its axes.
        config: of this stage.
        network: to be trained.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        spacing_mm: tuple[float, ...],
        config: RegistrationConfig,
        network: nn.Module,
    ) -> None:
        super().__init__()
        self._config = config
        self._maps = torch.cat([source, target])
        self._counts = (len(source), len(target))
        self._perturbation = SpatialAugmentation(
            spacing_mm, rotation_degrees=10, scale=0.1, stretch=0.05, shift=0.05, elastic=0.1
        )
        self.networks = {"network": network}
        self.optimizers = {"network": torch.optim.Adam(network.parameters(), lr=config.learning_rate)}
        self.schedule = one_cycle if config.schedule == "one_cycle" else constant
        self.settings = {**_training_settings(config), "maps": _identity(self._maps)}
        self.memory_remedy = (
            f"registration.batch_size (now {config.batch_size}) or raise "
            f"registration.working_downsampling (now {config.working_downsampling})"
        )

    def training_step(self, run: Run) -> dict[str, Tensor]:
        moving, fixed = self._draw(run.generator)
        forward, backward = both_ways(run.networks["network"], moving, fixed)
        forward, backward = forward.float(), backward.float()
        unlike = registration_misfit(moving, fixed, forward, backward)
        inconsistency = gradient_inverse_consistency(forward, backward)
        loss = unlike + self._config.lambda_inverse_consistency * inconsistency
        run.update(loss)
        return {"loss": loss, "dice": 1 - unlike / 2, "inconsistency": inconsistency}

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Moving and fixed maps; each is of either modality with equal chances."""
        count = self._config.batch_size
        moving, fixed = (self._maps[self._rows(count, generator)] for _ in range(2))
        if not self._config.perturbed:
            return moving, fixed
        both = self._perturbed(torch.cat([moving, fixed]), generator)
        return both[:count], both[count:]

    def _rows(self, count: int, generator: torch.Generator) -> Tensor:
        sources, targets = self._counts
        drawn = torch.rand((2, count), generator=generator, device=generator.device)
        of_target = sources + (drawn[0] * targets).long()
        return torch.where(drawn[1] < 0.5, (drawn[0] * sources).long(), of_target)

    def _perturbed(self, maps: Tensor, generator: torch.Generator) -> Tensor:
        shape = tuple(maps.shape[2:])
        move = self._perturbation.displacement(len(maps), shape, generator)
        moved = sample(maps[:, 1:], identity_voxels(shape, maps.device) + move, padding="zeros")
        return torch.cat([(1 - moved.sum(1, keepdim=True)).clamp(0, 1), moved], dim=1)


def registration_misfit(moving: Tensor, fixed: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """1 - Dice(moving o Phi[moving, fixed], fixed) plus 1 - Dice(fixed o Phi[fixed, moving], moving).

    Dice is averaged over the structures, without the background; a structure that one of the two maps lacks
    is left out of that pair.

    Args:
        moving: probabilities [N, 1 + structures, *shape].
        fixed: the same shape.
        forward: displacement of Phi[moving, fixed], [N, d, *shape] in voxels.
        backward: that of Phi[fixed, moving].
    """
    moving, fixed = moving[:, 1:], fixed[:, 1:]
    present = _present(moving) & _present(fixed)
    dice = soft_dice(warp(moving, forward), fixed) + soft_dice(warp(fixed, backward), moving)
    return 2 - (dice * present).sum() / present.sum().clamp(min=1)


def train_registration(
    tensors: StudyTensors,
    config: Config,
    segmentation_folder: Path,
    adaptation_folder: Path,
    folder: Path,
    *,
    reporter: Reporter,
) -> FitResult | None:
    """Train the registration network and write it into `folder` (`load_registration_network` reads it).

    Args:
        tensors: the study, on any device.
        config: `registration` and `training` are used.
        segmentation_folder: of the trained source network.
        adaptation_folder: of the network adapted to the target modality.
        folder: of this stage.
        reporter: hears about progress.

    Returns:
        None if `registration.steps` is 0: then pairs are registered by refinement alone.
    """
    settings = config.registration
    if settings.steps == 0:
        reporter.log(
            "registration: no network (registration.steps is 0), pairs are refined from an affine fit."
        )
        return None
    device = device_of(config.training)
    shape = working_shape(tensors.grid.shape, settings.working_downsampling)
    source, target = segmentation_maps(tensors.to(device), segmentation_folder, adaptation_folder, shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(config.training.seed, NAME, "first weights"))
        network = build_registration_network(len(shape), tensors.classes, shape)
    spacing = tuple(
        (n - 1) * s / (m - 1)
        for n, s, m in zip(tensors.grid.shape, tensors.grid.axis_spacing, shape, strict=True)
    )
    stage = SegmentationRegistration(source, target, spacing, settings, network)
    by_first(lambda: describe_registration_network(folder, network))
    return fit(
        stage, name=NAME, steps=settings.steps, folder=folder, config=config.training, reporter=reporter
    )


def working_shape(shape: tuple[int, ...], downsampling: int) -> tuple[int, ...]:
    """`shape` shrunk by `downsampling`, but no axis below what the network needs.

    Raises:
        ValueError: if `shape` itself is too small.
    """
    if min(shape) < SMALLEST_AXIS:
        raise ValueError(
            f"The study grid {shape} has an axis below {SMALLEST_AXIS} voxels, too few for the registration "
            "network. Choose a finer grid, or set registration.steps to 0."
        )
    return tuple(max(SMALLEST_AXIS, -(-n // downsampling)) for n in shape)


@torch.no_grad()
def segmentation_maps(
    tensors: StudyTensors, segmentation_folder: Path, adaptation_folder: Path, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Maps of all training images: [N, classes, *shape] of the source, [M, classes, *shape] of the target."""
    device = tensors.source_images.device
    source = load_segmentation_network(segmentation_folder).to(device)
    target = load_segmentation_network(adaptation_folder).to(device)
    maps = [shrink(_predicted(source, image[None]), shape) for image in tensors.source_images]
    for row, labels in tensors.source_labels.items():
        given = nn.functional.one_hot(labels[None], tensors.classes).movedim(-1, 1).float()
        maps[row] = shrink(given, shape)
    predicted = [shrink(_predicted(target, image[None]), shape) for image in tensors.target_images]
    return torch.cat(maps), torch.cat(predicted)


def _predicted(network: nn.Module, image: Tensor) -> Tensor:
    probabilities: Tensor = torch.softmax(network(image).float(), dim=1)
    return probabilities


def _present(structures: Tensor) -> Tensor:
    """Which structures a map [N, K, *shape] holds with at least a voxel: [N, K]."""
    return (structures * (structures > _PRESENT)).flatten(2).sum(-1) >= _SMALLEST_MASS


def _training_settings(config: RegistrationConfig) -> dict[str, Any]:
    names = ("batch_size", "learning_rate", "schedule", "lambda_inverse_consistency", "perturbed")
    return {name: getattr(config, name) for name in names}


def _identity(maps: Tensor) -> list[Any]:
    """Enough to notice that a checkpoint was made with other maps."""
    return [list(maps.shape), checksum(maps), sum(checksum(rows**2) for rows in maps)]
