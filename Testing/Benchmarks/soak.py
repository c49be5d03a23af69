"""Thousands of pairs of small phantom knees: is memory flat, and how fast does it go?

    python Testing/Benchmarks/soak.py --out soak

draws a hundred images of each of two modalities, trains networks for a moment, and registers all of one to
all of the other: 10 000 pairs in two processes. Then it looks again what is finished, evaluates, and writes
the report. The figures of docs/cohorts.md are what it prints. It ends with code 1 if memory grew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from SegGuidedMMRegLib import jobs
from SegGuidedMMRegLib.cases import Role, Structure
from SegGuidedMMRegLib.config import config_from_dict
from SegGuidedMMRegLib.evaluation import evaluate
from SegGuidedMMRegLib.events import Event, Reporter
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.sources import Candidate
from SegGuidedMMRegLib.phantom import MODALITIES, PhantomCase, phantom_structures, write_phantom_files
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.study import Study

LABELLED = 5
ALLOWED_GROWTH = 0.05
"""Share by which the most memory of the second half may exceed that of the first."""


class Memory(Reporter):
    """Notes the memory of this process while pairs are registered.

    Attributes:
        megabytes: by number of pairs done.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self.megabytes: dict[int, float] = {}

    def emit(self, event: Event) -> None:
        if event.kind == "progress" and event.data["stage"] == "register":
            done, of = event.data["step"], event.data["of"]
            if done % self._every == 0 or done == of:
                self.megabytes[done] = resident_megabytes()

    @property
    def growth(self) -> float:
        """From the first half of the notes to the second, at their largest, as a share."""
        notes = list(self.megabytes.values())
        half = len(notes) // 2
        return max(notes[half:]) / max(notes[:half]) - 1


def resident_megabytes() -> float:
    """What this process and those it started take of the memory now (Linux)."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return sum(_resident_pages(p) for p in (own, *children)) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _resident_pages(process: int | str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:  # it has just ended
        return 0


def small_study(folder: Path, subjects: int, size: int, steps: int) -> Study:
    """A study of knees of `size` pixels, trained for a moment: its transforms are poor, and just as large."""
    cases = write_phantom_files(folder / "input", subjects=subjects, size=size, seed=0)
    study, _ = new_study(
        folder / "study",
        [_candidate(case, cases) for case in cases],
        name="Soak",
        source=MODALITIES[0],
        target=MODALITIES[1],
        structures=[Structure(s.value, s.name, s.color) for s in phantom_structures(2)],
        grid_size=[size, size],
        config=config_from_dict(
            {
                "preset": "quick",
                "training": {"device": "cpu"},
                "prealign": {"method": "moments"},
                "augmentation": {"samples": 8, "iterations": 5},
                "segmentation": {
                    "channels": [8, 16, 32],
                    "strides": [2, 2],
                    "residual_units": 0,
                    "steps": 200,
                    "batch_size": 4,
                },
                "adaptation": {"randomised_steps": 200, "teacher_steps": 20, "batch_size": 4},
                "registration": {"steps": 0, "refinement_steps": steps},
            }
        ),
    )
    train(study)
    return study


def _candidate(case: PhantomCase, cases: list[PhantomCase]) -> Candidate:
    """The first cases of the source have labels to learn from; the last case of each modality is tested."""
    same = [c for c in cases if c.modality == case.modality]
    number = same.index(case)
    for_training = case.modality == MODALITIES[0] and number < LABELLED
    return Candidate(
        image=case.image,
        modality=case.modality,
        name=case.name,
        label=case.labels,
        landmarks=case.landmarks,
        subject=case.subject,
        role=Role.TEST if number == len(same) - 1 else Role.TRAIN,
        mirrored=case.mirrored,
        label_use="training" if for_training else "evaluation",
    )


def cpu_seconds() -> float:
    """Of this process and those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print how long the block took."""
    wall, cpu = time.monotonic(), time.process_time()
    yield
    print(f"{what}: {time.process_time() - cpu:.1f} s of CPU, {time.monotonic() - wall:.1f} s", flush=True)


def main() -> int:
    options = _options().parse_args()
    subjects = round(options.pairs**0.5)
    pairs = subjects**2
    shutil.rmtree(options.out, ignore_errors=True)
    with measured(f"{2 * subjects} images of {options.size} x {options.size} pixels, trained"):
        study = small_study(options.out, subjects, options.size, options.steps)
    chosen = jobs.all_pairs(study, jobs.Choice((), *MODALITIES))
    memory = Memory(every=max(pairs // 10, 1))
    output = jobs.Output(files=tuple(options.outputs))
    run = jobs.Run(workers=options.workers)
    start, cpu = time.monotonic(), cpu_seconds()
    tally = jobs.register_study(study, chosen, output=output, run=run, reporter=memory)
    wall, cpu = time.monotonic() - start, cpu_seconds() - cpu
    print(
        f"{tally.done} pairs, {tally.failed} failed: {1000 * cpu / pairs:.1f} ms of CPU a pair, "
        f"{pairs / wall:.1f} pairs a second"
    )
    for done, megabytes in memory.megabytes.items():
        print(f"memory after {done} pairs: {megabytes:.0f} MB")
    registrations = study.folder / "registrations"
    size = sum(p.stat().st_size for p in registrations.rglob("*") if p.is_file())
    rows = sum(1 for _ in (registrations / "summary.csv").open(encoding="utf-8")) - 1
    print(f"on disk: {size / 1e6:.0f} MB, {size / pairs / 1e3:.1f} kB a pair; summary.csv: {rows} pairs")
    with measured("registered once more, all finished"):
        jobs.register_study(study, chosen, output=output, run=run)
    with measured("evaluated"):
        found = evaluate(study, Reporter())
    with measured("report"):
        page = write_report(study, Reporter(), found)
    for path in (page, study.folder / "evaluation.csv", registrations / "summary.csv"):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    print(f"memory at most, second half against first: {memory.growth:+.1%} ({ALLOWED_GROWTH:.0%} allowed)")
    return int(memory.growth > ALLOWED_GROWTH or rows != pairs)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make; what is there is removed")
    parser.add_argument("--pairs", type=int, default=10_000, help="a square number, else the nearest one")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=5, help="refinement steps of a pair")
    parser.add_argument("--workers", type=int, default=2, help="processes; 1 works in this one")
    parser.add_argument("--outputs", nargs="*", default=["transforms", "image", "labels"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
