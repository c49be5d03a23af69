"""The warm worker behind the module: asked, cancelled, crashed, started again, gone with the study."""

from __future__ import annotations

import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_module import Gaps, Heard, environment, fake_job, slicer

from SegGuidedMMRegGui import ProcessTree, WorkerClient
from SegGuidedMMRegGui.JobPython import JobPython
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.Workplace import Workplace

ECHO = """
for line in sys.stdin:
    asked = json.loads(line)
    tell('progress', stage='register', step=1, of=2, request=asked['id'])
    if asked['do'] == 'cancel':
        tell('error', code='interrupted', message='Cancelled.', request=asked['request'])
        tell('result', stage='cancel', request=asked['id'])
    elif asked['do'] == 'crash':
        print('a library fails', file=sys.stderr, flush=True)
        os._exit(139)
    elif asked['do'] == 'refuse':
        tell('error', code='input', message='a.nrrd: broken.', remedy='Mend it.', request=asked['id'])
    elif asked['do'] == 'hang':
        time.sleep(600)
    elif asked['do'] != 'wait':
        tell('result', pid=os.getpid(), request=asked['id'])
"""


class FakePython:
    code = ECHO

    def command(self, _):
        return fake_job(self.code)

    def environment(self):
        return environment()


@pytest.fixture
def runner():
    slicer_harness.slot_errors.clear()
    made = JobRunner()
    yield made
    made.cleanup()
    assert not slicer_harness.slot_errors


@pytest.fixture
def worker(runner):
    made = WorkerClient.WorkerClient("/data/knees", runner, FakePython())
    yield made
    made.kill()


def ask(worker, do: str) -> tuple[Heard, WorkerClient.WorkerRequest]:
    heard = Heard()
    return heard, worker.ask(f"Asking to {do}", {"do": do}, heard.listener)


def test_one_process_answers_all_requests(worker):
    first, _ = ask(worker, "register")
    second, _ = ask(worker, "register")
    ends = first.wait(), second.wait()
    assert all(end.is_done for end in ends)
    assert ends[0].result["pid"] == ends[1].result["pid"]
    assert first.of("progress")[0]["stage"] == "register"


def test_a_request_that_fails_says_why_and_leaves_the_worker_serving(worker):
    refused, _ = ask(worker, "refuse")
    end = refused.wait()
    assert (end.is_done, end.message, end.code) == (False, "a.nrrd: broken. Mend it.", "input")
    assert ask(worker, "register")[0].wait().is_done


def test_a_request_is_cancelled_and_the_worker_stays(worker, runner):
    heard, request = ask(worker, "wait")
    assert runner.running() == [request]
    request.cancel()
    assert heard.wait().cancelled
    assert not runner.running()
    assert worker.is_running


def test_a_worker_that_does_not_hear_is_ended_and_another_one_serves(worker, monkeypatch):
    monkeypatch.setattr(WorkerClient, "GRACE_S", 0.3)
    heard, request = ask(worker, "hang")
    waiting, _ = ask(worker, "register")
    pid = worker._process._pid()
    request.cancel()
    assert "ended" in heard.wait().message
    assert "Ask again" in waiting.wait().message
    assert ProcessTree.process(pid) is None
    assert ask(worker, "register")[0].wait().is_done


def test_a_worker_that_crashes_is_told_with_its_last_words_and_started_again(worker):
    heard, request = ask(worker, "crash")
    assert "a library fails" in heard.wait().message
    assert "a library fails" in request.report()
    assert ask(worker, "register")[0].wait().is_done


def test_nothing_is_left_when_it_is_closed(worker):
    ask(worker, "register")[0].wait()
    heard, _ = ask(worker, "wait")
    worker.close()
    assert heard.wait().cancelled
    slicer_harness.process_until(lambda: not worker.is_running)


def test_a_python_that_is_not_there_is_said(runner):
    worker = WorkerClient.WorkerClient("/data/knees", runner, JobPython("/no/such/python", False))
    assert "/no/such/python" in ask(worker, "register")[0].wait().message


def test_many_answers_do_not_keep_the_window_busy(worker):
    longest = [_longest_gap_of_answers(worker, 300)]
    while longest[-1] >= 0.1 and len(longest) < 3:  # a machine may stand still, but not each time
        longest.append(_longest_gap_of_answers(worker, 300))
    assert min(longest) < 0.1


def _longest_gap_of_answers(worker, count: int) -> float:
    heards = [ask(worker, "register")[0] for _ in range(count)]
    with Gaps() as gaps:
        gaps.spin(lambda: heards[-1].of("finished"))
    assert all(heard.of("finished") for heard in heards)
    return gaps.longest


def test_the_worker_of_a_study_answers_and_ends_with_the_study(tmp_path, runner):
    knees = make_reported_study(tmp_path / "knees", 2, 32).folder
    workplace, failures = Workplace(slicer.mrmlScene, runner), []
    with pytest.raises(RuntimeError, match="Open a study"):
        _ = workplace.worker
    workplace.open(str(tmp_path), failures.append)
    slicer_harness.process_until(lambda: failures, 60)
    assert str(tmp_path) in failures[0]
    workplace.open(str(knees), failures.append)
    slicer_harness.process_until(lambda: workplace.study, 60)
    heard = Heard()
    worker = workplace.worker
    worker.ask("Suggesting", {"do": "suggest", "count": 1}, heard.listener)
    assert "is left to label" in heard.wait(90).message
    bridge = workplace.bridge
    workplace.read_again()
    slicer_harness.process_until(lambda: not runner.running(), 60)
    assert workplace.bridge is bridge
    assert workplace.worker is worker
    workplace.pair_watchers.append(lambda: failures.append(workplace.pair))
    workplace.show_pair("a pair")
    workplace.close()
    assert failures[-2:] == ["a pair", None]
    slicer_harness.process_until(lambda: not worker.is_running, 20)
    workplace.cleanup()
