"""A table on disk that another process adds lines to, read as it grows (`registrations/summary.csv`)."""

from __future__ import annotations

import csv
import os
from pathlib import Path

_AT_ONCE = 1 << 16


class GrowingTable:
    """Reads a CSV whose lines are added whole; each call takes a piece that does not keep anybody waiting."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._place = 0
        self._rest = b""
        self._columns: list[str] | None = None
        self.has_more = True

    def more(self) -> tuple[bool, list[dict[str, str]]]:
        """Read on.

        Returns:
            whether the table was made anew, so that all that was read before is void; the rows that came.
        """
        self.has_more = False
        try:
            with self._path.open("rb") as file:
                is_new = self._is_another(os.fstat(file.fileno()))
                file.seek(self._place)
                data = file.read(_AT_ONCE)
        except OSError:
            return False, []
        self._place += len(data)
        self.has_more = len(data) == _AT_ONCE
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line.decode("utf-8", errors="replace") for line in whole if line.strip()]
        if self._columns is None and lines:
            self._columns = next(csv.reader([lines.pop(0)]))
        return is_new, [dict(zip(self._columns or (), row, strict=False)) for row in csv.reader(lines)]

    def _is_another(self, state: os.stat_result) -> bool:
        """Whether the file was replaced since; then it is read from its beginning."""
        file = (state.st_dev, state.st_ino)
        if file == self._file and state.st_size >= self._place:
            return False
        is_first, self._file = self._file is None, file
        self._place, self._rest, self._columns = 0, b"", None
        return not is_first
