"""What people see while a command runs."""

from __future__ import annotations

import io

import pytest

from SegGuidedMMRegLib.console import BarReporter, PlainReporter, reporting
from SegGuidedMMRegLib.events import Event, JsonLinesReporter, Reporter


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _work(reporter: Reporter) -> None:
    reporter.started("segmentation", 200)
    for step in range(1, 201):
        reporter.progress("segmentation", step, 200, loss=1 / step, dice=0.5, other=1.0, fourth=7.0)
    reporter.log("kept [the best] weights")
    reporter.result("segmentation", dice=0.91234567, weights={"a": 1})


def test_a_terminal_gets_bars_a_stream_gets_lines_and_a_program_gets_events() -> None:
    with reporting(stream=_Terminal()) as reporter:
        assert isinstance(reporter, BarReporter)
    with reporting(stream=io.StringIO()) as reporter:
        assert isinstance(reporter, PlainReporter)
    for stream in (_Terminal(), io.StringIO()):
        with reporting(events=True, stream=stream) as reporter:
            assert isinstance(reporter, JsonLinesReporter)


def test_a_log_file_is_not_flooded() -> None:
    stream = io.StringIO()
    with reporting(stream=stream) as reporter:
        _work(reporter)
    assert stream.getvalue().splitlines() == [
        "segmentation: begins (200 steps)",
        "segmentation: 200/200  loss 0.005  dice 0.5  other 1",
        "kept [the best] weights",
        "segmentation: dice 0.9123",
    ]


def test_long_work_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with reporting(stream=stream) as reporter:
        reporter.started("adaptation", 10)
        for step in range(1, 5):
            clock[0] += 20
            reporter.progress("adaptation", step, 10)
    assert stream.getvalue().splitlines()[1:] == [
        "adaptation: 2/10  about 2 min 40 s left",
        "adaptation: 4/10  about 2 min 00 s left",
    ]


def test_the_bar_is_full_at_the_end_and_lines_keep_their_brackets() -> None:
    terminal = _Terminal()
    with reporting(stream=terminal) as reporter:
        _work(reporter)
    text = terminal.getvalue()
    assert "200/200" in text
    assert "kept [the best] weights" in text
    assert "dice 0.9123" in text


def test_a_stage_that_begins_again_gets_a_new_bar() -> None:
    terminal = _Terminal()
    with reporting(stream=terminal) as reporter:
        for _ in range(2):
            reporter.started("segment", 3)
            reporter.progress("segment", 3, 3)
    assert terminal.getvalue().rstrip().count("3/3") >= 2


def test_a_json_line_comes_back_as_the_event_that_was_sent() -> None:
    stream = io.StringIO()
    with reporting(events=True, stream=stream) as reporter:
        _work(reporter)
    events = [Event.from_json(line) for line in stream.getvalue().splitlines()]
    assert events[0] == Event("started", {"stage": "segmentation", "of": 200})
    assert events[-1].data["dice"] == 0.91234567
