"""What is said of a study is changed by a command: roles, subjects, sides; names, colours, terms."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported_study import make_reported_study

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.editing import Change, changes_in_table, edit_study
from SegGuidedMMRegLib.images import read_labels, write_labels
from SegGuidedMMRegLib.importing.labelling import label_cases
from SegGuidedMMRegLib.importing.labels import find_structures, parse_structures
from SegGuidedMMRegLib.study import Role, Study, StudyError
from SegGuidedMMRegLib.terminology import is_terminology, meaning_of

LIST = "Segmentation category and type - DICOM master list"
FEMUR = f"{LIST}~SCT^123037004^Anatomical Structure~SCT^71341001^Femur~SCT^7771000^Left~Regions~^^~^^"


@pytest.fixture
def knees(tmp_path: Path) -> Path:
    return make_reported_study(tmp_path / "knees", 2, 32).folder


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


# -- cases ----------------------------------------------------------------------------------------------
def test_a_case_that_becomes_a_test_case_hides_its_labels_from_training(knees: Path) -> None:
    study = edit_study(knees, cases={"dxa/d1": Change(Role.TEST)}).study
    assert Study.open(knees).case("d1") == study.case("d1")
    assert (study.case("d1").role, study.case("d1").label_use) == (Role.TEST, "evaluation")
    again = edit_study(knees, cases={"d1": Change(Role.TRAIN)}).study
    assert again.case("d1").label_use == "training"


def test_labels_of_the_target_are_never_for_training(knees: Path) -> None:
    study = edit_study(knees, cases={"radiograph/r4": Change(Role.TRAIN)}).study
    assert study.case("r4").label_use == "evaluation"


def test_all_images_of_a_subject_get_its_role(knees: Path) -> None:
    edited = edit_study(knees, cases={"radiograph/r1": Change(subject="d4")})
    assert edited.study.case("r1").role == Role.TEST
    assert "radiograph/r1 is for testing now, as is its subject d4" in edited.notes[0]
    both = edit_study(knees, cases={"dxa/d4": Change(Role.VALIDATION)}).study
    assert {both.case(name).role for name in ("r1", "d4")} == {Role.VALIDATION}


def test_two_roles_for_one_subject_are_refused_and_nothing_is_changed(knees: Path) -> None:
    edit_study(knees, cases={"radiograph/r1": Change(subject="d1")})
    before = (knees / "study.yaml").read_bytes()
    with pytest.raises(StudyError, match="'d1' gets two roles, train and test"):
        edit_study(knees, cases={"dxa/d1": Change(Role.TRAIN), "radiograph/r1": Change(Role.TEST)})
    assert (knees / "study.yaml").read_bytes() == before


def test_a_table_changes_many_cases_and_leaves_what_it_does_not_say(knees: Path, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("case,role,subject,mirrored\ndxa/d1,,anna,yes\ndxa/d2,validation,,\n", encoding="utf-8")
    assert _run("edit", knees, "--table", table) == 0
    first, second = (Study.open(knees).case(name) for name in ("d1", "d2"))
    assert (first.subject, first.mirrored, first.role) == ("anna", True, Role.TRAIN)
    assert (second.subject, second.mirrored, second.role) == ("d2", False, Role.VALIDATION)


def test_a_table_with_a_case_twice_names_the_line(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("case,role\nd1,test\nd1,train\n", encoding="utf-8")
    with pytest.raises(StudyError, match=r"cases.csv, line 3: each line needs a case of its own, got d1"):
        changes_in_table(table)


def test_the_command_says_what_it_needs(knees: Path, capsys: pytest.CaptureFixture) -> None:
    assert _run("edit", knees) == 2
    assert "There is nothing to change" in capsys.readouterr().err
    assert _run("edit", knees, "--cases", "d1") == 2
    assert "--role, --subject or --mirrored" in capsys.readouterr().err
    assert _run("edit", knees, "--cases", "d9", "--role", "test") == 2
    assert "has no case 'd9'" in capsys.readouterr().err


# -- structures -----------------------------------------------------------------------------------------
def test_structures_get_other_names_colours_and_terms_and_new_ones_are_added(knees: Path) -> None:
    assert (
        _run("edit", knees, "--structures", f"1=thigh bone:#010203:{FEMUR}", "9=patella", "--name", "K") == 0
    )
    study = Study.open(knees)
    assert study.name == "K"
    assert study.structures[0] == Structure(1, "thigh bone", (1, 2, 3), FEMUR)
    assert [s.value for s in study.structures] == [1, 2, 3, 9]
    assert _run("edit", knees, "--structures", "2=thigh bone") == 2
    assert Study.open(knees) == study


def test_a_structure_that_no_labels_hold_is_removed(knees: Path, capsys: pytest.CaptureFixture) -> None:
    assert _run("edit", knees, "--structures", "9=patella", "12=menisci") == 0
    assert _run("edit", knees, "--remove-structures", "9", "Menisci", "--structures", "1=thigh") == 0
    assert [(s.value, s.name) for s in Study.open(knees).structures][:2] == [(1, "thigh"), (2, "tibia")]
    assert len(Study.open(knees).structures) == 3
    assert _run("edit", knees, "--remove-structures", "patella") == 2
    assert "has no structure 'patella'; it has 1 thigh, 2 tibia" in capsys.readouterr().err


def test_a_structure_that_labels_hold_stays_and_they_are_named(
    knees: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (knees / "study.yaml").read_bytes()
    assert _run("edit", knees, "--remove-structures", "fibula", "--name", "other") == 2
    said = capsys.readouterr().err
    assert "The structure 3 fibula stays: it is drawn in the labels of dxa/d1, dxa/d2, dxa/d3" in said
    assert (knees / "study.yaml").read_bytes() == before


def test_a_draft_keeps_its_structures_in_the_study(knees: Path) -> None:
    edit_study(knees, structures=parse_structures(["9=patella"]))
    label_cases(knees, ["d2"], use="none")
    study = Study.open(knees)
    labels = read_labels(knees / "labels/dxa/d2.seg.nrrd")
    labels.array[..., :3] = 9
    write_labels(labels, study.structures, knees / "labels/dxa/d2.seg.nrrd")
    with pytest.raises(StudyError, match="9 patella stays: it is drawn in the labels of dxa/d2"):
        edit_study(knees, remove=["9"])
    (knees / "labels/dxa/d2.seg.nrrd").unlink()
    assert len(edit_study(knees, remove=["9"]).study.structures) == 3


def test_what_cannot_be_removed_is_said(knees: Path) -> None:
    edit_study(knees, structures=parse_structures(["9=patella"]))
    with pytest.raises(StudyError, match="9 cannot be changed and removed at once"):
        edit_study(knees, structures=parse_structures(["9=kneecap"]), remove=["9"])
    for path in (knees / "labels").rglob("*.nrrd"):
        path.unlink()
    with pytest.raises(StudyError, match="A study needs a structure"):
        edit_study(knees, remove=["1", "2", "3", "9"])


def test_a_name_that_the_networks_do_not_know_is_said(knees: Path) -> None:
    (knees / "models" / "segmentation").mkdir(exist_ok=True, parents=True)
    (knees / "models" / "segmentation" / "stage.json").write_text("{}", encoding="utf-8")
    edited = edit_study(knees, structures=parse_structures(["1=thigh"]))
    assert "train again" in edited.notes[0]
    assert edit_study(knees, structures=parse_structures(["1=thigh:#ff0000"])).notes == ()


def test_a_term_goes_through_text_study_and_label_file(knees: Path, tmp_path: Path) -> None:
    (structure,) = parse_structures([f"1=femur:{FEMUR}"])
    assert structure.terminology == FEMUR
    labels = read_labels(knees / "labels/dxa/d1.seg.nrrd")
    assert {s.terminology for s in labels.segments} == {""}
    others = edit_study(knees, structures=[structure]).study.structures
    write_labels(labels, others, tmp_path / "out.seg.nrrd")
    assert read_labels(tmp_path / "out.seg.nrrd").segments[0].terminology == FEMUR
    assert find_structures([tmp_path / "out.seg.nrrd"])[0].terminology == FEMUR


def test_what_is_no_term_is_refused_with_words(tmp_path: Path) -> None:
    for text in ("femur~x", f"{FEMUR}|", f"{FEMUR}\n", f"{LIST}~^^~^^~^^~~^^~^^", "~" * 3000):
        assert not is_terminology(text)
        with pytest.raises(StudyError, match="is no term as 3D Slicer writes it"):
            Structure(1, "femur", (1, 2, 3), text)


def test_a_term_is_said_in_words() -> None:
    assert meaning_of(FEMUR) == "Femur, Left"
    assert meaning_of("") == ""
