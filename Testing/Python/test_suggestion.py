"""Which case to label next, and drafts of labels from labelled cases: on the phantom, before any training."""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import SOURCE, TARGET, Listener, copy_of, input_file, make_study, mean_dice, values

from SegGuidedMMRegLib.cases import Role
from SegGuidedMMRegLib.config import AugmentationConfig
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import write_labels
from SegGuidedMMRegLib.propagation import propagate
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.study import Study, StudyError, TrainingView
from SegGuidedMMRegLib.suggestion import greedy, suggest
from SegGuidedMMRegLib.training import prealign

# -- the choice -----------------------------------------------------------------------------------------


def distances(points: list[float]) -> np.ndarray:
    x = np.asarray(points)
    return np.abs(x[:, None] - x)


def test_the_middle_of_the_largest_crowd_without_a_label_comes_first() -> None:
    crowd, far, labelled = [10.0, 10.5, 11.0, 11.5, 12.0], [30.0], [0.0, 0.4]
    rows = [row for row, _, _ in greedy(distances([*labelled, *crowd, *far]), [0], 3)]
    assert rows[0] == 4, "11.0, the middle of the crowd"
    assert rows[1] == 7, "the odd one out comes after it"


@pytest.mark.parametrize("labelled", [[], [1], [0, 5]])
def test_each_choice_leaves_the_least_distance_to_what_is_labelled(labelled: list[int]) -> None:
    points = np.random.default_rng(0).normal(size=(9, 3))
    table = np.linalg.norm(points[:, None] - points, axis=-1)
    ((row, _, after),) = greedy(table, labelled, 1)
    left = [n for n in range(9) if n not in labelled]
    totals = {n: sum(min(table[i, j] for j in (*labelled, n)) for i in range(9)) for n in left}
    assert totals[row] == pytest.approx(min(totals.values()))
    assert after.sum() == pytest.approx(totals[row])


def test_no_case_comes_twice_and_all_come_in_the_end() -> None:
    rows = [row for row, _, _ in greedy(distances([0, 1, 2, 3, 4.5]), [2], 99)]
    assert sorted(rows) == [0, 1, 3, 4]


def test_five_hundred_cases_are_ranked_in_a_moment() -> None:
    points = np.random.default_rng(1).normal(size=(500, 8))
    table = np.linalg.norm(points[:, None] - points, axis=-1)
    start = time.process_time()
    assert len(greedy(table, [0, 1, 2], 5)) == 5
    assert time.process_time() - start < 1.0


# -- on a study that is only pre-aligned ----------------------------------------------------------------
@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("aligned"))
    prealign.run(study, study.config.prealign, Reporter())
    return study


def files_of(study: Study) -> Path:
    return study.folder.parent / "input"


def test_only_unlabelled_training_images_of_the_source_are_suggested(aligned: Study) -> None:
    found = suggest(aligned, 99)
    wanted = {c.name for c in aligned.cases_of(SOURCE, Role.TRAIN) if c.label is None}
    assert {one.case.name for one in found} == wanted
    assert all(one.case.modality == SOURCE for one in found)
    assert all(one.reason and 0 < one.gain <= 1 for one in found)


def test_a_labelled_case_is_suggested_no_more(aligned: Study, tmp_path: Path) -> None:
    first = suggest(aligned, 1)[0].case
    label = f"labels/{SOURCE}/{first.name}.seg.nrrd"
    study = copy_of(aligned, tmp_path / "study")
    shutil.copy(input_file(files_of(aligned), "labels", SOURCE, first.name), study.folder / label)
    cases = [replace(c, label=label, label_use="training") if c == first else c for c in study.cases]
    found = suggest(study.with_cases(cases), 99)
    assert first.name not in {one.case.name for one in found}
    assert next(one.case.name for one in found) == suggest(aligned, 2)[1].case.name


def test_images_are_read_once(aligned: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = copy_of(aligned, tmp_path / "study")
    shutil.rmtree(study.folder / "models" / "cache", ignore_errors=True)  # other tests may have made it
    read: list[str] = []
    image = TrainingView.image
    monkeypatch.setattr(TrainingView, "image", lambda self, case: read.append(case.name) or image(self, case))
    first = suggest(study, 3)
    assert len(read) == len(study.cases_of(SOURCE, Role.TRAIN))
    assert suggest(study, 3) == first
    assert len(read) == len(study.cases_of(SOURCE, Role.TRAIN))
    changed = study.folder / study.cases_of(SOURCE, Role.TRAIN)[0].image
    sitk.WriteImage(sitk.Flip(sitk.ReadImage(str(changed)), [False, True, False]), str(changed))
    suggest(study, 3)
    assert read[-1] == study.cases_of(SOURCE, Role.TRAIN)[0].name
    assert len(read) == len(study.cases_of(SOURCE, Role.TRAIN)) + 1


def test_a_damaged_cache_is_made_again(aligned: Study, tmp_path: Path) -> None:
    study = copy_of(aligned, tmp_path / "study")
    first = suggest(study, 3)
    (study.folder / "models/cache/suggestion/features.safetensors").write_bytes(b"nothing")
    assert suggest(study, 3) == first


def test_images_that_are_not_pre_aligned_are_refused_with_the_remedy(aligned: Study, tmp_path: Path) -> None:
    study = copy_of(aligned, tmp_path / "study")
    shutil.rmtree(study.folder / "models")
    with pytest.raises(StudyError, match="segmmreg train"):
        suggest(study)


# -- drafts of labels -----------------------------------------------------------------------------------
def unlabelled(study: Study) -> list:
    return [c for c in study.cases_of(SOURCE, Role.TRAIN) if c.label is None]


def test_a_draft_is_close_to_the_truth_on_the_images_own_grid(aligned: Study) -> None:
    settings = AugmentationConfig(iterations=60)
    study = replace(aligned, config=aligned.config.model_copy(update={"augmentation": settings}))
    heard = Listener()
    scores = []
    for case in unlabelled(study)[:3]:
        sample = Sample.of_case(study, case)
        found = propagate(study, sample, reporter=heard)
        truth = values(input_file(files_of(study), "labels", SOURCE, case.name)).squeeze()
        assert found.labels.grid == sample.image.grid
        assert found.similarity_after > found.similarity_before
        scores.append(mean_dice(found.labels.array, truth, 3))
    assert min(scores) > 0.85
    assert any(e.kind == "progress" and e.data["stage"] == "registering images" for e in heard.events)


def test_the_nearest_labelled_case_gives_the_labels(aligned: Study) -> None:
    case = unlabelled(aligned)[0]
    sample = Sample.of_case(aligned, case)
    hurried = aligned.config.model_copy(update={"augmentation": AugmentationConfig(iterations=1)})
    study = replace(aligned, config=hurried)
    labelled = study.training_view().labelled_cases
    likeness = {c.key: propagate(study, sample, source=c).similarity_before for c in labelled}
    chosen = propagate(study, sample)
    assert likeness[chosen.source.key] == max(likeness.values())
    assert len(set(likeness.values())) > 1


def test_labels_for_evaluation_never_reach_a_draft(aligned: Study) -> None:
    tested = next(c for c in aligned.cases_of(SOURCE, Role.TEST) if c.label_use == "evaluation")
    sample = Sample.of_case(aligned, unlabelled(aligned)[0])
    with pytest.raises(StudyError, match="no labels that may be carried"):
        propagate(aligned, sample, source=tested)
    without = [
        c if c.label_use != "training" else replace(c, label=None, label_use=None) for c in aligned.cases
    ]
    with pytest.raises(StudyError, match="segmmreg suggest"):
        propagate(aligned.with_cases(without), sample)


def test_a_target_image_needs_a_trained_study(aligned: Study) -> None:
    sample = Sample.of_case(aligned, aligned.cases_of(TARGET, Role.TEST)[0])
    with pytest.raises(StudyError, match="segmmreg train"):
        propagate(aligned, sample)


@pytest.mark.xdist_group("trained")
def test_a_trained_study_reaches_target_images(finished, tmp_path: Path) -> None:
    case = finished.study.cases_of(TARGET, "test")[0]
    found = propagate(finished.study, Sample.of_case(finished.study, case))
    assert found.source.modality == SOURCE
    write_labels(found.labels, finished.study.structures, tmp_path / "draft.seg.nrrd")
    truth = values(finished.file("labels", TARGET, case.name))
    assert mean_dice(values(tmp_path / "draft.seg.nrrd").reshape(truth.shape), truth, 3) > 0.75


def test_commands_suggest_and_propagate(
    aligned: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from test_cli_errors import run

    assert run("suggest", aligned.folder, "--count", 2) == 0
    told = capsys.readouterr().out
    first = suggest(aligned, 1)[0]
    assert f"1. {first.case.name}: {first.reason}" in told
    assert "3." not in told
    assert run("propagate", aligned.folder, first.case.name, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / f"{first.case.name}.seg.nrrd").is_file()
    assert run("suggest", aligned.folder, "--count", 0) == 2


def test_rankings_do_not_depend_on_the_order_of_rows() -> None:
    points = [0.0, 3.0, 3.5, 4.0, 9.0]
    chosen = {p[greedy(distances(list(p)), [], 1)[0][0]] for p in itertools.permutations(points)}
    assert chosen == {3.5}
