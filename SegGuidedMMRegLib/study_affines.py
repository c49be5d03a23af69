"""`models/prealign/affines.json`: where each case lies in study space."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.space import FloatArray
from SegGuidedMMRegLib.study_file import StudyError


def write_affines(path: Path, affines: Mapping[str, ArrayLike]) -> None:
    """Write `study_to_case` matrices, by `Case.key`, whole or not at all.

    Raises:
        StudyError: naming the case, for what is no invertible 4x4 matrix.
    """
    record = {key: _check_affine(matrix, key).tolist() for key, matrix in affines.items()}
    write_text_atomically(path, json.dumps({"study_to_case_lps": record}, indent=1))


def study_to_case(path: Path, case: Case) -> FloatArray:
    """The matrix of `case`, 4x4 from study LPS mm to its physical LPS mm.

    Raises:
        StudyError: if the file is missing or damaged, or the case has not been pre-aligned.
    """
    try:
        state = path.stat()
        matrix = _affines(path, state.st_mtime_ns, state.st_size, state.st_ino).get(case.key)
    except FileNotFoundError:
        raise StudyError(f"{path} is missing: `segmmreg train` pre-aligns the images first.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is damaged ({error}): delete it, `segmmreg train` makes it again."
        ) from None
    if matrix is None:
        raise StudyError(f"{path}: {case.key} is not pre-aligned; `segmmreg train` does it.")
    return _check_affine(matrix, f"{path}: {case.key}")


@lru_cache(maxsize=4)
def _affines(path: Path, *_state: int) -> Mapping[str, ArrayLike]:
    """What `affines.json` holds, read once while the file stays as it is: there may be thousands of cases."""
    found: Mapping[str, ArrayLike] = read_json(path)["study_to_case_lps"]
    return found


def _check_affine(matrix: ArrayLike, where: str) -> FloatArray:
    try:
        m = np.asarray(matrix, dtype=float)
    except (ValueError, TypeError):
        m = np.zeros(0)
    if m.shape != (4, 4) or not np.isfinite(m).all() or abs(np.linalg.det(m)) < 1e-9:
        raise StudyError(f"{where}: expected an invertible 4x4 matrix, got {str(matrix)[:200]}.")
    return m
