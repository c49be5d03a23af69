"""Inverse-consistent registration networks: the one place that knows icon_registration.

The network of GradICON (Tian et al., CVPR 2023; paper, 3.2 and 3.4) is a chain of U-Nets. Its first stage
works at a quarter, at half and at full resolution, each U-Net on the moving image as warped so far; the
second stage adds one more at full resolution. Icon_registration counts displacements in parts of the image's
extent and returns maps as Python functions; here they are tensors in voxels, and nothing else of that package
(its training loop, its losses, its device chosen at import) is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from SegGuidedMMRegLib.deformation import compose
from SegGuidedMMRegLib.documents import read_yaml
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.networks.weights import DESCRIPTION_FILE, load_network
from SegGuidedMMRegLib.space import LARGEST_GRID

SMALLEST_AXIS = 8
"""Voxels an axis must have, so that a quarter of it is still an axis."""

_DOWN = (16, 32, 64, 256, 512)
_UP = (16, 32, 64, 128, 256)


class RegistrationNetwork(nn.Module):
    """Maps a pair of images to the displacement between them. Made by `build_registration_network`.

    Attributes:
        dimension: 2 or 3.
        channels: channels of each of the two images.
        shape: the spatial shape that the network was made for; it is bound to it.
    """

    def __init__(self, core: Any, dimension: int, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.core = core
        self.dimension = dimension
        self.channels = channels
        self.shape = shape

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement u of phi(p) = p + u(p), fixed to moving, so that moving(phi(p)) resembles fixed(p).

        Args:
            moving: [N, channels, *shape].
            fixed: the same shape.

        Returns:
            [N, dimension, *shape], in voxels, channel c along array axis c.

        Raises:
            ValueError: for another number of channels or another shape than the network was made for.
        """
        for role, image in (("moving", moving), ("fixed", fixed)):
            if tuple(image.shape[1:]) != (self.channels, *self.shape):
                raise ValueError(
                    f"The registration network was made for {self.channels} channels on {self.shape}, but "
                    f"the {role} image has {image.shape[1]} on {tuple(image.shape[2:])}. Resample it or "
                    "train again."
                )
        phi = self.core(moving, fixed)
        identity = self.core.identity_map.expand(moving.shape[0], *self.core.identity_map.shape[1:])
        last_voxel = torch.tensor(self.shape, dtype=identity.dtype, device=identity.device) - 1
        displacement: Tensor = phi(identity) - identity
        return displacement * last_voxel.view(1, -1, *(1,) * self.dimension)


def both_ways(
    network: Callable[[Tensor, Tensor], Tensor], moving: Tensor, fixed: Tensor
) -> tuple[Tensor, Tensor]:
    """(displacement of Phi[moving, fixed], that of Phi[fixed, moving]) in one pass, [N, d, *shape] each.

    One batch holds both orders, so that batch normalisation sees the same statistics for each.
    """
    displacement = network(torch.cat([moving, fixed]), torch.cat([fixed, moving]))
    return displacement[: len(moving)], displacement[len(moving) :]


def build_registration_network(
    dimension: int, channels: int, shape: Sequence[int], stages: int = 1
) -> RegistrationNetwork:
    """The untrained network of GradICON; it starts as the identity map.

    Args:
        dimension: 2 or 3.
        channels: channels of each image: 1 for intensities, 1 + structures for probabilities.
        shape: spatial shape of the images in voxels.
        stages: 1 (paper, B.4) or 2 (paper, B.2).

    Raises:
        ValueError: for a dimension, a shape or a number of stages that cannot be.
    """
    # Imported here: the package pulls matplotlib and its whole training code in.
    from icon_registration import network_wrappers as wrappers

    size = tuple(int(n) for n in shape)
    if dimension not in (2, 3) or len(size) != dimension:
        raise ValueError(
            f"A registration network is for 2 or 3 axes, got dimension {dimension}, shape {size}."
        )
    if min(size) < SMALLEST_AXIS:
        raise ValueError(f"A registration network needs {SMALLEST_AXIS} voxels an axis, got shape {size}.")
    if math.prod(size) > LARGEST_GRID:
        raise ValueError(f"A registration network for {size} voxels is more than {LARGEST_GRID} voxels.")
    if channels < 1 or stages not in (1, 2):
        raise ValueError(f"Expected at least 1 channel and 1 or 2 stages, got {channels} and {stages}.")

    def unet(factor: int) -> Any:
        return wrappers.FunctionFromVectorField(_unet(dimension, channels, -(-min(size) // factor)))

    core = unet(4)
    for factor in (2, 1):
        core = wrappers.TwoStepRegistration(wrappers.DownsampleRegistration(core, dimension), unet(factor))
    if stages == 2:
        core = wrappers.TwoStepRegistration(core, unet(1))
    core.assign_identity_map([1, channels, *size])
    return RegistrationNetwork(core, dimension, channels, size)


def describe_registration_network(folder: Path, network: RegistrationNetwork) -> None:
    """Write beside the weights in `folder` what `load_registration_network` needs to build the network."""
    record = {
        "dimension": network.dimension,
        "channels": network.channels,
        "shape": list(network.shape),
    }
    write_text_atomically(folder / DESCRIPTION_FILE, yaml.safe_dump(record, sort_keys=False))


def load_registration_network(folder: Path) -> RegistrationNetwork:
    """The trained one-stage network of the stage folder `folder`, on the CPU, ready for inference.

    Raises:
        ValueError: if the folder holds no trained network, or one that does not fit its description.
    """
    path = folder / DESCRIPTION_FILE
    try:
        record = read_yaml(path)
        parts = int(record["dimension"]), int(record["channels"]), [int(n) for n in record["shape"]]
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{path}: no trained network here ({error}). Train this stage first.") from None
    return load_network(lambda: build_registration_network(*parts), folder / "weights.safetensors")


def add_second_stage(network: RegistrationNetwork) -> RegistrationNetwork:
    """The two-stage network whose first stage is `network`, its weights copied (paper, B.2)."""
    grown = build_registration_network(network.dimension, network.channels, network.shape, stages=2)
    grown.core.netPhi.load_state_dict(network.core.state_dict())
    return grown.to(next(network.parameters()).device)


def gradient_inverse_consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """The regulariser of GradICON, ||grad(Phi_forward o Phi_backward - id)||^2 (paper, Eq. 4), a scalar.

    The gradient is taken by differences between neighbouring voxels, in voxels a voxel (on a grid of equal
    sides that is the package's part of extent a part of extent). As in GradICON, the squares are added over
    the directions and averaged over components, voxels and samples, so λ keeps its meaning.

    Args:
        forward: displacement of Phi[moving, fixed], [N, d, *shape] in voxels.
        backward: displacement of Phi[fixed, moving], the same shape.
    """
    error = compose(forward, backward)
    terms = [(error.diff(dim=axis) ** 2).mean() for axis in range(2, error.dim())]
    return torch.stack(terms).sum()


def _unet(dimension: int, channels: int, shortest_axis: int) -> Any:
    """The U-Net of GradICON (`tallUNet2`), with fewer than its five levels for a small image."""
    from icon_registration.networks import UNet2

    levels = 1
    while levels < len(_UP) and shortest_axis > 2**levels:
        levels += 1
    return UNet2(levels, [[2 * channels, *_DOWN[:levels]], list(_UP[:levels])], dimension)
