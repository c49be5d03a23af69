"""What a stage was made from, so that it runs again when, and only when, that has changed.

`stage.json` in the folder of a stage holds digests of what it was made from and of what it made, and how,
when and by what.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.documents import parse_json, read_json
from SegGuidedMMRegLib.files import write_text_atomically

__all__ = [
    "STAGE_FILE",
    "StageRecord",
    "begin",
    "changed_since",
    "complete",
    "differences",
    "digest_of",
    "replaced",
]

STAGE_FILE = "stage.json"
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class StageRecord:
    """What `stage.json` holds.

    Attributes:
        made_from: digest of each thing that the stage depends on, by a name for people.
        made: digest of each file that later stages read, by its name.
        complete: whether it came to its end.
        about: how, when and by what it was made.
    """

    made_from: Mapping[str, str]
    made: Mapping[str, str]
    complete: bool
    about: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> StageRecord | None:
        """The record in `folder`; None if there is none, or a damaged one."""
        try:
            record = read_json(folder / STAGE_FILE)
            about = {k: v for k, v in record.items() if k not in ("made_from", "made", "complete")}
            return StageRecord(
                dict(record["made_from"]), dict(record.get("made", {})), record["complete"] is True, about
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def differences(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Names of what is not what it was."""
    return [name for name in {**now, **before} if now.get(name) != before.get(name)]


def changed_since(folder: Path, made_from: Mapping[str, str], digests: FileDigests) -> str | None:
    """Why the stage in `folder` has to run: None if it is complete and was made from just this.

    Weights that were replaced by other ones are left in peace: whoever did that wants them to be used.
    """
    record = StageRecord.read(folder)
    if record is None:
        return "missing"
    if changed := differences(made_from, record.made_from):
        return f"out of date: {', '.join(changed)} changed"
    if not record.complete:
        return "was cut off"
    for name, digest in record.made.items():
        if not (folder / name).is_file():
            return f"missing: {name} is gone"
        if digests(folder / name) != digest and not _is_whole(folder / name):
            return f"damaged: {name} is not whole"
    return None


def replaced(folder: Path, digests: FileDigests) -> list[str]:
    """Files of a complete stage that are not those which it made."""
    record = StageRecord.read(folder)
    made = record.made if record and record.complete else {}
    return [name for name, digest in made.items() if digests(folder / name) != digest]


def begin(folder: Path, made_from: Mapping[str, str]) -> None:
    """Note that the stage in `folder` runs; what an earlier run left of something else is cleared away."""
    record = StageRecord.read(folder)
    if record is not None and (record.complete or record.made_from != dict(made_from)):
        for path in sorted(folder.iterdir(), key=lambda p: p.name == STAGE_FILE):  # the record last
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    _write(folder, {"made_from": dict(made_from), "complete": False})


def complete(folder: Path, made_from: Mapping[str, str], made: Mapping[str, str], **about: Any) -> None:
    """Note that the stage in `folder` is done and has made these files (by name, with their digests)."""
    finished = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"made_from": dict(made_from), "made": dict(made), "complete": True, "finished": finished}
    _write(folder, {**record, **about})


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > path.stat().st_size:
                return False
            header = parse_json(file.read(length).decode(), str(path))
        ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
        return bool(path.stat().st_size == _LENGTH_BYTES + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_text_atomically(folder / STAGE_FILE, json.dumps(record, indent=1) + "\n")
