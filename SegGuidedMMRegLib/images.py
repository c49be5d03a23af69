"""Images and label maps as files: read, check, write.

What an image is and how it is resampled says `sampling.py`; its names are handed on from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.image_files import (
    ImageError,
    Spacing,
    read_scalar,
    read_vector,
    require_whole,
    spacing_is_known,
)
from SegGuidedMMRegLib.sampling import (
    Image,
    Interpolation,
    normalise_intensity,
    normalised_study_image,
    resample,
    smooth_for_grid,
    to_sitk_affine,
)
from SegGuidedMMRegLib.terminology import is_terminology

__all__ = [
    "Image",
    "ImageError",
    "Interpolation",
    "LabelMap",
    "Segment",
    "SegmentLike",
    "check_image",
    "normalise_intensity",
    "normalised_study_image",
    "read_image",
    "read_labels",
    "resample",
    "smooth_for_grid",
    "spacing_is_known",
    "to_sitk_affine",
    "write_image",
    "write_labels",
    "write_sitk",
]

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_TERM_TAG = "TerminologyEntry:"
_NO_TERM = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
)
"""What 3D Slicer writes of a segment nobody has chosen a term for."""

# -- files ----------------------------------------------------------------------------------------------


def read_image(path: Path | str, *, spacing_mm: Spacing | None = None, series: str = "") -> Image:
    """Read an image: NIfTI, NRRD, MHA, PNG, JPEG, TIFF, a DICOM file or the folder of one DICOM series.

    The values keep the file's type; DICOM ones are rescaled, MONOCHROME1 is inverted.

    Args:
        path: file or DICOM folder.
        spacing_mm: used where the file does not know its spacing (`spacing_is_known`); 1 mm where neither
            does.
        series: UID of the series in a DICOM folder that holds several.

    Raises:
        ImageError: naming the file and the remedy.
    """
    return _of_file(read_scalar(path, spacing_mm=spacing_mm, series=series), path)


def _of_file(image: sitk.Image, path: Path | str) -> Image:
    try:
        return Image.from_sitk(image)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None


def check_image(image: Image, path: Path | str) -> None:
    """Refuse an image that nothing can be learned from.

    Raises:
        ImageError: naming `path`, for values that are not finite and for constant images.
    """
    if np.issubdtype(image.array.dtype, np.floating):
        bad = int((~np.isfinite(image.array)).sum())
        if bad:
            raise ImageError(
                f"{path}: {bad} of {image.array.size} values are not finite (NaN or infinite). "
                "Replace them, for example by the value of air, and import it again."
            )
    if image.array.min() == image.array.max():
        raise ImageError(f"{path}: is empty, every value is {image.array.flat[0]}. Leave it out.")


def write_image(image: Image, path: Path | str) -> None:
    """Write an image, whole or not at all; the suffix names the format.

    PNG, JPEG, TIFF and BMP hold two-dimensional images of 8 or 16 bit, without their place in space.

    Raises:
        ImageError: naming the file, where the format cannot hold the image.
    """
    write_sitk(_for_format(image, Path(path)), Path(path))


def write_sitk(image: sitk.Image, path: Path) -> None:
    """Write a SimpleITK image compressed, whole or not at all.

    Raises:
        ImageError: naming the file.
    """
    try:
        with atomic_path(path) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            require_whole(temporary, image)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ImageError(f"{path}: cannot be written ({last}). Use .nrrd, .nii.gz or .mha.") from None


def _for_format(image: Image, path: Path) -> sitk.Image:
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        return image.to_sitk()
    if image.grid.dimension == 3:
        raise ImageError(f"{path}: holds two dimensions, the image has three. Use .nrrd, .nii.gz or .mha.")
    if image.array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ImageError(
            f"{path}: holds 8 or 16 bit without sign, the image {image.array.dtype}. Use .nrrd, or scale it."
        )
    flat = sitk.GetImageFromArray(np.ascontiguousarray(image.array))
    flat.SetSpacing(image.grid.spacing[:2])
    return flat


# -- label maps -----------------------------------------------------------------------------------------


class SegmentLike(Protocol):
    """What a structure of a label map must tell of itself."""

    @property
    def value(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def color(self) -> tuple[int, int, int]: ...
    @property
    def terminology(self) -> str: ...


@dataclass(frozen=True)
class Segment:
    """One structure of a label map: its value in the array, its name, its colour (RGB), its term."""

    value: int
    name: str
    color: tuple[int, int, int]
    terminology: str = ""


@dataclass(frozen=True)
class LabelMap(Image):
    """An image of integers, and the structures that its file names (none, for formats that name none)."""

    segments: tuple[Segment, ...] = ()


def read_labels(path: Path | str, *, spacing_mm: Spacing | None = None) -> LabelMap:
    """Read a label map; names and colours from a `.seg.nrrd`, as 3D Slicer writes it.

    Note that Slicer may store a smaller box than the image: bring the labels onto the image's grid by
    `resample` with "nearest". Layers of a segmentation that do not overlap are merged; where their label
    values collide the segments are numbered anew from 1, in order.

    Args:
        path: the file.
        spacing_mm: as for `read_image`.

    Returns:
        values of the smallest of uint8, uint16, int32 and int64 that holds them.

    Raises:
        ImageError: naming the file, for values that are no whole numbers, negative ones, and segments that
            overlap.
    """
    path = Path(path)
    if path.name.lower().endswith(".nrrd"):
        image = read_vector(path)
        keys = [key for key in image.GetMetaDataKeys() if key.isprintable()]
        record = {key: image.GetMetaData(key) for key in keys}
        if "Segment0_ID" in record or "Segment0_Name" in record:
            return _read_segmentation(image, _segments_of(record, path), path)
    plain = read_image(path, spacing_mm=spacing_mm)
    return LabelMap(_whole_numbers(plain.array, path), plain.grid)


def write_labels(
    labels: Image,
    structures: Sequence[SegmentLike],
    path: Path | str,
    *,
    keys: Mapping[str, str] | None = None,
) -> None:
    """Write a label map, whole or not at all; `.seg.nrrd` gets names, colours, terms of `structures`.

    Args:
        labels: whole numbers, 0 is background.
        structures: each with `value`, `name`, `color`, `terminology`; those without a voxel are written too,
            as empty segments.
        path: `.seg.nrrd` opens in 3D Slicer as a segmentation, other suffixes hold the numbers alone.
        keys: further entries for the header of a `.seg.nrrd`, a line of text each.

    Raises:
        ImageError: naming the file, where the labels hold a value without a structure.
    """
    path = Path(path)
    array = _whole_numbers(labels.array, path)
    unknown = sorted(set(np.unique(array).tolist()) - {0} - {s.value for s in structures})
    if unknown:
        raise ImageError(
            f"{path}: the label values {unknown} belong to no structure. Name a structure for each."
        )
    plain = Image(array, labels.grid)
    if not path.name.lower().endswith(".seg.nrrd"):
        write_image(plain, path)
        return
    image = plain.to_sitk()
    record = _segmentation_record(array.reshape(labels.grid.size[::-1]), structures)
    for key, value in {**record, **(keys or {})}.items():
        image.SetMetaData(key, value)
    write_sitk(image, path)


def _whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or (array != np.rint(array)).any():
            raise ImageError(
                f"{path}: a label map holds whole numbers, this one holds fractions. Give the labels."
            )
        array = np.rint(array)
    low, high = array.min(), array.max()
    if low < 0:
        raise ImageError(f"{path}: label values must be 0 (background) or more, found {low}.")
    for kind in (np.uint8, np.uint16, np.int32):
        if high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.int64)


@dataclass(frozen=True)
class _StoredSegment:
    segment: Segment
    layer: int


def _segments_of(record: Mapping[str, str], path: Path) -> list[_StoredSegment]:
    """The segments of a header in order; without LabelValue each is a layer of ones (Slicer before 4.11)."""
    found: list[_StoredSegment] = []
    while f"Segment{len(found)}_ID" in record or f"Segment{len(found)}_Name" in record:
        n = len(found)
        name = record.get(f"Segment{n}_Name") or record[f"Segment{n}_ID"]
        old = f"Segment{n}_LabelValue" not in record
        value = 1 if old else _whole_number(record, f"Segment{n}_LabelValue", path)
        layer = n if old else _whole_number(record, f"Segment{n}_Layer", path)
        term = _term(record.get(f"Segment{n}_Tags", ""))
        segment = Segment(value, name, _colour(record.get(f"Segment{n}_Color", "")), term)
        found.append(_StoredSegment(segment, layer))
    return found


def _term(tags: str) -> str:
    """The term among the tags of a segment; "" where nobody has chosen one."""
    found = [tag.removeprefix(_TERM_TAG) for tag in tags.split("|") if tag.startswith(_TERM_TAG)]
    return found[0] if found and is_terminology(found[0]) and found[0] != _NO_TERM else ""


def _whole_number(record: Mapping[str, str], key: str, path: Path) -> int:
    text = record.get(key, "0").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ImageError(
            f"{path}: {key} in its header must be a whole number, got {text[:40]!r}. Save it anew with 3D "
            "Slicer."
        )
    return int(text)


def _colour(text: str) -> tuple[int, int, int]:
    """RGB of 0 to 255 from three shares; grey for anything else."""
    try:
        red, green, blue = (round(255 * min(max(float(c), 0.0), 1.0)) for c in text.split())
    except ValueError:
        return 128, 128, 128
    return red, green, blue


def _read_segmentation(image: sitk.Image, stored: list[_StoredSegment], path: Path) -> LabelMap:
    layers = image.GetNumberOfComponentsPerPixel()
    if layers == 1:
        plain = _of_file(image, path)
        return LabelMap(_whole_numbers(plain.array, path), plain.grid, tuple(s.segment for s in stored))
    values = [s.segment.value for s in stored]
    anew = len(set(values)) < len(values)
    merged: np.ndarray | None = None
    segments: list[Segment] = []
    for n, item in enumerate(stored):
        if item.layer >= layers:
            raise ImageError(f"{path}: its header names layer {item.layer}, and it has {layers}.")
        one = _of_file(sitk.VectorIndexSelectionCast(image, item.layer), path)
        mask = one.array == item.segment.value
        value = n + 1 if anew else item.segment.value
        if merged is None:
            merged, grid = np.zeros(mask.shape, dtype=np.int64), one.grid
        _refuse_overlap(mask, merged, item.segment, segments, path)
        merged[mask] = value
        segments.append(replace(item.segment, value=value))
    if merged is None:
        raise ImageError(f"{path}: the segmentation names no segment.")
    return LabelMap(_whole_numbers(merged, path), grid, tuple(segments))


def _refuse_overlap(
    mask: np.ndarray, merged: np.ndarray, segment: Segment, earlier: Sequence[Segment], path: Path
) -> None:
    shared = merged[mask & (merged > 0)]
    if shared.size:
        other = next(s.name for s in earlier if s.value == shared[0])
        raise ImageError(
            f"{path}: the segments {other!r} and {segment.name!r} overlap in {shared.size} voxels or more; "
            "a voxel can belong to one structure only. Remove the overlap in Slicer's Segment Editor "
            "(Masking, Modify other segments: Overwrite all)."
        )


def _segmentation_record(array: np.ndarray, structures: Sequence[SegmentLike]) -> dict[str, str]:
    """Slicer's header keys of a one-layer segmentation, for an array (k, j, i)."""
    record = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": "",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, structure in enumerate(structures):
        record |= {
            f"Segment{n}_ID": f"Segment_{structure.value}",
            f"Segment{n}_Name": structure.name,
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{c / 255:.6f}" for c in structure.color),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_LabelValue": str(structure.value),
            f"Segment{n}_Layer": "0",
            f"Segment{n}_Extent": _extent(array == structure.value),
            f"Segment{n}_Tags": f"{_TERM_TAG}{structure.terminology or _NO_TERM}|",
        }
    return record


def _extent(mask: np.ndarray) -> str:
    """First and last index along i, j, k of a mask (k, j, i); "0 -1 …" where it is empty."""
    if not mask.any():
        return "0 -1 0 -1 0 -1"
    bounds = []
    for axis in (2, 1, 0):
        along = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds += [int(along[0]), int(along[-1])]
    return " ".join(map(str, bounds))
