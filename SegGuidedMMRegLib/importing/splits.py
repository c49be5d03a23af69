"""Who trains, who validates, who tests: by subject, so that no person is on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SegGuidedMMRegLib.cases import Role
from SegGuidedMMRegLib.study_file import StudyError


@dataclass(frozen=True)
class SplitRules:
    """How subjects are given roles where nothing says it already.

    Attributes:
        role: everybody gets this one; None draws.
        validation_subjects, test_subjects: subjects by name; where any are named, the others train.
        validation_share, test_share: share of the subjects that is drawn.
        training_labels: labelled source images that training may use at most; None is all. Labels beyond it
        are for
            evaluation, and their subjects go to the test set first.
        seed: of the draw.

    Raises:
        StudyError: for shares outside 0 to 1, or together 1 or more, and for a number of labels below 0.
    """

    role: Role | None = None
    validation_subjects: tuple[str, ...] = ()
    test_subjects: tuple[str, ...] = ()
    validation_share: float = 0.0
    test_share: float = 0.2
    training_labels: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.validation_share, self.test_share)
        if not all(0 <= s < 1 for s in shares) or sum(shares) >= 1:
            raise StudyError(
                f"The shares for validation and test must be 0 or more, below 1 together, got {shares}."
            )
        if self.training_labels is not None and self.training_labels < 0:
            raise StudyError(f"training_labels must be 0 or more, got {self.training_labels}.")
        if both := set(self.validation_subjects) & set(self.test_subjects):
            raise StudyError(
                f"These subjects are in two splits, validation and test: {', '.join(sorted(both))}."
            )


@dataclass(frozen=True)
class SubjectImage:
    """What the split knows of an image."""

    subject: str
    source: bool
    labelled: bool
    role: Role | None = None


@dataclass(frozen=True)
class Split:
    """Roles by subject, and the labelled source images (by position) that training may use."""

    roles: dict[str, Role]
    training_labels: frozenset[int]


def split(
    images: Sequence[SubjectImage], rules: SplitRules, known: Mapping[str, Role] | None = None
) -> Split:
    """Give each subject a role.

    `known` roles and those that an image brings stay. Others are drawn in each group of subjects (source
    only, target only, both): subjects whose labels training has no use for are tested first, those with
    labels for training last.

    Raises:
        StudyError: if a subject has two roles, or a named subject does not exist.
    """
    roles = _said_roles(images, rules, known or {})
    rng = np.random.default_rng(rules.seed)
    order = rng.permutation(len(images)).tolist()
    reserved = _reserved(images, rules, roles, order)
    keep = {images[n].subject for n in reserved}
    free = list(dict.fromkeys(images[n].subject for n in order if images[n].subject not in roles))
    if rules.role is not None or rules.test_subjects or rules.validation_subjects:
        roles.update(dict.fromkeys(free, rules.role or Role.TRAIN))
    else:
        for group in _groups(free, images).values():
            roles.update(_drawn(group, images, keep, rules))
    usable = frozenset(n for n in reserved if roles[images[n].subject] != Role.TEST)
    return Split(roles, usable)


def _said_roles(
    images: Sequence[SubjectImage], rules: SplitRules, known: Mapping[str, Role]
) -> dict[str, Role]:
    roles = dict(known)
    subjects = {i.subject for i in images} | set(known)
    named = {Role.VALIDATION: rules.validation_subjects, Role.TEST: rules.test_subjects}
    for role, names in named.items():
        for name in names:
            if name not in subjects:
                raise StudyError(
                    f"There is no subject {name!r} for {role.value}; there are: {_some(subjects)}."
                )
            _say(roles, name, role)
    for image in images:
        if image.role is not None:
            _say(roles, image.subject, image.role)
    return roles


def _say(roles: dict[str, Role], subject: str, role: Role) -> None:
    if roles.setdefault(subject, role) != role:
        raise StudyError(
            f"subject {subject!r} is in two splits: {roles[subject].value} and {role.value}. Give all "
            "images of a "
            "subject one role."
        )


def _reserved(
    images: Sequence[SubjectImage], rules: SplitRules, roles: Mapping[str, Role], order: Sequence[int]
) -> frozenset[int]:
    may = [n for n in order if images[n].source and images[n].labelled]
    may = [n for n in may if roles.get(images[n].subject) != Role.TEST]
    may.sort(key=lambda n: images[n].subject not in roles)  # those who train in any case come first
    return frozenset(may[: rules.training_labels])


def _groups(free: Sequence[str], images: Sequence[SubjectImage]) -> dict[frozenset[bool], list[str]]:
    shown: dict[str, set[bool]] = defaultdict(set)
    for image in images:
        shown[image.subject].add(image.source)
    groups: dict[frozenset[bool], list[str]] = defaultdict(list)
    for subject in free:
        groups[frozenset(shown[subject])].append(subject)
    return groups


def _drawn(
    group: Sequence[str], images: Sequence[SubjectImage], keep: set[str], rules: SplitRules
) -> dict[str, Role]:
    labelled = {i.subject for i in images if i.labelled}
    ordered = sorted(group, key=lambda s: 2 if s in keep else 0 if s in labelled else 1)
    tested = _count(rules.test_share, len(group))
    validated = min(_count(rules.validation_share, len(group)), len(group) - tested - 1)
    roles = dict.fromkeys(ordered, Role.TRAIN)
    roles.update(dict.fromkeys(ordered[:tested], Role.TEST))
    if validated > 0:  # validation is of use with labels, but training needs more of them
        few = [s for s in ordered[tested:] if s in keep][: validated if len(keep) > 2 * validated else 0]
        rest = [s for s in ordered[tested:] if s not in few]
        roles.update(dict.fromkeys([*few, *rest][:validated], Role.VALIDATION))
    return roles


def _count(share: float, of: int) -> int:
    """A share of `of`, at least one if there is a choice, never all."""
    return 0 if share == 0 or of < 2 else min(max(1, round(share * of)), of - 1)


def _some(names: set[str], most: int = 12) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
