"""Hand segmentations of cases that are in a study: taken up, replaced, put to another use, or set aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from SegGuidedMMRegLib.cases import Case, LabelUse, Role
from SegGuidedMMRegLib.images import Image, read_labels, write_labels
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.study import Study, StudyError

Use = Literal["training", "evaluation", "none"]


def label_cases(
    folder: Path, names: Sequence[str], *, use: Use | None = None, file: Path | None = None
) -> tuple[Study, tuple[Case, ...]]:
    """Tell a study of the segmentations that lie in its folder `labels`, once they are checked as at import.

    Args:
        folder: of the study.
        names: cases, as name or `modality/name`.
        use: of their labels; "none": the study uses them no more, and their files stay. None: as before, or
            as is usual for images of this modality and role.
        file: a label map or `.seg.nrrd` from elsewhere, which replaces the labels of the one case.

    Returns:
        the study as it is now, and the cases.

    Raises:
        BusyError: if another command changes the cases of the study.
        StudyError: naming case, file and remedy; the study stays as it was then.
    """
    if not names:
        raise StudyError("Say of which case: `segmmreg label STUDY CASE`.")
    if file is not None and (len(names) > 1 or use == "none"):
        raise StudyError(f"{file}: a file goes with exactly one case, and with a use of its labels.")
    with working_on(folder, "cases"):
        study = Study.open(folder)
        changed = {}
        for case in [study.case(name) for name in names]:
            told = _with_use(study, case, use)
            if told.label is not None:
                _put_in_place(study, told, file)
            changed[case.key] = told
        study = study.with_cases([changed.get(case.key, case) for case in study.cases])
        study.save_record()
    return study, tuple(changed.values())


def usual_use(study: Study, case: Case) -> LabelUse:
    """What labels of this case are for, where nothing else is said."""
    return "training" if _may_train(study, case) else "evaluation"


def _may_train(study: Study, case: Case) -> bool:
    return case.modality == study.source and case.role != Role.TEST


def _with_use(study: Study, case: Case, use: Use | None) -> Case:
    if use == "none":
        return replace(case, label=None, label_use=None)
    if use == "training" and not _may_train(study, case):
        why = "of the target modality" if case.modality != study.source else "a test case"
        raise StudyError(
            f"The labels of {case.key} can't be for training: it is {why}. Give --use evaluation, or none."
        )
    relative = case.label or study.label_path(case).relative_to(study.folder).as_posix()
    return replace(case, label=relative, label_use=use or case.label_use or usual_use(study, case))


def _put_in_place(study: Study, case: Case, file: Path | None) -> None:
    """Check the labels of `case` against its image; they lie on its grid then, with the study's values."""
    path = study.label_path(case)
    if file is None and not path.is_file():
        raise StudyError(
            f"The case {case.key} has no labels: {path} is missing. Draw some in 3D Slicer, or give --file."
        )
    source = path if file is None else file
    labels = read_matching_labels(source, study.read_image(case), study.structures)
    if file is not None or not _same(read_labels(path), labels):
        write_labels(labels, study.structures, path)


def _same(first: Image, second: Image) -> bool:
    return first.grid == second.grid and np.array_equal(first.array, second.array)
