"""`segmmreg apply`: images, label maps and points moved by a transform file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.displacement import SpatialTransform
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.space import Grid

_SUSPICIOUS = 0.5
_POINTS = (".csv", ".fcsv", ".json")


@dataclass(frozen=True)
class Apply(Command):
    """Move images, label maps or points with a transform file.

    A file maps points of the fixed image to points of the moving image. So forward.h5 resamples the MOVING
    image onto the fixed one (--reference FIXED), and takes POINTS of the FIXED image to the moving one.
    Points of the moving image go to the fixed one with inverse.h5, which also resamples the fixed image onto
    the moving one.

    Examples: segmmreg apply forward.h5 moving.nrrd --reference fixed.nrrd --out warped.nrrd;
    segmmreg apply inverse.h5 moving_points.mrk.json --out in_fixed.mrk.json
    """

    transform: Annotated[Positional[Path], arg(metavar="TRANSFORM")]
    """forward.h5, inverse.h5, or the same as .tfm, .nrrd, .nii.gz, .mha."""
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES")]
    """Images, label maps (.seg.nrrd, or any with --labels), or points (.csv, .fcsv, .mrk.json)."""
    out: Path
    """File for one result; folder for several."""
    reference: Path | None = None
    """Image on whose grid the results lie (needed for images and label maps)."""
    labels: bool = False
    """All images are label maps: nearest neighbour."""
    interpolation: Literal["linear", "nearest", "bspline"] = "linear"
    """For images."""
    outside: float | None = None
    """Value where the image does not reach; without it 0, or the image's least value if below (air in CT)."""
    overwrite: bool = False
    """Replace results that exist."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.images import read_image
        from SegGuidedMMRegLib.new_files import new_files
        from SegGuidedMMRegLib.transform_files import read_transform

        outputs = self._outputs()
        grid = None if self.reference is None else read_image(self.reference).grid
        transform = read_transform(self.transform, reference=grid)
        folder = outputs[0].parent
        with new_files(folder, outputs, overwrite=self.overwrite):
            for path, out in reporter.each("apply", list(zip(self.files, outputs, strict=True))):
                if _is_points(path):
                    note = _move_points(transform, path, out)
                else:
                    note = self._move_image(transform, path, out, grid)
                reporter.log(f"{out}{note}")
        return Done({"files": outputs})

    def _outputs(self) -> list[Path]:
        if not self.files:
            raise ValueError("Name at least one image, label map or points file.")
        if len(self.files) == 1 and self.out.suffix and not self.out.is_dir():
            outputs = [self.out]
        else:
            outputs = [self.out / path.name for path in self.files]
        if len(set(outputs)) < len(outputs):
            raise ValueError(
                "Two of the files have the same name: move them in two calls, with two --out folders."
            )
        return outputs

    def _move_image(self, transform: SpatialTransform, path: Path, out: Path, grid: Grid | None) -> str:
        import numpy as np

        from SegGuidedMMRegLib.images import Segment, read_image, read_labels, write_image, write_labels
        from SegGuidedMMRegLib.sampling import value_outside

        if grid is None:
            raise ValueError(f"{path}: give --reference, the image on whose grid the result shall lie.")
        if not (self.labels or path.name.lower().endswith(".seg.nrrd")):
            image = read_image(path)
            note = _fit(transform, grid, image.grid, path)
            outside = value_outside(image) if self.outside is None else self.outside
            write_image(transform.warp_image(image, grid, self.interpolation, outside), out)
            return note
        labels = read_labels(path)
        note = _fit(transform, grid, labels.grid, path)
        values = [int(v) for v in np.unique(labels.array) if v > 0]
        named = {s.value: s for s in labels.segments}
        grey = (128, 128, 128)
        segments = labels.segments or tuple(
            Segment(v, f"structure {v}", grey) for v in values if v not in named
        )
        write_labels(transform.warp_labels(labels, grid), segments, out)
        return note


def _fit(transform: SpatialTransform, fixed: Grid, moving: Grid, path: Path) -> str:
    """What to say of a transform that looks as if it were of another image; "" where all is well.

    Raises:
        ValueError: if nothing of the image would be seen.
    """
    from SegGuidedMMRegLib.transform_fit import share_inside, share_of_field

    inside, known = share_inside(transform, fixed, moving), share_of_field(transform, fixed)
    if inside == 0:
        raise ValueError(
            f"{path}: the transform takes no voxel of the reference into this image, nothing of it would be "
            "seen. Give the image that the transform was made for, or the transform of the other direction "
            "(forward.h5 for the moving image, inverse.h5 for the fixed one)."
        )
    notes = []
    if inside < _SUSPICIOUS:
        notes.append(f"only {inside:.0%} of the reference lies in the image")
    if known < _SUSPICIOUS:
        notes.append(f"the transform's field covers only {known:.0%} of the reference")
    if not notes:
        return ""
    return f" ({'; '.join(notes)}: are image, reference and transform of the same pair?)"


def _is_points(path: Path) -> bool:
    return path.name.lower().endswith(_POINTS)


def _move_points(transform: SpatialTransform, path: Path, out: Path) -> str:
    from SegGuidedMMRegLib.points import read_points, write_points

    points = read_points(path)
    moved = replace(points, points_lps_mm=transform.transform_points(points.points_lps_mm))
    write_points(moved, out)
    outside = int((~transform.field.grid.contains(points.points_lps_mm, margin_voxels=-0.5)).sum())
    if not outside:
        return ""
    of = len(points.points_lps_mm)
    return f" ({outside} of {of} points lie outside the transform's grid: only its affine part moved them)"
