"""Jobs of the module: what they tell, how they end, that nothing is left and the GUI never waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import slicer_harness
from slicer_module import Gaps, Heard, environment, fake_job

from SegGuidedMMRegGui import LIBRARY_HOME, ProcessTree
from SegGuidedMMRegGui.JobPython import JobPython, choose_python, chosen_python
from SegGuidedMMRegGui.JobRunner import ChildJob, JobRunner


@pytest.fixture
def runner():
    slicer_harness.slot_errors.clear()
    made = JobRunner()
    yield made
    made.cleanup()
    assert not slicer_harness.slot_errors


def start(runner: JobRunner, command: tuple[str, ...], heard: Heard) -> ChildJob:
    job = ChildJob(command, environment(), heard.listener)
    runner.adopt("fake", job)
    job.start()
    return job


def run(runner: JobRunner, code: str) -> tuple[Heard, object]:
    heard = Heard()
    job = start(runner, fake_job(code), heard)
    return heard, job


def gone(pid: int) -> bool:
    return ProcessTree.process(pid) is None


def test_a_job_tells_its_events_in_order_and_ends_well(runner):
    code = """
tell('started', command='train', schema=1, version='0', pid=os.getpid())
tell('started', stage='segmentation', of=2)
tell('progress', stage='segmentation', step=2, of=2, seconds_left=0, metrics={'loss': 0.5})
tell('log', message='half way: é')
print('a library prints', file=sys.stderr)
tell('result', command='train', exit_code=0, study='knees')
"""
    heard, job = run(runner, code)
    end = heard.wait()
    assert [kind for kind, _ in heard.told if kind != "log"] == [
        "started", "started", "progress", "result", "finished",
    ]  # fmt: skip
    assert heard.of("progress")[0]["metrics"] == {"loss": 0.5}
    assert set(heard.of("log")) == {"half way: é", "a library prints"}
    assert end.is_done
    assert end.result["study"] == "knees"
    assert not job.is_running
    assert runner.running() == []


def test_the_error_of_a_job_is_told_with_its_remedy(runner):
    code = (
        "tell('error', code='disk_full', message='No room.', remedy='Make room.', exit_code=4)\nsys.exit(4)"
    )
    end = run(runner, code)[0].wait()
    assert (end.is_done, end.exit_code, end.code) == (False, 4, "disk_full")
    assert end.message == "No room. Make room."


def test_the_exit_code_decides_whatever_was_told(runner):
    end = run(runner, "tell('result', command='train', exit_code=0)\nsys.exit(3)")[0].wait()
    assert not end.is_done
    assert "exit code 3" in end.message


def test_a_job_of_which_some_failed_is_not_done_but_has_a_result(runner):
    end = run(runner, "tell('result', command='register', exit_code=1, failed=2)\nsys.exit(1)")[0].wait()
    assert not end.is_done
    assert end.result["failed"] == 2
    assert end.message == ""


def test_a_crash_is_told_with_the_last_lines(runner):
    code = (
        "print('Segmentation fault soon', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    heard, job = run(runner, code)
    end = heard.wait()
    assert not end.is_done
    assert "Segmentation fault soon" in end.message
    assert "Segmentation fault soon" in job.report()
    assert sys.executable in job.report()


def test_a_python_that_was_ended_behind_slicers_launcher_is_told_so(runner):
    """PythonSlicer is a launcher: it ends with 1 where its Python was ended (ctkAppLauncher.cpp)."""
    said = "error: [/opt/Slicer/bin/./python-real] exit abnormally - Report the problem."
    heard, _job = run(runner, f"print({said!r}, file=sys.stderr); sys.exit(1)")
    end = heard.wait()
    assert (end.exit_code, end.is_done, end.result) == (1, False, None)
    assert "memory ran out" in end.message


def test_a_python_that_is_not_there_is_an_error_not_an_exception(runner):
    heard = Heard()
    start(runner, ("/nowhere/python", "-m", "x"), heard)
    end = heard.wait()
    assert not end.is_done
    assert "/nowhere/python" in end.message


def test_lines_that_are_no_events_go_to_the_log(runner):
    heard, _ = run(runner, "print('{broken'); print('[1]'); tell('later', x=1); tell('result', command='x')")
    assert heard.wait().is_done
    assert heard.of("log") == ["{broken", "[1]"]


TREE = """
child = "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
child += "start_new_session=True); "
child += "print(p.pid, flush=True); time.sleep(60)"
p = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE, text=True)
tell('log', message=f"{os.getpid()} {p.pid} {int(p.stdout.readline())}")
"""


def pids(heard: Heard) -> list[int]:
    slicer_harness.process_until(lambda: heard.of("log"))
    return [int(word) for word in heard.of("log")[0].split()]


def test_cancel_ends_every_process_of_the_job_also_the_stubborn(runner, monkeypatch):
    monkeypatch.setattr("SegGuidedMMRegGui.JobRunner.GRACE_S", 0.5)
    heard, job = run(runner, TREE + "time.sleep(60)")
    processes = pids(heard)
    assert not any(map(gone, processes))
    job.cancel()
    job.cancel()
    end = heard.wait()
    assert end.cancelled
    assert not end.is_done
    assert all(map(gone, processes))
    assert len(heard.of("finished")) == 1


def test_what_a_crashed_job_leaves_behind_is_ended_too(runner):
    heard, _ = run(runner, TREE + "os.kill(os.getpid(), signal.SIGKILL)")
    heard.wait()
    assert all(map(gone, pids(heard)))


def test_closing_the_module_leaves_no_process(runner):
    heard, _ = run(runner, TREE + "time.sleep(60)")
    processes = pids(heard)
    runner.cleanup()
    slicer_harness.process_until(lambda: all(map(gone, processes)), 5)
    assert heard.wait(1).cancelled


def test_a_number_that_another_process_has_now_is_not_ended():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        ProcessTree.end_now((ProcessTree.Process(other.pid, "long ago"),))
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    "code",
    [
        "for n in range(20000): tell('progress', stage='s', step=n, of=20000, seconds_left=1, metrics={})",
        "for n in range(20000): tell('log', message='x' * 80)",
        "for n in range(5): print('x' * 200000, file=sys.stderr, flush=True)\n",
        "for n in range(8): time.sleep(0.2); tell('progress', stage='s', step=n, of=8)",
    ],
    ids=["much progress", "many lines", "long lines", "slow"],
)
def test_the_gui_is_never_busy_for_a_tenth_of_a_second(runner, code):
    heard = Heard()
    with Gaps() as gaps:
        start(runner, fake_job(code), heard)
        gaps.spin(lambda: heard.of("finished"), 40)
    assert heard.of("finished")[0].is_done
    assert gaps.longest < 0.1


def test_progress_that_has_piled_up_is_told_once(runner):
    heard, _ = run(
        runner,
        "for n in range(3000): tell('progress', stage='s', step=n, of=3000, seconds_left=1, metrics={})",
    )
    heard.wait()
    assert heard.of("progress")[-1]["step"] == 2999
    assert len(heard.of("progress")) < 3000


def test_the_library_itself_runs_as_a_job(runner):
    heard = Heard()
    python = JobPython(sys.executable, True)
    job = runner.start("look", ("status", "/nowhere/study"), heard.listener, python)
    end = heard.wait(60)
    assert (end.exit_code, end.code) == (2, "input")
    assert "/nowhere/study" in end.message
    assert job.command[-1] == "--events"


def test_another_python_gets_an_environment_without_slicers_own(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/slicer/python")
    other = JobPython("/usr/bin/python3", False).environment()
    assert "PYTHONHOME" not in other
    assert other["PYTHONPATH"] == str(LIBRARY_HOME)
    monkeypatch.delenv("PYTHONHOME")
    assert JobPython("PythonSlicer", True).environment()["PYTHONPATH"].split(os.pathsep)[0] == str(
        LIBRARY_HOME
    )


def test_the_choice_of_another_python_is_remembered():
    assert chosen_python().is_slicers
    choose_python("/opt/python")
    assert chosen_python() == JobPython("/opt/python", False)
    choose_python("")
    assert chosen_python().is_slicers


def test_a_watcher_hears_of_every_job_after_its_listener(runner):
    order, watched = [], Heard()

    def watch(job):
        order.append(job.title)
        return watched.listener

    runner.watchers.append(watch)
    heard, _ = run(runner, "tell('log', message='a')")
    heard.wait()
    assert order == ["fake"]
    assert watched.told == heard.told
