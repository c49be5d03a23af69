"""Commands that change, measure, show and export, killed at every file that they write and run again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from test_kills import context
from trained_study import SOURCE, TARGET, Finished

from SegGuidedMMRegLib.cli import main

pytestmark = pytest.mark.xdist_group("trained")

SECONDS = re.compile(rb'"(seconds|finished|at)": [^,\n}]+')
TIMES = re.compile(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?[^\s\"<]*")
WRITTEN = re.compile(rb"Report of [^<]* \xc2\xb7 SegGuidedMMReg")
"""The one line of report.html that differs from one minute to the next."""


def run_and_die(arguments: list[str], write: int, after: bool) -> None:
    """Run a command, and be killed just before or after file number `write` gets its name."""
    put, writes = Path.replace, 0

    def counting(self: Path, target: Path) -> Path:
        nonlocal writes
        if Path(target).name.startswith(".unfinished-"):
            return put(self, target)
        writes += 1
        if writes == write and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = put(self, target)
        if writes == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Path.replace = counting
    with suppress(SystemExit), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        main(arguments)
    if writes < write:
        os._exit(17)  # there is no file of this number


def in_a_process(arguments: list[str], write: int = 0, after: bool = False) -> int | None:
    process = context.Process(target=run_and_die, args=(arguments, write, after))
    process.start()
    process.join()
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without what says when and how long."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not {".locks", "cache"} & set(path.parts):
            content = TIMES.sub(b"", SECONDS.sub(b"", path.read_bytes()))
            found[str(path.relative_to(folder))] = WRITTEN.sub(b"", content)
    return found


def arguments_of(command: str, finished: Finished, out: Path) -> list[str]:
    study = str(out / "study")
    pair = next(p for p in sorted((out / "study" / "registrations").iterdir()) if p.is_dir())
    name, other = (finished.study.cases_of(m, "test")[0].name for m in (SOURCE, TARGET))
    given = [str(finished.file(what, SOURCE, name)) for what in ("images", "labels")]
    points = str(finished.file("landmarks", TARGET, other))
    reference = str(finished.file("images", TARGET, other))
    drawn = str(finished.file("labels", SOURCE, finished.study.cases_of(SOURCE, "test")[1].name))
    return {
        "set": ["set", study, "registration.refinement_steps=2", "training.seed=3"],
        "edit": [
            *("edit", study, "--cases", f"{SOURCE}/{name}", "--mirrored", "yes"),
            *("--structures", "1=thigh:#e69f00", "--name", "Other knees"),
        ],
        "label": ["label", study, f"{SOURCE}/{name}", "--file", drawn, "--use", "evaluation"],
        "evaluate": ["evaluate", study],
        "report": ["report", study],
        "export": ["export", study, "--out", str(out / "out"), "--formats", ".nrrd", "--spacing", "6"],
        "apply": [
            *("apply", str(pair / "forward.h5"), *given, points),
            *("--reference", reference, "--out", str(out / "out")),
        ],
    }[command]


@pytest.mark.parametrize("command", ["set", "edit", "label", "evaluate", "report", "export", "apply"])
def test_a_command_that_is_killed_at_a_file_can_be_run_again(finished: Finished, tmp_path, command) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        shutil.copytree(finished.study.folder, place / "study")
    before = contents(killed)
    assert in_a_process(arguments_of(command, finished, whole)) == 0
    expected = contents(whole)
    kills = 0
    for write, after in ((1, False), (1, True), (2, False), (2, True), (3, True)):
        exitcode = in_a_process(arguments_of(command, finished, killed), write, after)
        assert exitcode in (-signal.SIGKILL, 17, 0)
        kills += exitcode == -signal.SIGKILL
        for name, content in contents(killed).items():
            if not Path(name).name.startswith("."):
                assert content in (before.get(name), expected[name]), f"{name} is half written"
    assert kills >= 2
    assert in_a_process(arguments_of(command, finished, killed)) == 0
    ended = contents(killed)
    assert [n for n in ended if ended[n] != expected.get(n) and not Path(n).name.startswith(".")] == []
    assert ended.keys() >= expected.keys()
    if command in ("export", "apply"):
        assert ended.keys() == expected.keys(), "something half written is left"


def test_what_another_person_wrote_is_not_replaced(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.study.folder, tmp_path / "study")
    arguments = arguments_of("apply", finished, tmp_path)
    theirs = tmp_path / "out" / Path(arguments[2]).name
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert [p.name for p in theirs.parent.iterdir()] == [theirs.name]
    assert theirs.read_text() == "mine"
