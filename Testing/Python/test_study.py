"""The study folder: what it keeps, what it refuses, and what training can't reach."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import SegGuidedMMRegLib
from SegGuidedMMRegLib.config import preset
from SegGuidedMMRegLib.files import atomic_path, write_text_atomically
from SegGuidedMMRegLib.images import Image, write_image, write_labels
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Role, Structure, Study, StudyError

FEMUR, TIBIA = Structure(10, "femur", (255, 0, 0)), Structure(3, "tibia", (0, 255, 0))
GRID = Grid.centred((32, 64, 1), (1.5, 1.5, 1.0))


def _case(name: str, modality: str, role: str, use: str | None = None, subject: str | None = None) -> Case:
    label = f"labels/{modality}/{name}.seg.nrrd" if use else None
    image = f"images/{modality}/{name}.nrrd"
    return Case(name, modality, subject or name, Role(role), False, image, label, use)  # type: ignore[arg-type]


CASES = (
    _case("s1", "dxa", "train", "training"),
    _case("s2", "dxa", "train"),
    _case("s3", "dxa", "train", "evaluation"),
    _case("s4", "dxa", "validation", "training"),
    _case("s5", "dxa", "test", "evaluation"),
    _case("t1", "xray", "train", "evaluation"),
    _case("t2", "xray", "validation", "evaluation"),
    _case("t3", "xray", "test", "evaluation"),
)


def _study(folder: Path, cases: tuple[Case, ...] = CASES, **changes: object) -> Study:
    parts: dict = {
        "name": "knees",
        "dimension": 2,
        "source": "dxa",
        "target": "xray",
        "structures": (FEMUR, TIBIA),
        "grid": GRID,
        "cases": cases,
    }
    return Study.create(folder, **{**parts, **changes})


@pytest.fixture
def filled(tmp_path: Path) -> Study:
    """A study whose files are there: images with noise, labels with both structures."""
    study = _study(tmp_path / "study")
    rng = np.random.default_rng(1)
    grid = Grid((8, 6, 1), (2.0, 2.0, 1.0))
    for case in study.cases:
        write_image(Image(rng.random(grid.shape, dtype=np.float32), grid), study.folder / case.image)
        if case.label:
            labels = np.zeros(grid.shape, dtype=np.uint8)
            labels[1:3], labels[4:] = FEMUR.value, TIBIA.value
            write_labels(Image(labels, grid), study.structures, study.folder / case.label)
    study.save_affines({c.key: np.eye(4) for c in study.cases})
    return study


# -- writing --------------------------------------------------------------------------------------------
def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.seg.nrrd"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        assert temporary.name.endswith(".seg.nrrd")
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_saved_study_opens_the_same(tmp_path: Path) -> None:
    cases = (*CASES, replace(_case("Gräfe 7 左", "dxa", "train"), mirrored=True, original="/data/a b.png"))
    study = _study(tmp_path / "knie ä", cases, config=preset("quick"))
    assert Study.open(study.folder) == study


@pytest.mark.parametrize(
    "original",
    ["/a/ü 左 🦵.png", "tab\t, line\u2028, next\x85, bom\ufeff", "'\"\\ #: - {x}, [y]", "\U000e0001"],
)
def test_any_text_is_kept_and_is_the_same_to_any_reader_of_yaml(tmp_path: Path, original: str) -> None:
    study = _study(tmp_path / "study", (replace(CASES[0], original=original), *CASES[1:]))
    assert Study.open(study.folder) == study
    text = (study.folder / "study.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["cases"][0]["original"] == original
    assert len(text.partition("cases:\n")[2].splitlines()) == len(study.cases)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cases:\n", "cases: []\ncases:\n", "'cases' is there twice"),
        ('- {"name"', '- {"name": "x", "name"', "'name' is there twice"),
        ('"original": ""}', '"original": ""}, {"name": "x"}', "not readable"),
        ('"original": ""', '"original": "\\ud800"', "not readable"),
    ],
)
def test_a_line_of_a_case_is_read_as_strictly_as_any_yaml(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    study = _study(tmp_path / "study", CASES)
    path = study.folder / "study.yaml"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(StudyError, match=message):
        Study.open(study.folder)


def test_saving_never_leaves_a_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path / "study")
    before = (study.folder / "study.yaml").read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        study.with_cases(CASES[:2]).save()
    assert (study.folder / "study.yaml").read_text() == before


def test_a_new_study_overwrites_nothing(tmp_path: Path) -> None:
    _study(tmp_path / "study")
    with pytest.raises(FileExistsError, match="is a study already"):
        _study(tmp_path / "study")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        _study(tmp_path / "other")


# -- refusing -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 4}, "dimension must be 2 or 3"),
        ({"target": "DXA"}, "need two names"),
        ({"source": "a/b"}, "can't be used as a name"),
        ({"structures": ()}, "at least one structure"),
        ({"structures": (FEMUR, replace(TIBIA, value=10))}, "'10' is there twice"),
        ({"structures": (FEMUR, replace(TIBIA, name="Femur"))}, "'Femur' is there twice"),
        ({"cases": (CASES[0], CASES[0])}, "'dxa/s1' is there twice"),
        ({"cases": (CASES[0], replace(CASES[0], name="S1"))}, "is there twice"),
        ({"cases": (_case("a", "mr", "train"),)}, "modality must be dxa or xray"),
        ({"cases": (_case("a", "xray", "train", "training"),)}, "evaluation only"),
        ({"cases": (_case("a", "dxa", "test", "training"),)}, "evaluation only"),
        (
            {"cases": (_case("a", "dxa", "train", subject="p"), _case("b", "xray", "test", subject="p"))},
            "subject 'p' is in two splits",
        ),
        ({"grid": Grid.centred((8, 8, 8), (1.0, 1.0, 1.0))}, "the grid has 3 dimensions"),
        ({"grid": Grid((8, 8, 1))}, "centred"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        _study(tmp_path / "study", **changes)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "path", ["../secret.nrrd", "/etc/passwd", "images/../../x", "C:/x.nrrd", "a\\..\\b", ""]
)
def test_no_path_leads_out_of_the_study(tmp_path: Path, path: str) -> None:
    study = _study(tmp_path / "study")
    record = yaml.safe_load((study.folder / "study.yaml").read_text())
    record["cases"][0]["image"] = path
    (study.folder / "study.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(StudyError, match=r"study.yaml.*inside the study folder"):
        Study.open(study.folder)


def test_no_link_leads_out_of_the_study(filled: Study, tmp_path: Path) -> None:
    case = filled.case("s1")
    outside = tmp_path / "outside.nrrd"
    (filled.folder / case.image).rename(outside)
    (filled.folder / case.image).symlink_to(outside)
    with pytest.raises(StudyError, match="link that leads out"):
        filled.read_image(case)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 1\nname: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
        ("- 1\n", "expected names with values"),
        ("format: 9\n", "format 9"),
        ("format: 1\nname: a\n", "dimension, modalities, structures, cases missing"),
        (
            "{format: 1, name: a, dimension: 2, modalities: {source: a, target: b}, "
            "structures: [], cases: 3}",
            "cases",
        ),
        (
            "{format: 1, name: a, dimension: 2, modalities: {source: a, target: b}, cases: [], "
            "structures: [{value: 1, name: f, colour: [1, 2, 3], color: [1, 2, 3]}]}",
            "did you mean 'color'",
        ),
        (
            "{format: 1, name: a, dimension: 2, modalities: {source: a, target: b}, cases: [], "
            "structures: [{value: 0, name: f, color: [1, 2, 3]}]}",
            "0 is background",
        ),
    ],
)
def test_a_damaged_study_file_is_named_in_the_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError, match=message) as caught:
        Study.open(tmp_path)
    assert "study.yaml" in str(caught.value)


def test_a_folder_without_study_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="segmmreg new"):
        Study.open(tmp_path)


# -- asking ---------------------------------------------------------------------------------------------
def test_cases_are_found_by_modality_role_and_name(tmp_path: Path) -> None:
    study = _study(tmp_path / "study", (*CASES, _case("s1", "xray", "train")))
    assert [c.name for c in study.cases_of("dxa", "train")] == ["s1", "s2", "s3"]
    assert [c.name for c in study.cases_of(role=Role.TEST)] == ["s5", "t3"]
    assert study.case("xray/s1").modality == "xray"
    assert study.case("s1", "dxa").modality == "dxa"
    with pytest.raises(StudyError, match="dxa/s1 or xray/s1"):
        study.case("s1")
    with pytest.raises(StudyError, match="no case 'nobody'"):
        study.case("nobody")


def test_pairs_of_images_that_share_a_name_have_different_folders(tmp_path: Path) -> None:
    study = _study(tmp_path / "study", (*CASES, _case("s1", "xray", "train")))
    dxa, xray = study.case("dxa/s1"), study.case("xray/s1")
    assert study.registration_folder(dxa, xray) != study.registration_folder(xray, dxa)
    assert study.registration_folder(study.case("s2"), study.case("t3")).name == "s2--t3"


def test_affines_are_kept_by_case(filled: Study) -> None:
    matrix = np.eye(4) + np.diag([0.1, 0.0, 0.0], 1)
    filled.save_affines({"dxa/s1": matrix})
    np.testing.assert_allclose(filled.study_to_case(filled.case("s1")), matrix)
    with pytest.raises(StudyError, match="dxa/s2 is not pre-aligned"):
        filled.study_to_case(filled.case("s2"))
    with pytest.raises(StudyError, match="invertible"):
        filled.save_affines({"dxa/s1": np.zeros((4, 4))})


def test_labels_with_an_unknown_value_are_refused_with_both_lists(filled: Study) -> None:
    strange = Structure(7, "moon", (9, 9, 9))
    case = filled.case("s1")
    labels = filled.read_evaluation_labels(case)
    labels.array[0, 0] = 7
    write_labels(labels, (*filled.structures, strange), filled.folder / str(case.label))
    with pytest.raises(
        StudyError, match=r"values 7 .*Found: 0, 3, 7, 10; known: 0 background, 10 femur, 3 tibia"
    ):
        filled.training_view().labels(case)


# -- what training sees ---------------------------------------------------------------------------------
def test_training_reads_labels_as_class_indices_in_the_order_of_the_structures(filled: Study) -> None:
    view = filled.training_view()
    labels = view.labels(view.labelled_cases[0]).array
    values = filled.read_evaluation_labels(filled.case("s1")).array
    assert [(0, 1, 2)[int(i)] for i in np.unique(labels)] == [0, 1, 2]
    assert ((labels == 1) == (values == FEMUR.value)).all()
    assert ((labels == 2) == (values == TIBIA.value)).all()


def test_the_view_lists_what_training_may_use(filled: Study) -> None:
    view = filled.training_view()
    assert [c.name for c in view.source_cases] == ["s1", "s2", "s3"]
    assert [c.name for c in view.target_cases] == ["t1"]
    assert [c.name for c in view.labelled_cases] == ["s1"]
    assert [c.name for c in view.validation_cases] == ["s4", "t2"]
    assert [c.name for c in view.validation_labelled_cases] == ["s4"]


def test_training_works_when_every_evaluation_file_is_unreadable(filled: Study) -> None:
    for case in filled.cases:
        if case.label_use == "evaluation":
            (filled.folder / str(case.label)).write_bytes(b"\0no label map")
        if case.role == Role.TEST:
            (filled.folder / case.image).write_bytes(b"\0no image")
    view = filled.training_view()
    for case in (*view.source_cases, *view.target_cases, *view.validation_cases):
        assert view.image(case).array.size
        assert view.study_to_case(case).shape == (4, 4)
    for case in (*view.labelled_cases, *view.validation_labelled_cases):
        assert view.labels(case).array.max() == 2


def test_training_opens_no_evaluation_file(filled: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import SimpleITK as sitk

    opened: list[str] = []
    read = sitk.ReadImage
    monkeypatch.setattr(
        sitk, "ReadImage", lambda name, *rest: (opened.append(str(name)), read(name, *rest))[1]
    )
    view = filled.training_view()
    for case in filled.cases:
        for ask in (view.image, view.labels, view.study_to_case):
            try:
                ask(case)
            except PermissionError:
                continue
    hidden = [str(filled.folder / str(c.label)) for c in filled.cases if c.label_use == "evaluation"]
    hidden += [str(filled.folder / c.image) for c in filled.cases if c.role == Role.TEST]
    assert len(opened) == 8  # six images and two label maps
    assert not set(opened) & set(hidden)


@pytest.mark.parametrize("name", ["s3", "s5", "t1", "t2", "t3"])
def test_evaluation_labels_are_refused_also_when_the_case_is_forged(filled: Study, name: str) -> None:
    view = filled.training_view()
    case = filled.case(name)
    for asked in (case, replace(case, label_use="training"), replace(case, role=Role.TRAIN)):
        with pytest.raises(PermissionError):
            view.labels(asked)


def test_a_forged_path_opens_nothing_else(filled: Study) -> None:
    view = filled.training_view()
    forged = replace(filled.case("s1"), label=filled.case("t3").label, image=filled.case("t3").image)
    np.testing.assert_array_equal(view.image(forged).array, filled.read_image(filled.case("s1")).array)


@pytest.mark.parametrize("name", ["s5", "t3"])
def test_test_images_are_refused(filled: Study, name: str) -> None:
    view = filled.training_view()
    for ask in (view.image, view.study_to_case):
        with pytest.raises(PermissionError, match="test case"):
            ask(filled.case(name))


def test_the_view_does_not_even_know_where_evaluation_files_lie(filled: Study) -> None:
    text = repr(filled.training_view())
    hidden = [c.label for c in filled.cases if c.label_use == "evaluation"]
    hidden += [c.image for c in filled.cases if c.role == Role.TEST]
    assert not [path for path in hidden if str(path) in text]


def test_training_code_takes_only_the_view_from_the_study() -> None:
    package = Path(SegGuidedMMRegLib.__file__).parent
    allowed = {"TrainingView", "Case", "Role", "Structure", "StudyError"}
    for path in [*(package / "training").rglob("*.py"), *(package / "networks").rglob("*.py")]:
        if path.name == "prealign.py":  # places every image, before anything is learned, and reads no label
            assert "labels(" not in path.read_text(encoding="utf-8")
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "SegGuidedMMRegLib.study":
                assert {alias.name for alias in node.names} <= allowed, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("read_evaluation_labels", "read_landmarks"), path
