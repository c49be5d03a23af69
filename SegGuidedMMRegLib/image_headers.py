"""What an image file says of itself, checked before a voxel is read.

A header of a few bytes can ask for any amount of memory: it is read alone first.
"""

from __future__ import annotations

import re
from pathlib import Path

import SimpleITK as sitk

from SegGuidedMMRegLib.image_bytes import KNOWN_FORMATS, ImageError, Kind, cut_off, kind_of, what_is_missing

LARGEST_IMAGE = 4 * 2**30
"""Bytes of the voxels of an image at most, as they lie in memory: 1024³ voxels of 32 bits."""

_READERS: dict[Kind, str] = {
    "NIfTI": "NiftiImageIO",
    "NRRD": "NrrdImageIO",
    "MetaImage": "MetaImageIO",
    "PNG": "PNGImageIO",
    "JPEG": "JPEGImageIO",
    "TIFF": "TIFFImageIO",
    "BMP": "BMPImageIO",
    "GIPL": "GiplImageIO",
    "DICOM": "GDCMImageIO",
}
_META_FAILED = "Reason: No such file or directory"
"""What ITK's reader of MetaImage says of every failure."""


def read_header(path: Path) -> sitk.ImageFileReader:
    """The header of an image file that may be read: `GetSize`, `GetMetaData`, `GetImageIO` and so on.

    Raises:
        ImageError: naming the file and the remedy, for what is missing, empty, no image of a known kind,
            larger than `LARGEST_IMAGE`, cut off, or keeps its voxels in a file elsewhere.
    """
    kind = kind_of(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[kind])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from None
    check_total(path, [reader])
    missing = what_is_missing(path, kind, _bytes_of(reader))
    if missing:
        raise cut_off(path, missing)
    return reader


def unreadable(path: Path, error: RuntimeError) -> ImageError:
    """What to raise where ITK cannot read `path`."""
    if "orthonormal" in str(error).lower():
        return ImageError(
            f"{path}: its axes are not at right angles, so it cannot be placed in space. "
            "Resample it onto a regular grid first (for example with 3D Slicer: load, harden, save)."
        )
    if "Unknown PixelType" in str(error):  # SimpleITK knows no picture of grey and transparency
        return ImageError(f"{path}: has a layer of transparency. Save one grey channel without it.")
    return ImageError(f"{path}: cannot be read as an image ({reason(error)}). Give {KNOWN_FORMATS}.")


def reason(error: RuntimeError) -> str:
    """The last telling line of an ITK error, without its addresses and source paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "unknown reason"
    text = text.split("sitk::ERROR:")[-1].split("ITK ERROR:")[-1]
    if text == _META_FAILED:
        text = "its voxels are cut off or damaged"
    return re.sub(r"\(0x[0-9a-f]+\)", "", text).strip().rstrip(".")


def check_total(path: Path, readers: list[sitk.ImageFileReader]) -> None:
    """Raise ImageError if a file, or the files of a series, hold more than `LARGEST_IMAGE` bytes."""
    claimed = sum(_bytes_of(reader) for reader in readers)
    if claimed > LARGEST_IMAGE:
        sides = " x ".join(str(side) for side in readers[0].GetSize())
        files = f" in each of {len(readers)} files" if len(readers) > 1 else ""
        raise ImageError(
            f"{path}: says that it holds {sides} voxels{files}, {claimed / 2**30:.4g} GiB; more than "
            f"{LARGEST_IMAGE // 2**30} GiB is not read. Crop it or resample it to larger voxels."
        )


def _bytes_of(reader: sitk.ImageFileReader) -> int:
    """What the voxels take in memory."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    bits = re.search(r"(\d+)-bit", kind)
    each = (int(bits.group(1)) if bits else 64) * (2 if "complex" in kind else 1) // 8
    voxels = 1
    for side in reader.GetSize():
        voxels *= int(side)
    return voxels * max(int(reader.GetNumberOfComponents()), 1) * each
