"""What is said of a study can be changed: what its cases are, and how its structures are called and shown.

Images and labels stay as they are. What was computed from what has changed is out of date then, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import read_labels
from SegGuidedMMRegLib.importing.labels import with_study_values
from SegGuidedMMRegLib.importing.sources import said_of_cases
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.study import Study, StudyError


@dataclass(frozen=True)
class Change:
    """What is to be said of a case; None stays as it is."""

    role: Role | None = None
    subject: str | None = None
    mirrored: bool | None = None


@dataclass(frozen=True)
class Edited:
    """A changed study, and what else became of the change, in words."""

    study: Study
    notes: tuple[str, ...]


def edit_study(
    folder: Path,
    *,
    cases: Mapping[str, Change] | None = None,
    structures: Sequence[Structure] = (),
    remove: Sequence[str] = (),
    name: str | None = None,
    reporter: Reporter | None = None,
) -> Edited:
    """Change what is said of a study, and save it.

    Args:
        folder: of the study.
        cases: changes by `modality/name`, or the name alone where one modality has it. A role goes to all
            images of the subject.
        structures: names, colours and terms, by value; those of new values are added.
        remove: structures to take away, by value or name: no labels of the study, drafts neither, may hold
            them.
        name: a new title.
        reporter: told of the label files that were looked at.

    Raises:
        BusyError: if images are being added.
        StudyError: naming the case or the structure, if they contradict something, or a structure that is
            to go is drawn; nothing is changed then.
        ValueError, OSError: naming a label file that can't be read.
    """
    with working_on(folder, "cases"):
        was = Study.open(folder)
        going = [_structure(was, each) for each in dict.fromkeys(remove)]
        _refuse_drawn(was, going, reporter or Reporter())
        changed, notes = _cases(was, cases or {})
        left = _structures(was, structures, going)
        study = replace(was, cases=changed, structures=left, name=name or was.name)
        study.save_record()
    return Edited(study, (*notes, *_consequences(was, study)))


def changes_in_table(table: Path) -> dict[str, Change]:
    """The changes in a CSV: a column `case`, and as wanted role, subject, mirrored; what is empty stays.

    Raises:
        StudyError: naming table, line and column.
    """
    return {
        case: Change(said["role"], said["subject"], said["mirrored"])
        for case, said in said_of_cases(table).items()
    }


def _cases(study: Study, changes: Mapping[str, Change]) -> tuple[tuple[Case, ...], list[str]]:
    keys = {case.key for case in study.cases}
    by_key = {name if name in keys else study.case(name).key: change for name, change in changes.items()}
    told = {c.key: _told(c, by_key[c.key]) if c.key in by_key else c for c in study.cases}
    roles: dict[str, Role] = {}
    for key, change in by_key.items():
        subject = told[key].subject
        if change.role is not None and roles.setdefault(subject, change.role) != change.role:
            raise StudyError(
                f"The subject {subject!r} gets two roles, {roles[subject].value} and {change.role.value}: "
                "all images of a subject have one."
            )
    there = {c.subject: c.role for c in study.cases if c.key not in by_key}
    along: set[str] = set()
    found = []
    for case in told.values():
        role = roles.get(case.subject, there.get(case.subject, case.role))
        if role != case.role and (case.key not in by_key or by_key[case.key].role is None):
            along.add(f"{case.key} is for {_PURPOSE[role]} now, as is its subject {case.subject}")
        found.append(_with_role(case, role, study.source))
    return tuple(found), sorted(along)


_NAMED = 8
_PURPOSE = {Role.TRAIN: "training", Role.VALIDATION: "validation", Role.TEST: "testing"}


def _told(case: Case, change: Change) -> Case:
    subject = case.subject if change.subject is None else change.subject
    return replace(
        case, subject=subject, mirrored=case.mirrored if change.mirrored is None else change.mirrored
    )


def _with_role(case: Case, role: Role, source: str) -> Case:
    """The case with a role, and the use of its labels that goes with it: a test case trains nothing."""
    if role == case.role or case.label is None:
        return replace(case, role=role)
    if role == Role.TEST or case.modality != source:
        return replace(case, role=role, label_use="evaluation")
    was_tested = case.role == Role.TEST
    return replace(case, role=role, label_use="training" if was_tested else case.label_use)


def _structures(
    study: Study, wanted: Sequence[Structure], going: Sequence[Structure]
) -> tuple[Structure, ...]:
    by_value = {structure.value: structure for structure in wanted}
    if len(by_value) < len(wanted):
        raise StudyError("Two structures have the same value: give each structure a value of its own.")
    if both := [s for s in going if s.value in by_value]:
        raise StudyError(f"The structure {both[0].value} cannot be changed and removed at once.")
    kept = [by_value.pop(s.value, s) for s in study.structures if s not in going]
    if not kept and not by_value:
        raise StudyError("A study needs a structure: add another one first.")
    return (*kept, *by_value.values())


def _structure(study: Study, said: str) -> Structure:
    """The structure with this value or name."""
    text = said.strip().casefold()
    for structure in study.structures:
        if text in (str(structure.value), structure.name.casefold()):
            return structure
    known = ", ".join(f"{s.value} {s.name}" for s in study.structures)
    raise StudyError(f"The study has no structure {said!r}; it has {known}.")


def _refuse_drawn(study: Study, going: Sequence[Structure], reporter: Reporter) -> None:
    """Labels that hold a structure keep it in the study."""
    if not going:
        return
    drawn: dict[int, list[str]] = {structure.value: [] for structure in going}
    paths = {case.key: study.label_path(case) for case in study.cases}
    reporter.started("labels", len(paths))
    for number, (key, path) in enumerate(paths.items(), 1):
        if path.is_file():
            labels = with_study_values(read_labels(path), study.structures)
            for value, keys in drawn.items():
                if (labels.array == value).any():
                    keys.append(key)
        reporter.progress("labels", number, len(paths))
    for structure in going:
        if keys := drawn[structure.value]:
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            raise StudyError(
                f"The structure {structure.value} {structure.name} stays: it is drawn in the labels of "
                f"{', '.join(keys[:_NAMED])}{more}. Take it out of them first; a draft can be deleted."
            )


def _consequences(was: Study, now: Study) -> list[str]:
    """What has to be made anew, where there are networks already."""
    if not any((now.folder / "models").glob("*/stage.json")):
        return []
    of_networks = [[(s.value, s.name) for s in study.structures] for study in (was, now)]
    if of_networks[0] != of_networks[1]:
        return ["the networks know the structures by their earlier values and names: train again."]
    if [(c.key, c.role, c.mirrored, c.label_use) for c in was.cases] != [
        (c.key, c.role, c.mirrored, c.label_use) for c in now.cases
    ]:
        return ["training may see other images now: `segmmreg status` tells what is out of date."]
    return []
