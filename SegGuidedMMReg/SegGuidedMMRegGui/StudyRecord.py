"""A study as the child process tells it, for a Slicer whose Python has neither PyYAML nor pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.study_record import parts_from_record


def study_of_record(folder: Path | str, record: Mapping[str, Any]) -> Study:
    """The study in `folder` from the `record` in the result of `segmmreg info STUDY --events`.

    Its settings (`config`) are None: they are the child process' affair.

    Raises:
        StudyError: if the record is none of a study.
    """
    folder = Path(folder)
    try:
        return Study(folder, config=None, **parts_from_record(dict(record)))  # type: ignore[arg-type]
    except StudyError as error:
        raise StudyError(f"{folder}: {error}") from None
