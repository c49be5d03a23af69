"""Few labels in, transforms out: a tiny study of knees, judged by SimpleITK and what the phantom knows."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import (
    LABELLED,
    SOURCE,
    TARGET,
    Finished,
    Listener,
    copy_of,
    landmarks,
    mean_dice,
    moved_by,
    three_dimensional,
    tiny_config,
    values,
    voxel_centres,
)

from SegGuidedMMRegLib import pipeline
from SegGuidedMMRegLib.pipeline import STAGES, TRAINED_STAGES, train
from SegGuidedMMRegLib.study import Study

pytestmark = pytest.mark.xdist_group("trained")


def pair_folders(finished: Finished) -> dict[Path, tuple[str, str]]:
    """Folder of each registered pair, and the names of moving and fixed."""
    found = sorted((finished.study.folder / "registrations").glob("*--*"))
    assert len(found) == 4
    return {folder: tuple(folder.name.split("--")) for folder in found}  # type: ignore[misc]


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of each file, but for the digests of files, which may have become surer."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "digests.json"
    }


# -- what is gained -------------------------------------------------------------------------------------
def test_only_the_few_source_labels_were_open_to_training(finished):
    view = finished.study.training_view()
    assert [c.name for c in view.labelled_cases] == [
        c.name for c in finished.study.cases_of(SOURCE)[:LABELLED]
    ]
    assert not any(c.label_use == "training" for c in finished.study.cases_of(TARGET))


def test_adaptation_raises_the_dice_of_the_target(finished):
    found = {}
    for state, folder in (("without", "predictions_without_adaptation"), ("with", "predictions")):
        scores = []
        for case in finished.study.cases_of(TARGET, "test"):
            predicted = values(finished.study.folder / folder / TARGET / f"{case.name}.seg.nrrd")
            truth = values(finished.file("labels", TARGET, case.name))
            scores.append(mean_dice(predicted.reshape(truth.shape), truth, 3))
        found[state] = np.mean(scores)
    headline = finished.evaluation.summary["headline"]
    assert headline["target_dice_with_adaptation"] == pytest.approx(found["with"], abs=1e-6)
    assert headline["target_dice_without_adaptation"] == pytest.approx(found["without"], abs=1e-6)
    assert found["with"] > found["without"] + 0.05
    assert found["with"] > 0.75
    assert headline["source_dice"] > 0.85


def test_registration_brings_the_true_structures_together(finished):
    gains = []
    for folder, (moving, fixed) in pair_folders(finished).items():
        report = json.loads((folder / "report.json").read_text())
        assert report["labels"] == {"moving": "truth", "fixed": "truth"}
        labels = three_dimensional(finished.file("labels", SOURCE, moving))
        goal = three_dimensional(finished.file("labels", TARGET, fixed))
        forward = sitk.ReadTransform(str(folder / "forward.h5"))
        moved = sitk.Resample(labels, goal, forward, sitk.sitkNearestNeighbor)
        after = mean_dice(values(moved), values(goal), 3)
        assert after == pytest.approx(report["mean"]["after"]["dice"], abs=2e-3)
        gains.append(after - report["mean"]["before"]["dice"])
    assert np.mean(gains) > 0.05
    assert min(gains) > 0


def test_landmarks_come_nearer(finished):
    before, after = [], []
    for folder, (moving, fixed) in pair_folders(finished).items():
        ours = landmarks(finished.file("landmarks", TARGET, fixed))
        theirs = landmarks(finished.file("landmarks", SOURCE, moving))
        names = [n for n in ours if n in theirs]
        start, goal = np.array([ours[n] for n in names]), np.array([theirs[n] for n in names])
        moved = moved_by(sitk.ReadTransform(str(folder / "forward.h5")), start)
        report = json.loads((folder / "report.json").read_text())["landmarks"]
        error = np.linalg.norm(moved - goal, axis=1).mean()
        assert error == pytest.approx(report["mean_after_mm"], abs=0.01)
        before.append(report["mean_before_mm"])
        after.append(error)
    assert np.mean(after) < 0.9 * np.mean(before)


# -- what must never fail -------------------------------------------------------------------------------
def corner_determinants(path: Path) -> np.ndarray:
    """In-plane Jacobian determinants of x + u(x) by forward and backward differences, all four corners."""
    field = sitk.CompositeTransform(sitk.ReadTransform(str(path))).GetNthTransform(1)
    image = sitk.DisplacementFieldTransform(field).GetDisplacementField()
    u = sitk.GetArrayFromImage(image)[1, ..., :2]
    position = np.moveaxis(u, -1, 0) + np.meshgrid(
        *(np.arange(n) * s for n, s in zip(u.shape[1::-1], image.GetSpacing(), strict=False))
    )
    by_i, by_j = (np.diff(position, axis=axis) for axis in (2, 1))
    found = []
    for row, column in product((slice(None, -1), slice(1, None)), repeat=2):
        (a, c), (b, d) = by_i[:, row, :], by_j[:, :, column]
        found.append((a * d - b * c) / np.prod(image.GetSpacing()[:2]))
    return np.stack(found)


def test_no_voxel_folds_in_either_direction(finished):
    for folder in pair_folders(finished):
        for name in ("forward.h5", "inverse.h5"):
            assert corner_determinants(folder / name).min() > 0


def test_forward_then_inverse_returns_to_the_start(finished):
    for folder, (moving, fixed) in pair_folders(finished).items():
        image = three_dimensional(finished.file("images", TARGET, fixed))
        other = three_dimensional(finished.file("images", SOURCE, moving))
        x = voxel_centres(image)
        y = moved_by(sitk.ReadTransform(str(folder / "forward.h5")), x)
        index = np.array([other.TransformPhysicalPointToContinuousIndex(p) for p in y.tolist()])[:, :2]
        inside = ((index >= -0.5) & (index <= np.array(other.GetSize()[:2]) - 0.5)).all(axis=1)
        back = moved_by(sitk.ReadTransform(str(folder / "inverse.h5")), y[inside])
        voxels = np.linalg.norm(back - x[inside], axis=1) / image.GetSpacing()[0]
        assert inside.mean() > 0.7
        assert voxels.mean() < 0.1
        assert voxels.max() < 0.5
        report = json.loads((folder / "report.json").read_text())
        assert report["status"] == "ok"
        assert report["inverse_consistency"]["mean_voxels"] == pytest.approx(voxels.mean(), abs=0.01)


def test_the_reflection_of_a_mirrored_pair_is_in_the_affine_part(finished):
    for folder, (moving, fixed) in pair_folders(finished).items():
        composite = sitk.CompositeTransform(sitk.ReadTransform(str(folder / "forward.h5")))
        affine = sitk.AffineTransform(composite.GetNthTransform(0).Downcast())
        determinant = np.linalg.det(np.reshape(affine.GetMatrix(), (3, 3)))
        assert (determinant < 0) == (moving[-1] != fixed[-1])


# -- what is written ------------------------------------------------------------------------------------
def test_the_evaluation_is_a_table_and_a_summary(finished):
    folder = finished.study.folder
    rows = list(csv.DictReader((folder / "evaluation.csv").open(encoding="utf-8")))
    assert {"segmentation", "registration"} <= {r["kind"] for r in rows}
    assert {"dice", "hd95_mm", "assd_mm"} <= {r["measure"] for r in rows}
    assert {s.name for s in finished.study.structures} <= {r["structure"] for r in rows}
    summary = json.loads((folder / "evaluation.json").read_text())
    assert summary["headline"]["pairs"] == 4
    assert summary["headline"]["failed_pairs"] == summary["headline"]["folded_voxels"] == 0


def test_the_report_is_one_page_that_needs_nothing_else(finished):
    page = finished.page.read_text(encoding="utf-8")
    assert finished.page == finished.study.folder / "report.html"
    outside = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page)
    assert all(link.startswith("data:") for link in outside), [x for x in outside if x[:5] != "data:"]
    assert not re.search(r"url\((?!['\"]?(data:|#))", page)
    for word in (
        "femur",
        "tibia",
        "fibula",
        *(name for pair in pair_folders(finished).values() for name in pair),
    ):
        assert word in page


# -- what is run again ----------------------------------------------------------------------------------
@pytest.fixture
def hurried(finished, tmp_path: Path) -> Study:
    """A study of the same images, pre-aligned, whose stages take no time and are not run yet."""
    study = copy_of(finished.study, tmp_path / "hurried", tiny_config(hurried=True))
    for stage in TRAINED_STAGES:
        shutil.rmtree(study.stage_folder(stage))
    return study


def runs(study: Study, *stages: str) -> dict[str, str]:
    """What training says of each stage: why it runs, or that it is up to date."""
    heard = Listener()
    train(Study.open(study.folder), stages or None, heard)
    told = (re.match(rf"({'|'.join(STAGES)}): (runs \(.*\)|up to date)$", m) for m in heard.messages)
    return {found[1]: found[2] for found in told if found}


def test_a_second_training_does_nothing_and_changes_no_file(finished):
    before = files_of(finished.study.folder)
    assert runs(finished.study) == dict.fromkeys(TRAINED_STAGES, "up to date")
    assert files_of(finished.study.folder) == before


def test_a_changed_label_runs_what_was_made_from_it_and_says_so(hurried):
    assert set(runs(hurried).values()) == {"runs (missing)"}
    path = hurried.folder / hurried.cases_of(SOURCE)[0].label
    labels = sitk.ReadImage(str(path))
    keys = {key: labels.GetMetaData(key) for key in labels.GetMetaDataKeys() if key.startswith("Segment")}
    array = sitk.GetArrayFromImage(labels)
    array[tuple(np.argwhere(array == 0)[0])] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(labels)
    for key, text in keys.items():
        changed.SetMetaData(key, text)
    sitk.WriteImage(changed, str(path))
    told = runs(hurried)
    assert list(told) == list(TRAINED_STAGES)
    assert all("labels changed" in told[stage] or "labels," in told[stage] for stage in TRAINED_STAGES)


def test_a_changed_setting_runs_its_stage_and_what_follows(hurried):
    runs(hurried)
    copied = tiny_config(hurried=True, adaptation={"teacher_steps": 1})
    Study(**{**vars(hurried), "config": copied}).save()
    told = runs(hurried)
    assert [s for s in TRAINED_STAGES if told[s] != "up to date"] == ["adaptation", "registration"]
    assert "settings changed" in told["adaptation"]


def test_labels_for_evaluation_change_nothing(hurried):
    runs(hurried)
    for case in hurried.cases:
        if case.label_use == "evaluation":
            (hurried.folder / case.label).write_bytes(b"nothing that training may read")
    assert set(runs(hurried).values()) == {"up to date"}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(hurried, tmp_path):
    def weights(name: str, seed: int) -> bytes:
        config = tiny_config(hurried=True, training={"device": "cpu", "seed": seed})
        study = copy_of(hurried, tmp_path / name, config)
        train(study, ["segmentation"])
        return (study.stage_folder("segmentation") / "weights.safetensors").read_bytes()

    first = weights("first", 5)
    assert weights("second", 5) == first
    assert weights("third", 6) != first


def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(hurried, tmp_path, monkeypatch):
    config = tiny_config(
        hurried=True, training={"device": "cpu", "checkpoint_seconds": 1e-6, "checkpoint_share": 1}
    )
    whole, cut = (copy_of(hurried, tmp_path / name, config) for name in ("whole", "cut"))
    train(whole, ["segmentation"])

    class Interrupting(Listener):
        def progress(self, stage, step, of, **more):
            super().progress(stage, step, of, **more)
            if stage == "segmentation" and step >= 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, ["segmentation"], Interrupting())
    heard = Listener()
    train(cut, ["segmentation"], heard)
    assert "segmentation: runs (was cut off)" in heard.messages
    assert any(re.match(r"segmentation: continued after step \d of 6", m) for m in heard.messages)
    ends = [s.stage_folder("segmentation") / "weights.safetensors" for s in (whole, cut)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_stage_that_fails_is_not_taken_for_done(hurried, monkeypatch):
    def fail(_context):
        raise ValueError("no such luck")

    with monkeypatch.context() as patch:
        patch.setitem(pipeline._RUN, "segmentation", fail)
        with pytest.raises(ValueError, match="no such luck"):
            train(hurried)
    assert runs(hurried, "segmentation")["segmentation"] == "runs (was cut off)"


# -- three dimensions -----------------------------------------------------------------------------------
@pytest.mark.xdist_group("trained_3d")
def test_a_three_dimensional_study_goes_through_all_stages(finished_3d):
    study = finished_3d.study
    assert study.dimension == 3
    assert study.require_grid().shape == (32, 32, 32)
    for stage in TRAINED_STAGES:
        assert json.loads((study.stage_folder(stage) / "stage.json").read_text())["complete"]
    for case in study.cases:
        predicted, image = (
            sitk.ReadImage(str(p)) for p in (study.prediction_path(case), study.folder / case.image)
        )
        assert predicted.GetSize() == image.GetSize()
        np.testing.assert_allclose(predicted.GetDirection(), image.GetDirection(), atol=1e-6)
    reasons = [reason for r in finished_3d.reports for reason in r["reasons"]]
    assert all("Dice of the segmentations" in reason for reason in reasons)  # they are hardly trained
    assert finished_3d.evaluation.summary["headline"]["folded_voxels"] == 0
    assert "tibia" in finished_3d.page.read_text(encoding="utf-8")


@pytest.mark.xdist_group("trained_3d")
def test_three_dimensional_transforms_have_no_folds_and_close(finished_3d):
    for folder, (moving, fixed) in pair_folders(finished_3d).items():
        forward, inverse = (sitk.ReadTransform(str(folder / f"{n}.h5")) for n in ("forward", "inverse"))
        image = sitk.ReadImage(str(finished_3d.file("images", TARGET, fixed)))
        other = sitk.ReadImage(str(finished_3d.file("images", SOURCE, moving)))
        x = voxel_centres(image)[::7]
        y = moved_by(forward, x)
        index = np.array([other.TransformPhysicalPointToContinuousIndex(p) for p in y.tolist()])
        inside = ((index >= 0) & (index <= np.array(other.GetSize()) - 1)).all(axis=1)
        voxels = np.linalg.norm(moved_by(inverse, y[inside]) - x[inside], axis=1) / min(image.GetSpacing())
        assert inside.mean() > 0.3
        assert voxels.mean() < 0.1
        assert voxels.max() < 0.5
        field = sitk.CompositeTransform(forward).GetNthTransform(1)
        u = sitk.DisplacementFieldTransform(field).GetDisplacementField()
        assert values(sitk.DisplacementFieldJacobianDeterminant(u)).min() > 0
