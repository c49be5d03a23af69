"""Two commands at once on one study: one works, the other is told who does; a crash leaves nobody outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from SegGuidedMMRegLib import locks
from SegGuidedMMRegLib.locks import LOCKS, BusyError, holders, working_on

HOLD = """
import sys, time
from pathlib import Path
from SegGuidedMMRegLib.locks import working_on
with working_on(Path(sys.argv[1]), sys.argv[2]):
    print("mine", flush=True)
    time.sleep(60)
"""


def lock_of(folder: Path, kind: str = "train") -> Path:
    return folder / LOCKS / f"{kind}.json"


def hold(folder: Path, kind: str = "train") -> subprocess.Popen:
    """Another process that holds the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    return process


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    process = hold(tmp_path)
    yield process
    process.kill()
    process.wait()


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_second_job_is_told_who_works_and_what_to_do(tmp_path: Path, other: subprocess.Popen) -> None:
    words = (
        rf"process {other.pid} on {socket.gethostname()}, since \d.*Wait until it ends.*delete .*train\.json"
    )
    with pytest.raises(BusyError, match=words), working_on(tmp_path, "train"):
        pass
    assert [h.pid for h in holders(tmp_path)] == [other.pid]
    with working_on(tmp_path, "cases"):
        assert {h.kind for h in holders(tmp_path)} == {"train", "cases"}


def test_a_killed_job_leaves_the_study_free_at_once(tmp_path: Path, other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGKILL)
    while "State:\tZ" not in Path(f"/proc/{other.pid}/status").read_text():
        time.sleep(0.01)
    assert holders(tmp_path) == []  # dead, though nobody has waited for it
    with working_on(tmp_path, "train"):
        assert [h.pid for h in holders(tmp_path)] == [os.getpid()]
    assert not list((tmp_path / LOCKS).iterdir())


def test_a_later_process_of_the_same_number_is_not_taken_for_the_holder(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    change(lock_of(tmp_path), began="1")
    assert holders(tmp_path) == []
    with working_on(tmp_path, "train"):
        pass


def test_another_machine_holds_it_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    path = lock_of(tmp_path)
    change(path, host="far away", pid=2**22 + 1)
    with pytest.raises(BusyError, match="on far away"), working_on(tmp_path, "train"):
        pass
    os.utime(path, (time.time() - 1000,) * 2)
    assert holders(tmp_path) == []
    with working_on(tmp_path, "train"):
        pass


def test_a_copy_of_a_study_that_is_worked_on_is_free(tmp_path: Path) -> None:
    with working_on(tmp_path / "study", "train"):
        shutil.copytree(tmp_path / "study", tmp_path / "copy")
        assert holders(tmp_path / "copy") == []
        with working_on(tmp_path / "copy", "train"):
            assert len(holders(tmp_path / "study")) == len(holders(tmp_path / "copy")) == 1


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_S", 0.01)
    with working_on(tmp_path, "train"):
        os.utime(lock_of(tmp_path), (0, 0))
        deadline = time.monotonic() + 20
        while lock_of(tmp_path).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock_of(tmp_path).stat().st_mtime > 0


def test_a_job_that_lost_its_lock_ends_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_S", 0.01)
    start = time.monotonic()
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run behind a shell's &
    try:
        with pytest.raises(BusyError, match=r"another took over: .* on far away"):  # noqa: PT012, SIM117
            with working_on(tmp_path, "train"):
                change(lock_of(tmp_path), token="another", host="far away")
                time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 19
    assert lock_of(tmp_path).exists()


def test_a_damaged_lock_heals_when_it_is_old(tmp_path: Path) -> None:
    path = lock_of(tmp_path)
    path.parent.mkdir()
    path.write_text('{"pid": ')
    with pytest.raises(BusyError, match="try again in a moment"), working_on(tmp_path, "train"):
        pass
    os.utime(path, (0, 0))
    with working_on(tmp_path, "train"):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_want_a_stale_lock_one_gets_it(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(
            locks.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links"))
        )
    path = lock_of(tmp_path)
    path.parent.mkdir()
    with working_on(tmp_path, "train"):
        left = path.read_text()
    path.write_text(left)
    change(path, began="1")
    inside, together, refused = 0, [], []
    start, end = threading.Barrier(8), threading.Event()

    def want() -> None:
        nonlocal inside
        start.wait()
        try:
            with working_on(tmp_path, "train"):
                inside += 1
                together.append(inside)
                end.wait(20)
        except BusyError as error:
            refused.append(error)
            if len(refused) == 7:
                end.set()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1]
    assert len(refused) == 7


def test_registering_is_shared(tmp_path: Path) -> None:
    process = hold(tmp_path, "register")
    with working_on(tmp_path, "register"):
        assert [h.kind for h in holders(tmp_path)] == ["register", "register"]
    process.kill()
    process.wait()
    with working_on(tmp_path, "register"):
        assert len(list((tmp_path / LOCKS).iterdir())) == 1  # that of the killed one is cleared away


def test_what_a_killed_training_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    stage, cache = tmp_path / "models" / "segmentation" / "a", tmp_path / "models" / "cache" / "probabilities"
    others = tmp_path / "registrations" / "a--b"
    for folder in (stage, cache, others):
        folder.mkdir(parents=True)
        (folder / ".01234567-checkpoint.pt").write_text("half")
        (folder / "weights").write_text("whole")
    with working_on(tmp_path, "train"):
        assert [p.name for p in stage.iterdir()] == ["weights"]
        assert len(list(cache.iterdir())) == len(list(others.iterdir())) == 2  # another job may write there


def test_the_processes_of_one_torchrun_share_the_lock_of_the_first(
    tmp_path: Path, other: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with working_on(tmp_path, "train"):
        pass
