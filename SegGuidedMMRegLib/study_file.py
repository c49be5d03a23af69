"""`study.yaml`: what may stand in it, and clear words where something else does.

A study can come from a stranger: the file is read with the safe loader, every value is checked by hand (so
that the message names the entry), and no path may lead out of the study folder. Nothing here opens an image.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import DocumentError, parse_json, parse_yaml, read_text

FORMAT = 1
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
FORBIDDEN_IN_NAMES = '/\\<>:"|?*'
_FORBIDDEN = frozenset(FORBIDDEN_IN_NAMES)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


class StudyError(ValueError):
    """A study, or a request to one, that does not fit. The message says what and what to do."""


def check_name(name: object, what: str) -> str:
    """`name` if it can be a file and folder name on every system: letters of any script, spaces, `-_.`.

    Raises:
        StudyError: for an empty name, one with a character of `FORBIDDEN_IN_NAMES` or a control character,
        with
            `--` (which separates moving from fixed), a dot or space at an end, more than 120 characters, or
            a name that Windows keeps for a device.
    """
    fits = (
        isinstance(name, str)
        and 0 < len(name) <= 120
        and name.isprintable()
        and _FORBIDDEN.isdisjoint(name)
        and "--" not in name
        and name == name.strip(" .")
        and not is_reserved(name)
    )
    if not fits:
        raise StudyError(
            f"{what}: {name!r} can't be used as a name. Use letters, digits, spaces, '-', '_' and '.', not "
            f"{FORBIDDEN_IN_NAMES!r} or '--', no dot or space at an end, and no name that Windows keeps for "
            "itself."
        )
    return str(name)


def is_reserved(name: str) -> bool:
    """Whether Windows keeps the name, with whatever suffix, for a device."""
    return _RESERVED.fullmatch(name) is not None


def check_inside(path: object, what: str) -> str:
    """`path` if it is relative and stays inside the study folder.

    Raises:
        StudyError: for absolute paths, drive letters, backslashes and `..`.
    """
    fits = (
        isinstance(path, str)
        and path != ""
        and "\\" not in path
        and "\0" not in path
        and path[0] != "/"
        and path[1:2] != ":"
        and ".." not in path.split("/")
    )
    if not fits:
        raise StudyError(f"{what}: the path must be relative and inside the study folder, got {path!r}.")
    return str(path)


def resolve_inside(folder: Path, relative: str) -> Path:
    """The file `relative` of the study, also after links are followed.

    Raises:
        StudyError: if a symbolic link leads out of `folder`.
    """
    return require_inside(folder, folder / check_inside(relative, str(folder)))


def require_inside(folder: Path, path: Path) -> Path:
    """`path` if it lies in `folder` also after links are followed; it need not exist.

    Raises:
        StudyError: if a symbolic link leads out of `folder`, or nowhere.
    """
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a link to itself
        raise StudyError(f"{path} can't be followed ({error}); put a copy of the file there.") from None
    if not inside:
        raise StudyError(f"{path} is a link that leads out of the study folder; put a copy of it there.")
    return path


def check_links(folder: Path) -> None:
    """Refuse a study whose folders are links that lead out of it: results would be written there.

    Raises:
        StudyError: naming the link.
    """
    for first in _entries(folder, folder):
        for second in _entries(folder, first):
            if first.name == "models":
                _entries(folder, second)


def _entries(study: Path, folder: Path) -> list[Path]:
    """The folders in `folder`, once its links are checked."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_symlink():
            require_inside(study, Path(entry.path))
    return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def read_record(path: Path) -> dict[str, Any]:
    """The file as plain values.

    Raises:
        FileNotFoundError: saying how to make a study, if there is none.
        StudyError: if it is not YAML, or of a later format.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} is not a study: there is no {path.name}. `segmmreg new` makes one."
        )
    try:
        record = mapping(_parsed(read_text(path), str(path)), str(path))
    except DocumentError as error:
        raise StudyError(str(error)) from None
    if record.get("format") != FORMAT:
        raise StudyError(
            f"{path}: format {record.get('format')!r} is not the format {FORMAT} that this version reads; "
            "update SegGuidedMMReg, or make the study anew."
        )
    return record


def write_record(record: dict[str, Any]) -> str:
    """`study.yaml` of plain values: YAML with a line of JSON a case, so that thousands are read quickly."""
    import yaml

    head = yaml.safe_dump(
        {k: v for k, v in record.items() if k != "cases"}, sort_keys=False, allow_unicode=True
    )
    if not record["cases"]:
        return f"{head}cases: []\n"
    return head + "cases:\n" + "".join(f"- {_in_a_line(case)}\n" for case in record["cases"])


def _in_a_line(value: object) -> str:
    """JSON that is YAML too: letters stay, and what YAML takes for the end of a line is written as number."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else _as_number(c) for c in text)


def _as_number(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 1 << 16 else character


def _parsed(text: str, where: str) -> Any:
    """The values of `study.yaml`: as `write_record` writes it, or any other YAML, which takes longer."""
    head, found, rest = text.partition("\ncases:\n")
    lines = rest.removesuffix("\n").split("\n")
    if found and all(line.startswith("- {") for line in lines) and not _HALF_CHARACTER.search(rest):
        with contextlib.suppress(DocumentError):  # what is wrong is said of the whole below
            cases = parse_json("[" + ",".join(line[2:] for line in lines) + "]", where)
            record = parse_yaml(head + "\n", where)
            if len(cases) == len(lines) and isinstance(record, dict) and "cases" not in record:
                return {**record, "cases": cases}
    return parse_yaml(text, where)


def mapping(value: object, where: str) -> dict[str, Any]:
    """`value` as names and values, or StudyError."""
    if not isinstance(value, dict):
        raise StudyError(f"{where}: expected names with values, got {type(value).__name__}.")
    return value


def sequence(value: object, where: str) -> list[Any]:
    """`value` as a list, or StudyError."""
    if not isinstance(value, list):
        raise StudyError(f"{where}: expected a list, got {type(value).__name__}.")
    return value


def check_keys(record: dict[str, Any], required: Iterable[str], optional: Iterable[str], where: str) -> None:
    """Raise StudyError for keys that are missing or unknown (with the nearest known one)."""
    required, known = list(required), [*required, *optional]
    if missing := [key for key in required if key not in record]:
        raise StudyError(f"{where}: {', '.join(missing)} missing.")
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
            raise StudyError(f"{where}: unknown entry {key!r}; {hint}")
