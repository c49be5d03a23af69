"""A command that is killed at any moment goes on when it is run again, and ends as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import copy_of, make_study, tiny_config

from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.importing import add_to_study, new_study
from SegGuidedMMRegLib.importing.sources import Candidate
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


def import_and_die(folder: Path, write: int, pictures: Path) -> None:
    """Make the study, or add to it where it is, and be killed before file number `write` gets its name."""
    put, writes = Path.replace, 0

    def counting(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, target)

    Path.replace = counting
    bring_in(folder, pictures)


def bring_in(folder: Path, pictures: Path) -> None:
    """A study of a picture of each modality, then one more of each with a label."""
    first, more = ([pictures / f"{m}{n}.nrrd" for m in "st"] for n in (0, 1))
    candidates = [
        [Candidate(image=p, modality=m, name=p.stem, label=p) for p, m in zip(c, "st", strict=True)]
        for c in (first, more)
    ]
    if (folder / "study.yaml").exists():
        add_to_study(Study.open(folder), candidates[1])
    else:
        structures = [Structure(1, "one", (9, 9, 9))]
        config, names = tiny_config(), {"name": "s", "source": "s", "target": "t"}
        new_study(folder, candidates[0], **names, structures=structures, config=config)


def imported(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.suffix != ".csv" and p.is_file()
    }


@pytest.mark.xdist_group("kills")
def test_an_import_that_is_killed_at_any_file_can_be_run_again(whole, tmp_path):
    array = np.zeros((16, 16), dtype=np.uint8)
    array[4:9, 4:9] = 1
    for name in ("s0", "t0", "s1", "t1"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nrrd"))
    bring_in(tmp_path / "whole", tmp_path)
    begun = imported(tmp_path / "whole")
    bring_in(tmp_path / "whole", tmp_path)
    for write in (2, 5, 6):
        folder = tmp_path / f"killed{write}"
        for expected in (begun, imported(tmp_path / "whole")):
            process = context.Process(target=import_and_die, args=(folder, write, tmp_path))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            bring_in(folder, tmp_path)
            assert imported(folder) == expected
    left = {"whole", "killed2", "killed5", "killed6", "s0.nrrd", "t0.nrrd", "s1.nrrd", "t1.nrrd"}
    assert {p.name for p in tmp_path.iterdir()} == left
