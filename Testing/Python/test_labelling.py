"""Segmentations that are drawn for cases of a study: taken up, replaced, set aside; nonsense is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from reported_study import make_reported_study
from test_cli_errors import run

from SegGuidedMMRegLib.importing.labelling import label_cases
from SegGuidedMMRegLib.locks import BusyError, working_on
from SegGuidedMMRegLib.study import Study, StudyError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_reported_study(tmp_path_factory.mktemp("labelling") / "knees", 2, 32).folder


@pytest.fixture
def knees(made: Path, tmp_path: Path) -> Path:
    """A study whose training case d1 has labels; those of d2 are set aside."""
    folder = tmp_path / "knees"
    shutil.copytree(made, folder)
    label_cases(folder, ["d2"], use="none")
    return folder


def use_of(folder: Path, name: str) -> str | None:
    return Study.open(folder).case(name).label_use


def drawn(folder: Path, name: str, array: np.ndarray | None = None) -> Path:
    """A file with other labels for a case: shifted by three voxels, or `array`."""
    image = sitk.ReadImage(str(folder / "labels" / "dxa" / f"{name}.seg.nrrd"))
    given = np.roll(sitk.GetArrayFromImage(image), 3, axis=-1) if array is None else array
    changed = sitk.GetImageFromArray(given)
    changed.CopyInformation(image)
    path = folder.parent / f"{name}_drawn.nrrd"
    sitk.WriteImage(changed, str(path))
    return path


def test_labels_that_are_set_aside_keep_their_file_and_come_back(knees: Path) -> None:
    assert use_of(knees, "d2") is None
    assert (knees / "labels/dxa/d2.seg.nrrd").is_file()
    _, (case,) = label_cases(knees, ["dxa/d2"])
    assert (case.label, case.label_use) == ("labels/dxa/d2.seg.nrrd", "training")
    assert Study.open(knees).case("d2") == case


def test_labels_of_test_cases_and_of_the_target_are_for_evaluation_alone(knees: Path) -> None:
    label_cases(knees, ["d3", "r1"], use="none")
    _, cases = label_cases(knees, ["d3", "r1"])
    assert [c.label_use for c in cases] == ["evaluation", "evaluation"]
    for name, why in (("d3", "a test case"), ("r1", "the target modality")):
        with pytest.raises(StudyError, match=why):
            label_cases(knees, [name], use="training")


def test_a_training_case_can_be_kept_for_evaluation_and_stays_so(knees: Path) -> None:
    label_cases(knees, ["d1"], use="evaluation")
    label_cases(knees, ["d1"])
    assert use_of(knees, "d1") == "evaluation"
    assert "d1" not in {c.name for c in Study.open(knees).training_view().labelled_cases}


def test_a_file_replaces_the_labels(knees: Path) -> None:
    path = knees / "labels/dxa/d1.seg.nrrd"
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    label_cases(knees, ["d1"], file=drawn(knees, "d1"))
    now = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(now, np.roll(before, 3, axis=-1))


def test_a_smaller_box_as_slicer_saves_it_comes_onto_the_grid_of_the_image(knees: Path) -> None:
    path = knees / "labels/dxa/d2.seg.nrrd"
    whole = sitk.ReadImage(str(path))
    box = sitk.RegionOfInterest(
        whole, [20, 24, *[1] * (whole.GetDimension() - 2)], [5, 4, 0][: whole.GetDimension()]
    )
    for key in whole.GetMetaDataKeys():
        box.SetMetaData(key, whole.GetMetaData(key))
    sitk.WriteImage(box, str(path))
    label_cases(knees, ["d2"])
    now = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    expected = np.zeros_like(now)
    expected[..., 4:28, 5:25] = sitk.GetArrayFromImage(box)
    assert np.array_equal(now, expected)


def test_nonsense_is_refused_and_changes_nothing(knees: Path) -> None:
    path = knees / "labels/dxa/d1.seg.nrrd"
    before, record = path.read_bytes(), (knees / "study.yaml").read_bytes()
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    for wrong, words in (
        (array * 0, "empty"),
        (array + 9, "no structure of this study"),
        (array[..., ::2], "another grid"),
    ):
        file = knees.parent / "wrong.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(wrong), str(file))
        with pytest.raises(StudyError, match=words):
            label_cases(knees, ["d1"], file=file)
    with pytest.raises(StudyError, match="no case 'x9'"):
        label_cases(knees, ["d2", "x9"])
    with pytest.raises(StudyError, match="exactly one case"):
        label_cases(knees, ["d1", "d2"], file=path)
    assert (path.read_bytes(), (knees / "study.yaml").read_bytes()) == (before, record)


def test_a_case_without_a_file_says_where_it_would_lie(knees: Path) -> None:
    (knees / "labels/dxa/d2.seg.nrrd").unlink()
    with pytest.raises(StudyError, match=r"d2\.seg\.nrrd is missing. Draw some in 3D Slicer, or give --file"):
        label_cases(knees, ["d2"])


def test_it_waits_for_nobody_who_changes_the_cases(knees: Path) -> None:
    with working_on(knees, "cases"), pytest.raises(BusyError):
        label_cases(knees, ["d2"])
    assert use_of(knees, "d2") is None


def test_the_command_labels_and_the_study_tells_of_drafts(knees: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("info", knees, "--events") == 0
    assert '"draft": true' in capsys.readouterr().out
    assert run("label", knees, "d2", "--use", "evaluation") == 0
    told = capsys.readouterr().out
    assert "dxa/d2: labels for evaluation" in told
    assert "1 images have labels for training" in told
    assert run("label", knees, "r1", "--use", "training") == 2
    assert "target modality" in capsys.readouterr().err
    assert run("info", knees, "--events") == 0
    assert '"draft": true' not in capsys.readouterr().out
