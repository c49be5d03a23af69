"""Writing files so that nobody ever meets half of one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes `path`'s place when the block ends well.

    The sibling's name ends like `path`'s, so that writers which choose a format by suffix (`.nii.gz`,
    `.seg.nrrd`) choose the same. Missing folders are made. If the block raises, the sibling is removed and an
    older `path` stays as it was. Only for formats of one file.

    Raises:
        FileNotFoundError: if the block ends without having written the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 with line feeds, all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
