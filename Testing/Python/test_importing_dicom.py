"""DICOM as hospitals export it: several series and patients in a folder, folders in folders, no patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from test_images import CR, write_dicom, write_slices

from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.config import preset
from SegGuidedMMRegLib.importing import ImportReport, ImportRules, new_study
from SegGuidedMMRegLib.importing.sources import from_folders
from SegGuidedMMRegLib.importing.splits import SplitRules
from SegGuidedMMRegLib.study import Role, Study

UID = "1.2.826.0.1.3680043.2.1125"
TRAIN = SplitRules(role=Role.TRAIN)


def _new(
    folder: Path,
    images: Path,
    rules: ImportRules = ImportRules(TRAIN),  # noqa: B008
) -> tuple[Study, ImportReport]:
    found = from_folders("mr", [images])
    return new_study(
        folder,
        found.candidates,
        name="s",
        source="mr",
        target="ct",
        structures=[Structure(1, "femur", (1, 2, 3))],
        rules=rules,
        config=preset("quick"),
        aside=found.aside,
    )


def test_a_folder_of_several_series_and_patients_gives_a_case_each(tmp_path: Path) -> None:
    place = tmp_path / "export"
    first = write_slices(place, series=f"{UID}.1", patient="P1", description="T1 sag")
    write_slices(place, series=f"{UID}.2", patient="P1", description="T2 sag", count=5)
    write_slices(place, series=f"{UID}.3", patient="P2", description="T1 sag")
    study, report = _new(tmp_path / "study", place)
    assert [(c.name, c.subject) for c in study.cases] == [
        ("P1 T1 sag", "P1"),
        ("P1 T2 sag", "P1"),
        ("P2 T1 sag", "P2"),
    ]
    assert study.read_image(study.case("P1 T1 sag")).grid.size == (14, 12, 4)
    assert study.read_image(study.case("P1 T2 sag")).grid.size == (14, 12, 5)
    read = study.read_image(study.case("P1 T1 sag")).array
    assert sorted(read.ravel()) == sorted([*(first[0] - 100).ravel(), *(2.5 * first[1:] - 100).ravel()])
    assert any("3 DICOM images have their PatientID as subject" in line for line in report.lines())


def test_files_beside_dicom_are_counted_and_the_remedy_is_said(tmp_path: Path) -> None:
    place = tmp_path / "export"
    write_slices(place / "PAT1" / "SER1", series=f"{UID}.1", patient="P1", description="T1 sag")
    for name in (
        "b.nii.gz",
        "viewer/run.exe",
        "c.png",
        "viewer/d.txt",
        ".hidden",
        ".git/e.png",
        "SER1/f.nrrd",
    ):
        (place / "PAT1" / name).parent.mkdir(exist_ok=True)
        (place / "PAT1" / name).write_bytes(b"x")
    write_slices(tmp_path / "one", series=f"{UID}.2", patient="P2", description="T1 sag")
    (tmp_path / "one" / "notes.txt").write_bytes(b"x")
    _, report = _new(tmp_path / "study", place)
    remedy = "put images among them into a folder of their own"
    line = "5 files beside its DICOM (b.nii.gz, c.png, SER1/f.nrrd, viewer/d.txt …)"
    assert f"left out: {place / 'PAT1'}: {line}; {remedy}" in report.lines()
    aside = from_folders("mr", [tmp_path / "one"]).aside
    assert aside == ((tmp_path / "one", f"1 file beside its DICOM (notes.txt); {remedy}"),)


def test_an_export_of_folders_in_folders_is_found_whole(tmp_path: Path) -> None:
    place = tmp_path / "export"
    write_slices(place / "PAT1" / "STUDY1" / "SER1", series=f"{UID}.1", patient="P1", description="T1 sag")
    write_slices(place / "PAT1" / "STUDY2" / "SER1", series=f"{UID}.2", patient="P1", description="T1 sag")
    write_slices(place / "PAT2" / "STUDY1" / "SER1", series=f"{UID}.3", patient="P2", description="T1 sag")
    (place / "PAT3" / "STUDY1").mkdir(parents=True)
    study, report = _new(tmp_path / "study", place)
    assert [c.name for c in study.cases] == ["P1 T1 sag 1", "P1 T1 sag 2", "P2 T1 sag"]
    assert any("PAT3" in line and "without DICOM" in line for line in report.lines())


def test_a_folder_of_one_series_keeps_its_name_and_takes_the_patient_as_subject(tmp_path: Path) -> None:
    write_slices(tmp_path / "export" / "knee 7", series=f"{UID}.1", patient="P1")
    study, _ = _new(tmp_path / "study", tmp_path / "export")
    assert [(c.name, c.subject) for c in study.cases] == [("knee 7", "P1")]


def test_radiographs_of_a_patient_are_one_subject_and_stand_ins_are_none(tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    for n, patient in enumerate(("P1", "P1", "ANONYMOUS", "ANONYMOUS")):
        picture = np.random.default_rng(n).integers(0, 99, (20, 16)).astype(np.uint16)
        write_dicom(place / f"{n}.dcm", picture, {**CR, "0010|0020": patient}, f"{UID}.{n}")
    study, _ = _new(tmp_path / "study", place)
    assert [(c.name, c.subject) for c in study.cases] == [("0", "P1"), ("1", "P1"), ("2", "2"), ("3", "3")]


def test_a_subject_pattern_goes_before_the_patient(tmp_path: Path) -> None:
    write_slices(tmp_path / "export" / "s7_knee", series=f"{UID}.1", patient="P1")
    rules = ImportRules(TRAIN, subject_pattern="^s[0-9]+")
    study, _ = _new(tmp_path / "study", tmp_path / "export", rules)
    assert study.cases[0].subject == "s7"


def test_a_series_with_a_missing_slice_is_left_out_and_the_others_come_in(tmp_path: Path) -> None:
    place = tmp_path / "export"
    write_slices(place, series=f"{UID}.1", patient="P1", description="whole")
    write_slices(place, series=f"{UID}.2", patient="P2", description="torn", count=6, skip=(2,))
    study, report = _new(tmp_path / "study", place)
    assert [c.name for c in study.cases] == ["P1 whole"]
    assert any("left out" in line and "missing" in line for line in report.lines())
