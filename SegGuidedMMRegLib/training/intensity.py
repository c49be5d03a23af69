"""Random changes of grey values within one modality: gamma, contrast, brightness, blur, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth


@dataclass(frozen=True)
class IntensityAugmentation:
    """How far grey values are changed.

    Attributes:
        gamma: largest exponent; its inverse is the smallest.
        contrast: largest change of slope, as a share.
        brightness: largest offset, in units of the intensity range.
        noise: largest standard deviation of white noise.
        blur_sigma: of the blur that some images are partly mixed with, in voxels.
        probability: of blur and of noise, each for itself.
    """

    gamma: float = 1.5
    contrast: float = 0.25
    brightness: float = 0.1
    noise: float = 0.06
    blur_sigma: float = 1.0
    probability: float = 0.4

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """`image` [N, C, *shape] in [0, 1], changed image by image; values may leave [0, 1] a little."""
        ones = [1] * (image.dim() - 1)

        def uniform(low: float, high: float) -> Tensor:
            drawn = torch.rand(len(image), generator=generator, device=image.device)
            return (low + (high - low) * drawn).view(-1, *ones)

        def sometimes() -> Tensor:
            return (uniform(0, 1) < self.probability).float()

        blurred = gaussian_smooth(image, self.blur_sigma)
        image = torch.lerp(image, blurred, sometimes() * uniform(0, 1))
        image = image.clamp(1e-4, 1) ** torch.exp(uniform(-1, 1) * math.log(self.gamma))
        image = (image - 0.5) * uniform(1 - self.contrast, 1 + self.contrast) + 0.5
        image = image + uniform(-self.brightness, self.brightness)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        return image + noise * sometimes() * uniform(0, self.noise)
