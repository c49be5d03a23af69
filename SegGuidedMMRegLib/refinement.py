"""Registering pairs by their segmentations: affine, network, velocity field; no folds, both directions.

The map between two segmentations is the exponential of a stationary velocity field, so that it has an inverse
by construction. The field starts from what the network says (paper, 3.4) and is optimised for each pair; the
paper itself stops at the network (B.4). Pairs are registered in batches. All tensors are on the study grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from SegGuidedMMRegLib.config import RegistrationConfig
from SegGuidedMMRegLib.deformation import (
    border_fade,
    compose,
    exponential,
    gaussian_smooth,
    most_probable,
    resize_field,
    soft_dice,
    warp,
)
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.inverse_pair import fold_free_pair
from SegGuidedMMRegLib.networks.registration import RegistrationNetwork, both_ways
from SegGuidedMMRegLib.pair_affine import CentredAffine, StructurePairs, fit_affine, shrink
from SegGuidedMMRegLib.pair_points import MatchedPoints

VELOCITY_FACTOR = 4
"""Study voxels a node of the velocity field, along each axis; half of it on small grids."""

MEAN_INVERSE_ERROR, MAX_INVERSE_ERROR = 0.1, 0.5
"""A pair whose forward and inverse do not undo each other to this many voxels has failed."""

_SMALLEST_STRUCTURE = 4
_SMALL_GRID = 96
_FEWEST_NODES = 6
_TOLERATED_LOSS = 0.01
_COARSE_SHARE = 0.4
_FADE = 0.12
_NODE_SMOOTHING = 0.7


@dataclass(frozen=True)
class PairDiagnostics:
    """What happened to a pair.

    Dice is that of the most probable structures, where both images have data, in the order of the channels
    without background; nan for structures that one of the two images lacks.

    Attributes:
        dice_before: of the maps as given.
        dice_affine: after the affine map; equal to `dice_before` where none was accepted.
        dice_network: after the network's own map, empty without a network.
        dice_after: after the final map.
        absent: channel numbers (1 is the first structure) that one of the images lacks; they took no part.
        smallest_jacobian: of all corner determinants of both displacements.
        inverse_error_mean_voxels: of forward∘inverse and inverse∘forward, over the study grid.
        inverse_error_max_voxels: the largest.
        repairs: how often the velocity was smoothed until neither map came near a fold.
        followed: share of the way that the pair went to where the maps fit, less than 1 where they are
            uncertain.
        failure: why the pair failed, or None.
    """

    dice_before: list[float]
    dice_affine: list[float]
    dice_network: list[float]
    dice_after: list[float]
    absent: list[int]
    smallest_jacobian: float
    inverse_error_mean_voxels: float
    inverse_error_max_voxels: float
    repairs: int
    followed: float
    failure: str | None


@dataclass(frozen=True)
class PairResult:
    """T(x_fixed) = affine_lps(phi(x_fixed)), from study space to study space.

    Attributes:
        displacement: of phi, [d, *shape] in voxels, fixed to affinely aligned moving.
        inverse_displacement: of the inverse of phi, the same shape.
        affine_lps: 4x4, study LPS mm to study LPS mm, applied after phi.
        diagnostics: what happened.
    """

    displacement: Tensor
    inverse_displacement: Tensor
    affine_lps: NDArray[np.floating]
    diagnostics: PairDiagnostics


def register_maps(
    moving: Tensor,
    fixed: Tensor,
    network: RegistrationNetwork | None,
    config: RegistrationConfig,
    *,
    spacing_mm: Sequence[float],
    moving_inside: Tensor | None = None,
    fixed_inside: Tensor | None = None,
    points: MatchedPoints | None = None,
    reporter: Reporter | None = None,
) -> PairResult:
    """Register one pair: `register_batch` for probabilities [C, *shape] and field-of-view masks [*shape]."""
    insides = [None if mask is None else mask[None] for mask in (moving_inside, fixed_inside)]
    return register_batch(
        moving[None],
        fixed[None],
        network,
        config,
        spacing_mm=spacing_mm,
        moving_inside=insides[0],
        fixed_inside=insides[1],
        points=points,
        reporter=reporter,
    )[0]


@torch.no_grad()
def register_batch(
    moving: Tensor,
    fixed: Tensor,
    network: RegistrationNetwork | None,
    config: RegistrationConfig,
    *,
    spacing_mm: Sequence[float],
    moving_inside: Tensor | None = None,
    fixed_inside: Tensor | None = None,
    points: MatchedPoints | None = None,
    uncertainty: Sequence[float] | None = None,
    reporter: Reporter | None = None,
) -> list[PairResult]:
    """Register N pairs at once by their segmentations.

    Args:
        moving: probabilities or one-hot maps [N, 1 + structures, *shape] on the study grid, background first.
        fixed: the same shape, device and type.
        network: a trained network for maps of so many channels (its own shape may be coarser), or None.
        config: settings; `refinement_steps` 0 leaves the map at what the network says.
        spacing_mm: of the study grid, in the order of the array axes.
        moving_inside: [N, *shape], true where the moving image has data; None is everywhere.
        fixed_inside: the same for the fixed image.
        points: landmarks of the N pairs that affine map and refinement shall bring together, if any.
        uncertainty: of the maps of each pair, 1 - Dice between them and the truth (N numbers); None is 0. A
            pair goes only part of the way, as little as noise of this size leaves of its misfit.
        reporter: hears about the steps of the refinement.

    Raises:
        ValueError: if the maps do not fit each other, the spacing or the network.
    """
    spacing = tuple(float(s) for s in spacing_mm)
    _check(moving, fixed, network, spacing)
    # Copies, because maps made in inference mode can't take part in an optimisation.
    moving, fixed = (x.to(torch.float32, copy=True) for x in (moving, fixed))
    pair = _pairs(moving, fixed, moving_inside, fixed_inside)
    if points is not None and len(points):
        pair = replace(pair, points=points.to(fixed.device), points_weight=config.landmark_weight)
    before, whole = _hard_dice(pair), pair

    affine = CentredAffine.identity(len(fixed), len(spacing), fixed.device)
    after_affine = before
    if config.affine:
        affine = fit_affine(pair, spacing)
        pair = pair.moved(affine, spacing)
        after_affine = _hard_dice(pair)

    shape = tuple(fixed.shape[2:])
    nodes = coarser_shape(shape, spacing, _velocity_factor(shape))
    velocity = torch.zeros(len(fixed), len(shape), *nodes, device=fixed.device)
    network_dice = None
    if network is not None:
        forward, backward = _predict(network, _with_background(pair.moving), fixed)
        network_dice = _hard_dice(pair, resize_field(forward, shape))
        velocity = _velocity_of(forward, backward, nodes)
    if config.refinement_steps:
        with torch.enable_grad():
            velocity = _optimise(velocity, pair, config, spacing, reporter or Reporter())

    followed = _shares(before, uncertainty)
    if bool((followed < 1).any()):
        if config.affine:
            affine = affine.partly(followed)
            pair = whole.moved(affine, spacing)
        velocity = velocity * followed.to(velocity).view(-1, *[1] * (velocity.dim() - 1))
    solution, repairs = fold_free_pair(velocity, shape)
    after = _hard_dice(pair, solution.forward)
    matrices = affine.lps()
    results = []
    for n in range(len(fixed)):
        diagnostics = PairDiagnostics(
            dice_before=before[n].tolist(),
            dice_affine=after_affine[n].tolist(),
            dice_network=[] if network_dice is None else network_dice[n].tolist(),
            dice_after=after[n].tolist(),
            absent=[k + 1 for k, there in enumerate(pair.present[n].tolist()) if not there],
            smallest_jacobian=float(solution.jacobian[n]),
            inverse_error_mean_voxels=float(solution.error_mean[n]),
            inverse_error_max_voxels=float(solution.error_max[n]),
            repairs=int(repairs[n]),
            followed=float(followed[n]),
            failure=None,
        )
        diagnostics = _judged(diagnostics, guided=pair.points is not None)
        results.append(PairResult(solution.forward[n], solution.inverse[n], matrices[n], diagnostics))
    return results


def coarser_shape(shape: tuple[int, ...], spacing_mm: tuple[float, ...], factor: float) -> tuple[int, ...]:
    """Nodes of a grid over the same box, `factor` of the smallest spacing apart along every axis, in mm.

    Axes that are as coarse as that already, or short, keep their voxels.
    """
    apart = factor * min(spacing_mm)
    wanted = [math.ceil(n * min(s / apart, 1) - 1e-6) for n, s in zip(shape, spacing_mm, strict=True)]
    return tuple(min(n, max(m, _FEWEST_NODES)) for n, m in zip(shape, wanted, strict=True))


def _shares(dice: Tensor, uncertainty: Sequence[float] | None) -> Tensor:
    """How much of the way each pair goes, [N] in [0, 1], float64 on the CPU.

    The squared misfit of two maps is that of the truth plus that of their errors; so much of it as is no
    error is worth following (James and Stein's estimate).

    Args:
        dice: of the maps as given, [N, structures].
        uncertainty: as for `register_batch`.
    """
    misfit = (1 - dice.nanmean(1)).cpu().double()
    noise = torch.zeros_like(misfit) if uncertainty is None else misfit.new_tensor(uncertainty)
    shares = (1 - (noise / misfit.clamp(min=1e-6)) ** 2).clamp(min=0)
    return torch.where(noise > 0, shares, 1.0).nan_to_num(1.0)


def _velocity_factor(shape: tuple[int, ...]) -> int:
    return VELOCITY_FACTOR if max(shape) >= _SMALL_GRID else VELOCITY_FACTOR // 2


# -- the pairs ------------------------------------------------------------------------------------------


def _pairs(
    moving: Tensor, fixed: Tensor, moving_inside: Tensor | None, fixed_inside: Tensor | None
) -> StructurePairs:
    everywhere = torch.ones_like(fixed[:, :1])
    insides = [
        everywhere if mask is None else mask[:, None].to(everywhere) for mask in (moving_inside, fixed_inside)
    ]
    present = _present(moving) & _present(fixed)
    return StructurePairs(moving[:, 1:], fixed[:, 1:], insides[0], insides[1], present)


def _check(
    moving: Tensor, fixed: Tensor, network: RegistrationNetwork | None, spacing: tuple[float, ...]
) -> None:
    if moving.shape != fixed.shape or moving.dim() not in (4, 5) or moving.shape[1] < 2:
        raise ValueError(
            "Expected two maps [N, 1 + structures, *shape] of one shape, "
            f"got moving {tuple(moving.shape)} and fixed {tuple(fixed.shape)}."
        )
    if len(spacing) != moving.dim() - 2 or min(spacing) <= 0:
        raise ValueError(f"Expected a positive spacing for each of {moving.dim() - 2} axes, got {spacing}.")
    if network is not None and network.channels != moving.shape[1]:
        raise ValueError(
            f"The registration network was trained for {network.channels - 1} structures, the maps have "
            f"{moving.shape[1] - 1}. Train the registration stage again."
        )


def _present(maps: Tensor) -> Tensor:
    """Which structures are the most probable one somewhere: [N, K]."""
    return _counts(most_probable(maps), maps.shape[1]) >= _SMALLEST_STRUCTURE


def _counts(labels: Tensor, channels: int) -> Tensor:
    return torch.stack([(labels == c).flatten(1).sum(1) for c in range(1, channels)], dim=1)


def _with_background(structures: Tensor) -> Tensor:
    return torch.cat([(1 - structures.sum(1, keepdim=True)).clamp(0, 1), structures], dim=1)


def _hard_dice(pairs: StructurePairs, displacement: Tensor | None = None) -> Tensor:
    """Dice [N, K] of the most probable labels where both images have data; nan for what does not count."""
    moving, inside = pairs.moving, pairs.moving_inside
    if displacement is not None:
        moving, inside = (warp(x, displacement) for x in (moving, inside))
    in_view = (inside * pairs.fixed_inside)[:, 0] > 0.5
    maps = (_with_background(moving), _with_background(pairs.fixed))
    a, b = (torch.where(in_view, most_probable(x), 0) for x in maps)
    channels = 1 + moving.shape[1]
    size = _counts(a, channels) + _counts(b, channels)
    shared = _counts(torch.where(a == b, a, 0), channels)
    return torch.where(pairs.present, 2 * shared / size.clamp(min=1), torch.nan)


# -- the network ----------------------------------------------------------------------------------------


def _predict(network: RegistrationNetwork, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """The network's displacements of both directions, in voxels of its own grid."""
    network.eval()
    return both_ways(network, shrink(moving, network.shape), shrink(fixed, network.shape))


def _velocity_of(forward: Tensor, backward: Tensor, shape: tuple[int, ...], corrections: int = 4) -> Tensor:
    """A velocity field [N, d, *shape] with exp(v) close to `forward` and exp(-v) to `backward`.

    Starts from half their difference; then what exp(v) still lacks is added to v, smoothed.
    """
    forward, backward = (gaussian_smooth(resize_field(u, shape), 0.5) for u in (forward, backward))
    fade = _fade(shape, forward.device)
    velocity = (forward - backward) / 2 * fade
    for _ in range(corrections):
        lacking = compose(forward, exponential(-velocity)) - compose(backward, exponential(velocity))
        velocity = velocity + gaussian_smooth(lacking / 2, 0.7) * fade
    return velocity


# -- the optimisation -----------------------------------------------------------------------------------


def _optimise(
    start: Tensor,
    pair: StructurePairs,
    config: RegistrationConfig,
    spacing: tuple[float, ...],
    reporter: Reporter,
) -> Tensor:
    """Adam on a velocity field, first on blurred maps at its own resolution, then on finer ones."""
    shape = tuple(pair.fixed.shape[2:])
    nodes = tuple(start.shape[2:])
    finer = coarser_shape(shape, spacing, _velocity_factor(shape) / 2)
    fade = _fade(nodes, start.device)
    node_mm = tuple((n - 1) * s / (m - 1) for n, m, s in zip(shape, nodes, spacing, strict=True))
    change = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=config.refinement_rate, betas=(0.9, 0.99))
    coarse_steps = round(_COARSE_SHARE * config.refinement_steps)
    levels = (
        (coarse_steps, pair.shrunk(nodes).blurred(1.0)),
        (config.refinement_steps, pair.shrunk(finer).blurred(0.5)),
    )
    step = 0
    reporter.started("refinement", config.refinement_steps)
    for last_step, maps in levels:
        while step < last_step:
            rate = 0.5 * (1 + math.cos(math.pi * step / config.refinement_steps))
            optimizer.param_groups[0]["lr"] = config.refinement_rate * max(rate, 0.05)
            velocity = start + gaussian_smooth(change, _NODE_SMOOTHING) * fade
            loss = _misfit(velocity, maps, node_mm)
            loss = loss + config.refinement_smoothness * _roughness(velocity, node_mm)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            step += 1
            reporter.progress("refinement", step, config.refinement_steps)
    return (start + gaussian_smooth(change.detach(), _NODE_SMOOTHING) * fade).detach()


def _misfit(velocity: Tensor, maps: StructurePairs, node_mm: tuple[float, ...]) -> Tensor:
    """1 - Dice in both directions, averaged over the structures that count, and what landmarks add: [N]."""
    shape = tuple(maps.fixed.shape[2:])
    pairs = len(velocity)
    there_and_back = exponential(torch.cat([velocity, -velocity]), squarings=5)
    displacement = resize_field(there_and_back, shape)
    images = torch.cat([maps.moving, maps.fixed])
    insides = torch.cat([maps.moving_inside, maps.fixed_inside])
    warped = warp(torch.cat([images, insides], dim=1), displacement)
    warped, seen = warped[:, :-1], warped[:, -1:]
    goal = torch.cat([maps.fixed, maps.moving])
    both = seen * torch.cat([maps.fixed_inside, maps.moving_inside])
    dice = soft_dice(warped * both, goal * both)
    dice = dice[:pairs] + dice[pairs:]
    count = maps.present.sum(1).clamp(min=1)
    misfit = 1 - (dice * maps.present).sum(1) / (2 * count)
    if maps.points is None:
        return misfit
    forward, inverse = there_and_back.split(pairs)
    return misfit + maps.points_weight * maps.points.misfit_after(forward, inverse, node_mm)


def _roughness(velocity: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Mean squared gradient of the velocity in mm a mm, added over axes and components: [N]."""
    mm = torch.tensor(spacing, device=velocity.device).view(1, -1, *[1] * len(spacing))
    total = torch.zeros(len(velocity), device=velocity.device)
    for axis, step in enumerate(spacing):
        slope = (velocity * mm).diff(dim=axis + 2) / step
        total = total + (slope**2).sum(1).flatten(1).mean(1)
    return total


def _fade(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return border_fade(shape, max(2, round(_FADE * min(shape))), device)


# -- the judgement ---------------------------------------------------------------------------------------


def _judged(found: PairDiagnostics, *, guided: bool) -> PairDiagnostics:
    """The same with the reason if the pair has failed; a pair that landmarks guide may lose some Dice."""
    reason = None
    if all(math.isnan(dice) for dice in found.dice_before):
        reason = "the two segmentations share no structure"
    elif found.smallest_jacobian <= 0:
        reason = f"the map folds (smallest corner Jacobian {found.smallest_jacobian:.3f})"
    elif (
        found.inverse_error_mean_voxels > MEAN_INVERSE_ERROR
        or found.inverse_error_max_voxels > MAX_INVERSE_ERROR
    ):
        reason = (
            f"forward and inverse miss each other by {found.inverse_error_mean_voxels:.3f} voxels on "
            f"average, {found.inverse_error_max_voxels:.3f} at most"
        )
    elif not guided and np.nanmean(found.dice_after) < np.nanmean(found.dice_before) - _TOLERATED_LOSS:
        reason = (
            f"the Dice of the segmentations fell from {np.nanmean(found.dice_before):.3f} to "
            f"{np.nanmean(found.dice_after):.3f}"
        )
    return replace(found, failure=reason)
