"""A command that is killed at any moment goes on when it is run again, and ends as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from trained_study import copy_of, make_study, tiny_config

from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.study import Study

MOMENTS = 6
SEED = 20
SMALLEST: dict[str, dict] = {
    "training": {"device": "cpu", "checkpoint_seconds": 1e-6, "checkpoint_share": 1},
    "augmentation": {"samples": 4, "iterations": 2, "batch_size": 1},
    "segmentation": {"steps": 4, "batch_size": 2},
    "adaptation": {"randomised_steps": 3, "teacher_steps": 2, "batch_size": 2},
    "registration": {"steps": 3, "batch_size": 1},
}
"""A checkpoint after every step, and just enough steps to be cut off between two."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["SegGuidedMMRegLib.pipeline", "trained_study"])


def results(study: Study) -> dict[str, bytes]:
    """Everything that training is for, by its place in the study."""
    wanted = ("weights.safetensors", "samples.safetensors", "affines.json", "adaptation.json", "*.nrrd")
    models = study.folder / "models"
    return {str(p.relative_to(models)): p.read_bytes() for name in wanted for p in models.rglob(name)}


def train_and_die(folder: Path, write: int, after: bool, counted: object = None) -> None:
    """Train, and be killed just before or after the file number `write` gets its name."""
    put, writes = Path.replace, 0

    def counting(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == write and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = put(self, target)
        if writes == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Path.replace = counting
    train(Study.open(folder))
    counted.put(writes)


def in_a_process(folder: Path, write: int = 0, after: bool = False, kill_after_s: float | None = None) -> int:
    """How many files a training wrote; 0 if it was killed."""
    counted = context.SimpleQueue()
    process = context.Process(target=train_and_die, args=(folder, write, after, counted))
    process.start()
    process.join(kill_after_s)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return counted.get() if process.exitcode == 0 else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Study, int, float]:
    """A study that is not trained, one that was without interruption, its number of files and seconds."""
    folder = tmp_path_factory.mktemp("whole")
    untrained = make_study(folder, config=tiny_config(**SMALLEST))
    trained = copy_of(untrained, folder / "trained")
    in_a_process(copy_of(untrained, folder / "warm").folder, write=1)  # starts the server that forks
    start = time.monotonic()
    writes = in_a_process(trained.folder)
    return untrained, trained, writes, time.monotonic() - start


@pytest.mark.xdist_group("kills")
def test_a_training_that_is_killed_at_any_moment_ends_with_the_same_files(whole, tmp_path):
    untrained, trained, writes, seconds = whole
    assert writes > 30
    study = copy_of(untrained, tmp_path / "killed")
    draw, kills = random.Random(SEED), 0
    for moment in range(MOMENTS):  # at a file, or at a time, further on each time
        if moment % 2:
            killed = not in_a_process(study.folder, kill_after_s=draw.uniform(0, seconds / 3))
        else:
            killed = not in_a_process(study.folder, draw.randint(1, writes // 3), after=draw.random() < 0.5)
        kills += killed
    assert kills >= 3
    assert in_a_process(study.folder)
    assert results(study) == results(trained)
    assert not [p for p in study.folder.rglob(".*") if p.is_file()]
