"""What goes wrong with a trained study, and what the command line says of it: one message, one exit code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import SOURCE, TARGET, Finished, copy_of, values

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.study import Study

pytestmark = pytest.mark.xdist_group("trained")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def says(capsys):
    """Runs a command and gives its exit code and what it printed as its error."""

    def command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run(*arguments)
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return code, message

    return command


@pytest.fixture
def picture(finished: Finished) -> Path:
    """An image of the target modality, as a file."""
    return finished.file("images", TARGET, finished.study.cases_of(TARGET, "test")[0].name)


@pytest.fixture
def untrained(finished: Finished, tmp_path: Path) -> Study:
    study = copy_of(finished.study, tmp_path / "untrained")
    for folder in ("models", "predictions", "predictions_without_adaptation", "registrations"):
        shutil.rmtree(study.folder / folder)
    return study


def segment(study: Study, image: Path, out: Path, modality: str = TARGET) -> tuple[object, ...]:
    return ("segment", study.folder, image, "--modality", modality, "--out", out)


def test_an_untrained_study_says_that_it_must_be_trained(untrained, picture, tmp_path, says):
    folder = untrained.folder
    for command in (
        ("segment", folder),
        ("register", folder),
        segment(untrained, picture, tmp_path / "out"),
        ("register", folder, picture, picture, "--out", tmp_path / "out"),
    ):
        code, message = says(*command)
        assert code == 2, command
        assert f"segmmreg train {folder}" in message, command
    assert not (tmp_path / "out").exists()


def test_a_study_without_results_says_what_to_run_first(untrained, tmp_path, says):
    code, message = says("export", untrained.folder, "--out", tmp_path / "out")
    assert code == 2
    assert "segmmreg register" in message


@pytest.mark.parametrize("stage", ["segmentation", "adaptation", "registration"])
def test_a_stage_that_is_missing_is_named(finished, tmp_path, says, stage):
    study = copy_of(finished.study, tmp_path / "study")
    shutil.rmtree(study.stage_folder(stage))
    code, message = says("register", study.folder)
    assert code == 2
    assert stage in message
    assert "segmmreg train" in message


def test_an_image_of_another_dimension_is_refused_by_name(finished, tmp_path, says):
    volume = tmp_path / "volume.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).random((20, 20, 20))), str(volume))
    code, message = says(*segment(finished.study, volume, tmp_path / "out"))
    assert code == 2
    assert str(volume) in message
    assert "3 dimensions" in message


def test_labels_without_any_structure_are_refused(finished, picture, tmp_path, says):
    empty = tmp_path / "empty.nrrd"
    image = sitk.ReadImage(str(picture))
    labels = sitk.GetImageFromArray(np.zeros_like(values(image), dtype=np.uint8))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(empty))
    moving = finished.study.cases_of(SOURCE, "test")[0].name
    code, message = says(
        "register", finished.study.folder, moving, picture, "--fixed-labels", empty, "--out", tmp_path / "out"
    )
    assert code == 2
    assert f"{empty}: the label map is empty" in message


def test_labels_of_unknown_structures_are_refused_with_those_that_are_known(
    finished, picture, tmp_path, says
):
    image = sitk.ReadImage(str(picture))
    labels = sitk.GetImageFromArray(np.full_like(values(image), 77, dtype=np.uint8))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(tmp_path / "other.nrrd"))
    moving = finished.study.cases_of(SOURCE, "test")[0].name
    code, message = says(
        *("register", finished.study.folder, moving, picture),
        *("--fixed-labels", tmp_path / "other.nrrd", "--out", tmp_path / "out"),
    )
    assert code == 2
    assert all(word in message for word in ("other.nrrd", "77", "femur"))


def test_labels_of_another_image_are_refused(finished, picture, tmp_path, says):
    labels = sitk.GetImageFromArray(np.ones((20, 20), dtype=np.uint8))
    labels.SetOrigin((500.0, 500.0))
    sitk.WriteImage(labels, str(tmp_path / "other.nrrd"))
    moving = finished.study.cases_of(SOURCE, "test")[0].name
    code, message = says(
        *("register", finished.study.folder, moving, picture),
        *("--fixed-labels", tmp_path / "other.nrrd", "--out", tmp_path / "out"),
    )
    assert code == 2
    assert "other.nrrd" in message


def test_an_unknown_modality_is_answered_with_those_of_the_study(finished, picture, tmp_path, says):
    code, message = says(*segment(finished.study, picture, tmp_path / "out", "mammogram"))
    assert code == 2
    assert all(f"'{word}'" in message for word in (SOURCE, TARGET, "mammogram"))
    moving = finished.study.cases_of(SOURCE, "test")[0].name
    code, message = says(
        *("register", finished.study.folder, moving, picture),
        *("--fixed-modality", "mammogram", "--out", tmp_path / "out"),
    )
    assert code == 2
    assert all(f"'{word}'" in message for word in (SOURCE, TARGET, "mammogram"))


@pytest.mark.parametrize("name", ["torn.nrrd", "torn.png", "torn.nii.gz", "torn.docx"])
def test_an_unreadable_image_is_named(finished, tmp_path, says, name):
    path = tmp_path / name
    path.write_text("This is no image.")
    code, message = says(*segment(finished.study, path, tmp_path / "out"))
    assert code == 2
    assert str(path) in message


def test_an_absent_image_is_named(finished, tmp_path, says):
    code, message = says(*segment(finished.study, tmp_path / "absent.nrrd", tmp_path / "out"))
    assert code == 2
    assert "absent.nrrd" in message
    code, message = says("register", finished.study.folder, "absent", "absent_too")
    assert code == 2
    assert "'absent'" in message


@pytest.mark.parametrize("damage", ["nan", "infinite", "constant"])
def test_an_image_with_values_that_are_none_is_refused(finished, picture, tmp_path, says, damage):
    image = sitk.Cast(sitk.ReadImage(str(picture)), sitk.sitkFloat32)
    array = values(image).copy()
    if damage == "constant":
        array[...] = 3.0
    else:
        array[..., 10:14, 20:24] = np.nan if damage == "nan" else np.inf
    damaged = sitk.GetImageFromArray(array)
    damaged.CopyInformation(image)
    path = tmp_path / "damaged.nrrd"
    sitk.WriteImage(damaged, str(path))
    code, message = says(*segment(finished.study, path, tmp_path / "out"))
    assert code == 2
    assert str(path) in message
    assert not list((tmp_path / "out").glob("*"))


def test_one_bad_image_of_several_leaves_the_results_of_the_others(finished, picture, tmp_path, capsys):
    torn = tmp_path / "torn.nrrd"
    torn.write_text("This is no image.")
    where = ("--modality", TARGET, "--out", tmp_path / "out")
    assert run("segment", finished.study.folder, torn, picture, *where) == 1
    assert str(torn) in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"{picture.stem}.seg.nrrd"]


def test_an_interruption_ends_with_130(finished, monkeypatch, says):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("SegGuidedMMRegLib.pipeline.train", interrupted)
    code, message = says("train", finished.study.folder)
    assert code == 130
    assert "run the same command again" in message


@pytest.fixture
def without_accelerator(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.usefixtures("without_accelerator")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_answered_with_the_setting(finished, picture, tmp_path, says, device):
    study = copy_of(finished.study, tmp_path / "study")
    training = study.config.training.model_copy(update={"device": device})
    replace(study, config=study.config.model_copy(update={"training": training})).save()
    for command in (
        ("train", study.folder, "--set", "segmentation.steps=7"),
        segment(study, picture, tmp_path / "out"),
    ):
        code, message = says(*command)
        assert code == 2
        assert "training.device" in message
        assert device in message


def test_a_failed_pair_is_reported_and_the_others_go_on(finished, tmp_path, monkeypatch, says, capsys):
    from SegGuidedMMRegLib.registrar import Registrar

    study = copy_of(finished.study, tmp_path / "study")
    wanted, delivered = study.cases_of(SOURCE, "test")[0].name, Registrar.delivered

    def unlucky(self, task, pair, **more):
        if task.moving.name == wanted:
            raise ValueError("no such luck")
        return delivered(self, task, pair, **more)

    monkeypatch.setattr(Registrar, "delivered", unlucky)
    code, _ = says("register", study.folder, "--again")
    assert code == 1
    reports = sorted((study.folder / "registrations").glob("*/report.json"))
    states = {p.parent.name: '"failed"' in p.read_text() and "no such luck" in p.read_text() for p in reports}
    assert states == {name: name.startswith(wanted) for name in states}
    assert sorted(states.values()) == [False, False, True, True]
    stale = [p.name for p in study.folder.glob(f"registrations/{wanted}--*/*") if p.name != "report.json"]
    assert not stale, "transforms of an earlier run lie beside the report of a failure"
