"""A trained study that does not fit any more, and the whole line in a folder of an unusual name."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from safetensors.torch import load_file, save_file
from trained_study import SOURCE, TARGET, Finished, copy_of, tiny_config, values

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.config import save_config
from SegGuidedMMRegLib.phantom import phantom_structures, write_phantom_files
from SegGuidedMMRegLib.study import Study

pytestmark = pytest.mark.xdist_group("trained")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def says(capsys):
    def command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run(*arguments)
        heard = capsys.readouterr()
        assert "Traceback" not in heard.err
        return code, heard.err if code else heard.out

    return command


@pytest.fixture
def study(finished: Finished, tmp_path: Path) -> Study:
    """A trained study of its own, without results, to be spoilt."""
    copied = copy_of(finished.study, tmp_path / "study")
    for name in ("predictions", "predictions_without_adaptation", "registrations"):
        shutil.rmtree(copied.folder / name)
    shutil.rmtree(copied.folder / "models" / "cache", ignore_errors=True)
    return copied


def segment(finished: Finished, study: Study, out: Path) -> tuple[object, ...]:
    image = finished.file("images", TARGET, finished.study.cases_of(TARGET, "test")[0].name)
    return ("segment", study.folder, image, "--modality", TARGET, "--out", out)


def test_swapped_structures_are_not_segmented_by_the_old_network(finished, study, tmp_path, says) -> None:
    first, second, *rest = study.structures
    swapped = (replace(first, name=second.name), replace(second, name=first.name), *rest)
    replace(study, structures=swapped).save()
    for command in (segment(finished, study, tmp_path / "out"), ("register", study.folder)):
        code, told = says(*command)
        assert code == 2
        assert f"was trained for {first.name}, {second.name}" in told
        assert "segmmreg train" in told
    assert not (tmp_path / "out").exists()
    assert "out of date" in says("status", study.folder)[1]


def test_weights_of_another_network_are_refused_by_name(finished, study, tmp_path, says) -> None:
    path = study.stage_folder("adaptation") / "weights.safetensors"
    state = load_file(path)
    save_file({key: tensor[..., :1].contiguous() for key, tensor in state.items()}, path)
    code, told = says(*segment(finished, study, tmp_path / "out"))
    assert code == 2
    assert f"{path}: weights of another network" in told
    path.write_bytes(path.read_bytes()[:500])
    code, told = says(*segment(finished, study, tmp_path / "out"))
    assert code == 2
    assert str(path) in told


def test_weights_that_are_not_numbers_are_refused_by_name(finished, study, tmp_path, says) -> None:
    path = study.stage_folder("adaptation") / "weights.safetensors"
    state = load_file(path)
    next(t for t in state.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, path)
    code, told = says(*segment(finished, study, tmp_path / "out"))
    assert code == 2
    assert f"{path}: the weights hold values that are not numbers" in told


def test_a_study_of_a_newer_version_asks_for_an_update_and_stays_as_it_is(study, says) -> None:
    path = study.folder / "study.yaml"
    record = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**record, "format": 99, "wings": 2}))
    before = path.read_bytes()
    for command in ("info", "train", "register", "evaluate"):
        code, told = says(command, study.folder)
        assert code == 2
        assert "format 99" in told
        assert "update SegGuidedMMReg" in told
    assert path.read_bytes() == before


def test_segmentations_that_share_no_structure_make_a_failed_pair_with_a_reason(
    finished, study, tmp_path, says
) -> None:
    given = []
    for modality, value in ((SOURCE, study.structures[0].value), (TARGET, study.structures[1].value)):
        case = study.cases_of(modality, "test")[0]
        image = sitk.ReadImage(str(finished.file("labels", modality, case.name)))
        only = np.where(values(image) == value, value, 0).astype(np.uint8)
        labels = sitk.GetImageFromArray(only)
        labels.CopyInformation(image)
        path = tmp_path / f"{modality}.nrrd"
        sitk.WriteImage(labels, str(path))
        given.append((case.name, path))
    (moving, moving_labels), (fixed, fixed_labels) = given
    out = tmp_path / "out"
    labels_of = ("--moving-labels", moving_labels, "--fixed-labels", fixed_labels)
    code = run("register", study.folder, moving, fixed, *labels_of, "--out", out)
    assert code == 1
    report = json.loads((out / "report.json").read_text())
    assert report["status"] == "failed"
    assert report["reasons"]


def test_a_clock_that_was_set_back_changes_nothing(finished, study, tmp_path, says) -> None:
    later = time.time() + 400 * 86400
    for path in study.folder.rglob("*"):
        os.utime(path, (later, later))
    weights = (study.stage_folder("adaptation") / "weights.safetensors").read_bytes()
    code, told = says("train", study.folder)
    assert code == 0
    assert told.count("up to date") >= 4
    assert (study.stage_folder("adaptation") / "weights.safetensors").read_bytes() == weights
    assert says(*segment(finished, study, tmp_path / "out"))[0] == 0


def test_the_whole_line_works_in_a_folder_with_spaces_and_foreign_letters(tmp_path, says) -> None:
    place = tmp_path / "Knie ä 左 (1) & 'x'"
    cases = write_phantom_files(place / "in put", dimension=2, subjects=6, size=64, seed=3)
    save_config(tiny_config(hurried=True), place / "settings ö.yaml")
    study = place / "Studie ß"
    given: list[object] = ["--config", place / "settings ö.yaml", "--grid-size", "64", "--structures"]
    given += [f"{s.value}={s.name}" for s in phantom_structures(2)]
    for side, modality in (("source", SOURCE), ("target", TARGET)):
        folder = place / "in put"
        given += [f"--{side}", modality, f"--{side}-images", folder / "images" / modality]
        given += [f"--{side}-labels", folder / "labels" / modality]
    assert cases
    assert says("new", study, *given)[0] == 0
    for command in ("train", "segment", "register", "evaluate", "report", "status"):
        assert says(command, study)[0] in (0, 1), command  # hardly trained: pairs may fail
    assert (study / "report.html").stat().st_size > 10_000
    pairs = sorted(path.parent for path in (study / "registrations").glob("*--*/forward.h5"))
    assert pairs
    opened = Study.open(study)
    moving, fixed = (opened.case(name) for name in pairs[0].name.split("--"))
    out = place / "aus gabe.nrrd"
    images = (study / moving.image, "--reference", study / fixed.image)
    assert says("apply", pairs[0] / "forward.h5", *images, "--out", out)[0] == 0
    assert sitk.ReadImage(str(out)).GetSize()[:2] == sitk.ReadImage(str(study / fixed.image)).GetSize()[:2]
    assert says("export", study, "--out", place / "für Slicer", "--formats", ".nrrd")[0] in (0, 1)
