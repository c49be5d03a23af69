"""Which pairs are registered: all, to a template, from a list, in parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_cli_errors import run

from SegGuidedMMRegLib import jobs
from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.study import Study, StudyError


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """40 cases a modality; the names of two are in both."""
    cases = []
    for modality in ("ct", "mr"):
        for n in range(40):
            name = f"shared{n}" if n < 2 else f"{modality}{n}"
            role = (Role.TRAIN, Role.VALIDATION, Role.TEST)[n % 3]
            image = f"images/{modality}/{name}.nrrd"
            cases.append(Case(name, modality, f"{modality}{n}", role, False, image))
    structures = [Structure(1, "liver", (255, 0, 0))]
    parts = {"dimension": 2, "source": "ct", "target": "mr", "structures": structures, "cases": cases}
    return Study.create(tmp_path / "study", name="Many", **parts)


def names(pairs: jobs.Pairs) -> list[str]:
    return [pair.folder_name for pair in pairs]


def test_all_to_all_is_every_case_to_every_other_once(study):
    pairs = jobs.all_pairs(study, jobs.Choice())
    found = [(p.moving.key, p.fixed.key) for p in pairs]
    keys = [c.key for c in study.cases]
    assert len(pairs) == len(found) == 80 * 79
    assert set(found) == {(a, b) for a in keys for b in keys if a != b}
    assert len(set(names(pairs))) == len(found)


def test_roles_and_modalities_choose_the_cases(study):
    pairs = jobs.all_pairs(study, jobs.Choice((Role.TEST, Role.TRAIN), "mr", "ct"))
    moving, fixed = ({getattr(p, side).case for p in pairs} for side in ("moving", "fixed"))
    chosen = [c for c in study.cases if c.role != Role.VALIDATION]
    assert moving == {c for c in chosen if c.modality == "mr"}
    assert fixed == {c for c in chosen if c.modality == "ct"}
    tests = jobs.test_pairs(study)
    assert len(tests) == 13 * 13
    assert {p.moving.modality for p in tests} == {"ct"}


def test_a_list_that_was_written_gives_the_same_pairs(study, tmp_path):
    for name in ("a b.nrrd", "a b.seg.nrrd", "m.csv", "f.csv"):
        (tmp_path / name).write_text("x")
    file = jobs.Side("a b", "mr", None, tmp_path / "a b.nrrd", True, (0.1, 1 / 3), tmp_path / "a b.seg.nrrd")
    cases = [jobs.Side.of_case(study, c) for c in study.cases_of("ct")[:3]]
    marked = jobs.Pair(cases[2], cases[0], "mine", (tmp_path / "m.csv", tmp_path / "f.csv"))
    pairs = jobs.listed([*(jobs.Pair(c, file) for c in cases), marked])
    path = tmp_path / "lists" / "pairs.csv"
    jobs.pairs_to_csv(pairs, path)
    again = jobs.pairs_from_csv(study, path)
    assert [(p.moving, p.fixed, p.folder_name, p.landmarks) for p in again] == [
        (p.moving, p.fixed, p.folder_name, p.landmarks) for p in pairs
    ]


def test_the_command_writes_a_list_and_registers_nothing(study, tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    assert run("register", study.folder, "--to", "ct7", "--roles", "test", "--list", path) == 0
    assert str(path) in capsys.readouterr().out
    chosen = jobs.pairs_to(study, jobs.read_side(study, "ct7", "ct"), jobs.Choice((Role.TEST,)))
    assert sorted(names(jobs.pairs_from_csv(study, path))) == sorted(names(chosen))
    assert not (study.folder / "registrations").exists()
    assert run("register", study.folder, "ct5", "mr5", "--list", path) == 2
    assert "--list goes with many pairs" in capsys.readouterr().err


def test_a_template_is_the_fixed_image_of_all_others(study):
    template = jobs.read_side(study, "ct7", "ct")
    pairs = list(jobs.pairs_to(study, template, jobs.Choice()))
    assert len(pairs) == 79
    assert {p.fixed.key for p in pairs} == {"ct/ct7"}
    assert "ct/ct7" not in {p.moving.key for p in pairs}


def test_no_pair_is_an_error_that_says_what_to_do(study):
    empty = study.with_cases(study.cases_of("ct"))
    with pytest.raises(StudyError, match="no pairs to register"):
        jobs.test_pairs(empty)


@pytest.mark.parametrize("of", [1, 3, 8, 6320, 7000])
def test_parts_are_all_the_pairs_once(study, of):
    pairs = jobs.all_pairs(study, jobs.Choice())
    some = range(1, of + 1) if of < 100 else (1, 2, of // 2, of)
    parts = [names(pairs.part(n, of)) for n in some]
    assert [len(pairs.part(n, of)) for n in some] == [len(part) for part in parts]
    if of < 100:
        assert [name for part in parts for name in part] == names(pairs)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(StudyError, match="There is no part"):
        pairs.part(0, of)
    with pytest.raises(StudyError, match="There is no part"):
        pairs.part(of + 1, of)


def images_read(pairs: jobs.Pairs, room: int) -> int:
    """How often an image is read where the last `room` of them are at hand."""
    at_hand: dict[str, None] = {}
    read = 0
    for pair in pairs:
        for side in (pair.moving, pair.fixed):
            if side.key not in at_hand:
                read += 1
            at_hand.pop(side.key, None)
            at_hand[side.key] = None
            while len(at_hand) > room:
                at_hand.pop(next(iter(at_hand)))
    return read


def test_the_order_needs_few_images_at_a_time(study):
    """Pairs of a list that is in no order are put into one."""
    every = jobs.all_pairs(study, jobs.Choice())
    in_order = list(every)
    shuffled = [in_order[n] for n in np.random.default_rng(0).permutation(len(in_order))]
    ordered = jobs.listed(shuffled)
    assert Counter(names(ordered)) == Counter(names(every))
    for pairs in (every, ordered):
        assert images_read(pairs, 20) < len(every) / 8
    assert images_read(every.part(2, 8), 20) < len(every) / 8 / 6
    assert names(jobs.listed(shuffled)) == names(ordered), "not the same order twice"


# -- CSV ------------------------------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path: Path):
    """Write a CSV beside an image `a b/knee.nii.gz`."""
    (tmp_path / "a b").mkdir()
    for name in ("knee.nii.gz", "knee_labels.nrrd"):
        sitk.WriteImage(sitk.Image(8, 8, sitk.sitkUInt8), str(tmp_path / "a b" / name))

    def write(*lines: str) -> Path:
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_a_csv_names_cases_and_files_with_what_is_known_of_them(study, table):
    path = table(
        "moving;fixed;fixed_modality;fixed_mirrored;fixed_spacing;fixed_labels;name",
        "ct5;mr7;;;;;",
        "ct/shared0;a b/knee.nii.gz;ct;yes;0.5 0.7;a b/knee_labels.nrrd;case five",
        "shared1;ct3;mr;;;;",
    )
    lines = path.read_text().splitlines()
    lines[3] = "mr/shared1;ct3;;;;;"
    path.write_text("\n".join(lines))
    pairs = {p.folder_name: p for p in jobs.pairs_from_csv(study, path)}
    assert set(pairs) == {"ct5--mr7", "case five", "mr_shared1--ct3"}
    file = pairs["case five"].fixed
    assert file.case is None
    assert file.path == path.parent / "a b" / "knee.nii.gz"
    assert (file.name, file.modality, file.mirrored, file.spacing_mm) == ("knee", "ct", True, (0.5, 0.7))
    assert file.labels == path.parent / "a b" / "knee_labels.nrrd"
    assert pairs["ct5--mr7"].moving.case == study.case("ct5")


@pytest.mark.parametrize(
    ("header", "row", "told"),
    [
        ("moving,fixed", "ct5,nowhere.nrrd", ["line 2", "fixed", "nowhere.nrrd"]),
        ("moving,fixed", "ct5,", ["line 2", "fixed is empty"]),
        ("moving,fixed", "shared0,mr7", ["line 2", "ct/shared0 or mr/shared0"]),
        ("moving,fixed", "ct5,ct5", ["line 2", "same image"]),
        ("moving,fixed,fixed_label", "ct5,mr7,x", ["fixed_label", "did you mean", "fixed_labels"]),
        ("moving", "ct5", ["fixed"]),
        ("moving,fixed,fixed_spacing", "ct5,mr7,2", ["line 2", "fixed_spacing", "case of the study"]),
        ("moving,fixed,fixed_mirrored", "ct5,a b/knee.nii.gz,perhaps", ["fixed_mirrored", "yes or no"]),
        ("moving,fixed,fixed_modality", "ct5,a b/knee.nii.gz,xray", ["line 2", "xray"]),
        ("moving,fixed,name", "ct5,mr7,../out", ["line 2", "../out"]),
        ("moving,fixed,moving_landmarks", "ct5,mr7,a.csv", ["line 2", "moving_landmarks", "a.csv"]),
        ("moving,fixed,fixed_landmarks", "ct5,mr7,pairs.csv", ["line 2", "moving_landmarks is not"]),
        ("moving,fixed,fixed_labels", "ct5,mr7,none.nrrd", ["line 2", "fixed_labels", "none.nrrd"]),
    ],
)
def test_what_is_wrong_in_a_csv_is_said_with_its_line(study, table, header, row, told):
    with pytest.raises(StudyError) as error:
        jobs.pairs_from_csv(study, table(header, row))
    for words in told:
        assert words in str(error.value)


def test_all_that_is_wrong_is_said_at_once(study, table):
    with pytest.raises(StudyError) as error:
        jobs.pairs_from_csv(study, table("moving,fixed", "ct5,mr7", "x,mr7", "ct5,y", "CT5,mr7", "ct5,mr7"))
    lines = str(error.value).splitlines()
    assert [line.split(",")[1].split(":")[0] for line in lines] == [
        " line 3",
        " line 4",
        " line 5",
        " line 6",
    ]
    assert "line 2" in lines[-1], "the pair that has the same folder"


def test_a_csv_without_pairs_is_refused(study, table):
    with pytest.raises(StudyError, match="holds no pair"):
        jobs.pairs_from_csv(study, table("moving,fixed"))
