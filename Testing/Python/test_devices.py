"""Training in two processes: the same curve and weights as one, files written once, errors that end all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several_processes import STEPS, train_chains
from trained_study import make_study, tiny_config

from SegGuidedMMRegLib import cli, launch
from SegGuidedMMRegLib.config import TrainingConfig
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.training.devices import device_of, make_fabric, wanted_devices

SCRIPT = Path(__file__).with_name("several_processes.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
KINDS = ("even", "uneven", "one", "parts")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same runs by one process and by two that torchrun starts."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    train_chains(alone)
    ended = subprocess.run(
        [*TORCHRUN, str(SCRIPT), "chains", str(together)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "distributed_backend" not in ended.stderr
    return alone, together


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one_with_the_same_batches(folders: tuple[Path, Path], kind: str) -> None:
    """With losses over the whole batch, batch normalisation, networks in a row, and an average of weights."""
    alone, together = (folder / kind for folder in folders)
    curves = curve(alone), curve(together)
    assert [entry["step"] for entry in curves[0]] == list(range(1, STEPS + 1))
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    expected, found = load_file(alone / "weights.safetensors"), load_file(together / "weights.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_end_with_the_same_network(folders: tuple[Path, Path], kind: str) -> None:
    first, second = (json.loads((folders[1] / f"{kind}-{rank}.json").read_text()) for rank in (0, 1))
    alone = json.loads((folders[0] / f"{kind}-0.json").read_text())
    assert second == first
    assert first == pytest.approx(alone, abs=1e-4)


def test_the_first_process_alone_writes(folders: tuple[Path, Path]) -> None:
    lines = (folders[1] / "even" / "log.txt").read_text().splitlines()
    assert len(lines) == 1
    assert f"even: {STEPS} steps" in lines[0]


def test_an_error_in_one_process_ends_all_with_its_code_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    study = make_study(tmp_path, config=tiny_config(training={"device": "cpu", "devices": 2}))
    monkeypatch.setattr(launch, "_COMMAND", (str(SCRIPT), "fail"))
    start = time.monotonic()
    answers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(study.folder), "--events"])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == answers
    assert ended.value.code == 3
    assert time.monotonic() - start < 60
    printed = capfd.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert (last["event"], last["code"], last["exit_code"]) == ("error", "out_of_memory", 3)
    assert "(process 1 of 2)" in last["message"]
    assert "batch" in last["remedy"]
    assert "Traceback" not in printed.err


def test_a_study_trained_by_two_processes_is_interrupted_goes_on_and_ends_as_by_one(tmp_path: Path) -> None:
    alone, together = (make_study(tmp_path / name, config=tiny_config(hurried=True)) for name in "ab")
    train(alone)
    two = ("--set", "training.devices=2")
    job = run(together, *two)
    children = wait_for_children(job.pid)
    wait_for(together.stage_folder("segmentation") / "metrics.jsonl")
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 130
    assert_gone(children)
    job = run(together, *two)
    assert job.wait(300) == 0
    told = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [event["event"] for event in told if "command" in event] == ["started", "result"]
    for stage in ("segmentation", "adaptation/randomised", "adaptation/teacher", "registration"):
        one, other = (curve(study.folder / "models" / stage) for study in (alone, together))
        assert [entry["step"] for entry in one] == [entry["step"] for entry in other]
        for a, b in zip(one, other, strict=True):
            assert b == pytest.approx(a, rel=0.02, abs=0.002), stage


def test_a_job_whose_starter_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    job = subprocess.Popen([sys.executable, str(SCRIPT), "start", str(tmp_path)], start_new_session=True)
    children = wait_for_children(job.pid)
    wait_for(tmp_path / "waits")
    job.kill()
    job.wait()
    assert_gone(children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_that_torchrun_started_also_one_that_waits(tmp_path: Path, number: int) -> None:
    study = make_study(tmp_path, config=tiny_config(hurried=True)).folder
    command = [*TORCHRUN, str(SCRIPT), "command", "train", str(study), "--events"]
    with (tmp_path / "events.jsonl").open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, start_new_session=True)
    for rank in (0, 1):
        wait_for(study / f"waits{rank}")
    children = wait_for_children(job.pid)
    start = time.monotonic()
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(job.pid, number)
    else:
        job.send_signal(number)
    _, told = job.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert_gone(children)
    assert job.returncode == 1  # torchrun's own, whatever its processes end with
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    ended = [event["code"] for event in events if event["event"] == "error"]
    assert "interrupted" in ended, told.decode()


def test_more_devices_than_there_are_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert wanted_devices(TrainingConfig(devices="auto")) == 2
    assert wanted_devices(TrainingConfig(devices="auto", device="cpu")) == 1
    with pytest.raises(ValueError, match=r"3 devices are asked for .* has 2 CUDA devices"):
        wanted_devices(TrainingConfig(devices=3))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "mps"])
def test_the_device_alone_is_that_of_training(device: str) -> None:
    config = TrainingConfig(device=device)
    try:
        expected = make_fabric(config).device
    except ValueError as refused:
        with pytest.raises(ValueError, match=re.escape(str(refused))):
            device_of(config)
    else:
        assert device_of(config) == expected


@pytest.mark.parametrize(
    ("cuda", "mps", "found"),
    [(True, False, "cuda:0"), (False, True, "mps:0"), (True, True, "cuda:0"), (False, False, "cpu")],
)
def test_the_fastest_device_is_taken(cuda: bool, mps: bool, found: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(device_of(TrainingConfig(device="auto"))) == found


def test_what_uses_networks_does_not_wait_for_what_trains_them() -> None:
    """Lightning Fabric takes more than a second to import; which pairs there are is told without torch."""
    code = (
        "import sys\n"
        "from SegGuidedMMRegLib.jobs import Output, all_pairs, pairs_from_csv, pairs_to_csv, read_side\n"
        "assert 'torch' not in sys.modules\n"
        "from SegGuidedMMRegLib.worker import warm\n"
        "assert 'torch' in sys.modules and 'lightning_fabric' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- means ----------------------------------------------------------------------------------------------


def run(study: Study, *options: str) -> subprocess.Popen:
    """`segmmreg train` in a process group of its own; its events go into a file beside the study's folder."""
    name = study.folder.parent.name
    with (study.folder.parents[1] / f"{name}.jsonl").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "SegGuidedMMRegLib", "train", str(study.folder), "--events", *options],
            stdout=out,
            start_new_session=True,
        )


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def wait_for_children(pid: int, count: int = 2) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found := children_of(pid)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = (re.match(r"\s*(\d+)\s+(\d+)\s+(.*)", line) for line in listed.stdout.splitlines())
    names = ("SegGuidedMMRegLib.launch", SCRIPT.name)
    return [int(r[1]) for r in rows if r and int(r[2]) == pid and any(name in r[3] for name in names)]


def assert_gone(pids: list[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
