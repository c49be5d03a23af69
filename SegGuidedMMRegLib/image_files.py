"""Reading image files of any kind into one scalar SimpleITK image, and refusing clearly what is none.

Known are NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, BMP, GIPL, and DICOM as one file or as the folder of a
series. What a header claims is checked before the voxels are read (`image_headers.py`).
"""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SegGuidedMMRegLib.dicom_bytes import is_dicom
from SegGuidedMMRegLib.image_bytes import ImageError, kind_of
from SegGuidedMMRegLib.image_headers import check_total, read_header, reason, unreadable

__all__ = [
    "ImageError",
    "Spacing",
    "dicom_series",
    "read_scalar",
    "read_vector",
    "require_whole",
    "spacing_is_known",
]

_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_SCREEN_AND_PRINT_DPI = (72, 96, 100, 120, 150, 200, 240, 300, 400, 600, 1200)
_UNEVEN_SLICES = 0.05
_MOST_HEADER_LINES, _LONGEST_LINE = 10_000, 1 << 16

Spacing = float | tuple[float, ...]
Header = sitk.Image | sitk.ImageFileReader

_PHOTOMETRIC, _PIXEL_SPACING, _IMAGER_SPACING = "0028|0004", "0028|0030", "0018|1164"


def read_scalar(path: Path | str, *, spacing_mm: Spacing | None = None, series: str = "") -> sitk.Image:
    """Read one scalar image, of two or three dimensions, in LPS mm.

    DICOM values are rescaled to their physical meaning (slope, intercept), and MONOCHROME1 is inverted so
    that bright means bright (ITK's reader does both). Pictures of equal colour channels become grey.

    Args:
        path: an image file, or a folder that holds one DICOM series.
        spacing_mm: spacing along i, j (and k), or one number for all, used where the file does not say its
            own (see `spacing_is_known`); where neither is known 1 mm is assumed.
        series: UID of the series in a DICOM folder that holds several.

    Raises:
        ImageError: naming the path and the remedy, for anything missing, unreadable, coloured, vector-valued,
            complex or four-dimensional.
    """
    path = Path(path)
    image = _read_series(path, series) if path.is_dir() else _as_scalar(_read_file(path), path)
    image = _without_time(image, path)
    if _is_dicom(image):
        return _with_tagged_spacing(image, spacing_mm, path)
    if _is_picture(path) and not _trusted_density(image):
        return _with_spacing(image, 1.0 if spacing_mm is None else spacing_mm, path)
    return image


def require_whole(path: Path, image: sitk.Image) -> None:
    """Check that `image` lies in `path` whole: ITK's NIfTI writer says nothing when the disk is full.

    Raises:
        OSError: if bytes are missing.
    """
    voxels = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
    wanted = voxels * image.GetSizeOfPixelComponent()
    if path.name.lower().endswith(".nii"):
        found = path.stat().st_size
    elif path.name.lower().endswith(".nii.gz"):
        found = _unpacked_bytes(path)
    else:
        return
    if found < wanted:
        raise OSError(errno.ENOSPC, f"{found} of {wanted} bytes are there")


def _unpacked_bytes(path: Path) -> int:
    """Length of what a gzip file holds; -1 if its end is missing."""
    found = 0
    try:
        with gzip.open(path) as file:
            while block := file.read(1 << 20):
                found += len(block)
    except (EOFError, OSError, zlib.error):
        return -1
    return found


def nrrd_key(path: Path, key: str) -> str | None:
    """An entry of the header of a NRRD file, without reading more than the header; None if there is none."""
    prefix = f"{key}:=".encode()
    try:
        with path.open("rb") as file:
            for _ in range(_MOST_HEADER_LINES):
                line = file.readline(_LONGEST_LINE)
                if not line.strip():
                    return None
                if line.startswith(prefix):
                    return line[len(prefix) :].decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        pass
    return None


def read_vector(path: Path | str) -> sitk.Image:
    """Read a file as it is, several values a voxel included, with its header's keys.

    Raises:
        ImageError: for a file that is missing or unreadable.
    """
    return _read_file(Path(path))


def spacing_is_known(path: Path | str) -> bool:
    """Whether the file itself says how large its pixels are.

    False for JPEG, for PNG, TIFF and BMP without a resolution or with a usual resolution of screens and
    printers (72, 96, 300 … dots per inch: it says nothing of the patient), and for DICOM without PixelSpacing
    and ImagerPixelSpacing.

    Raises:
        ImageError: for a file that is missing or unreadable.
    """
    path = Path(path)
    if path.is_dir():
        return True
    if _is_picture(path):
        return _trusted_density(read_header(path))
    if not path.is_file():
        raise ImageError(f"{path}: no such file.")
    if is_dicom(path):
        return _dicom_spacing(read_header(path)) is not None
    return True


# -- one file -------------------------------------------------------------------------------------------


def _read_file(path: Path) -> sitk.Image:
    reader = read_header(path)
    try:
        return sitk.ReadImage(str(path), sitk.sitkUnknown, reader.GetImageIO())
    except RuntimeError as error:
        raise unreadable(path, error) from None


def _as_scalar(image: sitk.Image, path: Path) -> sitk.Image:
    """The image itself, or the common grey channel of a picture without colour."""
    if "complex" in image.GetPixelIDTypeAsString():
        raise ImageError(f"{path}: holds complex numbers. Give its magnitude.")
    channels = image.GetNumberOfComponentsPerPixel()
    if channels == 1:
        return image
    values = sitk.GetArrayViewFromImage(image)
    if _is_picture(path) and channels in (2, 4) and np.ptp(values[..., -1]) > 0:
        raise ImageError(f"{path}: has a layer of transparency. Save one grey channel without it.")
    colours = values[..., : 3 if channels >= 3 else 1]
    greyscale = channels in (3, 4) or (channels == 2 and _is_picture(path))
    if not greyscale or (colours != colours[..., :1]).any():
        what = "a colour picture" if channels in (3, 4) else f"an image of {channels} values a voxel"
        raise ImageError(
            f"{path}: is {what}, and a grey image is needed. Convert it to one grey channel first "
            "(for a colour-coded label map: to one number a structure)."
        )
    return sitk.VectorIndexSelectionCast(image, 0)


def _without_time(image: sitk.Image, path: Path) -> sitk.Image:
    """Drop trailing axes of length one; refuse real time series."""
    while image.GetDimension() > 3:
        size = list(image.GetSize())
        if size[-1] != 1:
            raise ImageError(
                f"{path}: has {image.GetDimension()} dimensions ({' x '.join(map(str, size))}). "
                "Give one image of two or three dimensions: export a single time point or channel."
            )
        image = sitk.Extract(image, [*size[:-1], 0], [0] * len(size))
    return image


# -- spacing --------------------------------------------------------------------------------------------


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES


def _trusted_density(image: Header) -> bool:
    """Whether the resolution of a picture is likely that of the patient, not of a screen or printer."""
    spacing = image.GetSpacing()[0]
    if not np.isfinite(spacing) or spacing <= 0 or abs(spacing - 1) < 1e-4:
        return False
    return not any(abs(25.4 / spacing / dpi - 1) < 5e-3 for dpi in _SCREEN_AND_PRINT_DPI)


def _with_spacing(image: sitk.Image, spacing_mm: Spacing, path: Path) -> sitk.Image:
    values = np.atleast_1d(np.asarray(spacing_mm, dtype=float))
    dimension = image.GetDimension()
    if values.size == 1:
        values = np.repeat(values, dimension)
    if values.size < dimension or not (np.isfinite(values).all() and (values > 0).all()):
        raise ImageError(
            f"{path}: spacing must be one number above 0 mm, or one for each of {dimension} axes, "
            f"got {spacing_mm}."
        )
    image.SetSpacing([float(v) for v in values[:dimension]])
    return image


# -- DICOM ----------------------------------------------------------------------------------------------


def _is_dicom(image: sitk.Image) -> bool:
    return image.HasMetaDataKey(_PHOTOMETRIC)


def _numbers(image: Header, tag: str) -> list[float] | None:
    """The numbers of a DICOM tag, or None where it is absent or empty."""
    if not image.HasMetaDataKey(tag):
        return None
    try:
        return [float(part) for part in image.GetMetaData(tag).split("\\")]
    except ValueError:
        return None


def _dicom_spacing(image: Header) -> tuple[float, float] | None:
    """(i, j) spacing in mm: PixelSpacing, else ImagerPixelSpacing (at the detector), else None."""
    for tag in (_PIXEL_SPACING, _IMAGER_SPACING):
        values = _numbers(image, tag)
        if values and len(values) == 2 and min(values) > 0:
            return values[1], values[0]
    return None


def _with_tagged_spacing(image: sitk.Image, spacing_mm: Spacing | None, path: Path) -> sitk.Image:
    known = _dicom_spacing(image)
    across = image.GetSpacing()[2] if image.GetDimension() == 3 else 1.0
    if known is not None:
        return _with_spacing(image, (*known, across), path)
    if not np.allclose(
        image.GetSpacing()[:2], 1.0
    ):  # enhanced objects keep it in sequences that ITK has read
        return image
    return image if spacing_mm is None else _with_spacing(image, spacing_mm, path)


def dicom_series(folder: Path) -> list[tuple[str, ...]]:
    """The DICOM series of a folder, each as its files in the order of their places.

    Raises:
        ImageError: naming the file, if one is damaged.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_dicom(path):
            kind_of(path)
    reader = sitk.ImageSeriesReader
    try:
        return [reader.GetGDCMSeriesFileNames(str(folder), s) for s in reader.GetGDCMSeriesIDs(str(folder))]
    except RuntimeError as error:
        raise ImageError(f"{folder}: its DICOM files can't be told apart ({reason(error)}).") from None


def _read_series(folder: Path, wanted: str = "") -> sitk.Image:
    """The only DICOM series of a folder as one image, or that of the UID `wanted`."""
    series = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), wanted)] if wanted else []
    series = series or dicom_series(folder)
    if not series:
        raise ImageError(
            f"{folder}: holds no DICOM series. Give an image file, or the folder of one DICOM series."
        )
    if len(series) > 1:
        found = "\n".join(_describe(files) for files in series)
        raise ImageError(
            f"{folder}: holds {len(series)} DICOM series:\n{found}\nPut the wanted one in its own folder."
        )
    (files,) = series
    first = _as_scalar(_read_file(Path(files[0])), Path(files[0]))
    if len(files) == 1:
        return first
    headers = [read_header(Path(name)) for name in files]
    check_total(folder, headers)
    _check_slices(folder, headers)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.SetImageIO("GDCMImageIO")
    if _numbers(first, "0028|1053") is not None:  # the rescale slope may differ from slice to slice
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(
            f"{folder}: its DICOM series cannot be stacked into one volume ({reason(error)})."
        ) from None
    for key in (_PHOTOMETRIC, _PIXEL_SPACING, _IMAGER_SPACING):
        if first.HasMetaDataKey(key):
            image.SetMetaData(key, first.GetMetaData(key))
    return _as_scalar(image, folder)


def _describe(files: Sequence[str]) -> str:
    header = read_header(Path(files[0]))
    name = (
        header.GetMetaData("0008|103e").strip()
        if header.HasMetaDataKey("0008|103e")
        else "without description"
    )
    return f"  {name}: {len(files)} files, for example {Path(files[0]).name}"


def _check_slices(folder: Path, headers: list[sitk.ImageFileReader]) -> None:
    """Refuse a series with missing, doubled or unevenly spaced slices."""
    positions = []
    for header in headers:
        position = _numbers(header, "0020|0032")
        if position is None or len(position) != 3:
            return
        positions.append(position)
    gaps = np.linalg.norm(np.diff(np.asarray(positions), axis=0), axis=1)
    usual = float(np.median(gaps))
    if usual <= 0 or np.abs(gaps - usual).max() > _UNEVEN_SLICES * usual:
        raise ImageError(
            f"{folder}: the slices of the DICOM series are {gaps.min():.3g} to {gaps.max():.3g} mm apart. "
            "Some are missing or doubled: export the whole series again, or resample it to even slices."
        )
