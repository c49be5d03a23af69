"""Registering many pairs: resumable, each image segmented once, in one process or several, with a table.

A pair is finished when its `report.json` says that it was made from just what it would be made from now
(`sides.Digests`); finished pairs are left alone. What is kept in memory: the images and maps of
`sides.MEMORY_BYTES` a process, and the names of the pairs of this run, about 100 bytes each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import WriteError
from SegGuidedMMRegLib.jobs.cores import default_workers
from SegGuidedMMRegLib.jobs.maps import (
    SEGMENTING_STAGES,
    SegmentedStudy,
    forget_outside_images,
    networks_digest,
)
from SegGuidedMMRegLib.jobs.pairs import Pair, Pairs, test_pairs
from SegGuidedMMRegLib.jobs.results import Given, Output, remove_unfinished, write_failure, write_pair
from SegGuidedMMRegLib.jobs.sides import Digests, Images, Prepared
from SegGuidedMMRegLib.jobs.summary import SummaryFile, summary_path, write_summary
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.out_of_memory import release_memory
from SegGuidedMMRegLib.pair_report_file import REPORT_NAME, Report
from SegGuidedMMRegLib.points import MatchedLandmarks, read_matched_landmarks
from SegGuidedMMRegLib.pool import RENEWED_AFTER, Died, work_off
from SegGuidedMMRegLib.provenance import differences
from SegGuidedMMRegLib.refinement import PairResult
from SegGuidedMMRegLib.registrar import PairTask, Registrar, pairs_at_once
from SegGuidedMMRegLib.segmenter import on_cpu
from SegGuidedMMRegLib.study import Study

SHOWN_FAILURES = 20
_MULTIPLE = 4


@dataclass(frozen=True)
class Run:
    """How a list of pairs is worked off.

    Attributes:
        again: register finished pairs too.
        workers: processes. 1 works in this one, where each pair leaves some 10 kB behind (SimpleITK loses
            them writing `.h5` files). More are processes of their own, renewed now and then; a script of
            yours has to be importable then: its work under `if __name__ == "__main__":`. 0 chooses: one a
            physical core, fewer for short lists, one on a GPU.
        part: number and count, of a list that several runs share; None is the whole.
    """

    again: bool = False
    workers: int = 1
    part: tuple[int, int] | None = None


@dataclass
class Tally:
    """What became of a list of pairs.

    Attributes:
        pairs: in the list, or the part of it.
        skipped: finished before.
        done: registered now, failed ones included.
        failed: of all pairs of the list, now or before.
        failures: folder and reason of the first of them.
        summary: the table.
    """

    pairs: int
    summary: Path
    skipped: int = 0
    done: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def count(self, report: Report) -> None:
        """Take the report of a pair into account."""
        if report["status"] != "ok":
            self.failed += 1
            if len(self.failures) < SHOWN_FAILURES:
                self.failures.append((report["pair"], "; ".join(report["reasons"])))


def register_study(
    study: Study,
    pairs: Pairs | None = None,
    *,
    output: Output | None = None,
    run: Run | None = None,
    reporter: Reporter | None = None,
) -> Tally:
    """Register pairs, by default every source test case to every target one, and report each.

    A pair that cannot be registered gets a report that says why; the others go on.

    Raises:
        StudyError: if there are no pairs, or the networks are not trained.
        WriteError: if the study is read-only, or the disk full.
    """
    output, run, reporter = output or Output(), run or Run(), reporter or Reporter()
    pairs = test_pairs(study) if pairs is None else pairs
    if run.part is not None:
        pairs = pairs.part(*run.part)
    with working_on(study.folder, "register"):
        return _register(study, pairs, output, run, reporter)


def _register(study: Study, pairs: Pairs, output: Output, run: Run, reporter: Reporter) -> Tally:
    registrations = study.folder / "registrations"
    registrations.mkdir(exist_ok=True)
    digests = pair_digests(study, output)
    remove_unfinished(registrations)
    tally = Tally(len(pairs), summary_path(study))
    finished, outdated = _look(registrations, pairs, digests, again=run.again, tally=tally, reporter=reporter)
    summary = SummaryFile(study, summary_path(study, run.part))
    # A part has a table of its own while it runs: appending to one file from several machines mixes lines.
    summary.begin(lambda name: name in finished if run.part else name not in outdated)
    todo = len(pairs) - tally.skipped
    reporter.started("register", todo)
    processes = _processes(study, run, todo)
    make = partial(PairRegistrar, study, output, digests)
    batches = _batches((p for p in pairs if p.folder_name not in finished), pairs_at_once(study))
    try:
        with closing(_worked_off(make, batches, processes)) as results:
            for pair, found in results:
                report = _given_up(study, pair, found) if isinstance(found, Died) else found
                summary.add(report)
                tally.done += 1
                tally.count(report)
                if report["status"] != "ok":
                    reporter.log(f"{pair.key}: failed: {'; '.join(report['reasons'])}")
                reporter.progress("register", tally.done, todo, **_shown(report))
    finally:
        remove_unfinished(registrations)
    write_summary(study)
    if run.part is not None:
        summary_path(study, run.part).unlink(missing_ok=True)
    forget_outside_images(study)
    return tally


def pair_digests(study: Study, output: Output) -> Digests:
    """What pairs of the study would be made from now.

    Raises:
        StudyError: if the networks are not trained.
    """
    return Digests(study, output, networks_digest(study, _stages(study)))


# -- what is there already ------------------------------------------------------------------------------
def _look(
    registrations: Path, pairs: Pairs, digests: Digests, *, again: bool, tally: Tally, reporter: Reporter
) -> tuple[set[str], set[str]]:
    """Folder names of the pairs that are finished, and of those that are there but out of date."""
    finished, outdated = set(), set()
    reasons: Counter[str] = Counter()
    for pair in pairs:
        name = pair.folder_name
        record = _record(registrations / name / REPORT_NAME)
        if record is None:
            continue
        changed = "" if again else _changed(record, pair, digests)
        if changed is None:
            finished.add(name)
            tally.skipped += 1
            tally.count({**record, "pair": name})
        else:
            outdated.add(name)
            reasons[changed] += 1
    if finished:
        reporter.log(f"{len(finished)} pairs are finished already; --again registers them anew")
    for reason, count in reasons.items():
        if reason:
            reporter.log(f"{count} pairs are registered anew: {reason}")
    return finished, outdated


def _record(path: Path) -> Report | None:
    """The report of a pair; None if there is none, or it is damaged."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"status", "reasons"} <= set(record) else None


def _changed(record: Report, pair: Pair, digests: Digests) -> str | None:
    """Why a pair is not finished: what it was made from has changed; None if it has not."""
    was = record.get("made_from")
    if not isinstance(was, dict):
        return "what they were made from is not known"
    try:
        now = digests(pair)
    except (ValueError, OSError):  # what is wrong with it is told when it is registered
        return "an image can't be read"
    changed = differences(now, was)
    return f"{', '.join(changed)} changed" if changed else None


# -- working it off -------------------------------------------------------------------------------------
class PairRegistrar:
    """Registers pairs of a study, a few at a time, and writes what comes of them."""

    def __init__(self, study: Study, output: Output, digests: Digests) -> None:
        self._study, self._output, self._digests = study, output, digests
        self._images, self._registrar = Images(SegmentedStudy(study)), Registrar(study)
        self._together = pairs_at_once(study) > 1

    def __call__(self, pairs: Sequence[Pair]) -> list[Report]:
        """Reports of the pairs, in order, each with its folder's name as `pair`."""
        start = time.process_time()
        works = [self._prepared(pair) for pair in pairs]
        ready = [n for n, work in enumerate(works) if work.error is None]
        results: dict[int, PairResult] = {}
        try:
            results = dict(zip(ready, self._solved([works[n].task() for n in ready]), strict=True))
        except ValueError as error:
            works = [replace(work, error=work.error or error) for work in works]
        shared = (time.process_time() - start) / max(len(ready), 1)
        return [
            {**self._delivered(work, results.get(n), shared), "pair": work.folder.name}
            for n, work in enumerate(works)
        ]

    def _prepared(self, pair: Pair) -> _Work:
        folder = self._study.folder / "registrations" / pair.folder_name
        made_from = None
        try:
            made_from = self._digests(pair)
            sides = self._images(pair.moving), self._images(pair.fixed)
            landmarks = pair.landmarks and read_matched_landmarks(*pair.landmarks)
        except WriteError:
            raise
        except (ValueError, OSError) as error:
            return _Work(pair, folder, made_from, None, error)
        return _Work(pair, folder, made_from, sides, None, landmarks)

    def _solved(self, tasks: list[PairTask]) -> list[PairResult]:
        if not tasks:
            return []
        guided = [n for n, task in enumerate(tasks) if task.landmarks is not None]
        if guided and len(tasks) > 1:  # each is a batch of its own
            others = iter(self._solved([task for task in tasks if task.landmarks is None]))
            alone = {n: self._solved([tasks[n]])[0] for n in guided}
            return [alone[n] if n in alone else next(others) for n in range(len(tasks))]
        if self._together and not guided and len(tasks) % _MULTIPLE:
            # Copies beside them: how many there are changes the rounding, and a run that was cut off and one
            # that was not shall give the same transforms.
            copies = [tasks[-1]] * (-len(tasks) % _MULTIPLE)
            return self._solved([*tasks, *copies])[: len(tasks)]
        try:
            return self._registrar.solve(tasks)
        except MemoryError:
            if len(tasks) == 1:
                raise
            release_memory()
            return [found for task in tasks for found in self._registrar.solve([task])]

    def _delivered(self, work: _Work, solved: PairResult | None, seconds: float) -> Report:
        if work.sides is None or solved is None:
            return self._failed(work)
        start = time.process_time()
        moving, fixed = work.sides
        try:
            found = self._registrar.delivered(work.task(), solved, spacing_mm=self._output.spacing_mm)
        except ValueError as error:
            return self._failed(replace(work, error=error))
        seconds += time.process_time() - start
        found = replace(found, warnings=(*found.warnings, *moving.warnings, *fixed.warnings))
        return write_pair(
            self._study,
            work.folder,
            found,
            moving.known,
            fixed.known,
            output=self._output,
            seconds=seconds,
            given=Given(moving.given_labels, fixed.given_labels, work.landmarks),
            made_from=work.made_from,
        )

    def _failed(self, work: _Work) -> Report:
        moving, fixed = work.pair.moving, work.pair.fixed
        return write_failure(
            self._study, work.folder, moving.name, fixed.name, str(work.error), made_from=work.made_from
        )


@dataclass(frozen=True)
class _Work:
    """A pair in hand; without `sides` it has failed, and `error` says why."""

    pair: Pair
    folder: Path
    made_from: dict[str, str] | None
    sides: tuple[Prepared, Prepared] | None
    error: Exception | None
    landmarks: MatchedLandmarks | None = None

    def task(self) -> PairTask:
        if self.sides is None:
            raise ValueError(f"{self.pair.key}: not prepared.")
        moving, fixed = self.sides
        given = (moving.given_labels is not None, fixed.given_labels is not None)
        return PairTask(moving.sample, fixed.sample, moving.maps, fixed.maps, self.landmarks, given)


def _processes(study: Study, run: Run, todo: int) -> int:
    """How many are started; 0 to work in this one."""
    wanted = run.workers or (default_workers(todo) if on_cpu(study) else 1)
    long = run.workers == 0 and todo > RENEWED_AFTER
    return wanted if wanted > 1 or long else 0


def _worked_off(
    make: Callable[[], PairRegistrar], batches: Iterator[list[Pair]], processes: int
) -> Generator[tuple[Pair, Report | Died], None, None]:
    """Each pair with its report, in this process or in several."""
    if processes:
        with closing(work_off(make, batches, processes)) as results:
            for batch, found in results:
                for n, pair in enumerate(batch):
                    yield pair, found if isinstance(found, Died) else found[n]
        return
    registrar = None
    for batch in batches:
        registrar = registrar or make()
        yield from zip(batch, registrar(batch), strict=True)


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    rest = iter(pairs)
    while batch := list(islice(rest, size)):
        yield batch


def _given_up(study: Study, pair: Pair, died: Died) -> Report:
    """The report of a pair over which processes died: without digest, so that the next run tries it again."""
    folder = study.folder / "registrations" / pair.folder_name
    reason = f"tried twice, {died.reason}"
    return {**write_failure(study, folder, pair.moving.name, pair.fixed.name, reason), "pair": folder.name}


def _shown(report: Report) -> dict[str, float]:
    after = report["mean"]["after"]
    return {"dice": after["dice"]} if after and after["dice"] is not None else {}


def _stages(study: Study) -> tuple[str, ...]:
    return (*SEGMENTING_STAGES, *(("registration",) if study.config.registration.steps else ()))
