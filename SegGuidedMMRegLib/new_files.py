"""Files that a command writes where a person wants them.

None of theirs is replaced unless they ask for it, and a run that was cut off goes on when it is run again.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from SegGuidedMMRegLib.digests import digest_of
from SegGuidedMMRegLib.files import write_text_atomically

_NOTE = "Files here are not all written yet. Run the same command again to go on, or delete this note.\n"


@contextmanager
def new_files(folder: Path, paths: Sequence[Path], *, overwrite: bool) -> Iterator[bool]:
    """Guard the writing of `paths` in or under `folder`; gives whether those that exist may be replaced.

    A note in the folder stands for a run that has begun and not ended, be it by an error, a full disk or a
    kill. Where the note of just these files is found, they are ours and are written again.

    Raises:
        FileExistsError: if one of them exists and may not be replaced.
    """
    made = not folder.exists()
    note = folder / f".unfinished-{digest_of(*(str(path) for path in paths))[:12]}"
    if note.is_file():
        for path in paths:
            for left in path.parent.glob(f".????????-{glob.escape(path.name)}"):
                left.unlink(missing_ok=True)
        overwrite = True
    for path in paths:
        refuse_existing(path, overwrite)
    write_text_atomically(note, _NOTE)
    try:
        yield overwrite
        note.unlink(missing_ok=True)
    except BaseException:
        if not any(path.exists() for path in paths):
            note.unlink(missing_ok=True)
            with suppress(OSError):  # there is something in it
                if made:
                    folder.rmdir()
        raise


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `path` exists and may not be replaced."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, and a file is to be written there. Give another --out.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another --out.")
