"""A study as the child process tells it, for a Slicer whose Python has neither PyYAML nor pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.study_file import FORMAT
from SegGuidedMMRegLib.study_record import parts_from_record

_NOT_IN_THE_FILE = ("predicted", "draft", "thumbnail")


def study_as_told(folder: Path | str, told: Mapping[str, Any]) -> Study:
    """The study in `folder` from the result of `segmmreg info STUDY --events`.

    Its settings (`config`) are None: they are the child process' affair.

    Raises:
        StudyError: if that tells of no study.
    """
    folder = Path(folder)
    try:
        record = {name: told[name] for name in ("name", "dimension", "structures", "grid")}
        cases = [{k: v for k, v in case.items() if k not in _NOT_IN_THE_FILE} for case in told["cases"]]
        modalities = {"source": told["source"], "target": told["target"]}
        parts = parts_from_record({"format": FORMAT, **record, "modalities": modalities, "cases": cases})
        return Study(folder, config=None, **parts)  # type: ignore[arg-type]
    except KeyError as error:
        raise StudyError(f"{folder}: the child process did not tell {error} of the study.") from None
    except StudyError as error:
        raise StudyError(f"{folder}: {error}") from None
