"""`segmmreg jacobian`: how a transform changes volume, as an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter


@dataclass(frozen=True)
class Jacobian(Command):
    """Write how a transform changes volume: the smallest Jacobian determinant around each voxel.

    1 keeps the volume, 2 doubles it; where it is not above 0, space folds. The affine part of the transform,
    which changes all volumes alike, is left out.

    Example: segmmreg jacobian forward.h5 change.nrrd
    """

    transform: Annotated[Positional[Path], arg(metavar="TRANSFORM")]
    """forward.h5, inverse.h5, or the same as .tfm, .nrrd, .nii.gz, .mha."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Image to write, on the grid of the transform: .nrrd, .nii.gz, .mha."""
    overwrite: bool = False
    """Replace the image if it exists."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.folds import corner_jacobians_minimum
        from SegGuidedMMRegLib.images import Image, write_image
        from SegGuidedMMRegLib.new_files import refuse_existing
        from SegGuidedMMRegLib.transform_files import read_transform

        refuse_existing(self.out, self.overwrite)
        field = read_transform(self.transform).field
        values = corner_jacobians_minimum(field)
        write_image(Image(values, field.grid), self.out)
        folded = int((values <= 0).sum())
        reporter.log(
            f"{self.out}: {values.min():.3f} to {values.max():.3f}, {folded} of {values.size} voxels fold"
        )
        return Done({"file": self.out, "folded": folded, "smallest": float(values.min())})
