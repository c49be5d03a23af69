"""SHA-256 of files, taken once: a file that has not been touched since is not read again.

What is kept of a file is its size, its number in the file system, and when content and status last changed,
to the nanosecond; all must be equal, whatever the clock says, so a clock that was set back fools nobody. A
file that was touched within two seconds of being read, or by its date in the future, is read again next time:
a change within the same tick of a coarse clock would not show.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.files import write_text_atomically

_COARSE_CLOCK_NS = 2_000_000_000


def digest_of(*parts: Any) -> str:
    """SHA-256 of plain values and bytes; a `Path` counts by the content of its file."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            digest.update(hashlib.sha256(part).digest())
        elif isinstance(part, Path):
            digest.update(_content(part))
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class FileDigests:
    """Digests of the files of a folder.

    Args:
        folder: that the files lie in.
        kept: JSON file in which digests outlast this process.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        self._folder, self._kept = folder, kept
        self._entries: dict[str, list[Any]] = _read(kept)
        self._changed = False

    @staticmethod
    def of_study(folder: Path) -> FileDigests:
        """Those of the study in `folder`."""
        return FileDigests(folder, folder / "models" / "cache" / "digests.json")

    def __call__(self, path: Path) -> str:
        """SHA-256 of the content of `path`, "" if there is no such file."""
        try:
            state = path.stat()
        except FileNotFoundError:
            return ""
        name = os.path.relpath(path, self._folder)
        mark = [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
        entry = self._entries.get(name)
        if entry is not None and entry[:-1] == mark:
            return str(entry[-1])
        settled = max(state.st_mtime_ns, state.st_ctime_ns) + _COARSE_CLOCK_NS < time.time_ns()
        found = _content(path).hex()
        if settled:
            self._entries[name] = [*mark, found]
            self._changed = True
        return found

    def of_all(self, paths: Iterable[Path]) -> str:
        """One digest of several files, by their names and contents."""
        return digest_of([(os.path.relpath(path, self._folder), self(path)) for path in paths])

    def save(self) -> None:
        """Keep what is known, if it is more than was.

        Raises:
            WriteError: if it cannot be written; nothing depends on it.
        """
        if self._changed:
            write_text_atomically(self._kept, json.dumps(self._entries))
            self._changed = False


def _content(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    fits = isinstance(record, dict) and all(isinstance(e, list) and len(e) == 5 for e in record.values())
    return record if fits else {}
