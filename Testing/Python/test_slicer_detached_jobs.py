"""Training outlives Slicer: it goes on, is found again with all it told, and can be cancelled then."""

from __future__ import annotations

import pytest
import slicer_harness
from slicer_module import Heard, environment, fake_job

from SegGuidedMMRegGui import ProcessTree
from SegGuidedMMRegGui.DetachedJob import DetachedJob
from SegGuidedMMRegGui.JobEvents import JobListener

GOES_ON = """
tell('started', command='train', schema=1, version='0', pid=os.getpid())
tell('progress', stage='segmentation', step=1, of=2, seconds_left=1, metrics={})
print('from a library', file=sys.stderr, flush=True)
while not os.path.exists('go on'): time.sleep(0.02)
tell('result', command='train', exit_code=0)
"""


class FakePython:
    """In place of the chosen Python: runs a script whatever it is asked for."""

    def __init__(self, code: str, folder) -> None:
        self.code, self.folder = f"os.chdir({str(folder)!r})\n{code}", folder

    def command(self, _):
        return fake_job(self.code)

    def environment(self):
        return environment()


def begin(study, code: str) -> tuple[Heard, DetachedJob]:
    heard = Heard()
    job = DetachedJob.begin(study, ("train", str(study)), heard.listener, FakePython(code, study))
    return heard, job


@pytest.fixture(autouse=True)
def no_errors_in_slots():
    slicer_harness.slot_errors.clear()
    yield
    assert not slicer_harness.slot_errors


def test_it_is_followed_to_its_end(tmp_path):
    heard, job = begin(tmp_path, GOES_ON)
    slicer_harness.process_until(lambda: heard.of("progress") and heard.of("log"))
    (tmp_path / "go on").touch()
    end = heard.wait()
    assert end.is_done
    assert heard.of("log") == ["from a library"]
    assert DetachedJob.find(tmp_path, "train", JobListener()) is None
    assert not job.is_running


def test_it_is_found_again_with_all_that_it_told(tmp_path):
    heard, job = begin(tmp_path, GOES_ON)
    slicer_harness.process_until(lambda: heard.of("progress"))
    job.leave()
    later = Heard()
    found = DetachedJob.find(tmp_path, "train", later.listener)
    slicer_harness.process_until(lambda: later.of("progress"))
    assert later.of("started")[0]["command"] == "train"
    assert found.command == job.command
    (tmp_path / "go on").touch()
    job._child.wait()
    assert later.wait().is_done


def test_cancelled_after_it_was_found_again_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("SegGuidedMMRegGui.JobRunner.GRACE_S", 0.5)
    heard, job = begin(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOES_ON)
    slicer_harness.process_until(lambda: heard.of("progress"))
    job.leave()
    later = Heard()
    DetachedJob.find(tmp_path, "train", later.listener).cancel()
    slicer_harness.process_until(lambda: job._child.poll() is not None)
    assert later.wait().cancelled
    assert ProcessTree.process(job._child.pid) is None


def test_the_same_job_is_not_started_twice(tmp_path):
    heard, _ = begin(tmp_path, GOES_ON)
    with pytest.raises(RuntimeError, match="runs already"):
        begin(tmp_path, GOES_ON)
    (tmp_path / "go on").touch()
    heard.wait()


def test_one_that_died_meanwhile_is_not_found(tmp_path):
    heard, job = begin(tmp_path, GOES_ON)
    slicer_harness.process_until(lambda: heard.of("progress"))
    job.leave()
    job._child.kill()
    job._child.wait()
    assert DetachedJob.find(tmp_path, "train", JobListener()) is None
    assert not (tmp_path / ".jobs" / "nothing").exists()


def test_a_record_of_another_machine_or_of_nonsense_is_left_alone(tmp_path):
    (tmp_path / ".jobs").mkdir()
    record = tmp_path / ".jobs" / "train.json"
    for text in ("{", "[]", '{"pid": 1, "began": "", "host": "elsewhere", "command": ["a"], "mark": "b"}'):
        record.write_text(text, encoding="utf-8")
        assert DetachedJob.find(tmp_path, "train", JobListener()) is None


def test_how_it_failed_is_told_after_it_was_found_again(tmp_path):
    code = GOES_ON.replace(
        "tell('result', command='train', exit_code=0)",
        "tell('error', code='disk_full', message='No room.', remedy=None, exit_code=4); sys.exit(4)",
    )
    heard, job = begin(tmp_path, code)
    slicer_harness.process_until(lambda: heard.of("progress"))
    job.leave()
    later = Heard()
    DetachedJob.find(tmp_path, "train", later.listener)
    (tmp_path / "go on").touch()
    job._child.wait()
    end = later.wait()
    assert (end.exit_code, end.message) == (4, "No room.")
