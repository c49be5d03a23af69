"""Real processes: interrupted at different moments, on a terminal, with a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from event_lines import checked, of_one_command
from trained_study import make_study, tiny_config

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")

SEGMMREG = [sys.executable, "-m", "SegGuidedMMRegLib"]


@pytest.fixture(scope="module")
def long_job(tmp_path_factory) -> Path:
    """A study whose segmentation takes minutes to train."""
    config = tiny_config(hurried=True, segmentation={"steps": 100_000})
    return make_study(tmp_path_factory.mktemp("long"), config=config).folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """What `segmmreg new` needs to make a study of pictures."""
    rng = np.random.default_rng(0)
    for folder in ("a", "labels", "b"):
        (tmp_path / folder).mkdir()
        for n in range(3):
            array = rng.integers(0, 255, (24, 20), dtype=np.uint8)
            if folder == "labels":
                array = (array > 100).astype(np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{n}.png"))
    study, images, labels, others = (str(tmp_path / name) for name in ("study", "a", "labels", "b"))
    return ["new", study, "--source-images", images, "--source-labels", labels, "--target-images", others]


def stopped(
    arguments: list[str], moment: Callable[[dict], bool], number: signal.Signals
) -> tuple[list[dict], str, int]:
    """Events, stderr and exit code of a command that gets a signal at the first event that is the moment."""
    with subprocess.Popen(
        [*SEGMMREG, *arguments, "--events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if moment(checked([line])[0]):
                process.send_signal(number)
                break
        rest, told = process.communicate(timeout=60)
    return of_one_command([*lines, *rest.splitlines()], arguments[0]), told, process.returncode


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        pytest.param(lambda e: "command" in e, signal.SIGINT, 130, id="packages are imported"),
        pytest.param(lambda e: e.get("stage") == "prealign", signal.SIGTERM, 143, id="images are aligned"),
        pytest.param(
            lambda e: (e["event"], e.get("stage")) == ("progress", "segmentation"),
            *(signal.SIGINT, 130),
            id="a network is trained",
        ),
    ],
)
def test_an_interrupted_job_ends_with_one_line_and_its_own_code(long_job, moment, number, code) -> None:
    events, told, exit_code = stopped(["train", str(long_job)], moment, number)
    assert exit_code == code, told
    assert (events[-1]["code"], events[-1]["exit_code"]) == ("interrupted", code)
    assert len(told.splitlines()) == 1
    assert "same command again" in told


def test_new_leaves_nothing_behind_when_it_is_interrupted(pictures, tmp_path) -> None:
    before = sorted(tmp_path.iterdir())
    _, _, code = stopped(pictures, lambda e: e.get("stage") == "import", signal.SIGINT)
    assert code == 130
    assert sorted(tmp_path.iterdir()) == before


_SWALLOWS = """
import sys, time
from SegGuidedMMRegLib import interruption
interruption.GRACE_SECONDS = {grace}
interruption.listen()
until = time.monotonic() + 30
while time.monotonic() < until:
    try:
        print("works", flush=True)
        time.sleep(1)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.3, 1), (30, 2)])
def test_an_interruption_that_a_library_swallows_ends_the_process_all_the_same(grace, signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SWALLOWS.format(grace=grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(signals):
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told == "Interrupted.\n"


def test_a_terminal_gets_a_bar_and_a_file_plain_lines(pictures, tmp_path) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen([*SEGMMREG, *pictures], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
    os.close(ours)
    assert process.returncode == 0
    assert "━" in shown.decode()
    assert b"6/6" in shown

    log = tmp_path / "log.txt"
    pictures[1] += "_2"
    with log.open("wb") as file:
        subprocess.run([*SEGMMREG, *pictures], stdout=file, env=environment, check=True)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert "import: begins (6 steps)" in lines
    assert any(line.startswith("import: 6/6") for line in lines)
    assert not any("\x1b" in line or "━" in line for line in lines)
    assert len(lines) < 20


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_a_full_disk_has_a_code_of_its_own_and_names_the_file(pictures, tmp_path) -> None:
    import resource

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    done = subprocess.run(
        [*SEGMMREG, *pictures, "--events"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files_only,
    )
    event = checked(done.stdout.splitlines())[-1]
    assert (event["code"], event["exit_code"], done.returncode) == ("disk_full", 4, 4), done.stderr
    assert str(tmp_path) in event["message"]
    assert "Make room" in event["remedy"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study").exists()
