"""The elements of a DICOM file, walked through before a reader makes room for what their lengths say.

Source: DICOM PS3.5, 7.1 (data elements), 7.5 (sequences), A.4 (encapsulated pixel data); PS3.10, 7.1 (files).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_TRANSFER_SYNTAX, _PIXELS = (0x0002, 0x0010), (0x7FE0, 0x0010)
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_BEGINNING = 132
_MOST_NESTED = 64


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as stream:
        return stream.read(_BEGINNING)[-4:] == b"DICM"


def what_is_wrong_in_dicom(path: Path) -> str | None:
    """Why a DICOM file must not be read; None if every element lies within it."""
    content = memoryview(path.read_bytes())
    try:
        syntax, start = _file_meta(content)
        if syntax == _DEFLATED:
            return "its values are deflated, which is not read here"
        walk = _Walk(content, start, ">" if syntax == _BIG_ENDIAN else "<", syntax == _IMPLICIT)
        while walk.at < len(content):
            walk.step()
    except struct.error:
        return "its last element is cut off"
    except _Broken as broken:
        return str(broken)
    return None


class _Broken(Exception):  # noqa: N818
    """An element that cannot be."""


def _file_meta(content: memoryview) -> tuple[str, int]:
    """The transfer syntax, and where the group 0002 ends."""
    walk = _Walk(content, _BEGINNING, "<", implicit=False)
    syntax = ""
    while walk.at < len(content) and struct.unpack_from("<H", content, walk.at)[0] == 0x0002:
        tag, value = walk.step()
        if tag == _TRANSFER_SYNTAX:
            syntax = bytes(value).decode("ascii", "replace").strip("\0 ")
    return syntax, walk.at


@dataclass
class _Walk:
    """A way through the elements, sequences opened, in one line.

    Attributes:
        content: the file.
        at: where the next element begins.
        order: "<" or ">".
        implicit: whether elements lack their type here.
        outer: the same for the sequences of undefined length around this place.
    """

    content: memoryview
    at: int
    order: str
    implicit: bool
    outer: list[bool] = field(default_factory=list)
    in_pixels: bool = False

    def step(self) -> tuple[tuple[int, int], memoryview]:
        """Go on by one element; its tag and value (empty where it was opened)."""
        tag = struct.unpack_from(f"{self.order}2H", self.content, self.at)
        if tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
            return tag, self._delimiter(tag)
        if tag == (0, 0):  # padding after the last element
            self.at = len(self.content)
            return tag, self.content[:0]
        kind, length = self._kind_and_length()
        if length == _UNDEFINED:
            self._open(tag, kind)
            return tag, self.content[:0]
        if kind == b"SQ" or (kind in (b"", b"UN") and self._begins_with_item()):
            return tag, self.content[:0]  # what is in it comes next
        return tag, self._skip(tag, length)

    def _kind_and_length(self) -> tuple[bytes, int]:
        kind = b"" if self.implicit else bytes(self.content[self.at + 4 : self.at + 6])
        if not (kind.isalpha() and kind.isupper()):  # also some faulty writers
            (length,) = struct.unpack_from(f"{self.order}I", self.content, self.at + 4)
            self.at += 8
            return b"", length
        if kind in _LONG:
            (length,) = struct.unpack_from(f"{self.order}I", self.content, self.at + 8)
            self.at += 12
            return kind, length
        (length,) = struct.unpack_from(f"{self.order}H", self.content, self.at + 6)
        self.at += 8
        return kind, length

    def _open(self, tag: tuple[int, int], kind: bytes) -> None:
        if len(self.outer) >= _MOST_NESTED:
            raise _Broken(f"its sequences are nested more than {_MOST_NESTED} deep")
        self.outer.append(self.implicit)
        self.in_pixels = tag == _PIXELS
        self.implicit = self.implicit or kind == b"UN"  # PS3.5, 6.2.2, note 2

    def _delimiter(self, tag: tuple[int, int]) -> memoryview:
        (length,) = struct.unpack_from(f"{self.order}I", self.content, self.at + 4)
        self.at += 8
        if tag == _SEQUENCE_END and self.outer:
            self.implicit, self.in_pixels = self.outer.pop(), False
        if tag == _ITEM and self.in_pixels:
            return self._skip(tag, length)
        return self.content[:0]

    def _begins_with_item(self) -> bool:
        return self.content[self.at : self.at + 4] == struct.pack(f"{self.order}2H", *_ITEM)

    def _skip(self, tag: tuple[int, int], length: int) -> memoryview:
        left = len(self.content) - self.at
        if length > left:
            raise _Broken(f"the element ({tag[0]:04x},{tag[1]:04x}) of {length} bytes has {left} only")
        value = self.content[self.at : self.at + length]
        self.at += length
        return value
