"""From folders and lists to a study: what comes in, what stays out and why, and who trains and who tests."""

from __future__ import annotations

import csv
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
from test_images import CR, write_dicom, write_slices

from SegGuidedMMRegLib.cases import Role, Structure
from SegGuidedMMRegLib.config import preset
from SegGuidedMMRegLib.importing import ImportReport, ImportRules, add_to_study, new_study
from SegGuidedMMRegLib.importing.labels import find_structures, parse_structures
from SegGuidedMMRegLib.importing.sources import Candidate, from_folders, from_list, labels_by_name, with_table
from SegGuidedMMRegLib.importing.splits import SplitRules, SubjectImage, split
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.study_grid import choose_grid, grid_from

STRUCTURES = parse_structures(["1=femur:#ff0000", "2=tibia"])
ALL_TRAIN = ImportRules(SplitRules(role=Role.TRAIN))


def _picture(path: Path, shape: tuple[int, ...] = (20, 16), seed: int = 0, **meta: tuple[float, ...]) -> Path:
    array = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    return _write(path, array, **meta)


def _labels(path: Path, shape: tuple[int, ...] = (20, 16), values: tuple[int, ...] = (1, 2), **meta) -> Path:
    array = np.zeros(shape, dtype=np.uint8)
    for n, value in enumerate(values):
        array[..., 4 + 5 * n : 8 + 5 * n, 3:12] = value
    return _write(path, array, **meta)


def _write(path: Path, array: np.ndarray, spacing=None, origin=None, direction=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing)
    if origin:
        image.SetOrigin(origin)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six source images, three of them labelled, and five target images, two of them labelled."""
    for n in range(6):
        _picture(tmp_path / "dxa" / f"d{n}.png", seed=n)
    for n in range(3):
        _labels(tmp_path / "dxa_labels" / f"d{n}_seg.png")
    for n in range(5):
        _picture(tmp_path / "xr" / f"x{n}.png", seed=9 + n)
    for n in range(2):
        _labels(tmp_path / "xr_labels" / f"x{n}.png")
    return tmp_path


def _candidates(folders: Path) -> tuple[Candidate, ...]:
    source = from_folders("dxa", [folders / "dxa"], [folders / "dxa_labels"])
    target = from_folders("xray", [folders / "xr"], [folders / "xr_labels"])
    return (*source.candidates, *target.candidates)


def _new(folder: Path, candidates, rules: ImportRules = ALL_TRAIN, **more) -> tuple[Study, ImportReport]:
    given = {
        "name": "knees",
        "source": "dxa",
        "target": "xray",
        "structures": STRUCTURES,
        "config": preset("quick"),
    }
    return new_study(folder, candidates, rules=rules, **{**given, **more})


def _reasons(report: ImportReport) -> str:
    return "\n".join(e.reason for e in report.entries if e.outcome == "skipped")


# -- what comes in --------------------------------------------------------------------------------------
def test_folders_become_a_study_that_opens_again(folders: Path) -> None:
    study, report = _new(folders / "study", _candidates(folders), ImportRules())
    assert Study.open(folders / "study") == study
    assert len(study.cases_of("dxa")) == 6
    assert len(study.cases_of("xray")) == 5
    assert "11 images or labels imported, 0 files left out." in report.lines()
    original = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "dxa" / "d4.png")))
    np.testing.assert_array_equal(study.read_image(study.case("d4")).array, original)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "dxa_labels" / "d1_seg.png")))
    np.testing.assert_array_equal(study.read_evaluation_labels(study.case("d1")).array, labels)
    assert not list(folders.glob(".study*"))


def test_the_geometry_of_an_oblique_image_is_kept(tmp_path: Path) -> None:
    turn = np.deg2rad(25)
    direction = (np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, -1)
    meta = {"spacing": (0.7, 0.9, 3.0), "origin": (10.0, -20.0, 5.0), "direction": direction}
    path = _picture(tmp_path / "a.nii.gz", (6, 20, 16), **meta)
    label = _labels(tmp_path / "l" / "a.nrrd", (6, 20, 16), **meta)
    study, _ = _new(tmp_path / "study", [Candidate(path, "dxa", "a", label)])
    stored = sitk.ReadImage(str(study.folder / "images/dxa/a.nrrd"))
    np.testing.assert_allclose(stored.GetDirection(), direction, atol=1e-6)
    np.testing.assert_allclose(stored.GetSpacing(), meta["spacing"], rtol=1e-6)
    np.testing.assert_allclose(stored.GetOrigin(), meta["origin"], atol=1e-4)
    segments = sitk.ReadImage(str(study.folder / "labels/dxa/a.seg.nrrd"))
    assert segments.GetMetaData("Segment0_Name") == "femur"
    assert study.dimension == 3


def test_names_with_spaces_and_foreign_letters_work_and_match_in_both_unicode_forms(tmp_path: Path) -> None:
    name = "Knie Ä 左 7"
    _picture(tmp_path / "in" / f"{unicodedata.normalize('NFD', name)}.png")
    _labels(tmp_path / "lab" / f"{unicodedata.normalize('NFC', name)}.png")
    found = from_folders("dxa", [tmp_path / "in"], [tmp_path / "lab"])
    study, _ = _new(tmp_path / "study ü", found.candidates)
    case = Study.open(study.folder).case(name)
    assert case.label is not None
    assert study.read_evaluation_labels(case).array.max() == 2


def test_labels_beside_their_images_are_told_apart(tmp_path: Path) -> None:
    for n in range(3):
        _picture(tmp_path / f"a{n}.nrrd")
        _labels(tmp_path / f"a{n}-label.nrrd")
    found = from_folders("dxa", [tmp_path], [tmp_path])
    assert [(c.name, c.label and c.label.name) for c in found.candidates] == [
        (f"a{n}", f"a{n}-label.nrrd") for n in range(3)
    ]


def test_files_of_no_use_are_named_with_the_reason(tmp_path: Path) -> None:
    _picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / "more").mkdir()
    _labels(tmp_path / "lab" / "b.png")
    found = from_folders("dxa", [tmp_path / "in"], [tmp_path / "lab"])
    _, report = _new(tmp_path / "study", found.candidates, aside=found.aside)
    reasons = {Path(e.file).name: e.reason for e in report.entries if e.outcome == "skipped"}
    assert reasons == {
        "notes.txt": "no known kind of file",
        "more": "a folder without DICOM files; name it by itself",
        "b.png": "there is no image of this name",
    }
    with (tmp_path / "study" / "import.csv").open(encoding="utf-8", newline="") as stream:
        kept = {Path(row["file"]).name: row["outcome"] for row in csv.DictReader(stream)}
    assert kept["a.png"] == "imported"
    assert kept["notes.txt"] == "skipped"


def test_a_missing_spacing_is_said_once_and_a_given_one_is_used(folders: Path) -> None:
    study, report = _new(folders / "one", _candidates(folders))
    assert sum("1 mm is assumed" in line for line in report.lines()) == 1
    assert study.read_image(study.cases[0]).grid.spacing[:2] == (1.0, 1.0)
    rules = replace(ALL_TRAIN, spacing_mm=(0.5,))
    study, report = _new(folders / "two", _candidates(folders), rules)
    assert not any("assumed" in line for line in report.lines())
    assert study.read_image(study.cases[0]).grid.spacing[:2] == (0.5, 0.5)


def test_a_name_in_both_modalities_gets_the_modality_and_stays_one_subject(tmp_path: Path) -> None:
    for modality in ("dxa", "xray"):
        for n in range(4):
            _picture(tmp_path / modality / f"p{n}.png")
    candidates = [c for m in ("dxa", "xray") for c in from_folders(m, [tmp_path / m]).candidates]
    study, _ = _new(tmp_path / "study", candidates, ImportRules(SplitRules(test_share=0.5)))
    assert study.case("p1_dxa").subject == study.case("p1_xray").subject == "p1"
    assert study.case("p1_dxa").role == study.case("p1_xray").role
    assert len(study.cases_of(role="test")) == 4


def test_a_folder_of_slices_is_one_image_and_a_folder_of_radiographs_many(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    (volumes / "p1").mkdir(parents=True)
    write_slices(volumes / "p1", series="1.2.3.7")
    assert [c.image for c in from_folders("dxa", [volumes / "p1"]).candidates] == [volumes / "p1"]
    assert [c.name for c in from_folders("dxa", [volumes]).candidates] == ["p1"]
    (tmp_path / "pictures").mkdir()
    for n in range(3):
        picture = np.random.default_rng(n).integers(0, 99, (20, 16)).astype(np.uint16)
        write_dicom(tmp_path / "pictures" / f"{n}.dcm", picture, CR, "1.2.3.8")
    found = from_folders("xray", [tmp_path / "pictures"]).candidates
    assert [c.name for c in found] == ["0", "1", "2"]
    study, _ = _new(tmp_path / "study", found)
    assert study.dimension == 2
    write_slices(volumes / "p1", series="1.2.3.9")
    assert [c.name for c in from_folders("dxa", [volumes / "p1"]).candidates] == ["series 7", "series 9"]


# -- what stays out -------------------------------------------------------------------------------------
def _bad(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.nrrd"
    noise = np.random.default_rng(0).random((20, 16)).astype(np.float32)
    if kind == "nan":
        noise[3, 4] = np.nan
        return _write(path, noise)
    if kind == "constant":
        return _write(path, np.full((20, 16), 7, dtype=np.uint8))
    if kind == "colour":
        path = path.with_suffix(".png")
        colour = (np.random.default_rng(0).random((20, 16, 3)) * 255).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(path))
        return path
    if kind == "transparent":
        path = path.with_suffix(".png")
        grey = (np.random.default_rng(0).random((20, 16, 2)) * 255).astype(np.uint8)
        PIL.Image.fromarray(grey, "LA").save(path)
        return path
    if kind == "broken":
        path.write_bytes(b"NRRD0004\nrubbish")
        return path
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "not finite"),
        ("constant", "every value is 7"),
        ("colour", "colour picture"),
        ("transparent", "has a layer of transparency"),
        ("broken", "cannot be read as an image"),
        ("missing", "no such file"),
    ],
)
def test_an_image_of_no_use_is_left_out_and_the_others_come_in(
    tmp_path: Path, kind: str, reason: str
) -> None:
    bad = Candidate(_bad(tmp_path, kind), "dxa", kind)
    good = Candidate(_picture(tmp_path / "good.png"), "dxa", "good")
    study, report = _new(tmp_path / "study", [bad, good])
    assert [c.name for c in study.cases] == ["good"]
    assert reason in _reasons(report)
    assert bad.image.name in _reasons(report)
    with pytest.raises(StudyError, match="Nothing could be imported"):
        _new(tmp_path / "other", [bad])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("header", [".mhd", ".nhdr", ".hdr"])
def test_the_file_of_voxels_beside_a_header_is_not_left_out(tmp_path: Path, header: str) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 20, 16)).astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / f"knee{header}"))
    (tmp_path / "alone.raw").write_bytes(b"voxels of nothing")
    found = from_folders("dxa", [tmp_path])
    assert [c.image.name for c in found.candidates] == [f"knee{header}"]
    assert [path.name for path, _ in found.aside] == ["alone.raw"]


def _label_problem(tmp_path: Path, kind: str) -> Path:
    if kind == "fractions":
        return _write(tmp_path / "l.nrrd", np.random.default_rng(0).random((20, 16)).astype(np.float32))
    differs: dict = {
        "values": {"values": (1, 9)},
        "size": {"shape": (24, 16), "origin": (0.5, 0.0)},
        "place": {"origin": (0.4, 0.0)},
        "picture size": {"shape": (24, 18)},
        "smaller": {"shape": (12, 16)},
        "empty": {"values": ()},
    }
    return _labels(tmp_path / ("l.png" if kind == "picture size" else "l.nrrd"), **differs[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "values",
            "values 9 are no structure of this study. Found: 0, 1, 9; known: 0 background, 1 femur, 2 tibia",
        ),
        ("size", "lies on another grid than its image: 16 x 24 voxels"),
        ("place", "lies on another grid"),
        ("picture size", "l.png: lies on another grid than its image: 18 x 24 voxels"),
        ("smaller", "lies on another grid than its image: 16 x 12 voxels"),
        ("empty", "every voxel is background"),
        ("fractions", "whole numbers"),
    ],
)
def test_a_label_map_that_does_not_fit_leaves_its_case_out(tmp_path: Path, kind: str, reason: str) -> None:
    image = _picture(tmp_path / "a.nrrd")
    bad = Candidate(image, "dxa", "a", _label_problem(tmp_path, kind))
    good = Candidate(_picture(tmp_path / "b.nrrd"), "dxa", "b", _labels(tmp_path / "b_seg.nrrd"))
    study, report = _new(tmp_path / "study", [bad, good])
    assert [c.name for c in study.cases] == ["b"]
    assert reason in _reasons(report)
    assert not (study.folder / "images/dxa/a.nrrd").exists()
    with pytest.raises(StudyError, match=r"l\.(nrrd|png)"):
        _new(tmp_path / "other", [bad, replace(good, label=None)])


def test_a_picture_of_labels_takes_the_place_of_its_image(tmp_path: Path) -> None:
    image = _picture(tmp_path / "a.nrrd", spacing=(0.5, 0.5), origin=(30.0, 4.0))
    study, _ = _new(tmp_path / "study", [Candidate(image, "dxa", "a", _labels(tmp_path / "l.png"))])
    labels = study.read_evaluation_labels(study.cases[0])
    assert labels.grid.is_close(study.read_image(study.cases[0]).grid)


def test_a_smaller_picture_of_labels_is_not_taken_for_a_part_of_its_image(tmp_path: Path) -> None:
    image = _picture(tmp_path / "a.nrrd", origin=(-3.0, -2.0))
    bad = Candidate(image, "dxa", "a", _labels(tmp_path / "l.png", shape=(16, 12)))
    with pytest.raises(StudyError, match=r"l\.png: lies on another grid"):
        _new(tmp_path / "study", [bad])


def test_a_segmentation_that_slicer_cropped_comes_back_to_its_place(tmp_path: Path) -> None:
    image = _picture(tmp_path / "a.nrrd", (6, 20, 16), spacing=(0.5, 0.7, 2.0), origin=(30.0, 4.0, -8.0))
    whole = sitk.ReadImage(
        str(_labels(tmp_path / "w.nrrd", (6, 20, 16), spacing=(0.5, 0.7, 2.0), origin=(30.0, 4.0, -8.0)))
    )
    sitk.WriteImage(whole[2:13, 3:15, 1:5], str(tmp_path / "l.nrrd"))
    study, _ = _new(tmp_path / "study", [Candidate(image, "dxa", "a", tmp_path / "l.nrrd")])
    expected = sitk.GetArrayFromImage(whole)
    expected[0], expected[5] = 0, 0
    np.testing.assert_array_equal(study.read_evaluation_labels(study.cases[0]).array, expected)


def test_segments_are_known_by_name_where_slicer_numbered_them_differently(tmp_path: Path) -> None:
    from SegGuidedMMRegLib.images import Image, write_labels

    array = np.zeros((20, 16), dtype=np.uint8)
    array[3:9], array[12:17] = 1, 2
    swapped = [Structure(1, "Tibia", (1, 2, 3)), Structure(2, "Femur", (4, 5, 6))]
    write_labels(Image(array, Grid((16, 20, 1))), swapped, tmp_path / "l.seg.nrrd")
    image = _picture(tmp_path / "a.nrrd")
    study, _ = _new(tmp_path / "study", [Candidate(image, "dxa", "a", tmp_path / "l.seg.nrrd")])
    stored = study.read_evaluation_labels(study.cases[0]).array
    assert (stored[3:9] == 2).all()
    assert (stored[12:17] == 1).all()


def test_mixed_dimensions_are_refused_or_left_out_as_asked(tmp_path: Path) -> None:
    flat = Candidate(_picture(tmp_path / "flat.png"), "dxa", "flat")
    solid = Candidate(_picture(tmp_path / "solid.nrrd", (5, 20, 16)), "xray", "solid")
    with pytest.raises(StudyError, match=r"mixed dimensions: 1 are 2D .*flat.png.*1 are 3D .*solid.nrrd"):
        _new(tmp_path / "study", [flat, solid])
    assert not (tmp_path / "study").exists()
    study, report = _new(tmp_path / "study", [flat, solid], replace(ALL_TRAIN, dimension=3))
    assert [c.name for c in study.cases] == ["solid"]
    assert "has 2 dimensions, the study 3" in _reasons(report)


def test_a_single_slice_of_a_volume_counts_as_2d(tmp_path: Path) -> None:
    flat = Candidate(_picture(tmp_path / "flat.png"), "dxa", "flat")
    slice_ = Candidate(_picture(tmp_path / "slice.nrrd", (1, 20, 16)), "xray", "slice")
    study, _ = _new(tmp_path / "study", [flat, slice_])
    assert study.dimension == 2


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    candidates = [Candidate(_picture(tmp_path / f"{n}" / "a.png"), "dxa", "a") for n in range(2)]
    with pytest.raises(StudyError, match="would both be the case 'a'"):
        _new(tmp_path / "study", candidates)
    for name in ("x.png", "x.nrrd"):
        _labels(tmp_path / "lab" / name)
    with pytest.raises(StudyError, match="both belong to an image called 'x'"):
        from_folders("dxa", [tmp_path / "0"], [tmp_path / "lab"])


def test_a_folder_that_is_not_there_and_a_study_that_is_are_refused(folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        from_folders("dxa", [folders / "nowhere"])
    _new(folders / "study", _candidates(folders))
    with pytest.raises(FileExistsError, match="is a study already"):
        _new(folders / "study", _candidates(folders))


# -- subjects, sides, splits ----------------------------------------------------------------------------
def test_a_pattern_gives_the_subject_and_no_subject_is_on_both_sides(tmp_path: Path) -> None:
    for n in range(5):
        for view in "abc":
            _picture(tmp_path / "in" / f"t2_s{n:02d}_{view}.png")
    rules = ImportRules(SplitRules(test_share=0.4), subject_pattern=r"_(s\d+)_")
    study, _ = _new(tmp_path / "study", from_folders("dxa", [tmp_path / "in"]).candidates, rules)
    assert {c.subject for c in study.cases} == {f"s{n:02d}" for n in range(5)}
    test = {c.subject for c in study.cases_of(role="test")}
    assert len(test) == 2
    assert len(study.cases_of(role="test")) == 6
    with pytest.raises(StudyError, match="does not fit the name"):
        _new(tmp_path / "x", study_candidates(tmp_path), replace(rules, subject_pattern="^q"))
    with pytest.raises(StudyError, match="no regular expression"):
        _new(tmp_path / "x", study_candidates(tmp_path), replace(rules, subject_pattern="("))


def study_candidates(tmp_path: Path) -> tuple[Candidate, ...]:
    return from_folders("dxa", [tmp_path / "in"]).candidates


def test_a_pattern_marks_mirrored_images(folders: Path) -> None:
    rules = replace(ALL_TRAIN, mirrored_pattern="[13]$")
    study, _ = _new(folders / "study", _candidates(folders), rules)
    assert [c.name for c in study.cases if c.mirrored] == ["d1", "d3", "x1", "x3"]


def test_labels_beyond_the_number_for_training_are_for_evaluation(folders: Path) -> None:
    rules = ImportRules(SplitRules(training_labels=1, test_share=0.34))
    study, _ = _new(folders / "study", _candidates(folders), rules)
    uses = [c.label_use for c in study.cases_of("dxa") if c.label]
    assert sorted(uses) == ["evaluation", "evaluation", "training"]
    tested = [c.label for c in study.cases_of("dxa", "test")]
    assert len(tested) == 2
    assert all(tested)
    assert {c.label_use for c in study.cases_of("xray") if c.label} == {"evaluation"}


def test_labels_for_training_are_not_drawn_into_the_test_set(folders: Path) -> None:
    for seed in range(6):
        images = [SubjectImage(f"s{n}", True, n < 3) for n in range(8)]
        found = split(images, SplitRules(test_share=0.5, seed=seed))
        assert {found.roles[f"s{n}"] for n in range(3)} == {Role.TRAIN}
        assert sum(role == Role.TEST for role in found.roles.values()) == 4


def test_the_same_seed_draws_the_same_split() -> None:
    images = [SubjectImage(f"s{n}", n % 2 == 0, False) for n in range(20)]
    one, two, other = (split(images, SplitRules(seed=seed)).roles for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_a_subject_in_two_splits_is_refused() -> None:
    images = [SubjectImage("p", True, False, Role.TRAIN), SubjectImage("p", False, False, Role.TEST)]
    with pytest.raises(StudyError, match="subject 'p' is in two splits"):
        split(images, SplitRules())
    with pytest.raises(StudyError, match="two splits"):
        SplitRules(test_subjects=("a",), validation_subjects=("a",))
    with pytest.raises(StudyError, match="no subject 'z'"):
        split(images[:1], SplitRules(test_subjects=("z",)))


def test_named_subjects_test_and_the_others_train() -> None:
    images = [SubjectImage(s, True, True) for s in "abcd"]
    found = split(images, SplitRules(test_subjects=("b",), validation_subjects=("c",)))
    assert [found.roles[s].value for s in "abcd"] == ["train", "test", "validation", "train"]
    assert found.training_labels == {0, 2, 3}


def test_validation_draws_some_of_the_labels_but_leaves_most_for_training() -> None:
    images = [SubjectImage(f"s{n}", True, n < 6) for n in range(10)]
    found = split(images, SplitRules(test_share=0.2, validation_share=0.2))
    roles = list(found.roles.values())
    assert [roles.count(r) for r in Role] == [6, 2, 2]
    assert sum(found.roles[f"s{n}"] == Role.TRAIN for n in range(6)) >= 3


# -- lists ----------------------------------------------------------------------------------------------
def test_a_list_says_everything_of_its_images(folders: Path) -> None:
    (folders / "list.csv").write_text(
        "image;modality;case;subject;role;mirrored;label;label_use;spacing\n"
        "dxa/d0.png;source;knee 1;p1;train;yes;dxa_labels/d0_seg.png;training;0.5\n"
        "dxa/d1.png;dxa;;p2;train;no;dxa_labels/d1_seg.png;evaluation;0.5 0.25\n"
        "xr/x0.png;target;;p1;train;;xr_labels/x0.png;;\n"
        "xr/x1.png;xray;;p3;test;;;;\n",
        encoding="utf-8-sig",
    )
    words = {"source": "dxa", "dxa": "dxa", "target": "xray", "xray": "xray"}
    study, _ = _new(folders / "study", from_list(folders / "list.csv", words).candidates, ImportRules())
    said = [(c.name, c.subject, c.role.value, c.mirrored, c.label_use) for c in study.cases]
    assert said == [
        ("knee 1", "p1", "train", True, "training"),
        ("d1", "p2", "train", False, "evaluation"),
        ("x0", "p1", "train", False, "evaluation"),
        ("x1", "p3", "test", False, None),
    ]
    assert study.read_image(study.case("d1")).grid.spacing[:2] == (0.5, 0.25)


def test_a_yaml_list_says_the_same_as_a_csv(folders: Path) -> None:
    (folders / "list.yaml").write_text(
        "cases:\n- {image: dxa/d0.png, modality: dxa, mirrored: true, role: test, spacing: [0.5, 0.5]}\n"
    )
    (folders / "list.csv").write_text(
        "image,modality,mirrored,role,spacing\ndxa/d0.png,dxa,yes,test,0.5 0.5\n"
    )
    one, two = (from_list(folders / f"list.{kind}", {"dxa": "dxa"}).candidates for kind in ("yaml", "csv"))
    assert one == two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,modality\nnone.png,dxa\n", r"line 2: image 'none.png' is not there"),
        ("image,modality\ndxa/d0.png,mr\n", r"line 2: modality must be one of dxa, got 'mr'"),
        ("image,modality,rôle\ndxa/d0.png,dxa,train\n", r"unknown entry 'rôle'; did you mean 'role'"),
        ("image,modality,role\ndxa/d0.png,dxa,teach\n", r"line 2: role must be"),
        ("image,modality,mirrored\ndxa/d0.png,dxa,left\n", r"mirrored must be yes or no, got 'left'"),
        ("image,modality,spacing\ndxa/d0.png,dxa,0\n", r"spacing must be .*above 0"),
        ("image,modality,spacing\ndxa/d0.png,dxa,wide\n", r"spacing must be numbers in mm, got 'wide'"),
        ("image,modality\ndxa/d0.png,dxa,train\n", r"more values than"),
        ("image\ndxa/d0.png\n", "modality missing"),
        ("image,modality\n", "holds no row"),
    ],
)
def test_a_list_that_does_not_fit_is_named_by_line_and_column(folders: Path, text: str, message: str) -> None:
    (folders / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=message) as caught:
        from_list(folders / "list.csv", {"dxa": "dxa"})
    assert "list.csv" in str(caught.value)


def test_a_target_label_can_not_be_declared_for_training(folders: Path) -> None:
    (folders / "list.csv").write_text(
        "image,modality,label,label_use\nxr/x0.png,xray,xr_labels/x0.png,training\ndxa/d0.png,dxa,,\n"
    )
    words = {"dxa": "dxa", "xray": "xray"}
    with pytest.raises(StudyError, match="can't be for training"):
        _new(folders / "study", from_list(folders / "list.csv", words).candidates)


def test_a_table_adds_subjects_to_the_images_of_folders(folders: Path) -> None:
    (folders / "table.csv").write_text("file,subject,mirrored,age\nd0.png,p7,yes,61\nd1,p7,no,61\n")
    found = with_table(_candidates(folders), folders / "table.csv")
    assert [(c.subject, c.mirrored) for c in found[:3]] == [("p7", True), ("p7", False), (None, None)]
    (folders / "table.csv").write_text("file,subject\nother.png,p7\n")
    with pytest.raises(StudyError, match="names none of the images"):
        with_table(_candidates(folders), folders / "table.csv")


# -- structures and grid --------------------------------------------------------------------------------
def test_structures_are_read_from_the_labels_where_none_are_named(folders: Path) -> None:
    assert [s.name for s in find_structures([folders / "dxa_labels" / "d0_seg.png"])] == [
        "structure 1",
        "structure 2",
    ]
    with pytest.raises(StudyError, match="looks like an image, not a label map"):
        find_structures([_picture(folders / "big.png", (64, 64))])
    with pytest.raises(StudyError, match="--structures"):
        find_structures([])


@pytest.mark.parametrize("text", ["=femur", "1=", "1:femur", "femur:#12", "0=femur", "1=a/b"])
def test_a_structure_that_does_not_fit_is_named(text: str) -> None:
    with pytest.raises(StudyError, match="structure"):
        parse_structures([text])


def test_the_study_grid_holds_the_images_in_round_sizes() -> None:
    grid = choose_grid([Grid((224, 224, 1))] * 3, 2)
    assert grid.size == (256, 256, 1)
    assert min(grid.extent_mm[:2]) >= 224
    quick = choose_grid([Grid((512, 300, 1), (0.5, 0.5, 1.0))], 2, 128)
    assert quick.size == (128, 96, 1)
    assert quick.spacing[0] == pytest.approx(512 * 0.5 * 1.1 / 128, rel=1e-3)


def test_the_study_grid_is_not_finer_than_the_images() -> None:
    grid = choose_grid([Grid((34, 50, 35))], 3)
    assert grid.spacing == (1.0, 1.0, 1.0)
    assert grid.size == (48, 64, 48)


def test_the_study_grid_follows_the_body_not_the_storage_order() -> None:
    sagittal = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # i runs along y, j along z, k along x
    grid = choose_grid([Grid((90, 60, 30), (1.0, 1.0, 1.0), direction=sagittal)], 3)
    assert grid.size == (48, 96, 64) or grid.extent_mm[1] > grid.extent_mm[2] > grid.extent_mm[0]


def test_the_study_grid_can_be_set() -> None:
    grids = [Grid((200, 100, 1))]
    assert grid_from(grids, 2, (), (2.0,), 256).spacing[:2] == (2.0, 2.0)
    assert grid_from(grids, 2, (64, 48), (), 256).size == (64, 48, 1)
    both = grid_from(grids, 2, (64, 48), (1.5, 2.0), 256)
    assert (both.size, both.spacing[:2]) == ((64, 48, 1), (1.5, 2.0))
    for size, spacing in (((8,), ()), ((), (0.0,)), ((64, 64, 64), ()), ((), (float("nan"),))):
        with pytest.raises(ValueError, match="grid"):
            grid_from(grids, 2, size, spacing, 256)


# -- adding ---------------------------------------------------------------------------------------------
def test_images_added_later_keep_their_subjects_role(folders: Path) -> None:
    rules = ImportRules(SplitRules(test_share=0.4), subject_pattern=r"\d")
    study, _ = _new(folders / "study", _candidates(folders), rules)
    roles = {c.subject: c.role for c in study.cases}
    for n in range(5):
        _picture(folders / "later" / f"again{n}.png")
    more = from_folders("dxa", [folders / "later"]).candidates
    study, report = add_to_study(study, more, rules=rules)
    assert len(study.cases) == 16
    assert all(c.role == roles[c.subject] for c in Study.open(study.folder).cases)
    with (study.folder / "import.csv").open(encoding="utf-8", newline="") as stream:
        assert len([r for r in csv.DictReader(stream) if r["outcome"] == "imported"]) == 16
    assert len([e for e in report.entries if e.outcome == "imported"]) == 5


def test_labels_added_later_find_their_images(folders: Path) -> None:
    study, _ = _new(folders / "study", [replace(c, label=None) for c in _candidates(folders)])
    named, _ = labels_by_name([folders / "dxa_labels"])
    target, _ = labels_by_name([folders / "xr_labels"])
    study, _ = add_to_study(study, [], labels={"dxa": named, "xray": target})
    uses = {c.name: c.label_use for c in study.cases if c.label}
    assert uses == {
        "d0": "training",
        "d1": "training",
        "d2": "training",
        "x0": "evaluation",
        "x1": "evaluation",
    }
    with pytest.raises(StudyError, match="has label already: `segmmreg label` replaces"):
        add_to_study(study, [], labels={"dxa": named})


def test_a_failed_addition_leaves_the_study_as_it_was(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = _new(folders / "study", _candidates(folders))
    before = {p: p.stat().st_mtime_ns for p in study.folder.rglob("*") if p.is_file()}
    _picture(folders / "later" / "new.png")
    monkeypatch.setattr(Study, "save_record", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        add_to_study(study, from_folders("dxa", [folders / "later"]).candidates)
    assert {p: p.stat().st_mtime_ns for p in study.folder.rglob("*") if p.is_file()} == before


def test_an_image_that_is_there_already_is_refused(folders: Path) -> None:
    study, _ = _new(folders / "study", _candidates(folders))
    with pytest.raises(StudyError, match="has a case dxa/d0 already"):
        add_to_study(study, _candidates(folders)[:1])


def test_landmarks_come_along_in_physical_space(tmp_path: Path) -> None:
    _picture(tmp_path / "in" / "a.nrrd")
    (tmp_path / "pts").mkdir()
    (tmp_path / "pts" / "a_landmarks.csv").write_text("name,x,y,z\ncondyle,3.5,4,0\n")
    found = from_folders("dxa", [tmp_path / "in"], landmarks=[tmp_path / "pts"])
    study, _ = _new(tmp_path / "study", found.candidates)
    points = study.read_landmarks(study.case("a"))
    assert points.names == ("condyle",)
    np.testing.assert_allclose(points.points_lps_mm, [[3.5, 4, 0]])
    assert study.training_view().cases[0].landmarks is None


def test_landmarks_far_from_their_image_are_refused(tmp_path: Path) -> None:
    image = _picture(tmp_path / "a.nrrd", spacing=(0.5, 0.5), origin=(500.0, 300.0))
    (tmp_path / "p.csv").write_text("name,x,y,z\ncondyle,-504,-303,0\n")
    bad = Candidate(image, "dxa", "a", None, tmp_path / "p.csv")
    with pytest.raises(StudyError, match="no point lies near the image"):
        _new(tmp_path / "study", [bad])
