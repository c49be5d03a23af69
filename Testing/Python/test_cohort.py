"""Many pairs of a study: resumed, killed, in several processes, in parts, in bounded memory."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from deadly_work import squares, unusable
from test_cli_errors import run
from trained_study import (
    SOURCE,
    TARGET,
    Listener,
    copy_of,
    three_dimensional,
    tiny_config,
    values,
    voxel_centres,
)

from SegGuidedMMRegLib import jobs
from SegGuidedMMRegLib.jobs import sides
from SegGuidedMMRegLib.jobs.maps import SegmentedStudy, forget_outside_images, maps_folder
from SegGuidedMMRegLib.pair_report_file import pair_reports, read_pair_report
from SegGuidedMMRegLib.pool import Died, work_off
from SegGuidedMMRegLib.status import status_of
from SegGuidedMMRegLib.study import Study

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))
from soak import Memory

pytestmark = pytest.mark.xdist_group("trained")

FILES = {"forward.h5", "inverse.h5", "warped_image.nrrd", "warped_labels.seg.nrrd", "report.json"}


@pytest.fixture
def study(finished, tmp_path: Path) -> Study:
    """Trained, nothing registered; ten cases a modality; a pair takes a moment."""
    config = tiny_config(registration={"steps": 0, "refinement_steps": 3})
    copied = copy_of(finished.study, tmp_path / "study", config)
    shutil.rmtree(copied.folder / "registrations")
    return copied


def choose(study: Study, moving: int, fixed: int) -> jobs.Pairs:
    cases = [study.cases_of(m)[:n] for m, n in ((SOURCE, moving), (TARGET, fixed))]
    return jobs.pairs_of_cases(study, [(a, b) for a in cases[0] for b in cases[1]])


def table(study: Study) -> list[dict[str, str]]:
    path = study.folder / "registrations" / "summary.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def folders(study: Study) -> dict[str, set[str]]:
    """What lies in each folder of a pair."""
    found = (p for p in (study.folder / "registrations").iterdir() if p.is_dir())
    return {folder.name: {p.name for p in folder.iterdir()} for folder in found}


def transforms(study: Study) -> dict[str, np.ndarray]:
    """The displacements of all pairs, as SimpleITK reads them."""
    found = {}
    for path in sorted((study.folder / "registrations").glob("*/forward.h5")):
        chain = sitk.CompositeTransform(sitk.ReadTransform(str(path)))
        parts = [chain.GetNthTransform(n) for n in range(chain.GetNumberOfTransforms())]
        found[path.parent.name] = np.concatenate(
            [np.array([*p.GetParameters(), *p.GetFixedParameters()]) for p in parts]
        )
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# -- resuming -------------------------------------------------------------------------------------------
def test_finished_pairs_are_left_alone_until_something_changes(study):
    heard = Listener()
    pairs = choose(study, 2, 2)
    first = jobs.register_study(study, pairs)
    assert (first.done, first.skipped, first.failed) == (4, 0, 0)
    times = {p: p.stat().st_mtime_ns for p in (study.folder / "registrations").glob("*/*")}
    second = jobs.register_study(study, choose(study, 3, 2), reporter=heard)
    assert (second.done, second.skipped) == (2, 4)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert any("4 pairs are finished" in m for m in heard.messages)

    moved = study.cases_of(SOURCE)[1]
    image = sitk.ReadImage(str(study.folder / moved.image))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) * 2 + 1, str(study.folder / moved.image))
    third = jobs.register_study(study, choose(study, 3, 2), reporter=heard)
    assert (third.done, third.skipped) == (2, 4), "those of the image that has changed"
    assert any("2 pairs are registered anew: moving changed" in m for m in heard.messages)
    fewer = jobs.Output(files=("transforms",))
    assert jobs.register_study(study, pairs, output=fewer).done == 4
    assert set(folders(study)[f"{moved.name}--{study.cases_of(TARGET)[0].name}"]) == {
        "forward.h5",
        "inverse.h5",
        "report.json",
    }
    again = jobs.register_study(study, pairs, output=fewer, run=jobs.Run(again=True))
    assert (again.done, again.skipped) == (4, 0)
    assert len(table(study)) == 6


def test_what_is_written_does_not_depend_on_what_was_finished(study):
    """Pairs are registered in batches; a run that was cut off makes others than one that was not."""
    jobs.register_study(study, choose(study, 3, 3))
    whole = transforms(study)
    shutil.rmtree(study.folder / "registrations")
    for some in (choose(study, 1, 1), choose(study, 2, 2), choose(study, 3, 3)):
        jobs.register_study(study, some)
    assert same(transforms(study), whole)


def test_a_pair_that_failed_is_in_the_table_and_the_exit_code(study, capsys):
    torn = study.cases_of(SOURCE)[0]
    (study.folder / torn.image).write_text("This is no image.")
    listed = study.folder / "pairs.csv"
    names = [c.name for c in study.cases_of(SOURCE)[:2]]
    fixed = study.cases_of(TARGET)[0].name
    listed.write_text("moving,fixed\n" + "".join(f"{name},{fixed}\n" for name in names))
    assert run("register", study.folder, "--pairs", listed) == 1
    told = capsys.readouterr().out
    assert f"failed: {torn.name}--{fixed}" in told
    rows = {row["moving"]: row for row in table(study)}
    assert {name: row["status"] for name, row in rows.items()} == {names[0]: "failed", names[1]: "ok"}
    assert torn.image.rpartition("/")[2] in rows[torn.name]["reason"]
    assert run("register", study.folder, "--pairs", listed) == 1, "it is still failed"
    assert "2 pairs are finished" in capsys.readouterr().out


def test_other_files_in_the_folder_of_a_pair_stay(study):
    pairs = choose(study, 1, 1)
    jobs.register_study(study, pairs)
    (folder,) = (p for p in (study.folder / "registrations").iterdir() if p.is_dir())
    (folder / "review.json").write_text("{}")
    jobs.register_study(study, pairs, output=jobs.Output(files=()), run=jobs.Run(again=True))
    assert folders(study) == {folder.name: {"report.json", "review.json"}}


# -- the table ------------------------------------------------------------------------------------------
def test_the_table_says_what_the_reports_say(study):
    jobs.register_study(study, choose(study, 2, 2))
    reports = {r["pair"]: r for r in pair_reports(study.folder / "registrations")}
    rows = table(study)
    assert [row["pair"] for row in rows] == sorted(reports)
    for row in rows:
        report = reports[row["pair"]]
        assert (row["moving"], row["fixed"], row["status"]) == (report["moving"], report["fixed"], "ok")
        for state in ("before", "after"):
            for measure in ("dice", "hd95_mm"):
                assert float(row[f"{measure}_{state}"]) == pytest.approx(report["mean"][state][measure], 1e-5)
                for structure in report["structures"]:
                    cell = row[f"{measure}_{state}_{structure['name']}"]
                    value = structure[state][measure]
                    assert (cell == "") if value is None else float(cell) == pytest.approx(value, 1e-5)
        assert int(row["folded_voxels"]) == report["folds"]["total"]
        error = report["inverse_consistency"]["max_voxels"]
        assert float(row["inverse_error_max_voxels"]) == pytest.approx(error, 1e-5)
        assert float(row["seconds"]) > 0


def test_the_table_can_be_read_while_it_grows(study):
    seen: list[int] = []

    class Reader(Listener):
        def emit(self, event):
            if event.kind == "progress":
                text = (study.folder / "registrations" / "summary.csv").read_text(encoding="utf-8")
                assert text.endswith("\n")
                rows = list(csv.reader(text.splitlines()))
                assert {len(row) for row in rows} == {len(rows[0])}
                seen.append(len(rows) - 1)

    jobs.register_study(study, choose(study, 3, 3), reporter=Reader())
    assert seen == list(range(1, 10))


# -- files and given segmentations ----------------------------------------------------------------------
def test_files_and_segmentations_of_a_list_are_registered_as_one_pair_is(study, finished, tmp_path, capsys):
    moving, fixed = study.cases_of(SOURCE, "test")[0], study.cases_of(TARGET, "test")[0]
    for case, name in ((moving, "m"), (fixed, "f")):
        shutil.copy(finished.file("images", case.modality, case.name), tmp_path / f"{name}.nrrd")
        shutil.copy(finished.file("labels", case.modality, case.name), tmp_path / f"{name}.seg.nrrd")
    listed = tmp_path / "pairs.csv"
    head = "moving,fixed,moving_mirrored,fixed_mirrored,moving_labels,fixed_labels,name"
    flags = ["yes" if case.mirrored else "no" for case in (moving, fixed)]
    rows = [
        f"m.nrrd,f.nrrd,{','.join(flags)},m.seg.nrrd,f.seg.nrrd,given",
        f"m.nrrd,f.nrrd,{','.join(flags)},,,",
    ]
    listed.write_text("\n".join([head, *rows]))
    assert run("register", study.folder, "--pairs", listed) == 0
    assert folders(study) == {"given": FILES, "m--f": FILES}
    options = [f"--{side}-mirrored" for side, f in zip(("moving", "fixed"), flags, strict=True) if f == "yes"]
    labels = ("--moving-labels", tmp_path / "m.seg.nrrd", "--fixed-labels", tmp_path / "f.seg.nrrd")
    files = (tmp_path / "m.nrrd", tmp_path / "f.nrrd")
    assert run("register", study.folder, *files, *options, *labels, "--out", tmp_path / "one") == 0
    alone = sitk.ReadTransform(str(tmp_path / "one" / "forward.h5"))
    listed_one = sitk.ReadTransform(str(study.folder / "registrations" / "given" / "forward.h5"))
    for point in voxel_centres(three_dimensional(tmp_path / "f.nrrd"))[::97].tolist():
        assert listed_one.TransformPoint(point) == pytest.approx(alone.TransformPoint(point), abs=0.2)
    rows = {row["pair"]: row for row in table(study)}
    assert float(rows["given"]["dice_after"]) > 0.75
    assert [rows[pair]["measured_against"] for pair in ("given", "m--f")] == ["given", "prediction"]
    assert read_pair_report(tmp_path / "one")["labels"] == {"moving": "given", "fixed": "given"}


def test_landmarks_of_a_list_pull_their_pair_and_no_other(study, tmp_path):
    """In the table of a hundred pairs as with one: --moving-landmarks and --fixed-landmarks."""
    moving, fixed = study.cases_of(SOURCE, "test")[0], study.cases_of(TARGET, "test")[0]
    jobs.register_study(study, jobs.pairs_of_cases(study, [(moving, fixed)]))
    plain = sitk.ReadTransform(
        str(study.folder / "registrations" / f"{moving.name}--{fixed.name}" / "forward.h5")
    )
    at = study.read_image(fixed).grid.centre_lps_mm
    goal = np.add(plain.TransformPoint(at.tolist()), (4.0, 0.0, 0.0))
    listed = tmp_path / "pairs.csv"
    for name, point in (("m.csv", goal), ("f.csv", at)):
        (tmp_path / name).write_text("name,x,y,z\na," + ",".join(map(str, point)) + "\n")
    rows = [f"{moving.key},{fixed.key},,,plain", f"{moving.key},{fixed.key},m.csv,f.csv,guided"]
    listed.write_text("\n".join(["moving,fixed,moving_landmarks,fixed_landmarks,name", *rows]))
    assert run("register", study.folder, "--pairs", listed) == 0
    found = transforms(study)
    assert np.array_equal(found["plain"], found[f"{moving.name}--{fixed.name}"])
    report = read_pair_report(study.folder / "registrations" / "guided")
    assert report["guiding_landmarks"]["names"] == ["a"]
    assert report["guiding_landmarks"]["mean_after_mm"] < 2.5
    assert read_pair_report(study.folder / "registrations" / "plain")["guiding_landmarks"] is None

    heard = Listener()
    assert jobs.register_study(study, jobs.pairs_from_csv(study, listed), reporter=heard).skipped == 2
    state = {row.name: row for row in status_of(study).found}["registrations"]
    assert state.state != "out of date", state.why
    (tmp_path / "m.csv").write_text("name,x,y,z\na,1,2,0\n")
    again = jobs.register_study(study, jobs.pairs_from_csv(study, listed), reporter=heard)
    assert (again.done, again.skipped) == (1, 1)
    assert any("1 pairs are registered anew: landmarks changed" in m for m in heard.messages)
    (tmp_path / "m.csv").write_text("name,x,y,z\nb,1,2,0\n")
    assert jobs.register_study(study, jobs.pairs_from_csv(study, listed)).failed == 1
    (reason,) = read_pair_report(study.folder / "registrations" / "guided")["reasons"]
    assert "no landmark name in common" in reason


def test_given_segmentations_are_warped_and_make_nothing_out_of_date(study, tmp_path):
    moving, fixed = study.cases_of(SOURCE, "test")[0], study.cases_of(TARGET, "test")[0]
    truth = sitk.ReadImage(str(study.folder / moving.label))
    only_one = sitk.Cast(truth == 1, sitk.sitkUInt8)
    sitk.WriteImage(only_one, str(tmp_path / "one.nrrd"))
    listed = tmp_path / "pairs.csv"
    listed.write_text(f"moving,fixed,moving_labels\n{moving.key},{fixed.key},one.nrrd\n")
    assert jobs.register_study(study, jobs.pairs_from_csv(study, listed)).done == 1
    (folder,) = (p for p in (study.folder / "registrations").iterdir() if p.is_dir())
    assert set(np.unique(values(folder / "warped_labels.seg.nrrd"))) == {0, 1}
    state = {row.name: row for row in status_of(study).found}["registrations"]
    assert state.state != "out of date", state.why


# -- memory ---------------------------------------------------------------------------------------------
def test_memory_stays_flat_while_pairs_go_by(study):
    """The short form of Testing/Benchmarks/soak.py."""
    memory = Memory(every=20)
    tally = jobs.register_study(study, choose(study, 8, 8), reporter=memory)
    assert tally.done == 64
    assert list(memory.megabytes) == [20, 40, 60, 64]
    assert memory.growth < 0.02


def test_images_in_memory_are_bounded_whatever_their_number(study):
    sizes: list[int] = []
    images = sides.Images(SegmentedStudy(study), limit_bytes=250_000)
    for case in (*study.cases, *study.cases):
        images(jobs.Side.of_case(study, case))
        sizes.append(sum(kept.bytes for kept in images._kept.values()))
    assert max(sizes) <= 250_000
    assert min(sizes[3:]) > 100_000, "nothing is kept"


def test_maps_of_strangers_do_not_fill_the_disk(study):
    folder = maps_folder(study)
    for path in folder.glob("outside--*"):  # of tests that share the trained study
        path.unlink()
    cases = {p.name for p in folder.iterdir()}
    for n in range(6):
        path = folder / f"outside--{n}.safetensors"
        path.write_bytes(bytes(1000))
        os.utime(path, (n, n))
    forget_outside_images(study, limit_bytes=2500)
    assert {p.name for p in folder.iterdir()} - cases == {f"outside--{n}.safetensors" for n in (4, 5)}


# -- several processes ----------------------------------------------------------------------------------
def test_a_process_that_dies_costs_no_other_result(tmp_path):
    batches = iter([[1, 2], [3, 4], [200], [5]])
    found = {
        n: result if isinstance(result, Died) else result[k]
        for items, result in work_off(partial(squares, tmp_path, (2, 200)), batches, 2)
        for k, n in enumerate(items)
    }
    died = found.pop(200)
    assert found == {n: n * n for n in range(1, 6)}
    assert isinstance(died, Died)
    assert "SIGKILL" in died.reason


def test_what_goes_wrong_in_a_process_is_raised_here():
    with pytest.raises(ValueError, match=r"knees\.yaml: no such study"):
        list(work_off(unusable, iter([[1]]), 1))


def start(study: Study, pairs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "SegGuidedMMRegLib", "register", str(study.folder)]
    command += ["--pairs", str(pairs), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def children_of(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text().split()]


def alive(processes: Sequence[int]) -> list[int]:
    def state(n: int) -> str:
        try:
            return Path(f"/proc/{n}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    return [n for n in processes if state(n) not in "ZX"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_killed_and_interrupted_runs_go_on_and_end_as_one_that_was_not(study, tmp_path):
    registrations, chosen = study.folder / "registrations", choose(study, 7, 7)
    listed = tmp_path / "pairs.csv"
    rows = [f"{p.moving.name},{p.fixed.name}" for p in chosen]
    listed.write_text("\n".join(["moving,fixed", *rows]))

    def done() -> int:
        return len(list(registrations.glob("[!.]*/report.json")))

    killed = start(study, listed, "--workers", "2")
    assert wait_for(lambda: done() >= 5, 120)
    processes = children_of(killed.pid)
    killed.kill()
    killed.wait()
    assert wait_for(lambda: not alive(processes), 2), "processes without a parent are left"
    finished = {n: files for n, files in folders(study).items() if not n.startswith(".")}
    assert all(files == FILES for files in finished.values()), "half a result"
    assert len(finished) < 49

    interrupted = start(study, listed, "--workers", "2")
    assert wait_for(lambda: done() >= len(finished) + 5, 120)
    processes = children_of(interrupted.pid)
    began = time.monotonic()
    interrupted.send_signal(signal.SIGINT)
    told, _ = interrupted.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert interrupted.returncode == 130
    assert "Traceback" not in told
    assert wait_for(lambda: not alive(processes), 1)
    assert not [n for n in folders(study) if n.startswith(".")], "what was unfinished is left"
    kept = done()
    assert len(finished) + 5 <= kept < 49

    tally = jobs.register_study(study, chosen)
    assert (tally.skipped, tally.done) == (kept, 49 - kept)
    rows = [row["pair"] for row in table(study)]
    assert len(rows) == len(set(rows)) == 49
    resumed = transforms(study)
    shutil.rmtree(registrations)
    jobs.register_study(study, chosen)
    assert same(transforms(study), resumed)


def test_two_jobs_of_a_cluster_do_all_the_pairs_and_make_one_table(study):
    pytest.importorskip("submitit")
    some = ("--to", study.cases_of(TARGET)[0].name, "--moving-modality", SOURCE)
    assert run("register", study.folder, *some, "--submit", "local", "--jobs", "2", "--outputs", "none") == 0
    assert folders(study) == {row["pair"]: {"report.json"} for row in table(study)}
    assert len(table(study)) == 10
    assert [p.name for p in (study.folder / "registrations").glob("*.csv")] == ["summary.csv"]
    logs = list((study.folder / "cluster").glob("*/*_log.out"))
    assert len(logs) == 2
    assert all("registered 5" in path.read_text() for path in logs)


def test_parts_make_one_table_whichever_ends_first(study):
    for part in ("2/3", "1/3", "3/3"):
        assert run("register", study.folder, "--part", part, "--outputs", "none") == 0
    assert len(table(study)) == len(folders(study)) == 4
    assert run("register", study.folder, "--part", "3/3", "--outputs", "none") == 0
    assert len(table(study)) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--part", "9/8"), "no part 9/8"),
        (("--part", "half"), "2/8"),
        (("--outputs", "transform"), "did you mean 'transforms'"),
        (("--all", "--to", "x"), "--all and --to"),
        (("--submit", "local"), "--jobs"),
        (("--submit", "slurm", "--jobs", "2"), "slurm"),
        (("--submit", "local", "--jobs", "2", "--job-options", "cpu=3"), "cpu"),
        (("--to", "nobody"), "nobody"),
        (("--pairs", "nowhere.csv"), "nowhere.csv"),
        (("--roles", "test", "--pairs", "x.csv"), "--roles"),
        (("--workers", "-1"), "--workers"),
    ],
)
def test_wrong_options_are_named(study, capsys, options, told):
    if "slurm" in options and shutil.which("srun"):
        pytest.skip("there is a cluster")
    assert run("register", study.folder, *options) == 2
    assert told in capsys.readouterr().err


# -- segmenting -----------------------------------------------------------------------------------------
def test_images_are_segmented_again_only_where_something_changed(study, capsys):
    case = study.cases_of(TARGET, "test")[0]
    paths = [*(study.prediction_path(c) for c in study.cases), jobs.unadapted_path(study, case)]
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}
    arrays = {p: values(p) for p in paths}
    assert run("segment", study.folder) == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths} == before
    assert "22 segmentations are up to date" in capsys.readouterr().out
    paths[0].unlink()
    paths[-1].write_text("torn")
    assert run("segment", study.folder, "--workers", "2") == 0
    assert {p for p in paths if p.stat().st_mtime_ns != before[p][0]} == {paths[0], paths[-1]}
    assert all((values(p) == array).all() for p, array in arrays.items())


def test_files_are_segmented_again_only_where_something_changed(study, finished, tmp_path, capsys):
    case, out = study.cases_of(TARGET, "test")[0], tmp_path / "out"
    names = ("a", "b", "c")
    for name in names:
        shutil.copy(finished.file("images", TARGET, case.name), tmp_path / f"{name}.nrrd")
    (tmp_path / "b.nrrd").write_text("torn")
    command = ("segment", study.folder, *(tmp_path / f"{n}.nrrd" for n in names), "--modality", TARGET)
    assert run(*command, "--out", out) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.seg.nrrd", "c.seg.nrrd"]
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    shutil.copy(tmp_path / "a.nrrd", tmp_path / "b.nrrd")
    capsys.readouterr()
    assert run(*command, "--out", out) == 0
    assert "2 segmentations are up to date" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert run(*command, "--out", out, "--mirrored") == 0
    assert all(p.stat().st_mtime_ns != time for p, time in times.items())
