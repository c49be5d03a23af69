"""How the frontal knee is imaged: a DXA scanner that shows bone alone, and an X-ray tube that shows all.

Both take the canonical points that the pixels look at, finer than the picture by `factor`, and draw what a
subject and a device have of their own (density, fat, exposure, noise) from the generator they are given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.phantom.frontal import bone_mineral, smoothed, soft_tissue, trabecular_texture
from SegGuidedMMRegLib.space import FloatArray

_FAT_PER_MM, _MUSCLE_PER_MM = 0.0165, 0.0200  # attenuation of soft tissue
_BONE_PER_MM, _MARROW_PER_MM = 0.036, -0.0035  # what compact bone and marrow add to the tissue they replace

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


def dxa_picture(
    generator: np.random.Generator, canonical: FloatArray, *, spacing_mm: float, factor: int
) -> NDArray[np.float32]:
    """Areal bone density as a DXA scanner shows it: soft tissue subtracted, blurred, noisy by scan line.

    Args:
        generator: where the numbers come from.
        canonical: canonical points (H * factor, W * factor, 3), mm.
        spacing_mm: of the picture.
        factor: fine pixels a pixel and axis.

    Returns:
        (H, W), about 0 (no bone) to 1 (thickest bone).
    """
    texture = 0.6 * trabecular_texture(generator)
    mineral, _ = bone_mineral(
        canonical,
        texture,
        cortex_factor=generator.uniform(0.8, 1.25),
        patella_factor=generator.uniform(0.6, 0.95),
    )
    fine_mm = spacing_mm / factor
    sharp = smoothed(mineral, [generator.uniform(0.6, 0.9) / fine_mm] * 2)
    picture = _binned(sharp, factor) / generator.uniform(19.0, 24.0)
    rows, columns = picture.shape
    residual = 0.02 * _soft_noise(generator, picture.shape, 12.0 / spacing_mm)
    lines = 0.012 * generator.standard_normal((rows, 1))
    grain = smoothed(generator.standard_normal((rows, columns)), (0.45, 0.45)) * 2.0
    noisy = np.clip(picture, 0, None) ** 0.9 + residual + lines + generator.uniform(0.012, 0.022) * grain
    return np.clip(noisy, 0, 1.2).astype(np.float32)


def radiograph_picture(
    generator: np.random.Generator, canonical: FloatArray, *, spacing_mm: float, factor: int, side: str
) -> NDArray[np.float32]:
    """A radiograph: Beer-Lambert, scatter, noise, film curve, edge enhancement, collimator, side letter.

    Args:
        generator: where the numbers come from.
        canonical: canonical points (H * factor, W * factor, 3), mm.
        spacing_mm: of the picture.
        factor: fine pixels a pixel and axis.
        side: "R" or "L", the letter that may stand on the picture.

    Returns:
        (H, W), 0 (dark, air) to 1 (bright, dense).
    """
    texture = 0.9 * trabecular_texture(generator)
    mineral, bone = bone_mineral(
        canonical,
        texture,
        cortex_factor=generator.uniform(0.8, 1.25),
        patella_factor=generator.uniform(0.55, 0.9),
    )
    fat, muscle = soft_tissue(canonical, fat_mm=generator.uniform(5.0, 13.0))
    thickness = generator.uniform(0.88, 1.08)
    attenuation = thickness * (_FAT_PER_MM * fat + _MUSCLE_PER_MM * muscle)
    attenuation = attenuation + _BONE_PER_MM * mineral + _MARROW_PER_MM * bone
    detected = _detected(generator, _binned(np.exp(-attenuation), factor), spacing_mm)
    picture = _enhanced(_film(generator, -np.log(detected)), generator.uniform(0.0, 1.0), 1.6 / spacing_mm)
    if generator.random() < 0.5:
        picture = _with_letter(generator, picture, side)
    return _collimated(generator, picture).astype(np.float32)


def _detected(generator: np.random.Generator, primary: FloatArray, spacing_mm: float) -> FloatArray:
    """Primary radiation with scatter, focal blur and quantum noise; relative to the open beam."""
    haze = smoothed(primary, [min(16.0 / spacing_mm, max(primary.shape) / 9)] * 2)
    sharp = smoothed(primary, [0.25 / spacing_mm] * 2)
    signal = sharp + generator.uniform(0.10, 0.22) * haze
    quanta = generator.uniform(4e3, 1.4e4)
    noisy = signal + np.sqrt(np.clip(signal, 1e-4, None) / quanta) * generator.standard_normal(signal.shape)
    return np.clip(noisy, 0.01, None)


def _film(generator: np.random.Generator, density: FloatArray) -> FloatArray:
    """The film curve: air dark, thick bone bright, the knee in the steep part."""
    low, high = generator.uniform(0.5, 0.95), generator.uniform(2.45, 2.75)
    linear = np.clip((density - low) / (high - low), 0, 1.2) ** generator.uniform(1.0, 1.5)
    return 1.06 * np.tanh(1.25 * linear) / np.tanh(1.5)


def _enhanced(picture: FloatArray, amount: float, sigma_pixels: float) -> FloatArray:
    """Unsharp masking, as radiograph work stations do."""
    return np.clip(picture + amount * (picture - smoothed(picture, [sigma_pixels] * 2)), 0, 1)


def _with_letter(generator: np.random.Generator, picture: FloatArray, side: str) -> FloatArray:
    """A lead letter in one of the corners."""
    rows, columns = picture.shape
    unit = max(min(rows, columns) // 110, 1)
    letter = np.kron(np.array([[int(c) for c in line] for line in _LETTERS[side]]), np.ones((unit, unit)))
    letter = smoothed(np.pad(letter, 2), (0.4, 0.4))
    top = int(generator.uniform(0.06, 0.16) * rows)
    left = int(generator.uniform(0.06, 0.12) * columns)
    if generator.random() < 0.5:
        left = columns - left - letter.shape[1]
    marked = picture.copy()
    place = marked[top : top + letter.shape[0], left : left + letter.shape[1]]
    place[:] = np.maximum(place, 0.97 * letter)
    return marked


def _collimated(generator: np.random.Generator, picture: FloatArray) -> FloatArray:
    """Dark borders of a slightly turned collimator on up to four sides."""
    rows, columns = picture.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    turn = np.radians(generator.uniform(-1.5, 1.5))
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    softness = 2.0 / max(rows, columns)
    open_beam = np.ones(picture.shape)
    for side in (u, -u, v, -v):
        edge = generator.uniform(0.93, 1.3)
        open_beam *= 1 / (1 + np.exp(np.clip((side - edge) / softness, -50, 50)))
    dark = generator.uniform(0.0, 0.05)
    return dark + (picture - dark) * open_beam


def _soft_noise(generator: np.random.Generator, shape: tuple[int, ...], sigma_pixels: float) -> FloatArray:
    """Gaussian noise of deviation 1 and of a length of `sigma_pixels`."""
    noise = smoothed(generator.standard_normal(shape), [min(sigma_pixels, max(shape) / 6)] * 2)
    return noise / noise.std()


def _binned(fine: FloatArray, factor: int) -> FloatArray:
    """Mean of every `factor` x `factor` block."""
    rows, columns = fine.shape[0] // factor, fine.shape[1] // factor
    return fine.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
