"""Networks that translate images between two modalities, in 2D and 3D: those of CycleGAN.

After Zhu et al. (2017), as the paper uses them (B.3): ResNet generators with nine blocks and a 70x70
PatchGAN, both with instance normalisation. Images go in and come out with intensities in [0, 1].
"""

from __future__ import annotations

from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMALISATION = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class _ResidualBlock(nn.Module):
    """x + two 3-wide convolutions with reflected borders."""

    def __init__(self, dimension: int, channels: int) -> None:
        super().__init__()
        convolution, norm = _CONVOLUTION[dimension], _NORMALISATION[dimension]
        self.body = nn.Sequential(
            convolution(channels, channels, 3, padding=1, padding_mode="reflect"),
            norm(channels),
            nn.ReLU(inplace=True),
            convolution(channels, channels, 3, padding=1, padding_mode="reflect"),
            norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *shape] to the same shape."""
        return x + self.body(x)


class Generator(nn.Module):
    """An image of one modality in, one of the other out; G_ST or G_TS of the paper.

    Args:
        dimension: 2 or 3.
        filters: channels of the first layer (paper: 64), doubled at each of two halvings of the resolution.
        blocks: residual blocks at a quarter of the resolution (paper: 9).
    """

    def __init__(self, dimension: int, filters: int = 64, blocks: int = 9) -> None:
        super().__init__()
        convolution, transposed = _CONVOLUTION[dimension], _TRANSPOSED[dimension]
        norm = _NORMALISATION[dimension]

        def halve(channels: int) -> list[nn.Module]:
            down = convolution(channels, 2 * channels, 3, stride=2, padding=1)
            return [down, norm(2 * channels), nn.ReLU(inplace=True)]

        def double(channels: int) -> list[nn.Module]:
            up = transposed(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)
            return [up, norm(channels // 2), nn.ReLU(inplace=True)]

        self.body = nn.Sequential(
            convolution(1, filters, 7, padding=3, padding_mode="reflect"),
            norm(filters),
            nn.ReLU(inplace=True),
            *halve(filters),
            *halve(2 * filters),
            *[_ResidualBlock(dimension, 4 * filters) for _ in range(blocks)],
            *double(4 * filters),
            *double(2 * filters),
            convolution(filters, 1, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Translate [N, 1, *shape] with intensities in [0, 1]; sides of any length from 8."""
        translated = self.body(2 * images - 1)
        same_size = (slice(None), slice(None), *(slice(0, n) for n in images.shape[2:]))
        return (translated[same_size] + 1) / 2


class Discriminator(nn.Module):
    """PatchGAN: tells real images from translated ones, patch by patch; D_S or D_T of the paper.

    With three strided and unstrided layers after the first a patch is 70 voxels wide. Volumes too thin for
    that (below 24 voxels) get a layer fewer.

    Args:
        shape: sides of the images in voxels.
        filters: channels of the first layer (70x70 PatchGAN: 64).
    """

    def __init__(self, shape: tuple[int, ...], filters: int = 64) -> None:
        super().__init__()
        layers = 3 if min(shape) >= 24 else 2
        self.body = PatchDiscriminator(
            spatial_dims=len(shape), channels=filters, in_channels=1, num_layers_d=layers, norm="INSTANCE"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1, *shape] to a score a patch, [N, 1, *patches]: near 1 for real, 0 for translated."""
        return self.body(2 * images - 1)[-1]


def _initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), biases 0 (Zhu et al., 2017)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
