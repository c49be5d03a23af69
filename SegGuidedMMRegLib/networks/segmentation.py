"""Segmentation networks: MONAI's residual U-Net, at full resolution (paper, B.2) or strided, in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from SegGuidedMMRegLib.config import SegmentationConfig
from SegGuidedMMRegLib.documents import read_yaml
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.networks.weights import DESCRIPTION_FILE, load_network


class SegmentationNetwork(nn.Module):
    """Image [N, 1, *shape] with values in [0, 1] to logits [N, 1 + structures, *shape], for any shape.

    `fragment_limits` is not used here: it is for those who clean what it predicts (`fragments.py`).

    Source: Kerfoot et al., Left-ventricle quantification using residual U-Net, STACOM 2018.
    """

    def __init__(self, dimension: int, structures: int, config: SegmentationConfig) -> None:
        super().__init__()
        self.fragment_limits: tuple[float, ...] = (0.0,) * structures
        self.multiple = math.prod(config.strides)
        self.unet = UNet(
            spatial_dims=dimension,
            in_channels=1,
            out_channels=1 + structures,
            channels=config.channels,
            strides=config.strides,
            num_res_units=config.residual_units,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits on the grid of `image`, which is continued by its border up to what the strides divide."""
        missing = [-n % self.multiple for n in image.shape[2:]]
        if not any(missing):
            return self.unet(image)
        pad = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
        logits = self.unet(F.pad(image, pad, mode="replicate"))
        inner = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, image.shape[2:], strict=True))
        return logits[(..., *inner)]

    @torch.no_grad()
    def shift_logits(self, shift: Tensor) -> None:
        """Add a number to the logits of each class, [1 + structures], from now on."""
        bias = [value for name, value in self.unet.named_parameters() if name.endswith("bias")][-1]
        bias.add_(shift.to(bias))


def build_segmentation_network(
    dimension: int, structures: int, config: SegmentationConfig
) -> SegmentationNetwork:
    """An untrained network for `structures` structures and background.

    Raises:
        ValueError: if the settings do not fit together.
    """
    if dimension not in (2, 3):
        raise ValueError(f"A segmentation network is for 2 or 3 dimensions, got {dimension}.")
    if structures < 1:
        raise ValueError(f"A segmentation network needs at least one structure, got {structures}.")
    if len(config.channels) < 2 or len(config.strides) != len(config.channels) - 1:
        raise ValueError(
            f"segmentation.strides needs one entry less than segmentation.channels (at least two), got "
            f"{len(config.strides)} and {len(config.channels)}."
        )
    return SegmentationNetwork(dimension, structures, config)


def describe_network(
    folder: Path,
    dimension: int,
    structures: list[str],
    config: SegmentationConfig,
    *,
    fragment_limits: Sequence[float],
    uncertainty: float = 0.0,
) -> None:
    """Write beside the weights in `folder` what `load_segmentation_network` needs to build the network.

    `uncertainty` is for `read_uncertainty`: 1 - Dice of its predictions under small changes of the image.
    """
    record = {
        "dimension": dimension,
        "structures": list(structures),
        "segmentation": config.model_dump(mode="json"),
        "fragment_limits": [round(limit, 6) for limit in fragment_limits],
        "uncertainty": round(uncertainty, 4),
    }
    write_text_atomically(folder / DESCRIPTION_FILE, yaml.safe_dump(record, sort_keys=False))


def load_segmentation_network(
    folder: Path, *, dimension: int | None = None, structures: Sequence[str] | None = None
) -> SegmentationNetwork:
    """The trained network of the stage folder `folder`, on the CPU, ready for inference.

    Args:
        folder: of the stage.
        dimension, structures: what the study has; None accepts any.

    Raises:
        ValueError: if the folder holds no trained network, one that does not fit its description, or one that
            was trained for other structures or another order of them.
    """
    path = folder / DESCRIPTION_FILE
    try:
        record = read_yaml(path)
        config = SegmentationConfig.model_validate(record["segmentation"])
        names = [str(name) for name in record["structures"]]
        known = (record["dimension"], names)
        limits = [float(limit) for limit in record["fragment_limits"]]
        if len(limits) != len(names):
            raise ValueError(f"{len(limits)} fragment_limits for {len(names)} structures")
    except KeyError as error:
        raise _of_another_version(path, error) from None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{path}: no trained network here ({error}). Train this stage first.") from None
    _check_known(path, known, (dimension or known[0], names if structures is None else list(structures)))
    network = load_network(
        lambda: build_segmentation_network(known[0], len(names), config), folder / "weights.safetensors"
    )
    network.fragment_limits = tuple(limits)
    return network


def read_uncertainty(folder: Path) -> float:
    """What `describe_network` wrote into the stage folder `folder`: 0 (certain, or not measured) to 1.

    Raises:
        ValueError: if it cannot be read.
    """
    path = folder / DESCRIPTION_FILE
    try:
        return min(max(float(read_yaml(path)["uncertainty"]), 0.0), 1.0)
    except KeyError as error:
        raise _of_another_version(path, error) from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Train this stage again.") from None


def _of_another_version(path: Path, missing: KeyError) -> ValueError:
    return ValueError(
        f"{path} lacks {missing}: it is of another version of this program. Train this stage again."
    )


def _check_known(path: Path, known: tuple[int, list[str]], asked: tuple[int, list[str]]) -> None:
    if known != asked:
        spoken = [f"{', '.join(names)} in {dimension}D" for dimension, names in (known, asked)]
        raise ValueError(
            f"{path}: the network was trained for {spoken[0]}, the study has {spoken[1]}. Run `segmmreg "
            "train`, or give the structures back their names and order."
        )
