"""Text, JSON, YAML and CSV that somebody else may have written: bounded, plain values, one kind of error.

Nothing in a file runs as code, makes it larger in memory than it is on disk, or counts twice: YAML has no
tags, no anchors, and like JSON no entry that is there twice and no deep nesting. NaN and infinities of JSON,
which the standard does not know, are read as None.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

LARGEST_TEXT = 64 * 2**20
"""Bytes of a text file at most; a study of 5 000 cases has about 2 million."""
_DEEPEST, _MOST_DIGITS = 64, 300
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]{0,17})$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?([0-9]+\.[0-9]*([eE][-+][0-9]+)?|\.[0-9]+([eE][-+][0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}
_KNOWN_TAGS = {*_NUMBERS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}


class DocumentError(ValueError):
    """A file that does not hold what it should; the message names it and what is wrong there."""


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, of at most `LARGEST_TEXT` bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: for a folder, a device, a file that is too large, and bytes that are no UTF-8.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")
    if not path.is_file():
        raise DocumentError(f"{path}: is a folder or a device, and a file is needed.")
    with path.open("rb") as stream:
        content = stream.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise DocumentError(
            f"{path}: is larger than {LARGEST_TEXT // 2**20} MiB, which no file of its kind should be. Check "
            "that it is the right file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DocumentError(f"{path}: is no UTF-8 text. Save it again as UTF-8.") from None


def read_json(path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        FileNotFoundError, DocumentError: see `read_text`, `parse_json`.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The values of a JSON text.

    Raises:
        DocumentError: naming `where`.
    """
    try:
        return json.loads(
            text, parse_constant=lambda _: None, parse_int=_whole, object_pairs_hook=_without_doubles
        )
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: not readable as JSON ({shortened(error)}).") from None


def read_yaml(path: Path) -> Any:
    """The values of a YAML file.

    Raises:
        FileNotFoundError, DocumentError: see `read_text`, `parse_yaml`.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text.

    Raises:
        DocumentError: naming `where`.
    """
    import yaml

    try:
        _check_events(text)
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"{where}: not readable as YAML ({shortened(error)}).") from None


def spreadsheet_text(text: str) -> str:
    """`text` for a cell of a table that a person may open: never taken for a formula.

    Spreadsheets calculate what begins with `=`, `+`, `-` or `@`; behind an apostrophe it is a text to them.
    """
    return f"'{text}" if text.startswith(_FORMULA_BEGINS) else text


def csv_rows(text: str, where: str, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV text that are not empty.

    Raises:
        DocumentError: naming `where`.
    """
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DocumentError(f"{where}: not readable as CSV ({error}).") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_twice(name for name, _ in pairs))
    return found


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _twice(names: Iterable[Any]) -> str:
    seen: set[Any] = set()
    double = next((name for name in names if name in seen or seen.add(name)), "of the same value")  # type: ignore[func-returns-value]
    return f"the entry {double!r} is there twice"


def _check_events(text: str) -> None:
    """Refuse what could run, grow or overflow while it is read: tags, aliases and deep nesting."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases such as *{event.anchor} are not allowed, write the value out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"tags such as {tag} are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} levels")


@cache
def _loader() -> Any:
    """PyYAML's safe loader, the fast one where there is one; refuses entries that are there twice.

    Whole and decimal numbers are what they are in JSON: dates, hexadecimal numbers and those to the base of
    60 stay texts.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in entries if tag in _KNOWN_TAGS]
            for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise ValueError(_twice(str(key.value) for key, _ in node.value))
            return found

    return Loader


def shortened(error: BaseException, most: int = 300) -> str:
    """The message of an error in one line that a long value in a file does not blow up."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."
