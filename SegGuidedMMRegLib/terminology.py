"""Standard terms of structures, in the line of text that 3D Slicer keeps them in.

A line has seven parts with `~` between them: the name of the list of terms, then category, type and type's
modifier, then the name of the list of regions, region and region's modifier. All but the names are three
fields with `^` between them: coding scheme, code, meaning; such as SCT^71341001^Femur. Parts may be empty.
"""

from __future__ import annotations

LONGEST = 2000
_PARTS, _NAMES = 7, (0, 4)
_TYPE = 2


def is_terminology(text: object) -> bool:
    """Whether `text` is such a line: one that Slicer reads, and that fits into the header of a file."""
    if not isinstance(text, str) or len(text) > LONGEST or not text.isprintable() or "|" in text:
        return False
    parts = text.split("~")
    if len(parts) != _PARTS or not all(
        part.count("^") == 2 for n, part in enumerate(parts) if n not in _NAMES
    ):
        return False
    return bool(parts[_TYPE].split("^")[1])


def meaning_of(text: str) -> str:
    """The term in words, such as "Femur, Left"; "" where there is none."""
    if not is_terminology(text):
        return ""
    meanings = [part.split("^")[2] for n, part in enumerate(text.split("~")) if n not in (*_NAMES, 1)]
    return ", ".join(meaning for meaning in meanings if meaning)
