"""Registered pairs for other programs: what would be written where, and writing it.

A plan is made first. It reads reports and headers alone, writes nothing, and says of each file whether it is
there already; then the same plan is written, file by file, each whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from SegGuidedMMRegLib.displacement import grid_between_corners
from SegGuidedMMRegLib.files import remove_temporaries
from SegGuidedMMRegLib.new_files import new_files, refuse_existing
from SegGuidedMMRegLib.pair_report_file import REPORT_NAME, Report, read_pair_report
from SegGuidedMMRegLib.reviews import ReviewRecord
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.transform_headers import field_grid

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.study import Study

Output = Literal["transforms", "image", "labels", "report", "table"]
Direction = Literal["forward", "inverse"]

PAGE_NAME, TABLE_NAME = "report.html", "pairs.csv"
_WARPED = {"image": "warped_image.nrrd", "labels": "warped_labels.seg.nrrd"}
_AGAIN = "register the pair again"
_BYTES_A_NODE = {".h5": 24, ".tfm": 66}
_FIELD_BYTES_A_NODE = 12
_ABANDONED_S = 3600.0
_DECIDED = {"verdict": "decision"}


@dataclass(frozen=True)
class Wanted:
    """What is written of each pair.

    Attributes:
        outputs: transforms, image and labels (warped) of each pair; report page and table of all.
        directions: of the transforms.
        formats: suffixes of the transform files.
        spacing_mm: of the fields in them; None for that which they have.
        volumes: suffix of images and labels.
        failed: also of pairs that failed.
    """

    outputs: tuple[Output, ...] = ("transforms", "image", "labels")
    directions: tuple[Direction, ...] = ("forward", "inverse")
    formats: tuple[str, ...] = (".h5",)
    spacing_mm: float | None = None
    volumes: str = ".nrrd"
    failed: bool = False


@dataclass(frozen=True)
class Pair:
    """A registered pair.

    Attributes:
        name: of its folder in the export.
        folder: where it lies.
        report: `report.json`; None where it is missing or damaged.
        problem: why it should not be used; "" where all is well.
        result: digest of the report, by which decisions of a review know it; "" without one.
    """

    name: str
    folder: Path
    report: Report | None
    problem: str
    result: str = ""

    @property
    def status(self) -> str:
        """ok, failed, or damaged: one whose files cannot be used at all."""
        return "damaged" if self.report is None else str(self.report["status"])


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written.

    Attributes:
        path: where.
        pair: of which pair; "" for a file of all.
        what: forward, inverse, image, labels, report or table.
        source: the file that it is made of; None for a file of all.
        bytes: about how many, at most; None where it is not known.
    """

    path: Path
    pair: str
    what: str
    source: Path | None
    bytes: int | None

    @property
    def exists(self) -> bool:
        return self.path.exists()


@dataclass(frozen=True)
class Plan:
    """What would be written.

    Attributes:
        out: the folder.
        wanted: of each pair.
        pairs: that are written.
        left_out: that are not, because of their `problem`.
        files: in the order in which they are written.
        missing: what the pairs do not have, a sentence each.
    """

    out: Path
    wanted: Wanted
    pairs: tuple[Pair, ...]
    left_out: tuple[Pair, ...]
    files: tuple[PlannedFile, ...]
    missing: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """About how many, at most."""
        return sum(file.bytes or 0 for file in self.files)

    @property
    def free_bytes(self) -> int:
        """On the disk that it goes to."""
        there = next(p for p in (self.out.absolute(), *self.out.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free


# -- which pairs --------------------------------------------------------------------------------------------
def find_pairs(registrations: Path, chosen: Sequence[str] = ()) -> list[Pair]:
    """The registered pairs of a study, or chosen ones.

    Args:
        registrations: the folder of all pairs of the study.
        chosen: names of folders in it, or paths of folders of pairs elsewhere; none: all in it.

    Raises:
        ValueError: naming a pair that is not there.
    """
    known = sorted(p for p in registrations.glob("[!.]*") if p.is_dir()) if registrations.is_dir() else []
    by_name = {folder.name: folder for folder in known}
    folders = []
    for text in dict.fromkeys(chosen):
        folder = by_name.get(text) or Path(text)
        if folder.name == text and text not in by_name:
            raise ValueError(
                f"{registrations}: there is no pair {text!r}; there are {', '.join(by_name) or 'none'}."
            )
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder. Register the pair again.")
        folders.append(folder)
    return _named([_read(folder, folder in known) for folder in folders or known])


def _read(folder: Path, is_of_study: bool) -> Pair:
    report, problem = None, ""
    if not (folder / REPORT_NAME).is_file():
        problem = f"{REPORT_NAME} is missing; {_AGAIN}"
    elif folder.is_symlink() or any(entry.is_symlink() for entry in folder.iterdir()):
        problem = f"it holds links to other files; {_AGAIN}"
    else:
        try:
            report = read_pair_report(folder)
        except ValueError as error:
            problem = str(error)
    if report is not None and report["status"] != "ok":
        problem = "; ".join(report["reasons"] or ["no reason given"])
    name = folder.name
    if report is not None and not is_of_study:
        name = re.sub(r"[^\w .-]+", "_", f"{report['moving']}--{report['fixed']}").lstrip(".") or name
    return Pair(name, folder, report, problem, "" if report is None else _digest(folder))


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / REPORT_NAME).read_bytes()).hexdigest()[:16]


def _named(pairs: list[Pair]) -> list[Pair]:
    """The same with a name of its own for each, also where case does not count."""
    taken: set[str] = set()
    named = []
    for pair in pairs:
        name, number = pair.name, 2
        while name.casefold() in taken:
            name, number = f"{pair.name}-{number}", number + 1
        taken.add(name.casefold())
        named.append(replace(pair, name=name))
    return named


# -- the plan -----------------------------------------------------------------------------------------------
def plan_export(pairs: Sequence[Pair], out: Path, wanted: Wanted) -> Plan:
    """What would be written of these pairs into `out`, a subfolder a pair.

    Raises:
        ValueError: if `out` is no place for it, or nothing is wanted; saying why.
    """
    if "transforms" in wanted.outputs and not (wanted.formats and wanted.directions):
        raise ValueError("Of transforms, a format and a direction are needed.")
    if not wanted.outputs:
        raise ValueError("Nothing is to be written: choose transforms, image, labels, report or table.")
    _check_place(pairs, out)
    used = [p for p in pairs if p.report is not None and (wanted.failed or p.status == "ok")]
    files, missing = [], []
    for pair in used:
        for what, source, names in _of_pair(pair, wanted):
            if not source.is_file():
                missing.append(f"{pair.name} has no {source.name}")
                continue
            for name in names:
                size = _bytes(source, name, wanted.spacing_mm)
                files.append(PlannedFile(out / pair.name / name, pair.name, what, source, size))
    if used and "table" in wanted.outputs:
        files.append(PlannedFile(out / TABLE_NAME, "", "table", None, None))
    if used and "report" in wanted.outputs:
        files.append(PlannedFile(out / PAGE_NAME, "", "report", None, None))
    left_out = tuple(pair for pair in pairs if pair not in used)
    return Plan(out, wanted, tuple(used), left_out, tuple(files), tuple(missing))


def _check_place(pairs: Sequence[Pair], out: Path) -> None:
    place = out.resolve()
    for parent in (out, *out.parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file, and a folder is needed.")
    for pair in pairs:
        folder = pair.folder.resolve()
        if place in (folder, folder.parent) or folder in place.parents:
            raise ValueError(f"{out} is where registered pairs are kept. Choose another folder.")


def _of_pair(pair: Pair, wanted: Wanted) -> Iterator[tuple[str, Path, list[str]]]:
    """What, the file it is made of, and the names of the files that are made of it."""
    if "transforms" in wanted.outputs:
        for direction in wanted.directions:
            names = [f"{direction}{suffix}" for suffix in wanted.formats]
            yield direction, pair.folder / f"{direction}.h5", names
    for what, name in _WARPED.items():
        if what in wanted.outputs:
            suffix = ".seg.nrrd" if what == "labels" and wanted.volumes == ".nrrd" else wanted.volumes
            yield what, pair.folder / name, [f"warped_{what}{suffix}"]


def _bytes(source: Path, name: str, spacing_mm: float | None) -> int:
    if not source.name.endswith(".h5"):
        return source.stat().st_size
    grid = field_grid(source)
    if spacing_mm is not None:
        grid = grid_between_corners(_as_one_slice(grid), spacing_mm)
    i, j, k = grid.size
    suffix = name.removeprefix(source.name.removesuffix(".h5"))
    return i * j * (3 if k == 1 else k) * _BYTES_A_NODE.get(suffix, _FIELD_BYTES_A_NODE)


def _as_one_slice(grid: Grid) -> Grid:
    i, j, k = grid.size
    return Grid((i, j, 1), grid.spacing, grid.origin, grid.direction) if k == 3 else grid


# -- writing ------------------------------------------------------------------------------------------------
def write_export(study: Study, plan: Plan, reporter: Reporter, *, overwrite: bool = False) -> None:
    """Write what was planned.

    Args:
        study: that the pairs were registered with.
        plan: of `plan_export`.
        reporter: hears about progress.
        overwrite: replace files that exist.

    Raises:
        FileExistsError: before anything is written, if a file exists and may not be replaced.
        WriteError: if the disk is full or a folder read-only; files that are written stay, older ones too.
    """
    with new_files(plan.out, [file.path for file in plan.files], overwrite=overwrite) as may_replace:
        for folder in {file.path.parent for file in plan.files}:
            remove_temporaries(folder, _ABANDONED_S, deep=False)
        done = 0
        reporter.started("export", len(plan.files))
        for pair, files in groupby(plan.files, key=lambda file: file.pair):
            for source, same in groupby(files, key=lambda file: file.source):
                for _ in _written(study, plan, source, list(same), may_replace):
                    done += 1
                    reporter.progress("export", done, len(plan.files))
            if pair:
                reporter.log(str(plan.out / pair))


def _written(
    study: Study, plan: Plan, source: Path | None, files: list[PlannedFile], overwrite: bool
) -> Iterator[PlannedFile]:
    """Write the files that are made of `source`, one by one."""
    write = _writer_of_all(study, plan) if source is None else _writer(source, plan.wanted.spacing_mm)
    for file in files:
        refuse_existing(file.path, overwrite)
        write(file)
        yield file


def _writer(source: Path, spacing_mm: float | None) -> Callable[[PlannedFile], None]:
    from SegGuidedMMRegLib.images import read_image, read_labels, write_image, write_labels
    from SegGuidedMMRegLib.transform_files import read_transform, write_transform

    if source.name.endswith(".h5"):
        transform = read_transform(source)
        return lambda file: write_transform(transform, file.path, spacing_mm=spacing_mm)
    if source.name.endswith(".seg.nrrd"):
        labels = read_labels(source)
        return lambda file: write_labels(labels, labels.segments, file.path)
    image = read_image(source)
    return lambda file: write_image(image, file.path)


def _decisions(study: Study, plan: Plan) -> dict[str, Callable[[Report], str]]:
    """The columns of a table that say what a review has decided about the exported results."""
    record = ReviewRecord(study.folder / "registrations")
    found = {pair.name: record.of_result(pair.result) for pair in plan.pairs}

    def told(what: str) -> Callable[[Report], str]:
        return lambda report: "" if (of := found[report["pair"]]) is None else getattr(of, what)

    return {_DECIDED.get(what, what): told(what) for what in ("verdict", "comment", "reviewer", "date")}


def _writer_of_all(study: Study, plan: Plan) -> Callable[[PlannedFile], None]:
    reports = [(pair.folder, {**(pair.report or {}), "pair": pair.name}) for pair in plan.pairs]

    def write(file: PlannedFile) -> None:
        if file.what == "table":
            from SegGuidedMMRegLib.jobs.summary import write_table

            more = _decisions(study, plan)
            write_table(file.path, study.structures, [report for _, report in reports], more)
        else:
            from SegGuidedMMRegLib.report.pairs import write_pairs_page

            write_pairs_page(study, reports, file.path, TABLE_NAME)

    return write
