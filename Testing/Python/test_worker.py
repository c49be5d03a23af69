"""`segmmreg worker` as another program meets it: a process, a pipe in, events out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import SOURCE, TARGET, Finished, copy_of, landmarks, mean_dice, moved_by, values
from worker_client import Worker

from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.study import Case, Study
from SegGuidedMMRegLib.worker.inbox import LOOK_SECONDS

pytestmark = pytest.mark.xdist_group("trained")

ENDLESS = 10_000_000
SOON = 1.0
"""Seconds within which a worker that nobody needs must be gone."""


@pytest.fixture(scope="module")
def study(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return copy_of(finished.study, tmp_path_factory.mktemp("worker") / "study")


@pytest.fixture(scope="module")
def worker(study: Study):
    with Worker(study.folder) as running:
        yield running


@pytest.fixture(scope="module")
def endless(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A copy in which `propagate` does not come to an end."""
    settings = study.config.augmentation.model_copy(update={"iterations": ENDLESS})
    config = study.config.model_copy(update={"augmentation": settings})
    return copy_of(study, tmp_path_factory.mktemp("endless") / "study", config)


def case_of(study: Study, modality: str, number: int = 0) -> Case:
    return study.cases_of(modality, "test")[number]


def as_file(finished: Finished, case: Case) -> dict[str, Any]:
    path = finished.file("images", case.modality, case.name)
    return {"file": path, "modality": case.modality, "mirrored": case.mirrored}


def busy(study: Study, request: str = "long") -> dict[str, Any]:
    """A request that takes for ever."""
    case = next(c for c in study.cases_of(SOURCE, "train") if c.label is None)
    return {"id": request, "do": "propagate", "image": {"case": case.key}, "out": study.folder / "drafts"}


def begin(worker: Worker, request: dict[str, Any]) -> None:
    """Ask, and wait until the work is well under way."""
    worker.send(**request)
    worker.until(lambda e: e.get("stage") == "registering images" and e["event"] == "progress")


# -- what it does ---------------------------------------------------------------------------------------
def test_it_says_who_it_is_and_whether_the_study_is_trained(worker: Worker) -> None:
    assert worker.loaded["trained"] is True
    assert worker.first["command"] == "worker"
    assert worker.first["pid"] == worker.process.pid


def test_a_pair_of_files_is_segmented_and_registered(worker, study, finished, tmp_path) -> None:
    moving, fixed = case_of(study, SOURCE), case_of(study, TARGET)
    found = worker.ask(
        id="pair",
        do="register",
        moving=as_file(finished, moving),
        fixed=as_file(finished, fixed),
        out=tmp_path / "pair",
        formats=[".nrrd"],
    )
    assert (found["event"], found["status"]) == ("result", "ok"), found
    assert sorted(p.name for p in (tmp_path / "pair").iterdir()) == found["files"]
    assert {"forward.h5", "forward.nrrd", "inverse.h5", "report.json"} <= set(found["files"])
    moved = sitk.Resample(
        sitk.ReadImage(str(finished.file("labels", SOURCE, moving.name))),
        sitk.ReadImage(str(finished.file("images", TARGET, fixed.name))),
        sitk.ReadTransform(str(tmp_path / "pair" / "forward.h5")),
        sitk.sitkNearestNeighbor,
    )
    assert mean_dice(values(moved), values(finished.file("labels", TARGET, fixed.name)), 3) > 0.75


def test_cases_are_registered_as_the_command_line_does(worker, study, finished, tmp_path) -> None:
    moving, fixed = case_of(study, SOURCE), case_of(study, TARGET)
    sides = {"moving": {"case": moving.key}, "fixed": {"case": fixed.key}}
    assert worker.ask(id=3, do="register", **sides, out=tmp_path)["status"] == "ok"
    known = finished.study.registration_folder(moving, fixed)
    points = np.array(list(landmarks(finished.file("landmarks", TARGET, fixed.name)).values()))
    here, there = (moved_by(sitk.ReadTransform(str(f / "forward.h5")), points) for f in (tmp_path, known))
    np.testing.assert_allclose(here, there, atol=0.05)


def test_again_with_an_edited_segmentation_and_landmarks(worker, study, finished, tmp_path) -> None:
    """The fixed labels are shifted, the landmarks too: the moving image must come to lie elsewhere."""
    moving, fixed = as_file(finished, case_of(study, SOURCE)), as_file(finished, case_of(study, TARGET))
    name = case_of(study, TARGET).name
    labels = sitk.ReadImage(str(finished.file("labels", TARGET, name)))
    by = 4 * labels.GetSpacing()[0]
    edited = sitk.Resample(
        labels,
        labels,
        sitk.TranslationTransform(labels.GetDimension(), [-by] + [0] * (labels.GetDimension() - 1)),
    )
    sitk.WriteImage(edited, str(tmp_path / "edited.nrrd"))

    def register(request: str, **more: Any) -> sitk.Transform:
        found = worker.ask(
            id=request, do="register", moving=moving, fixed={**fixed, **more}, out=tmp_path / request
        )
        assert (found["event"], found["status"]) == ("result", "ok"), found
        return sitk.ReadTransform(str(tmp_path / request / "forward.h5"))

    truth = finished.file("labels", TARGET, name)
    points = np.array(list(landmarks(finished.file("landmarks", TARGET, name)).values()))
    first, again = (
        moved_by(register("first", labels=truth), points),
        moved_by(register("again", labels=tmp_path / "edited.nrrd"), points + np.array([by, 0, 0])),
    )
    assert np.linalg.norm(again - first, axis=1).mean() < 0.5 * by
    guided = worker.ask(
        id="guided",
        do="register",
        moving={**moving, "landmarks": finished.file("landmarks", SOURCE, case_of(study, SOURCE).name)},
        fixed={**fixed, "landmarks": finished.file("landmarks", TARGET, name)},
        out=tmp_path / "guided",
    )
    assert guided["status"] == "ok"
    goal = landmarks(finished.file("landmarks", SOURCE, case_of(study, SOURCE).name))
    start = landmarks(finished.file("landmarks", TARGET, name))
    there = moved_by(
        sitk.ReadTransform(str(tmp_path / "guided" / "forward.h5")), np.array([start[n] for n in goal])
    )
    error = np.linalg.norm(there - np.array(list(goal.values())), axis=1).mean()
    assert error < 1.0


def test_images_are_segmented_and_a_file_that_changed_is_read_again(
    worker, study, finished, tmp_path
) -> None:
    image = sitk.ReadImage(str(finished.file("images", TARGET, case_of(study, TARGET).name)))
    flip = [True] + [False] * (image.GetDimension() - 1)
    found = []
    for turn in range(2):
        sitk.WriteImage(image if turn == 0 else sitk.Flip(image, flip), str(tmp_path / "picture.nrrd"))
        ref = {"file": tmp_path / "picture.nrrd", "modality": TARGET}
        told = worker.ask(id=f"s{turn}", do="segment", images=[ref], out=tmp_path / "out")
        assert told["files"] == [str(tmp_path / "out" / "picture.seg.nrrd")]
        found.append(values(tmp_path / "out" / "picture.seg.nrrd"))
    assert (found[0] != found[1]).any()


def test_the_next_case_is_suggested_and_its_labels_are_drafted(worker, study, tmp_path) -> None:
    (best,) = worker.ask(id="s", do="suggest", count=1)["cases"]
    assert best["reason"]
    found = worker.ask(id="p", do="propagate", image={"case": best["case"]}, out=tmp_path)
    assert found["event"] == "result", found
    assert Path(found["file"]).is_file()
    assert found["source"] in {c.key for c in study.training_view().labelled_cases}


# -- what goes wrong ------------------------------------------------------------------------------------
def test_a_request_that_fails_leaves_it_serving(worker, study, finished, tmp_path) -> None:
    (tmp_path / "broken.nrrd").write_bytes(b"NRRD0004\nnothing")
    fixed = {"case": case_of(study, TARGET).key}
    image = as_file(finished, case_of(study, SOURCE))
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"moving": {"case": "nobody"}}, "input", "nobody"),
        ({"moving": {**image, "file": tmp_path / "none.nrrd"}}, "input", "none.nrrd"),
        ({"moving": {**image, "file": tmp_path / "broken.nrrd"}}, "input", "broken.nrrd"),
        ({"moving": {**image, "modality": "mri"}}, "input", "mri"),
        ({"moving": {**image, "labels": tmp_path / "none.seg.nrrd"}}, "input", "none.seg.nrrd"),
        ({"moving": image, "colour": "red"}, "usage", "colour"),
        ({"moving": image, "out": tmp_path / "broken.nrrd" / "below"}, "input", "broken.nrrd"),
    ]
    for number, (changes, code, named) in enumerate(wrong):
        request = {"fixed": fixed, "out": tmp_path / "out", **changes}
        told = worker.ask(id=f"wrong{number}", do="register", **request)
        assert (told["event"], told["code"]) == ("error", code), told
        assert named in told["message"]
        assert told["exit_code"] is None
    worker.send_line(b"what?")
    assert worker.until(lambda e: e["event"] == "error")[-1]["code"] == "usage"
    sides = {"moving": image, "fixed": fixed}
    assert worker.ask(id="right", do="register", **sides, out=tmp_path / "out")["status"] == "ok"


def test_a_changed_study_is_loaded_again(worker, study) -> None:
    before = len(worker.ask(id="before", do="suggest", count=99)["cases"])
    kept = (study.folder / "study.yaml").read_bytes()
    left_out = next(c for c in study.cases_of(SOURCE, "train") if c.label is None)
    study.with_cases([c for c in study.cases if c != left_out]).save()
    try:
        assert len(worker.ask(id="after", do="suggest", count=99)["cases"]) == before - 1
        (study.folder / "study.yaml").write_text("format: [")
        assert worker.ask(id="damaged", do="suggest")["code"] == "input"
    finally:
        (study.folder / "study.yaml").write_bytes(kept)
    assert len(worker.ask(id="as before", do="suggest", count=99)["cases"]) == before


def test_two_workers_on_one_study_give_the_same(worker, study, tmp_path) -> None:
    sides = {"moving": {"case": case_of(study, SOURCE).key}, "fixed": {"case": case_of(study, TARGET).key}}
    with Worker(study.folder) as other:
        for one in (worker, other):
            one.send(id="both", do="register", **sides, out=tmp_path / str(one.process.pid))
        assert [one.answer("both").get("status") for one in (worker, other)] == ["ok", "ok"]
        mine, theirs = (tmp_path / str(one.process.pid) for one in (worker, other))
    for name in ("forward.h5", "inverse.h5", "warped_image.nrrd", "warped_labels.seg.nrrd"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


def test_while_a_stage_is_trained_anew_it_says_who_trains(worker, study, tmp_path) -> None:
    request = {"do": "segment", "images": [{"case": case_of(study, TARGET).key}], "out": tmp_path}
    weights = study.stage_folder("adaptation") / "weights.safetensors"
    with working_on(study.folder, "train"):
        assert worker.ask(id="others train", **request)["event"] == "result"
        weights.rename(tmp_path / "away")
        refused = worker.ask(id="being trained", **request)
        (tmp_path / "away").rename(weights)
    assert refused["code"] == "not_trained"
    assert "wait for it: `" in refused["message"]
    assert f"process {os.getpid()} on" in refused["message"]
    assert worker.ask(id="trained", **request)["event"] == "result"


def test_a_hundred_requests_take_no_more_memory_than_ten(worker, study, finished, tmp_path) -> None:
    refs = [as_file(finished, c) for m in (SOURCE, TARGET) for c in study.cases_of(m, "test")]

    def ask(number: int) -> None:
        told = worker.ask(id=number, do="segment", images=[refs[number % len(refs)]], out=tmp_path)
        assert told["event"] == "result", told

    for number in range(10):
        ask(number)
    before = resident_mib(worker.process.pid)
    for number in range(10, 110):
        ask(number)
    assert resident_mib(worker.process.pid) < before + 12


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- how it ends ----------------------------------------------------------------------------------------
@pytest.fixture
def at_work(endless: Study):
    """A worker in the middle of a request that takes for ever."""
    running = Worker(endless.folder)
    begin(running, busy(endless))
    yield running
    running.process.kill()
    running.process.wait()


def test_a_cancelled_request_ends_soon_and_the_next_is_served(at_work: Worker, endless: Study) -> None:
    at_work.send(**busy(endless, "waits"))
    at_work.send(id="c1", do="cancel", request="waits")
    dropped = at_work.until(lambda e: e.get("request") == "waits" and e["event"] == "error")[-1]
    assert dropped["code"] == "interrupted"
    start = time.monotonic()
    at_work.send(id="c2", do="cancel", request="long")
    assert at_work.answer("long")["code"] == "interrupted"
    assert time.monotonic() - start < 2 * SOON
    assert at_work.ask(id="next", do="suggest")["event"] == "result"
    assert not (endless.folder / "drafts").exists()

    at_work.send(**busy(endless, "again"))
    at_work.process.send_signal(signal.SIGTERM)
    assert at_work.process.wait(6) == 143


def test_a_closed_pipe_ends_it_while_it_works(at_work: Worker) -> None:
    at_work.process.stdin.close()
    assert at_work.seconds_to_end() < SOON
    assert at_work.process.returncode == 0


def test_a_closed_pipe_ends_it_while_it_hangs_in_a_library(study: Study) -> None:
    running = Worker(study.folder, hangs=True)
    running.send(id=1, do="suggest")
    running.until(lambda e: e.get("request") == 1)
    time.sleep(0.3)
    assert running.process.poll() is None
    running.process.stdin.close()
    assert running.seconds_to_end() < SOON
    assert running.process.returncode == 0


def test_an_output_that_nobody_reads_ends_it_while_it_hangs(study: Study) -> None:
    running = Worker(study.folder, ready=False, read=False, hangs=True)
    out = running.process.stdout
    running.send(id=1, do="suggest")
    while b'"request": 1' not in out.readline():
        pass
    time.sleep(0.3)
    assert running.process.poll() is None
    out.close()
    assert running.seconds_to_end() < SOON + LOOK_SECONDS
    running.process.stdin.close()


@pytest.mark.skipif(os.name != "posix", reason="there a child is told by its pipe alone")
def test_it_does_not_outlive_its_parent(study: Study) -> None:
    """The pipe stays open in another process: that the parent is gone must be enough."""
    read, write = os.pipe()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-m', 'SegGuidedMMRegLib', 'worker', sys.argv[1]], stdin=0)\n"
            "time.sleep(600)",
            str(study.folder),
        ],
        stdin=read,
        stdout=subprocess.PIPE,
    )
    child = None
    for line in parent.stdout:
        if b'"pid"' in line:
            child = int(line.split(b'"pid": ')[1].rstrip(b"}\n").split(b",")[0])
        if b'"load"' in line and b"result" in line:
            break
    parent.kill()
    parent.wait()
    gone_by = time.monotonic() + 2 * SOON
    while is_alive(child) and time.monotonic() < gone_by:
        time.sleep(0.05)
    assert not is_alive(child)
    os.close(write)
    os.close(read)
    parent.stdout.close()


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_folder_without_a_study_is_refused_at_once(tmp_path: Path) -> None:
    running = Worker(tmp_path, ready=False)
    told = running.until(lambda e: e["event"] == "error")[-1]
    assert (told["code"], told["exit_code"]) == ("input", 2)
    assert running.process.wait(20) == 2


def test_an_untrained_study_can_be_asked_for_what_needs_no_training(study: Study, tmp_path: Path) -> None:
    untrained = copy_of(study, tmp_path / "study")
    for stage in ("segmentation", "adaptation", "registration"):
        (untrained.folder / "models" / stage / "weights.safetensors").unlink()
    with Worker(untrained.folder) as running:
        assert running.loaded["trained"] is False
        case = case_of(untrained, TARGET)
        told = running.ask(id=1, do="segment", images=[{"case": case.key}], out=tmp_path)
        assert told["code"] == "not_trained"
        assert "segmmreg train" in told["message"]
        assert running.ask(id=2, do="suggest")["event"] == "result"
        assert running.close() == 0
