"""Taking the time of writing out of HDF5 files, so that the same transform makes the same file.

ITK's HDF5 library notes in each object when it was made, and cannot be told not to from here. Object headers
of version 2 (HDF5 File Format Specification 3.0, IV.A.1.b) carry four such times and a checksum, Bob Jenkins'
lookup3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_SIGNATURE = b"OHDR"
_TIMES, _PHASE_CHANGE, _SIZE_OF_SIZE = 0x20, 0x10, 0x03
_MASK = 0xFFFFFFFF


def forget_times(path: Path) -> None:
    """Set all times in the HDF5 file to 0. What is no object header of version 2 stays as it is."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for start, end in _headers(content):
            content[start + 6 : start + 22] = bytes(16)
            content[end : end + 4] = lookup3(content[start:end]).to_bytes(4, "little")


def _headers(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Start and end (of the checksum the start) of the object headers that carry times."""
    start = content.find(_SIGNATURE)
    while start >= 0:
        end = _end_of_header(content, start)
        # Voxels may look like a header by chance, but not with its checksum.
        if end is not None and content[end : end + 4] == lookup3(content[start:end]).to_bytes(4, "little"):
            yield start, end
        start = content.find(_SIGNATURE, start + 4)


def _end_of_header(content: mmap.mmap, start: int) -> int | None:
    version, flags = content[start + 4 : start + 6] if start + 6 <= len(content) else (0, 0)
    if version != 2 or not flags & _TIMES:
        return None
    at = start + 6 + 16 + (4 if flags & _PHASE_CHANGE else 0)
    width = 1 << (flags & _SIZE_OF_SIZE)
    end = at + width + int.from_bytes(content[at : at + width], "little")
    return end if end + 4 <= len(content) else None


def lookup3(data: bytes) -> int:
    """Bob Jenkins' `hashlittle` (lookup3.c, 2006) of `data`, with the initial value 0."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    words = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]
    words += [0] * (-len(words) % 3)
    if not words:
        return c
    for n in range(0, len(words) - 3, 3):
        a, b, c = (a + words[n]) & _MASK, (b + words[n + 1]) & _MASK, (c + words[n + 2]) & _MASK
        for turn in (4, 6, 8, 16, 19, 4):  # mix(a, b, c)
            a = (a - c) & _MASK ^ _turned(c, turn)
            c = (c + b) & _MASK
            a, b, c = b, c, a
    a, b, c = (a + words[-3]) & _MASK, (b + words[-2]) & _MASK, (c + words[-1]) & _MASK
    for turn in (14, 11, 25, 16, 4, 14, 24):  # final(a, b, c)
        c = ((c ^ b) - _turned(b, turn)) & _MASK
        a, b, c = b, c, a
    return b


def _turned(value: int, by: int) -> int:
    return (value << by | value >> (32 - by)) & _MASK
