"""Writing files so that nobody ever meets half of one, be it an error, a full disk or a kill that stops."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.documents import parse_json
from SegGuidedMMRegLib.events import ErrorCode

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_OTHER_WORDS = ("out of disk space", "requested and", "unexpected pos")
"""What TIFF, numpy and torch say."""
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_ROOM_BYTES = 1 << 16
_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 1.0) if os.name == "nt" else ()
"""Between tries to give something its name."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}-.+|\.tmp[A-Za-z0-9]{6}")
"""Ours, and what safetensors writes before it."""


class WriteError(OSError):
    """A file could not be written, an older one is whole; the message names it."""

    error_code = ErrorCode.INPUT


@contextmanager
def atomic_path(path: str | Path, *, room: int = 0) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes `path`'s place when the block ends well.

    The sibling's name ends like `path`'s, so that writers which choose a format by suffix (`.nii.gz`,
    `.seg.nrrd`) choose the same. Missing folders are made. If the block raises, the sibling is removed and an
    older `path` stays as it was; a kill may leave the sibling (`remove_temporaries`). The content is on the
    disk before the name is. Only for formats of one file.

    Args:
        path: what to write.
        room: bytes that the file will take at least, for writers that do not notice a full disk.

    Raises:
        WriteError: if the disk is full or the folder read-only.
        FileNotFoundError: if the block ends without having written the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_room(path, room)
        yield temporary
        _to_disk(temporary)
        put_in_place(temporary, path)
    except Exception as error:
        if (told := _explained(path, error)) is None:
            raise
        raise told from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written to holds no temporary file
            temporary.unlink(missing_ok=True)


def put_in_place(source: Path, target: Path) -> None:
    """Give a file or folder its name; a file of that name is replaced.

    Windows refuses that while anybody has the file open, or one in the folder: virus scanners look at what is
    new.
    """
    for pause_s in _PAUSES_S:
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(pause_s)
        else:
            return
    source.replace(target)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 with line feeds, all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to a UTF-8 file; half a line that a kill left there stays a line of its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            broken = end and file.read(1) != b"\n"
            file.write(f"{chr(10) if broken else ''}{line}\n".encode())
    except OSError as error:
        raise _explained(path, error) or error from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; half lines and whatever else is no object are left out."""
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            record = parse_json(line.decode(), str(path))
            if isinstance(record, dict):
                yield record


def remove_temporaries(folder: Path, older_than_s: float, *, deep: bool = True) -> list[Path]:
    """Remove what a killed writer left in `folder`, and say what that was.

    Args:
        folder: links in it are not followed.
        older_than_s: younger files may belong to a writer that is at work. A date in the future, of another
            clock, is as old as its distance from now.
        deep: also in all folders in it.
    """
    places = os.walk(folder) if deep else itertools.islice(os.walk(folder), 1)
    found = [Path(p) / name for p, _, names in places for name in names if _TEMPORARY.fullmatch(name)]
    removed = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # its writer is alive and has just finished
            if abs(time.time() - path.lstat().st_mtime) >= older_than_s:
                path.unlink()
                removed.append(path)
    return removed


def _to_disk(path: Path) -> None:
    """Wait until the content is stored; this is where some file systems tell that the disk is full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _require_room(path: Path, room: int) -> None:
    free = shutil.disk_usage(path.parent).free if room else 0
    if free < room:
        raise OSError(errno.ENOSPC, f"{room / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")


def _explained(path: Path, error: Exception) -> WriteError | None:
    """What to tell of `error`, if the disk or the folder is the reason; libraries hide it in other errors."""
    code = error.errno if isinstance(error, OSError) else None
    words = str(error)
    hidden = any(known in words for known in (*map(os.strerror, _FULL), *_FULL_IN_OTHER_WORDS))
    if code in _FULL or hidden or (code is None and _is_full(path.parent)):
        told = WriteError(f"{path} could not be written: the disk is full, or your share of it ({words}).")
        told.error_code = ErrorCode.DISK_FULL
        return told
    if code in _REFUSED:
        return WriteError(
            f"{path} could not be written ({os.strerror(code or 0)}). Allow writing to {path.parent}, or "
            "work on a copy in a folder of your own."
        )
    return None


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NO_ROOM_BYTES
    except OSError:
        return False
