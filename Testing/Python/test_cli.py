"""The command line: quick help, one clear message a mistake, exit codes, files moved rightly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from SegGuidedMMRegLib import __version__, cli, environment, failures
from SegGuidedMMRegLib.commands.base import Done
from SegGuidedMMRegLib.commands.work import Evaluate
from SegGuidedMMRegLib.events import Event, Reporter
from SegGuidedMMRegLib.locks import BusyError
from SegGuidedMMRegLib.study import Study

COMMANDS = [
    "demo",
    "new",
    "add",
    "edit",
    "train",
    "segment",
    "register",
    "apply",
    "jacobian",
    "evaluate",
    "report",
    "export",
    "status",
    "info",
    "set",
]


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures of two modalities, two of them labelled."""
    rng = np.random.default_rng(0)
    for modality in ("dxa", "xray"):
        (tmp_path / modality).mkdir()
        for n in range(4):
            array = rng.integers(0, 255, (24, 20), dtype=np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / modality / f"{modality[0]}{n}.png"))
    (tmp_path / "labels").mkdir()
    labels = np.zeros((24, 20), dtype=np.uint8)
    labels[4:9], labels[12:20] = 1, 2
    for n in range(2):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "labels" / f"d{n}.png"))
    return tmp_path


def _new(folders: Path, *more: object) -> int:
    where = ("--source", "dxa", "--target", "xray", "--source-images", folders / "dxa", "--target-images")
    labels = ("--source-labels", folders / "labels", "--structures", "1=femur", "2=tibia")
    return _run("new", folders / "study", *where, folders / "xray", *labels, *more)


# -- the program ----------------------------------------------------------------------------------------
def test_help_answers_within_a_second_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom SegGuidedMMRegLib import cli\ntry:\n    cli.main(['--help'])\nexcept "
        "SystemExit:\n    pass\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_help_for_a_reader_that_is_gone_ends_without_a_word() -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    command = [sys.executable, "-m", "SegGuidedMMRegLib", "train", "--help"]
    done = subprocess.run(command, stdout=sending, stderr=subprocess.PIPE, text=True, check=False)
    os.close(sending)
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture) -> None:
    assert _run(command, "--help") == 0
    assert len(capsys.readouterr().out) > 300


def test_the_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "report", "register", "segment", "add", "status", "info", "set"]
)
def test_a_folder_that_is_no_study_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(command, tmp_path / "nothing") == 2
    message = capsys.readouterr().err
    assert "nothing is not a study" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("the size is wrong"), 2, "the size is wrong"),
        (PermissionError("not yours"), 2, "not yours"),
        (MemoryError(), 3, "Out of memory"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (ModuleNotFoundError("no", name="torch"), 2, "'torch' is missing. `segmmreg info`"),
        (ZeroDivisionError("oops"), 1, "Unexpected error"),
    ],
)
def test_errors_become_one_message_and_an_exit_code(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fail(_: object, reporter: Reporter) -> None:
        raise error

    monkeypatch.setattr(Evaluate, "run", fail)
    assert cli.run(Evaluate(Path("x"))) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    cli.run(Evaluate(Path("x"), events=True))
    first, last = [Event.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert first.data["command"] == "evaluate"
    assert last.kind == "error"
    assert last.data["exit_code"] == code
    assert words.split(".", maxsplit=1)[0] in last.data["message"]


def test_a_full_gpu_counts_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    def fail(_: object, reporter: Reporter) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(Evaluate, "run", fail)
    assert cli.run(Evaluate(Path("x"))) == 3
    assert "batch_size" in capsys.readouterr().err


def test_the_traceback_is_there_for_who_asks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _run("info", tmp_path, "--traceback") == 2
    assert "Traceback" in capsys.readouterr().err


def test_with_events_stdout_holds_nothing_else(tmp_path: Path) -> None:
    code = (
        "import ctypes, sys, warnings\nfrom SegGuidedMMRegLib import cli\n"
        "from SegGuidedMMRegLib.commands.work import Evaluate\n"
        "def run(self, reporter):\n"
        "    print('print'); ctypes.CDLL(None).puts(b'puts'); ctypes.CDLL(None).fflush(None)\n"
        "    warnings.warn('warn'); raise ValueError('wrong')\n"
        "Evaluate.run = run\ncli.main(['evaluate', 'x', '--events'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [Event.from_json(line).kind for line in done.stdout.splitlines()] == ["started", "error"]
    for words in ("print", "puts", "warn", "wrong"):
        assert words in done.stderr


def test_a_command_line_that_is_not_understood_is_an_event_too(capsys: pytest.CaptureFixture) -> None:
    assert _run("train", "--stages", "--events") == 2
    printed = capsys.readouterr()
    event = Event.from_json(printed.out.strip())
    assert (event.kind, event.data["code"], event.data["exit_code"]) == ("error", "usage", 2)
    assert event.data["message"] == printed.err.strip()
    assert "─" not in printed.err


@pytest.mark.parametrize("more", [[], ["--events"]])
def test_a_reader_that_went_away_is_not_success(more: list[str]) -> None:
    command = [sys.executable, "-m", "SegGuidedMMRegLib", "info", "--settings", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
@pytest.mark.parametrize("more", [[], ["--events"]])
def test_output_to_a_full_disk_is_not_success(more: list[str]) -> None:
    command = [sys.executable, "-m", "SegGuidedMMRegLib", "info", "--settings", *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


def test_a_broken_pipe_within_the_work_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(_: object, reporter: Reporter) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Evaluate, "run", fail)
    assert cli.run(Evaluate(Path("x"))) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_a_command_that_ends_though_it_was_interrupted_is_not_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Evaluate, "run", lambda *_: Done())
    monkeypatch.setattr(cli, "interruption", KeyboardInterrupt)
    assert cli.run(Evaluate(Path("x"), events=True)) == 130
    assert '"interrupted"' in capsys.readouterr().out


def test_an_interruption_that_a_library_made_another_error_of_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failures, "interruption", KeyboardInterrupt)
    assert failures.failure_of(ImportError("numpy could not be imported")).exit_code == 130
    assert failures.failure_of(BusyError("somebody took over")).exit_code == 2


# -- new and add ----------------------------------------------------------------------------------------
def test_new_makes_a_study_and_says_what_came_in(folders: Path, capsys: pytest.CaptureFixture) -> None:
    assert _new(folders, "--preset", "quick", "--test-share", 0.25, "--set", "segmentation.steps=7") == 0
    text = capsys.readouterr().out
    assert "8 images or labels imported, 0 files left out." in text
    assert text.count("1 mm is assumed") == 1
    study = Study.open(folders / "study")
    assert [s.name for s in study.structures] == ["femur", "tibia"]
    assert study.config.segmentation.steps == 7
    assert study.config.preset == "quick"
    assert len(study.training_view().labelled_cases) == 2
    assert _new(folders) == 2
    assert "is a study already" in capsys.readouterr().err


def test_new_tells_another_program_by_events(folders: Path, capsys: pytest.CaptureFixture) -> None:
    assert _new(folders, "--events") == 0
    events = [Event.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert {"started", "progress", "log", "result"} == {e.kind for e in events}
    assert events[-1].data["imported"] == 8


def test_add_brings_labels_to_images_that_are_there(folders: Path, capsys: pytest.CaptureFixture) -> None:
    assert _new(folders, "--role", "train") == 0
    (folders / "labels" / "d0.png").rename(folders / "d2_seg.png")
    assert _run("add", folders / "study", "--source-labels", folders / "d2_seg.png") == 0
    assert Study.open(folders / "study").case("d2").label_use == "training"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--spacing", "0"), "above 0 mm"),
        (("--structures", "1=femur", "1=tibia"), "there twice"),
        (("--structures", "1=femur"), "known: 0 background, 1 femur"),
        (("--test-share", "1.5"), "shares"),
        (("--grid-size", "4"), "16 or more"),
        (("--set", "segmentation.stepz=1"), "did you mean 'steps'"),
        (("--source", "xray"), "two names"),
        (("--table", "nowhere.csv"), "no such list"),
    ],
)
def test_mistakes_in_new_leave_nothing_behind(
    folders: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(folders.iterdir())
    assert _new(folders, *more) == 2
    assert message in capsys.readouterr().err
    assert sorted(folders.iterdir()) == before


def test_settings_given_to_train_are_kept(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _new(folders) == 0
    asked: list[tuple] = []
    trains = SimpleNamespace(train=lambda *given: asked.append(given))
    monkeypatch.setitem(sys.modules, "SegGuidedMMRegLib.pipeline", trains)
    assert _run("train", folders / "study", "--set", "training.seed=5", "--stage", "segmentation") == 0
    study, stages, _ = asked[0]
    assert study.config.training.seed == Study.open(folders / "study").config.training.seed == 5
    assert list(stages) == ["segmentation"]


# -- info -----------------------------------------------------------------------------------------------
def test_info_names_versions_and_devices(capsys: pytest.CaptureFixture) -> None:
    _run("info")
    text = capsys.readouterr().out
    for word in ("Python", "torch", "monai", "icon_registration", "SimpleITK", "memory", "CPU cores"):
        assert word in text


def test_info_works_without_torch_and_says_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    missing = {"monai": "x"}

    def version(name: str) -> str:
        if name in missing:
            raise environment.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment.importlib.metadata, "version", version)
    facts = {f.name: f for f in environment.facts()}
    assert facts["monai"].remedy == "pip install monai"
    assert "torch is missing" in facts["device"].value
    assert "pip install torch" in str(facts["device"].remedy)


def test_info_lists_the_cases_of_a_study(folders: Path, capsys: pytest.CaptureFixture) -> None:
    _new(folders, "--mirrored-pattern", "3$")
    capsys.readouterr()
    assert _run("info", folders / "study") == 0
    text = capsys.readouterr().out
    assert "dxa/d3: " in text
    assert "mirrored" in text


# -- apply and export -----------------------------------------------------------------------------------
@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """A transform that takes fixed points 3 mm along x and -2 mm along y; moving image, labels and points."""
    from SegGuidedMMRegLib.fields import DisplacementField, SpatialTransform
    from SegGuidedMMRegLib.space import Grid
    from SegGuidedMMRegLib.transform_files import write_transform

    grid = Grid((30, 24, 1))
    for name, step in (("forward.h5", (3.0, -2.0, 0.0)), ("inverse.h5", (-3.0, 2.0, 0.0))):
        field = DisplacementField(grid, np.tile(np.array(step), (*grid.shape, 1)))
        write_transform(SpatialTransform(field), tmp_path / name)
    labels = np.zeros((24, 30), dtype=np.uint8)
    labels[8:14, 10:20] = 2
    for name, array in (
        ("moving.nrrd", labels * 100),
        ("labels.nrrd", labels),
        ("fixed.nrrd", labels * 0 + 1),
    ):
        sitk.WriteImage(sitk.GetImageFromArray(array[None]), str(tmp_path / name))
    (tmp_path / "points.csv").write_text("name,x,y,z\na,10,12,0\n")
    return tmp_path


def test_apply_resamples_the_moving_image_onto_the_fixed_one(shifted: Path) -> None:
    out = shifted / "new" / "warped.nrrd"
    given = ("apply", shifted / "forward.h5", shifted / "moving.nrrd", "--reference", shifted / "fixed.nrrd")
    assert _run(*given, "--out", out) == 0
    moving = sitk.ReadImage(str(shifted / "moving.nrrd"))
    shift = sitk.TranslationTransform(3, (3.0, -2.0, 0.0))
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, moving, shift))
    got = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    np.testing.assert_allclose(got[0, 4:20, 4:26], expected[0, 4:20, 4:26], atol=1e-3)
    assert expected[0, 10:15, 8:16].all()


def test_jacobian_writes_the_change_of_volume_and_counts_folds(shifted: Path) -> None:
    out = shifted / "change.nrrd"
    assert _run("jacobian", shifted / "forward.h5", out) == 0
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    np.testing.assert_allclose(values, 1.0, atol=1e-5)
    assert _run("jacobian", shifted / "forward.h5", out) != 0
    assert _run("jacobian", shifted / "forward.h5", out, "--overwrite") == 0


def test_apply_keeps_label_values_whole(shifted: Path) -> None:
    out = shifted / "warped.seg.nrrd"
    given = ("apply", shifted / "forward.h5", shifted / "labels.nrrd", "--reference", shifted / "fixed.nrrd")
    assert _run(*given, "--labels", "--out", out) == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(out))))) == {0, 2}


def test_apply_takes_fixed_points_to_the_moving_image_and_back(shifted: Path) -> None:
    assert (
        _run("apply", shifted / "forward.h5", shifted / "points.csv", "--out", shifted / "moved.mrk.json")
        == 0
    )
    assert (
        _run("apply", shifted / "inverse.h5", shifted / "moved.mrk.json", "--out", shifted / "back.csv") == 0
    )
    moved = json.loads((shifted / "moved.mrk.json").read_text())["markups"][0]
    position = np.array(moved["controlPoints"][0]["position"])
    expected = np.array([13.0, 10.0, 0.0]) * ([-1, -1, 1] if moved["coordinateSystem"] == "RAS" else 1)
    np.testing.assert_allclose(position, expected, atol=1e-3)
    from SegGuidedMMRegLib.points import read_points

    np.testing.assert_allclose(read_points(shifted / "back.csv").points_lps_mm, [[10, 12, 0]], atol=1e-3)


def test_apply_needs_a_reference_for_images_and_overwrites_only_on_request(
    shifted: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run("apply", shifted / "forward.h5", shifted / "moving.nrrd", "--out", shifted / "a.nrrd") == 2
    assert "--reference" in capsys.readouterr().err
    given = ("apply", shifted / "forward.h5", shifted / "points.csv", "--out", shifted / "points.csv")
    assert _run(*given) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert "10,12" in (shifted / "points.csv").read_text()
    assert _run(*given, "--overwrite") == 0
    assert "10,12" not in (shifted / "points.csv").read_text()


@pytest.mark.parametrize(("options", "outside"), [((), -1000), (("--outside", 5), 5)])
def test_apply_fills_with_air_where_a_ct_image_does_not_reach(
    shifted: Path, options: tuple[object, ...], outside: int
) -> None:
    moving = sitk.ReadImage(str(shifted / "moving.nrrd"))
    sitk.WriteImage(sitk.Cast(moving, sitk.sitkInt16) - 1000, str(shifted / "ct.nrrd"))
    onto = ("--reference", shifted / "fixed.nrrd", "--out", shifted / "warped.nrrd", *options)
    assert _run("apply", shifted / "forward.h5", shifted / "ct.nrrd", *onto) == 0
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(shifted / "warped.nrrd")))
    assert (warped[0, :2] == outside).all()
    assert (warped[0, :, -3:] == outside).all()
    assert warped[warped != outside].max() == -800


def test_apply_says_when_points_lie_outside(shifted: Path, capsys: pytest.CaptureFixture) -> None:
    (shifted / "points.csv").write_text("name,x,y,z\na,10,12,0\nb,900,12,0\n")
    assert _run("apply", shifted / "forward.h5", shifted / "points.csv", "--out", shifted / "moved.csv") == 0
    assert "1 of 2 points lie outside" in capsys.readouterr().out


def test_export_writes_other_formats_that_itk_reads_the_same(
    folders: Path, shifted: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _new(folders) == 0
    pair = folders / "study" / "registrations" / "d0--x0"
    failed = folders / "study" / "registrations" / "d1--x0"
    for folder, status in ((pair, "ok"), (failed, "failed")):
        folder.mkdir(parents=True)
        for name in ("forward.h5", "inverse.h5"):
            (folder / name).write_bytes((shifted / name).read_bytes())
        (folder / "report.json").write_text(
            json.dumps({"moving": "d0", "fixed": "x0", "status": status, "reasons": ["folds"]})
        )
        (folder / "warped_image.nrrd").write_bytes((shifted / "moving.nrrd").read_bytes())
    out = folders / "out"
    given = (
        "export",
        folders / "study",
        "--out",
        out,
        "--formats",
        ".nrrd",
        "nii.gz",
        "--volumes",
        ".nii.gz",
    )
    assert _run(*given) == 0
    assert "left out: d1--x0 failed: folds" in capsys.readouterr().out
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        f"d0--x0/{n}"
        for n in ("forward.nrrd", "forward.nii.gz", "inverse.nrrd", "inverse.nii.gz", "warped_image.nii.gz")
    }
    field = sitk.DisplacementFieldTransform(
        sitk.Cast(sitk.ReadImage(str(out / "d0--x0/forward.nrrd")), sitk.sitkVectorFloat64)
    )
    np.testing.assert_allclose(field.TransformPoint((10.0, 12.0, 0.0)), (13.0, 10.0, 0.0), atol=1e-3)
    assert _run(*given) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert _run("export", folders / "study", "d9--x9", "--out", out) == 2
    assert "no pair 'd9--x9'" in capsys.readouterr().err
