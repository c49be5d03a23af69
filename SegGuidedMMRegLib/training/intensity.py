"""Random changes of grey values within one modality.

Images of one modality differ in brightness and shading more than a few labelled ones show: they borrow the
histograms of the unlabelled, and get smooth shading, gamma, contrast, brightness, blur and noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from SegGuidedMMRegLib.deformation import gaussian_smooth
from SegGuidedMMRegLib.training.appearance import bias_field, match_histogram


@dataclass(frozen=True)
class IntensityAugmentation:
    """How far grey values are changed.

    Attributes:
        references: quantile tables [R, Q] of images of the modality (`appearance.quantile_table`), whose
            histograms are borrowed; None for none.
        shading: deviation of the logarithm of a smooth bias field, about.
        gamma: largest exponent; its inverse is the smallest.
        contrast: largest change of slope, as a share.
        brightness: largest offset, in units of the intensity range.
        noise: largest standard deviation of white noise.
        blur_sigma: of the blur that some images are partly mixed with, in voxels.
        probability: of a borrowed histogram, of blur and of noise, each for itself.
    """

    references: Tensor | None = None
    shading: float = 0.3
    gamma: float = 1.5
    contrast: float = 0.25
    brightness: float = 0.1
    noise: float = 0.06
    blur_sigma: float = 1.0
    probability: float = 0.5

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """`image` [N, C, *shape] in [0, 1], changed image by image; values may leave [0, 1] a little."""
        ones = [1] * (image.dim() - 1)

        def uniform(low: float, high: float) -> Tensor:
            drawn = torch.rand(len(image), generator=generator, device=image.device)
            return (low + (high - low) * drawn).view(-1, *ones)

        def sometimes() -> Tensor:
            return (uniform(0, 1) < self.probability).float()

        if self.references is not None:
            drawn = torch.rand(len(image), generator=generator, device=image.device)
            rows = (drawn * len(self.references)).long()
            image = torch.lerp(image, match_histogram(image, self.references[rows]), sometimes())
        image = image * bias_field(image, self.shading, generator)
        blurred = gaussian_smooth(image, self.blur_sigma)
        image = torch.lerp(image, blurred, sometimes() * uniform(0, 1))
        image = image.clamp(1e-4, 1) ** torch.exp(uniform(-1, 1) * math.log(self.gamma))
        image = (image - 0.5) * uniform(1 - self.contrast, 1 + self.contrast) + 0.5
        image = image + uniform(-self.brightness, self.brightness)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        return image + noise * sometimes() * uniform(0, self.noise)
