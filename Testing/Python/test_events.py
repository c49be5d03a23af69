"""What programs hear: every event of every command follows the schema, and nothing else is on stdout."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastjsonschema
import numpy as np
import pytest
from event_lines import SCHEMA, check, checked, of_one_command
from trained_study import SOURCE, TARGET, copy_of

from SegGuidedMMRegLib import __version__, cli
from SegGuidedMMRegLib.events import SCHEMA_VERSION, ErrorCode, Event, JsonLinesReporter, Reporter
from SegGuidedMMRegLib.failures import EXIT_CODES, failure_of

PAGE = Path(__file__).parents[2] / "docs" / "events.md"


@pytest.fixture
def told(capsys):
    """Runs a command with --events and gives its checked events and its exit code."""

    def command(name: str, *arguments: object) -> tuple[list[dict], int]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([name, *map(str, arguments), "--events"])
        printed = capsys.readouterr()
        events, code = of_one_command(printed.out.splitlines(), name), ended.value.code
        assert events[-1]["exit_code"] == code
        if events[-1]["event"] == "error":
            assert events[-1]["message"] in printed.err
        return events, int(code or 0)

    return command


# -- the vocabulary -------------------------------------------------------------------------------------
def test_whatever_a_reporter_says_follows_the_schema() -> None:
    stream = io.StringIO()
    reporter = JsonLinesReporter(stream)
    reporter.command_started("train")
    reporter.started("segmentation")
    for step in (0, 1, 2):
        reporter.progress("segmentation", step, 2, loss=np.float32(0.5), diverged=float("nan"))
    reporter.log("Umlaute: ä, Zeilen:\nzwei")
    reporter.result("segmentation", dice=np.float64(0.5), best=float("inf"), shape=(1, 2), at=Path("a/b"))
    for code, exit_code in EXIT_CODES.items():
        reporter.error(code, "what went wrong", exit_code=exit_code)
    reporter.command_done("train", 1, counts={"a": np.arange(2)}, nothing=None, yes=True)
    lines = stream.getvalue().splitlines()
    events = checked(lines)
    assert events[0] == {
        **{"event": "started", "command": "train", "schema": SCHEMA_VERSION},
        **{"version": __version__, "pid": os.getpid()},
    }
    assert events[3]["metrics"] == {"loss": 0.5}
    found = next(e for e in events if e["event"] == "result")
    assert (found["dice"], found["best"], found["shape"], found["at"]) == (
        0.5,
        None,
        [1, 2],
        str(Path("a/b")),
    )
    assert (events[-1]["counts"], events[-1]["yes"]) == ({"a": [0, 1]}, True)
    assert [Event.from_json(line).data for line in lines] == [
        {key: value for key, value in event.items() if key != "event"} for event in events
    ]


@pytest.mark.parametrize(
    "line",
    [
        {"event": "sung", "message": "la"},
        {"event": "log"},
        {"event": "log", "message": "a", "level": 3},
        {"event": "started", "command": "train", "schema": 2, "version": "0", "pid": 1},
        {"event": "started", "command": "train", "stage": "train", "of": 1},
        {"event": "progress", "stage": "a", "step": -1, "of": 2, "seconds_left": None, "metrics": {}},
        {"event": "progress", "stage": "a", "step": 1, "of": 2, "seconds_left": None, "metrics": {"x": "1"}},
        {"event": "result"},
        {"event": "result", "command": "train"},
        {"event": "result", "command": "train", "stage": "train", "exit_code": 0},
        {"event": "error", "code": "bad_luck", "message": "a", "remedy": None, "exit_code": 2},
        {"event": "error", "code": "input", "message": "", "remedy": None, "exit_code": 2},
    ],
)
def test_the_schema_refuses_what_is_no_event(line: dict) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        check(line)


def test_codes_are_the_same_in_program_schema_and_page() -> None:
    codes = [code.value for code in ErrorCode]
    assert SCHEMA["definitions"]["error"]["properties"]["code"]["enum"] == codes
    assert SCHEMA["definitions"]["command_started"]["properties"]["schema"]["const"] == SCHEMA_VERSION
    assert list(EXIT_CODES) == list(ErrorCode)
    rows = [row.split("|") for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    written = {row[1].strip().strip("`"): row[2].strip() for row in rows}
    assert {code.value: str(number) for code, number in EXIT_CODES.items()}.items() <= written.items()


def test_a_defect_is_told_from_a_mistake() -> None:
    assert failure_of(KeyError("x")).code is ErrorCode.INTERNAL
    assert failure_of(ValueError("x")).code is ErrorCode.INPUT
    assert failure_of(ModuleNotFoundError("no", name="SegGuidedMMRegLib.nowhere")).code is ErrorCode.INTERNAL
    assert failure_of(ModuleNotFoundError("no", name="monai")).code is ErrorCode.MISSING_PACKAGE
    full = failure_of(OSError(28, "No space left on device", "a.nrrd"))
    assert (full.code, full.exit_code) == (ErrorCode.DISK_FULL, 4)
    assert "a.nrrd" in str(full)
    assert "room" in str(full)


def test_a_reporter_without_a_listener_is_silent(capsys) -> None:
    Reporter().command_started("train")
    assert capsys.readouterr() == ("", "")


# -- the commands ---------------------------------------------------------------------------------------
@pytest.mark.xdist_group("trained")
def test_training_segmenting_registering_follow_the_schema(finished) -> None:
    events = checked(event.to_json() for event in finished.heard.events)
    left = [e["seconds_left"] for e in events if e["event"] == "progress" and e["stage"] == "segmentation"]
    assert all(seconds is not None for seconds in left[1:])
    stages = {e["stage"] for e in events if e["event"] == "started"}
    assert {"prealign", "reading", "segmentation", "registration", "segment", "register"} <= stages


@pytest.mark.xdist_group("trained")
def test_every_command_speaks_events(finished, tmp_path, told) -> None:
    study = copy_of(finished.study, tmp_path / "demo" / "study")
    folder, out = study.folder, tmp_path / "out"
    picture = finished.file("images", TARGET, study.cases_of(TARGET, "test")[0].name)
    moving = study.cases_of(SOURCE, "test")[0].name
    pair = next((folder / "registrations").glob("*--*"))
    source, labels = (finished.input / what / SOURCE for what in ("images", "labels"))
    files = ("--source-images", source, "--source-labels", labels, "--target-images", picture.parent)
    asked = {
        "new": (tmp_path / "new", *files),
        "add": (folder, "--target-labels", finished.file("labels", TARGET, study.cases_of(TARGET)[0].name)),
        "label": (folder, study.cases_of(SOURCE)[0].name),
        "train": (folder,),
        "segment": (folder, picture, "--modality", TARGET, "--out", out),
        "register": (folder, moving, picture, "--out", out / "pair"),
        "apply": (pair / "forward.h5", picture, "--reference", picture, "--out", out / "warped.nrrd"),
        "jacobian": (pair / "forward.h5", out / "change.nrrd"),
        "evaluate": (folder,),
        "report": (folder,),
        "export": (folder, pair.name, "--out", out / "exported"),
        "status": (folder,),
        "info": (folder,),
        "edit": (folder, "--name", "knees, edited"),
        "set": (folder, "registration.refinement_steps=3"),
        "suggest": (folder,),
        "propagate": (folder, study.cases_of(SOURCE, "test")[0].name, "--out", out),
        "demo": (tmp_path / "demo",),
    }
    assert set(asked) >= set(cli.COMMANDS) - {"worker"}
    for name, arguments in asked.items():
        events, code = told(name, *arguments)
        assert (events[-1]["event"], code) == ("result", 0), events[-1]
        assert len(events) > 2, f"{name} says nothing on its way"


@pytest.mark.xdist_group("trained")
def test_errors_have_codes_that_stay(finished, tmp_path, told, monkeypatch) -> None:
    study = copy_of(finished.study, tmp_path / "study")
    shutil.rmtree(study.stage_folder("registration"))
    for code, arguments in {
        "input": ("train", tmp_path / "nowhere"),
        "not_trained": ("register", study.folder),
    }.items():
        events, exit_code = told(*arguments)
        assert (events[-1]["code"], exit_code) == (code, 2)
    for code, error, expected in (
        ("out_of_memory", MemoryError(), 3),
        ("interrupted", KeyboardInterrupt(), 130),
        ("missing_package", ModuleNotFoundError("no", name="monai"), 2),
        ("internal", ZeroDivisionError("oops"), 1),
    ):
        monkeypatch.setattr("SegGuidedMMRegLib.pipeline.train", _raising(error))
        events, exit_code = told("train", study.folder)
        assert (events[-1]["code"], exit_code) == (code, expected)
        assert events[-1]["remedy"]


def _raising(error: BaseException):
    def fail(*_args: object, **_more: object) -> None:
        raise error

    return fail


def test_a_setting_that_is_none_is_told_as_an_event(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", "--events", "--colour"])
    assert ended.value.code == 2
    (event,) = checked(capsys.readouterr().out.splitlines())
    assert event["code"] == "usage"
    assert "--colour" in json.dumps(event)


@pytest.mark.parametrize(
    ("arguments", "exit_code"), [(["info", "--events"], 1), (["train", "x", "--events"], 2)]
)
def test_a_python_with_nothing_installed_says_what_is_missing(arguments, exit_code):
    command = [sys.executable, "-S", "-m", "SegGuidedMMRegLib", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    events = [Event.from_json(line) for line in done.stdout.splitlines()]
    assert done.returncode == exit_code
    assert "Traceback" not in done.stderr
    if arguments[0] == "info":
        facts = {fact["name"]: fact for fact in events[-1].data["facts"]}
        assert facts["tyro"]["value"] == "missing"
        assert facts["tyro"]["remedy"] == "pip install tyro"
    else:
        assert [event.data["code"] for event in events] == ["missing_package"]
