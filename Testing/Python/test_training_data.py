"""Tensors of a study: only what training may see, in study space, cached until something changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from SegGuidedMMRegLib.images import Image, write_image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Role, Structure, Study
from SegGuidedMMRegLib.training.data import StudyTensors

IMAGE_GRID = Grid.centred((24, 20, 1), (1.0, 1.0, 1.0))
STUDY_GRID = Grid.centred((16, 16, 1), (1.0, 1.0, 1.0))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Five cases, the square of label value 7 shifted by a mm from case to case."""
    cases = (
        Case("a", "mr", "a", Role.TRAIN, False, "images/a.nrrd", "labels/a.nrrd", "training"),
        Case("b", "mr", "b", Role.TRAIN, False, "images/b.nrrd", "labels/b.nrrd", "evaluation"),
        Case("c", "mr", "c", Role.VALIDATION, False, "images/c.nrrd", "labels/c.nrrd", "training"),
        Case("d", "mr", "d", Role.TEST, False, "images/d.nrrd", "labels/d.nrrd", "evaluation"),
        Case("e", "us", "e", Role.TRAIN, False, "images/e.nrrd"),
    )
    structures = (Structure(7, "square", (255, 0, 0)),)
    made = Study.create(
        tmp_path / "study",
        name="s",
        dimension=2,
        source="mr",
        target="us",
        structures=structures,
        grid=STUDY_GRID,
        cases=cases,
    )
    affines = {}
    for index, case in enumerate(cases):
        mask = np.zeros(IMAGE_GRID.shape, dtype=np.uint8)
        mask[8:12, 8 + index : 14 + index] = 7
        noise = np.random.default_rng(index).uniform(0, 10, mask.shape)
        write_image(Image((mask * 100 + noise).astype(np.float32), IMAGE_GRID), made.folder / case.image)
        if case.label:
            write_image(Image(mask, IMAGE_GRID), made.folder / case.label)
        affine = np.eye(4)
        affine[0, 3] = index - 1.0  # undoes the shift
        affines[case.key] = affine
    made.save_affines(affines)
    return made


def test_only_what_training_may_see_is_loaded(study: Study) -> None:
    tensors = StudyTensors.load(study.training_view())
    assert tensors.source_names == ("a", "b")
    assert tensors.target_names == ("e",)
    assert tensors.validation_names == ("c",)
    assert (tensors.labelled_rows, tensors.unlabelled_rows) == ([0], [1])
    assert tensors.source_images.shape == (2, 1, 16, 16)
    assert tensors.validation_labels.shape == (1, 16, 16)


def test_values_become_indices_and_the_affine_brings_all_to_one_place(study: Study) -> None:
    tensors = StudyTensors.load(study.training_view())
    label = tensors.source_labels[0]
    assert label.dtype == torch.int64
    assert set(label.unique().tolist()) == {0, 1}
    assert torch.equal(label, tensors.validation_labels[0])
    square = label.bool()
    for image in (*tensors.source_images, *tensors.target_images):
        assert image[0][square].min() > 0.8
        assert image[0][~square].max() < 0.2


def test_the_cache_is_used_and_notices_a_changed_file(study: Study) -> None:
    first = StudyTensors.load(study.training_view())
    files = {path: path.stat().st_mtime_ns for path in (study.folder / "models/cache").glob("*.npy")}
    assert len(files) == 6
    second = StudyTensors.load(study.training_view())
    assert torch.equal(first.source_images, second.source_images)
    assert files == {path: path.stat().st_mtime_ns for path in (study.folder / "models/cache").glob("*.npy")}

    flat = np.zeros(IMAGE_GRID.shape, dtype=np.float32)
    flat[:, :5] = 1
    write_image(Image(flat, IMAGE_GRID), study.folder / "images/b.nrrd")
    third = StudyTensors.load(study.training_view())
    assert torch.equal(third.source_images[0], first.source_images[0])
    assert not torch.equal(third.source_images[1], first.source_images[1])
    assert len(list((study.folder / "models/cache").glob("*.npy"))) == 6


def test_a_study_without_training_labels_is_refused(study: Study) -> None:
    bare = study.with_cases([replace(case, label=None, label_use=None) for case in study.cases])
    with pytest.raises(ValueError, match="no training image of 'mr' has labels"):
        StudyTensors.load(bare.training_view())
