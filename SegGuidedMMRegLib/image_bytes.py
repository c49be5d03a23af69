"""The kind of an image file by its bytes, and what ITK's readers would not survive or not notice in them.

Only the reader of that kind is then shown the file. ITK's readers of NIfTI, JPEG, BMP and GIPL give a cut-off
file back as a whole one; those of MetaImage, BMP and DICOM crash at, or make room for, whatever a number in
the header says; and headers of NRRD and MetaImage may name any other file as the place of the voxels.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Literal

from SegGuidedMMRegLib.dicom_bytes import what_is_wrong_in_dicom

Kind = Literal["NIfTI", "NRRD", "MetaImage", "PNG", "JPEG", "TIFF", "BMP", "GIPL", "DICOM"]
KNOWN_FORMATS = "NIfTI, NRRD, MHA, PNG, JPEG, TIFF, a DICOM file or the folder of one DICOM series"

_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (b"NRRD", "NRRD"),
    (b"\x89PNG\r\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_DEFLATED = ("NRRD", "MetaImage", "PNG")
_MOST_DEFLATED = 1100
"""Bytes that one byte of a deflated file can hold at most (the format's limit is 1032)."""
_GIPL_HEADER, _NIFTI_HEADER, _HEADER_BYTES = 256, 544, 1 << 20
_MOST_COLOURS = 1 << 16
_NRRD_PARTS = re.compile(rb"^data ?file:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_META_PARTS = re.compile(rb"^ElementDataFile[ \t]*[=:][ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_META_AXES = re.compile(rb"NDims[ \t]*[=:][ \t]*(\S*)", re.IGNORECASE)


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and the remedy."""


def kind_of(path: Path) -> Kind:
    """The kind of an image file, once it is known that its reader survives it.

    Raises:
        ImageError: naming the file and the remedy, for what is missing, empty, of no known kind, cut off, or
            keeps its voxels in a file elsewhere.
    """
    if not path.exists():
        raise ImageError(f"{path}: no such file.")
    if not path.is_file():
        raise ImageError(f"{path}: is a folder or a device, and an image file is needed.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: is empty, 0 bytes. Copy or export it again.")
    kind = _kind(path)
    if kind is None:
        raise ImageError(
            f"{path}: cannot be read as an image (damaged, or of no known kind). Give {KNOWN_FORMATS}."
        )
    _check_parts(path, kind)
    wrong = {"BMP": _wrong_in_bmp, "MetaImage": _wrong_in_meta, "DICOM": what_is_wrong_in_dicom}.get(kind)
    if wrong is not None and (why := wrong(path)) is not None:
        raise ImageError(f"{path}: is damaged: {why}. Copy or export it again.")
    if kind == "JPEG" and not _jpeg_ends(path):
        raise cut_off(path, "its end is missing")
    return kind


def cut_off(path: Path, why: str) -> ImageError:
    """What to raise for a file of which a part is missing."""
    return ImageError(f"{path}: is cut off: {why}. Copy or export it again.")


def _kind(path: Path) -> Kind | None:
    name = path.name.lower()
    if name.endswith((".gipl", ".gipl.gz")):
        return "GIPL"
    try:
        head = _head(path)
    except (OSError, EOFError, zlib.error):
        return None
    if head[128:132] == b"DICM":
        return "DICOM"
    if _byte_order(head) is not None or name.endswith((".img", ".img.gz")):
        return "NIfTI"
    if re.search(rb"^\s*NDims", head, re.MULTILINE):
        return "MetaImage"
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)


def _head(path: Path) -> bytes:
    """The first bytes, unpacked."""
    with path.open("rb") as stream:
        head = stream.read(_NIFTI_HEADER)
    if head[:2] != b"\x1f\x8b":
        return head
    with gzip.open(path) as packed:
        return packed.read(_NIFTI_HEADER)


# -- other files ----------------------------------------------------------------------------------------


def _check_parts(path: Path, kind: Kind) -> None:
    """Refuse a header that takes its voxels from anywhere but itself or, for .nhdr and .mhd, beside it."""
    pattern = {"NRRD": _NRRD_PARTS, "MetaImage": _META_PARTS}.get(kind)
    if pattern is None:
        return
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    if kind == "NRRD":
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    found = pattern.search(head)
    if found is None or found.group(1).strip().upper() == b"LOCAL":
        return
    if path.suffix.lower() not in (".nhdr", ".mhd"):
        raise ImageError(f"{path}: keeps its voxels in another file. Save it anew as one file.")
    names = [found.group(1), *head[found.end() :].splitlines()]
    for name in (raw.decode("utf-8", "replace").strip() for raw in names):
        if _leads_away(name):
            raise ImageError(
                f"{path}: keeps its voxels in {name!r}, outside its own folder. Put both files into one "
                "folder, and name the second without its folder."
            )


def _leads_away(name: str) -> bool:
    steps = re.split(r"[\\/ ]", name)
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).drive) or ".." in steps


# -- damaged headers ------------------------------------------------------------------------------------


def _wrong_in_meta(path: Path) -> str | None:
    with path.open("rb") as stream:
        found = _META_AXES.findall(stream.read(_HEADER_BYTES))
    strange = [axes for axes in found if axes not in (b"2", b"3", b"4")]
    return f"NDims is {strange[0][:20]!r}" if strange else None


def _wrong_in_bmp(path: Path) -> str | None:
    with path.open("rb") as stream:
        head = stream.read(54)
    if len(head) < 54:
        return "its header is cut off"
    width, height, bits, packing, colours = struct.unpack("<18x2i2xHI12xI4x", head)
    size = path.stat().st_size
    if colours > _MOST_COLOURS or colours > size:
        return f"it says that it has {colours} colours"
    held = 8 * size * (255 if packing in (1, 2) else 1)  # run lengths, at most 255 pixels a byte
    return _too_short(held, abs(width * height) * bits)


def _jpeg_ends(path: Path) -> bool:
    content = path.read_bytes()
    return content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda")  # end of image, start of scan


# -- cut-off files --------------------------------------------------------------------------------------


def what_is_missing(path: Path, kind: Kind, claimed: int) -> str | None:
    """Why a file cannot hold voxels of `claimed` bytes; None if it can, or its reader will notice."""
    size = path.stat().st_size
    if kind == "NIfTI":
        return _missing_nifti(path, claimed)
    if kind == "GIPL" and path.suffix.lower() != ".gz":
        return _too_short(size, _GIPL_HEADER + claimed)
    if kind == "BMP":
        with path.open("rb") as stream:
            return _too_short(size, struct.unpack("<2xI", stream.read(6))[0])
    if kind == "GIPL" or (kind in _DEFLATED and path.suffix.lower() not in (".nhdr", ".mhd")):
        return _too_short(_MOST_DEFLATED * size, claimed)
    return None


def _too_short(held: int, wanted: int) -> str | None:
    return None if held >= wanted else f"it should hold {wanted} bytes, and holds {held} at most"


def _missing_nifti(path: Path, claimed: int) -> str | None:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            first = _nifti_offset(stream.read(_NIFTI_HEADER))
            if first is None:
                voxels = path.with_suffix(".img")
                return _too_short(voxels.stat().st_size, claimed) if voxels.is_file() else None
            return _too_short(_length(stream, _NIFTI_HEADER, first + claimed), first + claimed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"its packed part does not come to its end ({error})"


def _byte_order(header: bytes) -> str | None:
    """ "<" or ">" of a NIfTI or Analyze header, which begins with its own length."""
    lengths = (348, 540)
    return next((o for o in "<>" if any(header[:4] == struct.pack(f"{o}i", n) for n in lengths)), None)


def _nifti_offset(header: bytes) -> int | None:
    """Where the voxels begin; None if they lie in another file (a pair of .hdr and .img)."""
    order = _byte_order(header)
    if header[344:347] == b"n+1":
        (offset,) = struct.unpack_from(f"{order}f", header, 108)
        return int(min(max(352.0, offset), 2.0**40))  # in this order NaN gives 352
    if header[4:7] == b"n+2":
        return int(max(struct.unpack_from(f"{order}q", header, 168)[0], 544))
    return None


def _length(stream: BinaryIO | gzip.GzipFile, known: int, wanted: int) -> int:
    """How many bytes of `wanted` a stream holds of which `known` have been read."""
    found = known
    while found < wanted and (block := stream.read(1 << 20)):
        found += len(block)
    return found
