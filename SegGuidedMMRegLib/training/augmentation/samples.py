"""Labelled samples made from others, in memory and as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from SegGuidedMMRegLib.documents import parse_json
from SegGuidedMMRegLib.files import atomic_path

SAMPLES_FILE = "samples.safetensors"


@dataclass(frozen=True)
class AugmentedSamples:
    """Labelled images that were warped to look like others, images and labels alike.

    Attributes:
        images: [M, 1, *shape] float32 in [0, 1].
        labels: [M, *shape] uint8 class indices; `.long()` what is drawn from them.
        moving: names of the labelled cases that they were made from.
        fixed: names of the cases that those were registered to; empty texts where there was none.
        dropped: how many were made and dropped, by reason.
        displacements: of some of the samples, for pictures: by row of `images` the map [d, *shape] in voxels,
            float16, that made it.
    """

    images: Tensor
    labels: Tensor
    moving: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    displacements: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def none(shape: tuple[int, ...]) -> AugmentedSamples:
        """No samples on a grid of `shape`."""
        return AugmentedSamples(torch.empty(0, 1, *shape), torch.empty(0, *shape, dtype=torch.uint8))

    def save(self, folder: Path) -> None:
        """Write `samples.safetensors` into `folder`."""
        about = {"moving": self.moving, "fixed": self.fixed, "dropped": self.dropped}
        tensors = {
            "images": self.images.detach().cpu().contiguous(),
            "labels": self.labels.detach().cpu().contiguous(),
        }
        if self.displacements:
            tensors["displacements"] = torch.stack(list(self.displacements.values())).contiguous()
            tensors["displaced_rows"] = torch.tensor(list(self.displacements))
        with atomic_path(folder / SAMPLES_FILE) as path:
            save_file(tensors, path, metadata={"about": json.dumps(about)})

    @staticmethod
    def load(folder: Path) -> AugmentedSamples:
        """Read what `save` wrote.

        Raises:
            ValueError: if there is nothing, or it is damaged.
        """
        path = folder / SAMPLES_FILE
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = parse_json(file.metadata()["about"], str(path))
                images, labels = file.get_tensor("images"), file.get_tensor("labels")
            names = (tuple(about["moving"]), tuple(about["fixed"]))
            return AugmentedSamples(images, labels, *names, about["dropped"])  # pictures alone need the maps
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no readable samples ({error}). Run the augmentation again.") from None
