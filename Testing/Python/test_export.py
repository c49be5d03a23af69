"""`segmmreg export`: what would be written is said first, nothing is replaced unasked, files map alike."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from reported_study import make_reported_study, with_warped_images
from trained_study import moved_by, values, voxel_centres

from SegGuidedMMRegLib import cli, files
from SegGuidedMMRegLib.reviews import Decision, ReviewRecord, result_of
from SegGuidedMMRegLib.study import Study

GOOD, FOLDED = "d3--r3", "d4--r4"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return with_warped_images(make_reported_study(tmp_path_factory.mktemp("export") / "knees"))


@pytest.fixture
def export(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Run the command into `tmp_path / "out"`: the last event and the exit code."""

    def run(*arguments: object) -> tuple[dict, int]:
        command = ["export", str(study.folder), *map(str, arguments), "--events"]
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--out", str(tmp_path / "out")])
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return events[-1], int(ended.value.code or 0)

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def as_field(path: Path) -> sitk.Transform:
    if path.suffix == ".h5":
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64))


ALL = ("--outputs", "transforms", "image", "labels", "report", "table")


def test_a_plan_says_all_that_is_written_and_writes_nothing(export, tmp_path: Path) -> None:
    asked = (GOOD, *ALL, "--formats", ".h5", ".nrrd", ".nii.gz", "--spacing", "4")
    plan, code = export(*asked, "--plan")
    assert code == 0
    assert not (tmp_path / "out").exists()
    assert not any(file["exists"] for file in plan["files"])
    done, code = export(*asked)
    assert code == 0
    written = {p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {Path(file["path"]) for file in plan["files"]} == written
    assert len(written) == done["files"] == 10
    for file in plan["files"]:
        size = Path(file["path"]).stat().st_size
        assert file["bytes"] is None or size < 1.3 * file["bytes"] + 20_000, file
    assert plan["bytes"] > 0.5 * sum(p.stat().st_size for p in written if "report" not in p.name)
    again, _ = export(*asked, "--plan")
    assert all(file["exists"] for file in again["files"])
    assert again["free_bytes"] > 0


def test_all_formats_map_points_alike(export, study: Study, tmp_path: Path) -> None:
    _, code = export(GOOD, "--formats", ".h5", ".nrrd", ".nii.gz", "--spacing", "3")
    assert code == 0
    case = study.case("r3")
    points = voxel_centres(sitk.ReadImage(str(study.folder / case.image)))
    out = tmp_path / "out" / GOOD
    for direction in ("forward", "inverse"):
        moved = [moved_by(as_field(out / f"{direction}{s}"), points) for s in (".h5", ".nrrd", ".nii.gz")]
        inside = np.abs(moved[0] - moved[1]).max(axis=1) < 1e-2
        assert inside.mean() > 0.9
        np.testing.assert_allclose(moved[1], moved[2], atol=1e-3)
        true = moved_by(as_field(study.folder / "registrations" / GOOD / f"{direction}.h5"), points)
        assert np.linalg.norm(moved[0] - true, axis=1)[inside].mean() < 0.5


def test_only_the_wanted_direction_and_outputs_are_written(export, tmp_path: Path) -> None:
    _, code = export(GOOD, "--directions", "inverse", "--outputs", "transforms", "table")
    assert code == 0
    assert set(tree(tmp_path / "out")) == {f"{GOOD}/inverse.h5", "pairs.csv"}


def test_images_and_labels_come_back_as_they_were(export, study: Study, tmp_path: Path) -> None:
    _, code = export(GOOD, "--outputs", "image", "labels", "--volumes", ".nii.gz")
    assert code == 0
    pair, out = study.folder / "registrations" / GOOD, tmp_path / "out" / GOOD
    for old, new in (
        ("warped_image.nrrd", "warped_image.nii.gz"),
        ("warped_labels.seg.nrrd", "warped_labels.nii.gz"),
    ):
        np.testing.assert_array_equal(values(pair / old), values(out / new))
        a, b = sitk.ReadImage(str(pair / old)), sitk.ReadImage(str(out / new))
        np.testing.assert_allclose(a.GetOrigin(), b.GetOrigin(), atol=1e-4)


def test_the_table_has_a_line_a_pair_with_its_figures(export, study: Study, tmp_path: Path) -> None:
    _, code = export("--outputs", "table", "--failed")
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "pairs.csv").open(encoding="utf-8")))
    assert [row["pair"] for row in rows] == ["d3--r3", "d3--r4", "d4--r3", FOLDED]
    report = json.loads((study.folder / "registrations" / GOOD / "report.json").read_text())
    assert float(rows[0]["dice_after"]) == pytest.approx(report["mean"]["after"]["dice"], abs=1e-5)
    assert rows[3]["status"] == "failed"
    assert {rows[0][name] for name in ("decision", "comment", "reviewer", "date")} == {""}


def test_the_table_says_what_the_review_decided_about_these_results(export, study, tmp_path: Path) -> None:
    registrations = study.folder / "registrations"
    record = ReviewRecord(registrations)
    elsewhere = shutil.copytree(registrations / GOOD, tmp_path / "pairs" / "001")
    report = json.loads((elsewhere / "report.json").read_text())
    (elsewhere / "report.json").write_text(json.dumps({**report, "seconds": 77.0}))
    good, third = (result_of(registrations / name) for name in (GOOD, "d4--r3"))
    for decision in (
        Decision(GOOD, good, "doubtful"),
        Decision(GOOD, good, "accepted", "joint line\n=fits", "A. Reader", "2026-05-01T10:00:00+02:00"),
        Decision(FOLDED, "another result", "accepted", "outdated"),
        Decision("seen in a scene", result_of(elsewhere), "rejected", "turned"),
        Decision("d4--r3", third, "accepted"),
        Decision("d4--r3", third, "", "taken back"),
    ):
        record.decide(decision)
    try:
        _, code = export(GOOD, FOLDED, "d4--r3", str(elsewhere), "--outputs", "table", "--failed")
    finally:
        (registrations / "reviews.jsonl").unlink()
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "pairs.csv").open(encoding="utf-8")))
    told = [(row["decision"], row["comment"], row["reviewer"]) for row in rows]
    nothing = ("", "", "")
    accepted, rejected = ("accepted", "joint line =fits", "A. Reader"), ("rejected", "turned", "")
    assert told == [accepted, nothing, nothing, rejected]
    assert rows[0]["date"] == "2026-05-01T10:00:00+02:00"
    assert list(rows[0])[-5:] == ["warnings", "decision", "comment", "reviewer", "date"]


def test_the_page_is_of_the_chosen_pairs_alone_and_needs_no_other_file(export, study, tmp_path: Path) -> None:
    before = set(tree(study.folder))
    _, code = export(GOOD, FOLDED, "--outputs", "report", "--failed")
    assert code == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 exported pairs" in page
    assert "d3 → r3" in page
    assert "d3 → r4" not in page
    assert "the transform folds" in page
    assert page.count('src="data:image/jpeg;base64,') >= 12
    assert "No pictures" not in page
    assert set(tree(study.folder)) == before


def test_failed_pairs_are_left_out_unless_they_are_asked_for(export, tmp_path: Path) -> None:
    plan, _ = export("--plan")
    assert [pair["pair"] for pair in plan["left_out"]] == [FOLDED]
    assert "folds" in plan["left_out"][0]["problem"]
    assert len(plan["pairs"]) == 3
    plan, _ = export("--plan", "--failed")
    assert [pair["status"] for pair in plan["pairs"]] == ["ok", "ok", "ok", "failed"]


def test_without_a_folder_a_plan_lists_the_pairs(study: Study, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", str(study.folder), "--plan", "--events"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [pair["status"] for pair in told["pairs"]] == ["ok", "ok", "ok", "failed"]
    assert 0 < told["pairs"][0]["dice"] < 1


def test_a_file_that_exists_is_never_replaced_unasked(export, tmp_path: Path) -> None:
    file = tmp_path / "out" / GOOD / "inverse.h5"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    failed, code = export(GOOD)
    assert (code, failed["code"]) == (2, "input")
    assert str(file) in failed["message"]
    assert tree(tmp_path / "out") == {f"{GOOD}/inverse.h5": b"mine"}
    done, code = export(GOOD, "--overwrite")
    assert (code, done["replaced"]) == (0, 1)
    assert file.read_bytes() != b"mine"


def test_a_file_that_comes_while_others_are_written_stays(export, tmp_path, monkeypatch) -> None:
    from SegGuidedMMRegLib import transform_files

    plain, late = transform_files.write_transform, tmp_path / "out" / GOOD / "inverse.h5"

    def write(transform, path, **more):
        plain(transform, path, **more)
        late.write_bytes(b"of somebody else")

    monkeypatch.setattr(transform_files, "write_transform", write)
    failed, code = export(GOOD)
    assert code == 2
    assert "exists" in failed["message"]
    assert late.read_bytes() == b"of somebody else"


def test_pairs_can_come_from_a_file_and_from_other_folders(export, study: Study, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scene" / "result"
    shutil.copytree(study.folder / "registrations" / GOOD, elsewhere)
    chosen = tmp_path / "pairs.txt"
    chosen.write_text(f"d3--r4\n\n{elsewhere}\n{GOOD}\n")
    plan, code = export("--pairs-from", chosen, "--plan")
    assert code == 0
    assert [pair["pair"] for pair in plan["pairs"]] == ["d3--r4", GOOD, f"{GOOD}-2"]
    _, code = export("--pairs-from", chosen)
    assert code == 0
    written = tree(tmp_path / "out")
    assert {name.split("/")[0] for name in written} == {"d3--r4", GOOD, f"{GOOD}-2"}


def test_names_in_a_report_do_not_lead_out_of_the_folder(export, study: Study, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scene"
    shutil.copytree(study.folder / "registrations" / GOOD, elsewhere)
    report = json.loads((elsewhere / "report.json").read_text())
    (elsewhere / "report.json").write_text(json.dumps({**report, "moving": "../../up", "fixed": "x"}))
    plan, _ = export(elsewhere, "--plan")
    assert all((tmp_path / "out") in Path(file["path"]).resolve().parents for file in plan["files"])


def test_what_a_pair_does_not_have_is_said(export, study: Study, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scene"
    shutil.copytree(study.folder / "registrations" / GOOD, elsewhere)
    (elsewhere / "warped_labels.seg.nrrd").unlink()
    plan, _ = export(elsewhere, "--plan")
    assert plan["missing"] == [f"{GOOD} has no warped_labels.seg.nrrd"]
    assert len(plan["files"]) == 3


@pytest.mark.parametrize("place", ["registrations", f"registrations/{GOOD}", f"registrations/{GOOD}/deeper"])
def test_the_pairs_of_the_study_are_no_place_to_export_to(study: Study, place: str, capsys) -> None:
    before = tree(study.folder)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(study.folder), "--overwrite", "--out", str(study.folder / place)])
    assert ended.value.code == 2
    assert "where registered pairs are kept" in capsys.readouterr().err
    assert tree(study.folder) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--spacing", "0"), "above 0 mm"),
        (("--spacing", "1e-5"), "Give a larger one"),
        (("--formats", ".png"), ".nii.gz"),
        (("--outputs", "image", "--volumes", "none"), "Nothing is to be written"),
        (("--pairs-from", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_a_wrong_wish_is_refused_by_the_plan_already(export, arguments, says) -> None:
    failed, code = export(*arguments, "--plan")
    assert code == 2
    assert says in f"{failed['message']} {failed['remedy']}"


def test_a_full_disk_keeps_what_is_whole_and_the_same_again_goes_on(
    export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 90_000}))
    failed, code = export(GOOD, "--formats", ".nrrd", ".h5")
    assert (code, failed["code"]) == (4, "disk_full")
    assert "forward.h5" in failed["message"]
    written = {name for name in tree(tmp_path / "out") if not name.startswith(".unfinished-")}
    assert written == {f"{GOOD}/forward.nrrd"}
    monkeypatch.undo()
    _, code = export(GOOD, "--formats", ".nrrd", ".h5")
    assert code == 0
    assert f"{GOOD}/forward.h5" in tree(tmp_path / "out")
    assert not [name for name in tree(tmp_path / "out") if name.startswith(".")]
