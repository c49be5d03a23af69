"""A small finished study of phantom knees, made without training: predictions, registrations, curves.

Transforms are the phantom's true maps, predictions are the truth moved a little, so every figure is known to
be good or bad.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.config import preset
from SegGuidedMMRegLib.evaluation import PairSide, pair_report, write_pair_report
from SegGuidedMMRegLib.fields import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.images import Image, read_image, read_labels, resample, write_image, write_labels
from SegGuidedMMRegLib.phantom import PhantomKnee, make_knee, phantom_structures, true_map
from SegGuidedMMRegLib.points import write_points
from SegGuidedMMRegLib.space import Grid, apply_affine
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.transform_files import read_transform, write_transform

TRAINED, TESTED = 2, 2


def make_reported_study(folder: Path, dimension: int = 2, size: int = 64) -> Study:
    """Two training and two test knees a modality, all test pairs registered, one of them folded."""
    structures = tuple(Structure(s.value, s.name, s.color) for s in phantom_structures(dimension))
    knees: dict[tuple[str, str], PhantomKnee] = {}
    cases = []
    for which, modality in enumerate(("dxa", "radiograph")):
        for number in range(TRAINED + TESTED):
            role = Role.TRAIN if number < TRAINED else Role.TEST
            name = f"{modality[0]}{number + 1}"
            generator = np.random.default_rng([7, which, number])
            knees[modality, name] = make_knee(generator, modality, dimension=dimension, size=size)
            use = "training" if role == Role.TRAIN and modality == "dxa" else "evaluation"
            paths = (f"images/{modality}/{name}.nrrd", f"labels/{modality}/{name}.seg.nrrd")
            landmarks = f"landmarks/{modality}/{name}.csv"
            cases.append(
                Case(name, modality, name, role, False, *paths, use, landmarks, f"<b>{name}</b>.dcm")
            )
    spacing = (3.0, 3.0, 3.0 if dimension == 3 else 1.0)
    study = Study.create(
        folder,
        name="Phantom knees",
        dimension=dimension,
        source="dxa",
        target="radiograph",
        structures=structures,
        grid=Grid.centred((48, 48, 48 if dimension == 3 else 1), spacing),
        cases=cases,
        config=preset("quick"),
    )
    for case in cases:
        _write_case(study, case, knees[case.modality, case.name])
    _write_registrations(study, knees)
    _write_training(study, knees["dxa", "d1"])
    return study


def with_warped_images(study: Study) -> Study:
    """The study with the warped images and labels that a registration writes."""
    for folder in (study.folder / "registrations").iterdir():
        moving, fixed = (study.case(name) for name in folder.name.split("--"))
        forward, grid = read_transform(folder / "forward.h5"), study.read_image(fixed).grid
        image = read_image(study.folder / moving.image)
        write_image(forward.warp_image(image, grid), folder / "warped_image.nrrd")
        labels = read_labels(study.folder / str(moving.label))
        write_labels(forward.warp_labels(labels, grid), study.structures, folder / "warped_labels.seg.nrrd")
    return study


def shifted(labels: Image, voxels: int) -> Image:
    """Labels moved along the last array axis."""
    return Image(np.roll(labels.array, voxels, axis=-1), labels.grid)


def true_transform(fixed: PhantomKnee, moving: PhantomKnee, affine_lps: NDArray) -> SpatialTransform:
    """The phantom's map between two knees as affine(x + u(x)) on the fixed grid."""
    points = fixed.image.grid.points()
    there = apply_affine(np.linalg.inv(affine_lps), true_map(fixed, moving, points))
    return SpatialTransform(DisplacementField(fixed.image.grid, there - points), affine_lps)


def centring(fixed: PhantomKnee, moving: PhantomKnee) -> NDArray:
    """4x4 that brings the centre of the fixed grid to that of the moving one."""
    matrix = np.eye(4)
    matrix[:3, 3] = moving.image.grid.centre_lps_mm - fixed.image.grid.centre_lps_mm
    return matrix


def _write_case(study: Study, case: Case, knee: PhantomKnee) -> None:
    write_image(knee.image, study.folder / case.image)
    write_labels(knee.labels, study.structures, study.folder / str(case.label))
    write_points(knee.landmarks, study.folder / str(case.landmarks))
    write_labels(shifted(knee.labels, 1), study.structures, study.prediction_path(case))
    if case.modality == study.target and case.role == Role.TEST:
        worse = shifted(knee.labels, 5)
        worse.array[worse.array == study.structures[-1].value] = 0
        folder = study.folder / "predictions_without_adaptation" / case.modality
        write_labels(worse, study.structures, folder / f"{case.name}.seg.nrrd")


def _write_registrations(study: Study, knees: dict[tuple[str, str], PhantomKnee]) -> None:
    for moving in study.cases_of(study.source, Role.TEST):
        for fixed in study.cases_of(study.target, Role.TEST):
            a, b = knees[moving.modality, moving.name], knees[fixed.modality, fixed.name]
            affine = centring(b, a)
            forward, inverse = true_transform(b, a, affine), true_transform(a, b, np.linalg.inv(affine))
            if (moving.name, fixed.name) == ("d4", "r4"):
                _fold(forward)
            folder = study.registration_folder(moving, fixed)
            write_transform(forward, folder / "forward.h5")
            write_transform(inverse, folder / "inverse.h5")
            sides = [
                PairSide(c.name, c.modality, k.image, k.labels, shifted(k.labels, 1), k.landmarks)
                for c, k in ((moving, a), (fixed, b))
            ]
            report = pair_report(
                *sides, forward, inverse, study.structures, prealignment_lps=affine, seconds=1.5
            )
            write_pair_report(report, folder)


def _fold(transform: SpatialTransform) -> None:
    """Turn a few voxels in the middle inside out."""
    field = transform.field
    middle = tuple(slice(n // 2, n // 2 + 2) for n in field.grid.shape)
    field.displacement_lps_mm[middle] += 6 * np.asarray(field.grid.spacing)


def _write_training(study: Study, knee: PhantomKnee) -> None:
    generator = np.random.default_rng(0)
    for stage in ("segmentation", "adaptation/teacher"):
        folder = study.folder / "models" / stage
        folder.mkdir(parents=True)
        lines = [
            {"step": step, "loss": float(np.exp(-step / 100) + 0.1 * generator.random()), "dice_ce": 0.2}
            for step in range(10, 500, 10)
        ]
        lines.append({"step": 500, "validation": 0.9})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"step": 51')
    record = {"complete": True, "seconds": 12.5, "version": "0", "torch": "2", "seed": 0, "device": "cpu"}
    (study.stage_folder("segmentation") / "stage.json").write_text(json.dumps(record))
    adapted = {"method": "self_training", "kept": "teacher", "collapsed": ["fibula"], "remedy": "tried twice"}
    (study.stage_folder("adaptation") / "adaptation.json").write_text(json.dumps(adapted))
    grid = study.require_grid()
    to_knee = np.eye(4)
    to_knee[:3, 3] = knee.image.grid.centre_lps_mm
    image = resample(knee.image, grid, to_knee).array.astype(np.float32)
    index = resample(knee.labels, grid, to_knee, interpolation="nearest").array.astype(np.int32)
    images = np.stack([image, image * 0.5])[:, None]
    folder = study.stage_folder("augmentation")
    folder.mkdir(parents=True)
    save_file({"images": images, "labels": np.stack([index, index])}, folder / "samples.safetensors")
