"""Where an image lies in study space, from its header and its content, before anything is learned.

Each modality has a *reference*: the average of its aligned images, on a coarse copy of the study grid. An
image is registered to the reference of its own modality, where contrast is no riddle; only the reference
of the target modality is registered across to that of the source, by edges. So one hard registration is
made instead of hundreds, and on the clearest pictures there are.

The result is `study_to_case`, 4x4, study LPS mm to the image's physical LPS mm. It starts from the
patient's axes through the centre of the image: in 3D study axes are L, P, S; in 2D they are the axes of
the picture as it is looked at (axial: right is L, down is P; sagittal: P, I; coronal: L, I), projected
onto its plane. A mirrored image has the reflection of the study x axis in its matrix, and so a negative
determinant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from SegGuidedMMRegLib.config import PrealignConfig
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.training.affine_features import FeatureKind, Picture, resample_picture, shrink
from SegGuidedMMRegLib.training.affine_registration import (
    Fit,
    Level,
    Limits,
    moments_fit,
    register,
    scaling,
)

T = TypeVar("T")

REFERENCE_IMAGES = 12
"""An average of more images is hardly clearer."""

_KNOWN_SCALES = (0.4, 2.5)

# LPS directions of study x and y for a slice whose normal is nearest to x, y, z: how radiologists look at it.
_DISPLAY_AXES = {0: ((0, 1, 0), (0, 0, -1)), 1: ((1, 0, 0), (0, 0, -1)), 2: ((1, 0, 0), (0, 1, 0))}


@dataclass(frozen=True)
class Subject:
    """An image to align."""

    image: Image
    modality: str
    mirrored: bool = False


@dataclass(frozen=True)
class Coarse:
    """An image as it is looked at here: a few voxels of it, that take no memory.

    Attributes:
        picture: in study space by `base`.
        base: 4x4 from study space to the image, by its header alone.
    """

    picture: Picture
    base: FloatArray


@dataclass(frozen=True)
class Alignment:
    """How an image lies in study space.

    Attributes:
        study_to_case: 4x4, study LPS mm to the image's LPS mm.
        level: the richest family of maps that was believed.
        score: normalised correlation of features with the reference, -1 to 1, less what a large map costs.
        reason: why nothing richer was believed, else empty.
    """

    study_to_case: FloatArray
    level: Level
    score: float
    reason: str


# -- one image ----------------------------------------------------------------------------------------------
def base_frame(grid: Grid, mirrored: bool) -> FloatArray:
    """4x4 from study space to the image by its header alone: centre to centre, patient axes to axes.

    Args:
        grid: of the image.
        mirrored: reflects study x; the determinant is -1 then, else 1.
    """
    matrix = np.eye(4)
    matrix[:3, 3] = grid.centre_lps_mm
    if grid.dimension == 2:
        normal = grid.direction_matrix[:, 2]
        x, y = (np.asarray(a, float) for a in _DISPLAY_AXES[int(np.abs(normal).argmax())])
        x = _unit(x - normal * (normal @ x))
        y = _unit(y - normal * (normal @ y) - x * (x @ y))
        matrix[:3, :3] = np.stack([x, y, np.cross(x, y)], axis=1)
    if mirrored:
        matrix[:3, 0] *= -1
    return matrix


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)


def align_image(
    subject: Subject,
    reference: Picture | None,
    grid: Grid,
    config: PrealignConfig,
    *,
    affine: bool = True,
    kind: FeatureKind = "both",
) -> Alignment:
    """Align one image to a reference in study space.

    Args:
        subject: the image.
        reference: what to align it to; None uses the image's header alone.
        grid: the study grid.
        config: what is searched.
        affine: False ends with a similarity.
        kind: the features to compare by.
    """
    return align_coarse(coarse(subject, grid, config), reference, grid, config, affine=affine, kind=kind)


def coarse(subject: Subject, grid: Grid, config: PrealignConfig) -> Coarse:
    """What of an image is needed to align it."""
    base = base_frame(subject.image.grid, subject.mirrored)
    return Coarse(_picture(subject, base, _spacing(grid, config)), base)


def align_coarse(
    image: Coarse,
    reference: Picture | None,
    grid: Grid,
    config: PrealignConfig,
    *,
    affine: bool = True,
    kind: FeatureKind = "both",
) -> Alignment:
    """`align_image` for an image that is coarse already."""
    picture = image.picture
    scales = _scales(picture, grid)
    if reference is None or config.method == "none":
        fit = Fit(scaling(scales[0], grid.dimension), "centre", 0.0)
    elif config.method == "moments":
        fit = moments_fit(reference, picture, _limits(config), scales[0])
    else:
        limits = _limits(config)
        fits = [register(reference, picture, kind, limits, scale=s, affine=affine) for s in scales]
        fit = max(fits, key=lambda f: (f.level != "centre", f.score))
    return Alignment(image.base @ fit.matrix, fit.level, fit.score, fit.reason)


def _limits(config: PrealignConfig) -> Limits:
    return Limits(rotation_degrees=config.max_rotation_degrees)


def _spacing(grid: Grid, config: PrealignConfig) -> float:
    """Voxel size in mm: `working_size` voxels along the longest side in 2D, half as many in 3D."""
    size = config.working_size if grid.dimension == 2 else max(config.working_size // 2, 16)
    return max(grid.extent_mm[: grid.dimension]) / size


def _scales(picture: Picture, grid: Grid) -> tuple[float, ...]:
    """Scales to start from: 1, or first that of the fields of view where the sizes cannot both be in mm."""
    d = grid.dimension
    extent = np.abs(picture.grid.direction_matrix) @ np.asarray(picture.grid.extent_mm)
    ratio = float(np.prod(extent[:d] / np.asarray(grid.extent_mm)[:d]) ** (1 / d))
    low, high = _KNOWN_SCALES
    return (1.0,) if low <= ratio <= high else (ratio, 1.0)


def _picture(subject: Subject, base: FloatArray, spacing: float) -> Picture:
    """The image as seen in study space by `base`, with values in [0, 1] where it has any."""
    array = np.asarray(subject.image.array, np.float32)
    valid = np.isfinite(array)
    low, high = np.percentile(array[valid], [0.5, 99.5]) if valid.any() else (0.0, 1.0)
    scaled = np.clip((np.where(valid, array, low) - low) / max(high - low, 1e-12), 0, 1)
    grid = subject.image.grid
    moved = np.linalg.inv(base) @ grid.voxel_to_lps
    origin, direction = moved[:3, 3], moved[:3, :3] / np.asarray(grid.spacing)
    seen = replace(grid, origin=tuple(origin), direction=tuple(direction.ravel()))
    return shrink(Picture(scaled.astype(np.float32), valid, seen), spacing)


# -- references ---------------------------------------------------------------------------------------------
def make_reference(
    images: Sequence[Coarse],
    grid: Grid,
    config: PrealignConfig,
    each: Callable[[Callable, Iterable], list] | None = None,
) -> Picture:
    """The average of the images of one modality, aligned to each other in two rounds, in study space.

    Its pose and size are the mean of theirs: the mean of the maps is taken out of each of them.

    Args:
        images: at least one; `REFERENCE_IMAGES` are enough.
        grid: the study grid.
        config: what is searched.
        each: `map` to use, for example one over threads; must keep the order.
    """
    each = each or (lambda f, items: list(map(f, items)))
    starts = [align_coarse(image, None, grid, config).study_to_case for image in images]
    reference = average(images, starts, grid, config)
    if config.method != "affine" or len(images) == 1:
        return reference
    for affine in (False, True):

        def align(image: Coarse, affine: bool = affine, to: Picture = reference) -> FloatArray:
            return align_coarse(image, to, grid, config, affine=affine).study_to_case

        maps = each(align, images)
        drift = np.mean([np.linalg.inv(a) @ m for a, m in zip(starts, maps, strict=True)], axis=0)
        reference = average(images, [m @ np.linalg.inv(drift) for m in maps], grid, config)
    return reference


def bring_across(
    source: Picture, target: Picture, config: PrealignConfig, kind: FeatureKind = "edges"
) -> Fit:
    """The map from study space to the target reference's own space; the identity if none convinces."""
    limits = replace(_limits(config), anisotropy=1.25, prior=0.08)
    if config.method == "none":
        return Fit(np.eye(4), "centre", 0.0)
    if config.method == "moments":
        return moments_fit(source, target, limits)
    return register(source, target, kind, limits)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly over the list."""
    picks = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in picks]


def average(
    images: Sequence[Coarse], maps: Sequence[FloatArray], grid: Grid, config: PrealignConfig
) -> Picture:
    """Mean of the images seen in study space; valid where half of them reach."""
    onto = grid.with_spacing(_spacing(grid, config))
    total, weight = np.zeros(onto.shape, np.float32), np.zeros(onto.shape, np.float32)
    for image, matrix in zip(images, maps, strict=True):
        seen = resample_picture(image.picture, np.linalg.inv(image.base) @ matrix, onto)
        total += seen.array * seen.valid
        weight += seen.valid
    valid = weight >= max(0.5 * len(images), 1)
    return Picture(np.where(valid, total / np.maximum(weight, 1), 0).astype(np.float32), valid, onto)
