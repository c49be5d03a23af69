"""What a stage was made from, so that it runs again when, and only when, that has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.files import write_text_atomically

STAGE_FILE = "stage.json"


def digest_of(*parts: Any) -> str:
    """SHA-256 of plain values and bytes; a `Path` counts by the content of its file."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            digest.update(hashlib.sha256(part).digest())
        elif isinstance(part, Path):
            digest.update(hashlib.sha256(part.read_bytes()).digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def changed_since(folder: Path, made_from: Mapping[str, str]) -> str | None:
    """Why the stage in `folder` has to run: None if it is complete and was made from just this.

    Args:
        folder: of the stage.
        made_from: digest of each thing that it depends on, by a name for people.
    """
    record = _read(folder)
    if not record:
        return "missing"
    old = record.get("made_from", {})
    changed = [name for name in {**made_from, **old} if made_from.get(name) != old.get(name)]
    if changed:
        return f"out of date: {', '.join(changed)} changed"
    return None if record.get("complete") else "was cut off"


def begin(folder: Path, made_from: Mapping[str, str]) -> None:
    """Note that the stage in `folder` runs; what an earlier run left of something else is cleared away."""
    record = _read(folder)
    if record and record.get("made_from") != dict(made_from):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    _write(folder, {"made_from": dict(made_from), "complete": False})


def complete(folder: Path, made_from: Mapping[str, str], **found: Any) -> None:
    """Note that the stage in `folder` is done; `found` (seconds, version, …) is kept beside it."""
    _write(folder, {"made_from": dict(made_from), "complete": True, **found})


def _read(folder: Path) -> dict[str, Any]:
    path = folder / STAGE_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_text_atomically(folder / STAGE_FILE, json.dumps(record, indent=1))
