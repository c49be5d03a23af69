"""Files are whole or not there: errors, full disks, folders that are read-only, kills."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import save_file

from SegGuidedMMRegLib import files
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.files import (
    WriteError,
    append_line,
    atomic_path,
    read_json_lines,
    remove_temporaries,
    write_text_atomically,
)
from SegGuidedMMRegLib.images import Image, write_image
from SegGuidedMMRegLib.pace import Pace
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.transform_files import write_transform

LIMIT_BYTES = 40_000
NOISE = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)


def _image(path: Path) -> None:
    write_image(Image(NOISE, Grid((32, 32, 32), (1.0, 1.0, 1.0))), path)


def _transform(path: Path) -> None:
    field = np.random.default_rng(0).normal(size=(16, 16, 16, 3))
    grid = Grid((16, 16, 16), (1.0, 1.0, 1.0))
    write_transform(SpatialTransform(DisplacementField(grid, field), np.eye(4)), path)


def _weights(path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file({"weight": torch.zeros(LIMIT_BYTES)}, temporary)


def _checkpoint(path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save({"weight": torch.zeros(LIMIT_BYTES)}, temporary)


def _array(path: Path) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, NOISE)


def _text(path: Path) -> None:
    write_text_atomically(path, "x" * 2 * LIMIT_BYTES)


@pytest.fixture
def small_disk():
    """No file may grow beyond `LIMIT_BYTES`: to a writer that is a disk which fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.nrrd", _image),
        ("a.seg.nrrd", _image),
        ("a.nii", _image),
        ("a.nii.gz", _image),
        ("a.mha", _image),
        ("a.tfm", _transform),
        ("field.nii.gz", _transform),
        ("weights.safetensors", _weights),
        ("checkpoint.pt", _checkpoint),
        ("a.npy", _array),
        ("a.json", _text),
    ],
)
def test_a_disk_that_fills_up_is_named_and_leaves_the_old_file_whole(
    tmp_path: Path, small_disk: None, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises((WriteError, ValueError), match=r"(?s)disk is full|cannot be written") as told:
        write(path)
    assert str(path) in str(told.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_transform_is_begun_that_the_disk_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 24 * 16**3 - 1}))
    with pytest.raises(WriteError, match=r"t\.h5 could not be written: the disk is full"):
        _transform(tmp_path / "t.h5")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_recognised_when_the_writer_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(WriteError, match="the disk is full"), atomic_path(tmp_path / "a"):
        raise RuntimeError("unexpected position")


def test_a_folder_that_is_read_only_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with (
        pytest.raises(WriteError, match=r"a\.json could not be written .* Allow writing to"),
        atomic_path(path),
    ):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("refusals", [2, 99])
def test_a_file_that_is_looked_at_gets_its_name_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """As on Windows, where a virus scanner has what is new open for a while."""
    asked: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        asked.append(source)
        if len(asked) <= refusals:
            raise PermissionError(13, "Access is denied")
        source.rename(target)

    monkeypatch.setattr(files, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "a.json"
    if refusals == 2:
        files.write_text_atomically(path, "{}")
        assert path.read_text() == "{}"
    else:
        with pytest.raises(WriteError, match=r"a\.json could not be written"):
            files.write_text_atomically(path, "{}")
        assert len(asked) == 4
        assert not list(tmp_path.iterdir())


def test_a_real_read_only_folder_keeps_its_file() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.json").write_text("old")
        folder.chmod(0o555)
        if (child := os.fork()) == 0:
            if os.getuid() == 0:
                os.setuid(65534)  # to root no folder is read-only
            try:
                write_text_atomically(folder / "a.json", "new")
            except WriteError as error:
                os._exit(7 if "Allow writing to" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        folder.chmod(0o755)
        assert (folder / "a.json").read_text() == "old"


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    if (child := os.fork()) == 0:
        with atomic_path(path) as temporary:
            if moment != "before":
                temporary.write_text("new")
            if moment != "after":
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_text() == ("new" if moment == "after" else "old")
    left = {"before": 0, "while": 1, "after": 0}[moment]
    assert len(remove_temporaries(tmp_path, older_than_s=0)) == left
    assert list(tmp_path.iterdir()) == [path]


def test_only_old_temporaries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    old, young, other = (tmp_path / n for n in (".01234567-a.nrrd", ".89abcdef-a.nrrd", ".0123-mine"))
    ahead = tmp_path / ".11111111-b"
    for path in (old, young, other, ahead):
        path.write_text("x")
    os.utime(old, (1e9, 1e9))
    os.utime(ahead, (4e9, 4e9))
    assert set(remove_temporaries(tmp_path, older_than_s=3600)) == {old, ahead}
    assert {*tmp_path.iterdir()} == {young, other}


def test_a_half_last_line_harms_neither_what_is_added_nor_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, json.dumps({"step": 1}))
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    append_line(path, json.dumps({"step": 3}))
    with path.open("ab") as file:
        file.write(b"\0\0\xff\n[1]\n")
    assert [record["step"] for record in read_json_lines(path)] == [1, 3]


def test_saving_never_takes_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("SegGuidedMMRegLib.pace.time.monotonic", lambda: now)
    pace, spent, saves = Pace(60, 0.02), 0.0, []
    while now < 20_000:
        now += 1.0
        if pace.is_due():
            with pace.saving():
                saves.append(now)
                cost = 5.0 if now < 10_000 else 0.1
                now, spent = now + cost, spent + cost
    assert spent / now <= 0.02
    gaps = np.diff(saves)
    assert gaps[1] == pytest.approx(250, abs=2)
    assert gaps[-1] == pytest.approx(60, abs=2)


def test_simpleitk_reads_what_was_checked_after_writing(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        _image(tmp_path / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), NOISE)
