"""What has to be made again, and only that: judged by content, cheaply, whatever the clock says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_kills import SMALLEST
from trained_study import SOURCE, TARGET, Listener, copy_of, make_study, tiny_config

from SegGuidedMMRegLib import digests as digests_module
from SegGuidedMMRegLib.cases import Role
from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.freshness import TRAINED_STAGES, Freshness
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Structure, Study
from SegGuidedMMRegLib.training import prealign


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that was trained in no time. Change a copy."""
    study = make_study(tmp_path_factory.mktemp("trained"), config=tiny_config(**SMALLEST))
    train(study)
    return study


def states(study: Study) -> dict[str, str]:
    """State of each trained stage, with the reason."""
    found = Freshness(Study.open(study.folder), FileDigests.of_study(study.folder)).stages()
    return {f.name: f"{f.state}: {f.why}" for f in found}


def change_voxel(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    keys = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    array = sitk.GetArrayFromImage(image)
    array[tuple(np.argwhere(array == array.min())[0])] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    for key, text in keys.items():
        changed.SetMetaData(key, text)
    sitk.WriteImage(changed, str(path))


def test_all_is_up_to_date_after_training(trained: Study) -> None:
    assert set(states(trained).values()) == {"up to date: "}


def test_a_changed_label_leaves_the_alignment_alone_and_runs_the_rest(trained: Study, tmp_path: Path) -> None:
    study = copy_of(trained, tmp_path / "study")
    aligned = study.affines_path.stat().st_mtime_ns
    change_voxel(study.folder / study.cases_of(SOURCE)[0].label)
    assert states(study)["augmentation"] == "out of date: labels changed"
    assert prealign.pending(study, FileDigests.of_study(study.folder)) == []
    heard = Listener()
    train(study, reporter=heard)
    assert not [e for e in heard.events if e.data.get("stage") == "prealign"]
    assert study.affines_path.stat().st_mtime_ns == aligned
    assert any(m.startswith("segmentation: runs (out of date: labels") for m in heard.messages)


def test_a_changed_target_image_leaves_the_source_alone(trained: Study, tmp_path: Path) -> None:
    study = copy_of(trained, tmp_path / "study")
    case = study.cases_of(TARGET, Role.TRAIN)[0]
    change_voxel(study.folder / case.image)
    assert prealign.pending(study, FileDigests.of_study(study.folder)) == [case]
    train(study, ["prealign"])
    found = states(study)
    assert found["augmentation"] == found["segmentation"] == "up to date: "
    assert found["adaptation"] == "out of date: target images changed"


def test_test_images_and_labels_for_evaluation_change_no_stage(trained: Study, tmp_path: Path) -> None:
    study = copy_of(trained, tmp_path / "study")
    for case in study.cases_of(role=Role.TEST):
        change_voxel(study.folder / case.label)
    assert set(states(study).values()) == {"up to date: "}


def test_other_weights_make_stale_what_follows_and_are_left_in_peace(trained: Study, tmp_path: Path) -> None:
    study = copy_of(trained, tmp_path / "study")
    other = study.stage_folder("adaptation") / "weights.safetensors"
    mine = study.stage_folder("segmentation") / "weights.safetensors"
    mine.write_bytes(other.read_bytes())
    found = states(study)
    assert found["augmentation"] == "up to date: "
    assert found["segmentation"] == "up to date: weights.safetensors replaced by hand"
    assert found["adaptation"] == "out of date: result of segmentation changed"
    heard = Listener()
    train(study, ["adaptation"], heard)
    assert "segmentation: up to date (weights.safetensors replaced by hand)" in heard.messages
    assert mine.read_bytes() == other.read_bytes() or mine.stat().st_mtime_ns < other.stat().st_mtime_ns


def test_a_stage_that_makes_the_same_again_lets_nothing_run(trained: Study, tmp_path: Path) -> None:
    study = copy_of(trained, tmp_path / "study")
    (study.stage_folder("segmentation") / "stage.json").write_text("{}")
    assert states(study)["segmentation"] == "missing: "
    assert states(study)["adaptation"] == "waits: segmentation may change"
    heard = Listener()
    train(study, reporter=heard)
    runs = [m.split(":")[0] for m in heard.messages if ": runs (" in m]
    assert runs == ["segmentation"]


@pytest.mark.parametrize(("harm", "word"), [("cut", "damaged"), ("gone", "missing")])
def test_weights_that_are_cut_short_or_gone_are_made_again(
    trained: Study, tmp_path: Path, harm: str, word: str
) -> None:
    study = copy_of(trained, tmp_path / "study")
    path = study.stage_folder("segmentation") / "weights.safetensors"
    whole = path.read_bytes()
    path.unlink() if harm == "gone" else path.write_bytes(whole[:-10])
    assert states(study)["segmentation"].startswith(f"{word}: weights.safetensors")
    train(study, ["segmentation"])
    assert path.read_bytes() == whole


def test_a_changed_setting_or_method_concerns_its_stage(
    trained: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {**SMALLEST, "registration": {"steps": 2, "batch_size": 1}}
    study = copy_of(trained, tmp_path / "study", tiny_config(**sections))
    assert states(study)["registration"] == "out of date: settings changed"
    monkeypatch.setitem(Freshness.made_from.__globals__["METHOD_VERSIONS"], "adaptation", 99)
    assert states(study)["adaptation"] == "out of date: method changed"


# -- digests --------------------------------------------------------------------------------------------
@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A file of a minute ago."""
    path = tmp_path / "a"
    path.write_text("old")
    os.utime(path, (time.time() - 60,) * 2)
    return path


def digest_now(path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float = 100.0) -> str:
    """The digest, taken and kept as if the clock were `ahead_s` on (status changes are always of now)."""
    now = time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(digests_module.time, "time_ns", lambda: now + int(ahead_s * 1e9))
        digests = FileDigests(path.parent, path.parent / "kept.json")
        found = digests(path)
        digests.save()
    return found


def test_a_file_that_has_not_changed_is_not_read_again(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest_now(settled, monkeypatch)
    monkeypatch.setattr(digests_module, "_content", lambda _: pytest.fail("it was read"))
    assert digest_now(settled, monkeypatch) == first


def test_a_clock_that_was_set_back_fools_nobody(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest_now(settled, monkeypatch)
    before = settled.stat()
    settled.write_text("new")
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same date as before
    assert digest_now(settled, monkeypatch) != first


def test_a_file_that_was_touched_just_now_or_in_the_future_is_read_again(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest_now(settled, monkeypatch, ahead_s=0)
    assert not (settled.parent / "kept.json").exists()
    os.utime(settled, (time.time() + 3600,) * 2)
    digest_now(settled, monkeypatch)
    assert not (settled.parent / "kept.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": [1]}', '{"a": 3}'])
def test_damaged_digests_are_taken_anew(settled: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest_now(settled, monkeypatch)
    (settled.parent / "kept.json").write_text(text)
    assert digest_now(settled, monkeypatch) == first


# -- many cases -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """5000 cases, pre-aligned, without images."""
    names = [("dxa" if n % 2 else "xray", f"case{n:05d}") for n in range(5000)]
    cases = [
        Case(n, m, n, Role.TRAIN, False, f"images/{m}/{n}.nrrd", original=f"/data/knees of all/{n}.nrrd")
        for m, n in names
    ]
    study = Study.create(
        tmp_path_factory.mktemp("large") / "study",
        name="large",
        dimension=2,
        source="dxa",
        target="xray",
        structures=[Structure(1, "femur", (1, 2, 3))],
        grid=Grid.centred((8, 8, 1), (1.0, 1.0, 1.0)),
        cases=cases,
    )
    study.save_affines({case.key: np.eye(4) for case in cases})
    return study


def cpu_seconds(work: object) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_a_study_of_5000_cases_opens_and_is_saved_within_a_second(large: Study) -> None:
    assert min(cpu_seconds(lambda: Study.open(large.folder)) for _ in range(3)) < 0.6
    assert cpu_seconds(large.save) < 1.0
    assert Study.open(large.folder) == large


def test_asking_for_every_case_of_5000_takes_no_time(large: Study) -> None:
    view = large.training_view()

    def ask() -> None:
        for case in view.cases:
            view.study_to_case(case)
            large.registration_folder(case, case)

    assert cpu_seconds(ask) < 2.0


def test_5000_files_that_have_not_changed_are_known_in_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{n}.nrrd" for n in range(5000)]
    for path in paths:
        path.write_bytes(b"voxels")
        os.utime(path, (time.time() - 60,) * 2)
    now = time.time_ns()
    monkeypatch.setattr(digests_module.time, "time_ns", lambda: now + 10**11)
    first = FileDigests(tmp_path, tmp_path / "kept.json")
    expected = first.of_all(paths)
    first.save()
    monkeypatch.setattr(digests_module, "_content", lambda _: pytest.fail("it was read"))
    assert cpu_seconds(lambda: FileDigests(tmp_path, tmp_path / "kept.json").of_all(paths)) < 1.0
    assert FileDigests(tmp_path, tmp_path / "kept.json").of_all(paths) == expected


def test_the_record_says_what_made_it(trained: Study) -> None:
    for stage in TRAINED_STAGES:
        record = json.loads((trained.stage_folder(stage) / "stage.json").read_text())
        assert {"version", "git", "settings", "seed", "device", "torch", "finished", "seconds"} <= set(record)
        assert record["made"]
