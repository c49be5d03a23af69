"""Which pairs of images are registered: the test pairs, all to all, all to a template, or a list.

Pairs come in blocks that share images, so that few images are in memory at a time, and a part of them
(`Pairs.part`) needs few images at all. They are made while they are asked for, so a million pairs take no
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from SegGuidedMMRegLib.images import spacing_is_known
from SegGuidedMMRegLib.study import Case, Role, Study, StudyError

BLOCK = 16
"""Fixed images that are kept at hand while all moving images pass."""


def spacing_note(path: Path) -> str:
    """What a person is told of an image file that holds no spacing where none is given."""
    return (
        f"{path} does not say how large its pixels are: 1 mm is assumed. Give the spacing if it is another."
    )


@dataclass(frozen=True)
class Side:
    """An image of a pair: a case of the study, or an image file.

    Attributes:
        name: of the case (with its modality where both have one of this name), or of the file.
        modality: name of its modality.
        case: the case, or None.
        path: of the image file where it is no case.
        mirrored: whether the file shows the other side of the body.
        spacing_mm: of a file that does not know its own; empty: as it says, else 1 mm.
        labels: a segmentation to use instead of the predicted one.
    """

    name: str
    modality: str
    case: Case | None = None
    path: Path | None = None
    mirrored: bool = False
    spacing_mm: tuple[float, ...] = ()
    labels: Path | None = None

    @staticmethod
    def of_case(study: Study, case: Case, labels: Path | None = None) -> Side:
        """A case of the study, with its own segmentation or a given one."""
        return Side(study.file_name(case), case.modality, case, labels=labels)

    @property
    def key(self) -> str:
        """What is said of the image in messages."""
        return self.case.key if self.case is not None else str(self.path)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person is told of an image file that holds no spacing where none is given."""
        if self.path is None or self.spacing_mm:
            return ()
        try:
            return () if spacing_is_known(self.path) else (spacing_note(self.path),)
        except ValueError:  # unreadable, which whoever reads the image tells
            return ()


@dataclass(frozen=True)
class Pair:
    """A moving and a fixed image.

    Attributes:
        moving, fixed: the images.
        name: of their folder; "" is `<moving>--<fixed>`.
        landmarks: files of points, moving and fixed, that shall come to lie on each other; those of the same
            names belong together.
    """

    moving: Side
    fixed: Side
    name: str = ""
    landmarks: tuple[Path, Path] | None = None

    @property
    def folder_name(self) -> str:
        return self.name or f"{self.moving.name}--{self.fixed.name}"

    @property
    def key(self) -> str:
        """What is said of the pair in messages."""
        return f"{self.moving.key} to {self.fixed.key}"


@dataclass(frozen=True)
class Pairs:
    """Pairs that are made anew whenever they are asked for, always in the same order.

    Attributes:
        make: gives them.
        count: how many there are.
    """

    make: Callable[[], Iterator[Pair]]
    count: int

    def __iter__(self) -> Iterator[Pair]:
        return self.make()

    def __len__(self) -> int:
        return self.count

    def part(self, number: int, of: int) -> Pairs:
        """Part `number` (1 to `of`) of `of` parts of nearly the same size: pairs that follow each other.

        Raises:
            StudyError: if there is no such part.
        """
        if not 1 <= number <= of:
            raise StudyError(f"There is no part {number}/{of}: parts are counted from 1/{of} to {of}/{of}.")
        start, stop = (self.count * n // of for n in (number - 1, number))
        return Pairs(lambda: islice(self.make(), start, stop), stop - start)


def listed(pairs: Sequence[Pair]) -> Pairs:
    """The pairs of a list, in an order that needs few images at a time."""
    order: dict[Side, int] = {}
    for pair in pairs:
        for side in (pair.fixed, pair.moving):
            order.setdefault(side, len(order))
    fixed = {side: n for n, side in enumerate(dict.fromkeys(pair.fixed for pair in pairs))}
    ordered = sorted(pairs, key=lambda p: (fixed[p.fixed] // BLOCK, order[p.moving], fixed[p.fixed]))
    return Pairs(lambda: iter(ordered), len(ordered))


def pairs_of_cases(study: Study, cases: Iterable[tuple[Case, Case]]) -> Pairs:
    """Chosen cases: moving and fixed of each pair."""
    return listed([Pair(Side.of_case(study, moving), Side.of_case(study, fixed)) for moving, fixed in cases])


def each_to_each(moving: Sequence[Side], fixed: Sequence[Side]) -> Pairs:
    """Every moving image to every fixed one, no image to itself."""
    same = set(moving) & set(fixed)

    def make() -> Iterator[Pair]:
        for start in range(0, len(fixed), BLOCK):
            block = fixed[start : start + BLOCK]
            for one in moving:
                for other in block:
                    if one != other:
                        yield Pair(one, other)

    return Pairs(make, len(moving) * len(fixed) - len(same))


@dataclass(frozen=True)
class Choice:
    """Which cases of a study take part.

    Attributes:
        roles: of the cases; empty: all.
        moving_modality, fixed_modality: None is both.
    """

    roles: tuple[Role, ...] = ()
    moving_modality: str | None = None
    fixed_modality: str | None = None


def test_pairs(study: Study) -> Pairs:
    """Every test case of the source to every one of the target: moving source, fixed target."""
    return all_pairs(study, Choice((Role.TEST,), study.source, study.target))


def all_pairs(study: Study, choice: Choice) -> Pairs:
    """Every chosen case to every other.

    Raises:
        StudyError: if there is no pair.
    """
    moving, fixed = (_sides(study, choice.roles, m) for m in (choice.moving_modality, choice.fixed_modality))
    return _some(study, each_to_each(moving, fixed))


def pairs_to(study: Study, template: Side, choice: Choice) -> Pairs:
    """Every chosen case to one image.

    Raises:
        StudyError: if there is no pair.
    """
    return _some(study, each_to_each(_sides(study, choice.roles, choice.moving_modality), [template]))


def _sides(study: Study, roles: Sequence[Role], modality: str | None) -> list[Side]:
    return [Side.of_case(study, c) for c in study.cases_of(modality) if not roles or c.role in roles]


def _some(study: Study, pairs: Pairs) -> Pairs:
    if not len(pairs):
        raise StudyError(
            f"{study.folder}: no pairs to register; give test cases to both modalities, or pairs."
        )
    return pairs
