"""Registering images of one modality with a trained two-stage GradICON network (paper, 3.2 and B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from SegGuidedMMRegLib.config import Config
from SegGuidedMMRegLib.deformation import lncc, resize_field, warp
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.networks.registration import (
    RegistrationNetwork,
    add_second_stage,
    both_ways,
    build_registration_network,
    gradient_inverse_consistency,
)
from SegGuidedMMRegLib.training.augmentation.resolution import shrink, shrunk_shape
from SegGuidedMMRegLib.training.data import checksum
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit, seed_of


@dataclass(frozen=True)
class GradiconRegistration:
    """A trained network as a method of augmentation."""

    network: RegistrationNetwork

    @torch.no_grad()
    def displacement(self, moving: Tensor, fixed: Tensor, _generator: torch.Generator) -> Tensor:
        """Displacements [N, d, *shape] in voxels, fixed to moving, of pairs of images [N, 1, *shape]."""
        working = self.network.shape
        found = self.network(shrink(moving, working), shrink(fixed, working))
        return resize_field(found, tuple(moving.shape[2:]))


class GradiconTraining(TrainableStage):
    """One stage of its training: LNCC both ways and gradient inverse consistency on random pairs."""

    def __init__(self, network: RegistrationNetwork, images: Tensor, config: Config) -> None:
        super().__init__()
        settings = config.augmentation
        self._images = images
        self._settings = settings
        self.networks = {"network": network}
        self.optimizers = {"network": torch.optim.Adam(network.parameters(), lr=settings.learning_rate)}
        self.settings = {
            **settings.model_dump(mode="json"),
            "images": [*images.shape, checksum(images)],
        }
        self.memory_remedy = (
            f"augmentation.batch_size (now {settings.batch_size}) or raise "
            f"augmentation.working_downsampling (now {settings.working_downsampling})"
        )

    def training_step(self, run: Run) -> dict[str, Tensor]:
        drawn = torch.rand((2, self._settings.batch_size), generator=run.generator, device=run.device)
        moving, fixed = self._images[(drawn * len(self._images)).long()]
        there, back = both_ways(run.networks["network"], moving, fixed)
        warped, targets = torch.cat([warp(moving, there), warp(fixed, back)]), torch.cat([fixed, moving])
        similarity = lncc(warped, targets, self._settings.lncc_sigma).mean()
        consistency = gradient_inverse_consistency(there, back)
        loss = 2 * (1 - similarity) + self._settings.smoothness * consistency
        run.update(loss)
        return {"loss": loss, "lncc": similarity, "inverse_consistency": consistency}


def train_gradicon(
    images: Tensor, config: Config, folder: Path, reporter: Reporter, name: str
) -> GradiconRegistration:
    """Train on pairs of `images` [N, 1, *shape], first the one-stage network, then both stages together."""
    settings = config.augmentation
    shape = tuple(images.shape[2:])
    working = shrunk_shape(shape, settings.working_downsampling)
    small = torch.cat([shrink(image[None], working) for image in images])
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(config.training.seed, name, "first weights"))
        network = build_registration_network(len(shape), 1, working, stages=1)
        for stage in (1, 2):
            if stage == 2:
                network = add_second_stage(network)
            fit(
                GradiconTraining(network, small, config),
                name=f"{name} stage {stage}",
                steps=settings.steps_per_stage,
                folder=folder / f"stage{stage}",
                config=config.training,
                reporter=reporter,
            )
    return GradiconRegistration(network)
