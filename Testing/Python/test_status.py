"""The whole line twice: the same files, each saying what made it; and what `segmmreg status` says of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk
from test_freshness import change_voxel
from test_kills import SMALLEST, context
from trained_study import SOURCE, TARGET, Listener, copy_of, make_study, tiny_config

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.cases import Role
from SegGuidedMMRegLib.evaluation import evaluate
from SegGuidedMMRegLib.events import Event, Reporter
from SegGuidedMMRegLib.jobs import Output, register_study, segment_study
from SegGuidedMMRegLib.jobs.cohort import Run
from SegGuidedMMRegLib.locks import LOCKS, working_on
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.status import status_of
from SegGuidedMMRegLib.study import Study

FORMATS = Output(formats=(".nrrd", ".nii.gz", ".tfm", ".mha"))
SETTINGS = {**SMALLEST, "registration": {"steps": 2, "batch_size": 1, "refinement_steps": 3}}
VOLATILE = {"log.txt", "metrics.jsonl", "digests.json", "report.html", "evaluation.csv", "import.csv"}
TIMES = re.compile(r'"(seconds|finished|median_seconds|registrations)": [^,\n}]+')
"""`registrations` in evaluation.json is the digest of reports that hold seconds."""
STATED = {"version", "git", "settings", "seed", "torch"}


def do_everything(study: Study) -> None:
    train(study)
    segment_study(study)
    register_study(study, output=FORMATS, run=Run(workers=1))
    write_report(study, Reporter(), evaluate(study, Reporter()))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those with dates in every line; seconds and dates are taken out of JSON files."""
    found = {}
    for path in folder.rglob("*"):
        if not path.is_file() or path.name in VOLATILE or path.parent.name in ("registrations", LOCKS):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = TIMES.sub("", content.decode()).encode()
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with which everything was done in no time. Change a copy."""
    study = make_study(tmp_path_factory.mktemp("done"), config=tiny_config(**SETTINGS))
    do_everything(study)
    return study


@pytest.fixture
def copied(done: Study, tmp_path: Path) -> Study:
    return copy_of(done, tmp_path / "study")


def states(study: Study) -> dict[str, str]:
    return {f.name: f"{f.state}: {f.why}" for f in status_of(Study.open(study.folder)).found}


# -- the same again -------------------------------------------------------------------------------------
def test_the_same_study_gives_the_same_files(done: Study, tmp_path: Path) -> None:
    again = make_study(tmp_path / "again", config=tiny_config(**SETTINGS))
    again = replace(
        again,
        cases=tuple(replace(c, original=o.original) for c, o in zip(again.cases, done.cases, strict=True)),
    )
    again.save()
    do_everything(again)
    first, second = contents(done.folder), contents(again.folder)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    suffixes = {".safetensors", ".h5", ".nrrd", ".nii.gz", ".tfm", ".mha", ".json", ".yaml", ".pt"}
    assert all(any(name.endswith(suffix) for name in first) for suffix in suffixes)


def test_every_result_says_what_made_it(done: Study) -> None:
    pair = next(done.folder.glob("registrations/*/report.json"))
    records = [
        json.loads(pair.read_text())["origin"],
        json.loads((done.folder / "evaluation.json").read_text())["origin"],
    ]
    records += [json.loads(p.read_text()) for p in done.folder.glob("models/*/stage.json")]
    prediction = sitk.ReadImage(str(done.prediction_path(done.cases[0])))
    records.append(json.loads(prediction.GetMetaData("SegGuidedMMReg")))
    assert len(records) == 7
    for record in records:
        assert set(record) >= STATED
        assert (record["seed"], record["settings"]) == (0, records[0]["settings"])
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert records[0]["settings"] in page
    assert records[0]["torch"] in page


def segment_and_register(folder: Path, write: int) -> None:
    """Do both, and be killed just before file number `write` gets its name (0: not at all)."""
    put, writes = Path.replace, 0

    def counting(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, target)

    Path.replace = counting
    study = Study.open(folder)
    segment_study(study)
    register_study(study, output=FORMATS, run=Run(workers=1))


def test_segmenting_and_registering_that_are_killed_go_on_and_end_with_the_same_files(
    done: Study, copied: Study
) -> None:
    for name in ("predictions", "predictions_without_adaptation", "registrations"):
        shutil.rmtree(copied.folder / name)
    shutil.rmtree(copied.folder / "models" / "cache" / "probabilities")
    for write in (9, 40, 30, 0):
        process = context.Process(target=segment_and_register, args=(copied.folder, write))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if write else 0)
    first, second = contents(done.folder), contents(copied.folder)
    assert [name for name in first if first[name] != second.get(name)] == []
    more = [Path(name) for name in second.keys() - first.keys()]  # others may be writing to a cache
    assert [p for p in more if not (p.name.startswith(".") and p.parts[1] == "cache")] == []


# -- status ---------------------------------------------------------------------------------------------
def test_all_is_up_to_date_when_everything_was_done(done: Study) -> None:
    found = states(done)
    assert {state.split(":")[0] for state in found.values()} == {"up to date"}, found
    assert list(found)[-4:] == ["segmentations", "registrations", "evaluation", "report"]


def test_a_second_run_makes_nothing_anew(copied: Study) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.folder.glob("predictions*/**/*.nrrd")}
    heard = Listener()
    segment_study(copied, heard)
    assert f"{len(before)} segmentations are up to date." in heard.messages
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_segmentation_that_is_gone_or_of_another_image_is_made_again(copied: Study) -> None:
    first, second = copied.cases_of(SOURCE, Role.TEST)[:2]
    expected = copied.prediction_path(first).read_bytes()
    copied.prediction_path(first).unlink()
    copied.prediction_path(second).write_bytes(expected)
    assert states(copied)["segmentations"].startswith("out of date: 1 of ")
    assert "1 of 22 missing" in states(copied)["segmentations"]
    heard = Listener()
    segment_study(copied, heard)
    assert [e.data["of"] for e in heard.events if e.kind == "started" and e.data["stage"] == "segment"] == [2]
    assert copied.prediction_path(first).read_bytes() == expected
    assert states(copied)["segmentations"].startswith("up to date")


def test_a_changed_label_for_evaluation_concerns_what_is_measured(copied: Study) -> None:
    change_voxel(copied.folder / copied.cases_of(TARGET, Role.TEST)[0].label)
    found = states(copied)
    stale = {name for name, state in found.items() if not state.startswith("up to date")}
    assert stale == {"registrations", "evaluation", "report"}, found
    assert found["evaluation"] == "out of date: labels changed"
    assert found["report"] == "waits: evaluation may change"


def test_a_changed_test_image_concerns_its_segmentation_and_pairs(copied: Study) -> None:
    change_voxel(copied.folder / copied.cases_of(SOURCE, Role.TEST)[0].image)
    assert states(copied)["prealign"] == "out of date: 1 of 20 images to align"
    train(copied)
    found = states(copied)
    assert found["segmentations"] == "out of date: 1 of 22 out of date"
    assert found["registrations"] == "out of date: 2 of 4: moving changed"
    assert found["registration"] == "up to date: "


def test_a_setting_of_pairs_leaves_the_network_alone_and_concerns_the_pairs(copied: Study) -> None:
    smoother = copied.config.registration.model_copy(
        update={"refinement_smoothness": 0.2, "refinement_steps": 2}
    )
    replace(copied, config=copied.config.model_copy(update={"registration": smoother})).save()
    found = states(copied)
    assert found["registration"] == "up to date: "
    assert found["registrations"] == "out of date: 4 of 4: settings changed"


def test_swapped_weights_make_the_segmentations_stale(copied: Study) -> None:
    adapted = copied.stage_folder("adaptation") / "weights.safetensors"
    adapted.write_bytes((copied.stage_folder("segmentation") / "weights.safetensors").read_bytes())
    found = states(copied)
    assert found["adaptation"] == "up to date: weights.safetensors replaced by hand"
    assert found["registration"] == "out of date: result of adaptation changed"
    assert found["segmentations"] == "out of date: 10 of 22 out of date"
    assert found["registrations"] == "out of date: 4 of 4: networks changed"


def test_a_study_that_is_new_says_what_is_to_come(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert states(study)["prealign"] == "missing: 20 images to align"
    assert states(study)["adaptation"] == "missing: after prealign"
    lines = status_of(study).lines()
    assert (
        "dxa: 10 images, 2 to test, 8 to train, 2 labelled for evaluation, 3 labelled for training" in lines
    )
    assert "at work: nobody" in lines


def test_the_command_shows_a_table_and_who_works_and_tells_programs_the_same(
    copied: Study, capsys: pytest.CaptureFixture
) -> None:
    record = copied.stage_folder("adaptation") / "stage.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "complete": False}))
    with working_on(copied.folder, "train"):
        for option in ((), ("--events",)):
            with pytest.raises(SystemExit) as ended:
                cli.main(["status", str(copied.folder), *option])
            assert ended.value.code == 0
    text, _, events = capsys.readouterr().out.partition('{"event": "started"')
    assert re.search(r"^at work: .*process \d+ on ", text, re.M)
    assert re.search(r"^segmentation +up to date +\d{4}-\d\d-\d\d \d\d:\d\d +[\d.]+ +cpu", text, re.M)
    assert re.search(r"^adaptation +running", text, re.M)
    result = Event.from_json(events.strip().splitlines()[-1]).data
    assert result["stages"][0]["name"] == "prealign"
    assert result["jobs"][0]["kind"] == "train"
    assert result["cases"]["dxa"]["images"] == 10


def test_a_read_only_study_can_be_looked_at(copied: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    assert states(copied)["registration"] == "up to date: "
