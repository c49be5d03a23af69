"""Files that want more than to be read: code, memory, places outside the study, the reader of a report."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from reported_study import make_reported_study

import SegGuidedMMRegLib
from SegGuidedMMRegLib.config import TrainingConfig, preset
from SegGuidedMMRegLib.documents import LARGEST_TEXT, DocumentError, parse_yaml, read_text
from SegGuidedMMRegLib.evaluation import evaluate
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import Image, ImageError, read_image, write_image, write_labels
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.sources import from_folders
from SegGuidedMMRegLib.jobs.summary import write_summary
from SegGuidedMMRegLib.pair_report_file import failed_report, write_pair_report
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Role, Structure, Study, StudyError
from SegGuidedMMRegLib.training.checkpoints import Checkpoints
from SegGuidedMMRegLib.transform_files import TransformFileError, read_transform

PACKAGE = Path(SegGuidedMMRegLib.__file__).parent

# -- no code --------------------------------------------------------------------------------------------
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "os.system",
    "os.popen",
}
FORBIDDEN_MODULES = {
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "requests",
    "urllib",
    "http",
    "socketserver",
    "ftplib",
}
ALLOWED = {("pool.py", "pickle.loads")}
"""An error that this process has just pickled, to see whether its parent can read it."""
ONLY_IN_DOCUMENTS = {"json.loads", "json.load", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader"}


def modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[str, str, dict[str, object]]]:
    """File, what is called, and its named arguments of every call in the library."""
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords if k.arg}
                yield name, ast.unparse(node.func), given


def test_the_library_calls_nothing_that_runs_what_is_in_a_file() -> None:
    for name, called, given in calls():
        assert called not in FORBIDDEN_CALLS or (name, called) in ALLOWED, f"{name} calls {called}"
        assert given.get("shell") is not True, f"{name} gives {called} a shell"
        if called == "torch.load":
            assert given.get("weights_only") is True, name
        if called == "np.load":
            assert given.get("allow_pickle") is False, name
        if called in ONLY_IN_DOCUMENTS:
            assert name == "documents.py", (
                f"{name} calls {called}: use documents.py, which bounds what it reads"
            )


def test_the_library_imports_nothing_that_unpickles_or_calls_home() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {f.partition(".")[0] for f in found} & FORBIDDEN_MODULES, f"{name} imports {found}"


class _Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", TrainingConfig())
    for content in (pickle.dumps(_Attack(tmp_path / "owned")), None):
        if content is None:
            torch.save({"fingerprint": "f", "step": _Attack(tmp_path / "owned")}, checkpoints.path)
        else:
            checkpoints.path.write_bytes(content)
        told: list[str] = []
        assert checkpoints.read(told.append) is None
        assert "starts afresh" in told[0]
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "a: &a [x]\nb: *a",
        "a: " + "[" * 70 + "]" * 70,
        "- " * 100_000,
        "a: 1\na: 2",
    ],
)
def test_yaml_with_tags_aliases_double_entries_or_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="where: not readable as YAML"):
        parse_yaml(text, "where")


def test_a_text_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_TEXT + 1)  # sparse
    with pytest.raises(DocumentError, match=r"study\.yaml: is larger than 64 MiB"):
        read_text(path)


# -- no room --------------------------------------------------------------------------------------------
def _nrrd(path: Path, size: str) -> None:
    lines = ["NRRD0004", "type: short", "dimension: 3", f"sizes: {size}", "encoding: gzip", "endian: little"]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + gzip.compress(bytes(1000)))


def _nifti(path: Path, size: tuple[int, int, int]) -> None:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(header) + bytes(1000)))


def _mha(path: Path, size: str) -> None:
    path.write_bytes(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {size}\nElementType = MET_FLOAT\n"
        "ElementDataFile = LOCAL\n".encode()
        + bytes(1000)
    )


def _png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", width, height, 16, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def _h5(path: Path, size: float, held: int, **storage: object) -> h5py.File:
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup/0")
        text = h5py.string_dtype("ascii")
        group.create_dataset("TransformType", data=["DisplacementFieldTransform_double_3_3"], dtype=text)
        fixed = [size, size, size, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        group.create_dataset("TransformFixedParameters", data=np.asarray(fixed, dtype=float))
        group.create_dataset("TransformParameters", shape=(held,), dtype="f8", **storage)


def _tfm(path: Path, size: str) -> None:
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: DisplacementFieldTransform_double_3_3\n"
        f"Parameters: 0 0 0\nFixedParameters: {size} 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n"
    )


BOMBS = {
    "a.nrrd": lambda p: _nrrd(p, "10000 10000 10000"),
    "b.nrrd": lambda p: _nrrd(p, "1000 1000 1000"),
    "a.nii.gz": lambda p: _nifti(p, (30000, 30000, 1100)),
    "b.nii.gz": lambda p: _nifti(p, (1000, 1000, 1000)),
    "a.mha": lambda p: _mha(p, "10000 10000 10000"),
    "b.mha": lambda p: _mha(p, "900 900 900"),
    "a.png": lambda p: _png(p, 2**31 - 1, 2**31 - 1),
    "b.png": lambda p: _png(p, 40_000, 40_000),
    "a.h5": lambda p: _h5(p, 1e4, 3),
    "b.h5": lambda p: _h5(p, 500.0, 3 * 500**3, chunks=(1000,)),
    "a.tfm": lambda p: _tfm(p, "10000 10000 10000"),
}
_READ = """
import resource, sys
from pathlib import Path
import h5py
from SegGuidedMMRegLib.images import read_image
from SegGuidedMMRegLib.transform_files import read_transform
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        (read_transform if name.endswith((".h5", ".tfm")) else read_image)(Path(name))
    except ValueError as error:
        print(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{name} took {grown} kB"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="counts memory as POSIX does")
def test_headers_that_claim_more_than_the_file_holds_are_refused_before_room_is_made(tmp_path: Path) -> None:
    for name, write in BOMBS.items():
        write(tmp_path / name)
    paths = [str(tmp_path / name) for name in BOMBS]
    done = subprocess.run([sys.executable, "-c", _READ, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in refusals] == paths
    for path, line in zip(paths, refusals, strict=True):
        assert "it holds" in line or "is cut off" in line or path.endswith("a.png"), line


def test_a_study_grid_or_field_of_any_size_is_refused(tmp_path: Path) -> None:
    study = Study.create(
        tmp_path / "study",
        name="s",
        dimension=3,
        source="a",
        target="b",
        structures=[Structure(1, "femur", (1, 2, 3))],
    )
    record = yaml.safe_load((study.folder / "study.yaml").read_text())
    record["grid"] = {"size": [10**6, 10**6, 10**6], "spacing_mm": [1.0, 1.0, 1.0]}
    (study.folder / "study.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(StudyError, match=r"study\.yaml: the study grid has 1000000 x .* more than"):
        Study.open(study.folder)


# -- no other place -------------------------------------------------------------------------------------
def test_an_image_whose_voxels_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(100)))
    lines = ["NRRD0004", "type: uchar", "dimension: 2", "sizes: 10 10", "encoding: raw"]
    inside = tmp_path / "in"
    inside.mkdir()
    for name, place in (("a.nrrd", "secret.raw"), ("a.nhdr", str(secret)), ("b.nhdr", "../secret.raw")):
        (inside / name).write_text("\n".join([*lines, f"data file: {place}"]) + "\n")
        with pytest.raises(ImageError, match="keeps its voxels in"):
            read_image(inside / name)
    (inside / "a.mha").write_text(
        f"NDims = 2\nDimSize = 10 10\nElementType = MET_UCHAR\nElementDataFile = {secret}\n"
    )
    with pytest.raises(ImageError, match="keeps its voxels in"):
        read_image(inside / "a.mha")
    (inside / "secret.raw").write_bytes(secret.read_bytes())
    (inside / "c.nhdr").write_text("\n".join([*lines, "data file: secret.raw"]) + "\n")
    assert read_image(inside / "c.nhdr").array.max() == 99


def test_a_transform_whose_numbers_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(24 * 8))
    _h5(tmp_path / "a.h5", 2.0, 24, external=[(str(tmp_path / "secret"), 0, 24 * 8)])
    with pytest.raises(TransformFileError, match=r"a\.h5: keeps its numbers in another file"):
        read_transform(tmp_path / "a.h5")
    _h5(tmp_path / "other.h5", 2.0, 24)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["TransformGroup"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/TransformGroup")
    with pytest.raises(TransformFileError, match=r"b\.h5: TransformGroup is missing or a link"):
        read_transform(tmp_path / "b.h5")


@pytest.fixture
def small(tmp_path: Path) -> Study:
    case = Case("s1", "dxa", "p1", Role.TRAIN, False, "images/dxa/s1.nrrd")
    study = Study.create(
        tmp_path / "study",
        name="knees",
        dimension=2,
        source="dxa",
        target="xray",
        structures=[Structure(1, "femur", (1, 2, 3))],
        grid=Grid.centred((32, 32, 1), (1.0, 1.0, 1.0)),
        cases=[case],
    )
    pixels = np.random.default_rng(0).random((8, 6)).astype(np.float32)
    write_image(Image(pixels, Grid((6, 8, 1))), study.folder / case.image)
    return study


@pytest.mark.parametrize(
    "link", ["models", "models/segmentation", "predictions/dxa", "registrations", "a.txt"]
)
def test_a_study_with_a_link_that_leads_out_of_it_does_not_open(
    small: Study, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = small.folder / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(StudyError, match="is a link that leads out of the study folder"):
        Study.open(small.folder)
    path.unlink()
    (small.folder / "kept here").mkdir()
    path.symlink_to(small.folder / "kept here")
    assert Study.open(small.folder).cases


def test_links_that_lead_to_themselves_are_named(small: Study) -> None:
    path = small.folder / small.cases[0].image
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StudyError, match=r"s1\.nrrd can't be followed"):
        small.read_image(small.cases[0])


def test_an_image_of_a_study_is_one_file(small: Study) -> None:
    folder = small.folder / "images/dxa/series"
    folder.mkdir()
    with pytest.raises(StudyError, match="one file each"):
        small.read_image(replace(small.cases[0], image="images/dxa/series"))
    with pytest.raises(StudyError, match="one file each"):
        small.read_image(replace(small.cases[0], image="images/dxa/s1.nhdr"))


# -- the page -------------------------------------------------------------------------------------------
def test_names_in_the_report_page_are_text_and_no_markup(tmp_path: Path) -> None:
    study = make_reported_study(tmp_path / "study")
    attack = "<script>alert(1)</script>"
    for path in sorted(study.folder.glob("registrations/*/report.json")):
        report = json.loads(path.read_text())
        report |= {"status": "failed", "reasons": [attack], "warnings": [attack], "moving_modality": attack}
        path.write_text(json.dumps(report))
    adapted = study.stage_folder("adaptation") / "adaptation.json"
    adapted.write_text(
        json.dumps({"method": attack, "kept": attack, "collapsed": [attack], "remedy": attack})
    )
    renamed = [replace(c, original=attack, subject=f"{attack}{c.name}") for c in study.cases]
    study = replace(study.with_cases(renamed), name="R&D 'left'")
    page = write_report(study, Reporter()).read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert attack not in page
    assert "<h1>R&amp;D &#39;left&#39;</h1>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize("name", ["=1+1", "-2", "+3", "@SUM(A1)"])
def test_a_name_is_no_formula_to_a_spreadsheet(tmp_path: Path, name: str) -> None:
    """In every table that is written for people; a number that is less than 0 stays one."""
    for modality in ("dxa", "radiograph"):
        for stem in (name, f"{name}b"):
            path = tmp_path / modality / f"{stem}.nrrd"
            write_image(Image(np.eye(16, dtype=np.float32), Grid.centred((16, 16, 1), (1.0, 1.0, 1.0))), path)
    found = [c for m in ("dxa", "radiograph") for c in from_folders(m, [tmp_path / m]).candidates]
    parts = {
        "name": "s",
        "source": "dxa",
        "target": "radiograph",
        "structures": [Structure(1, "a", (9, 9, 9))],
    }
    study, _ = new_study(tmp_path / "study", found, **parts, config=preset("quick"))
    for case in study.cases:
        path = study.folder / f"labels/{case.modality}/{case.name}.seg.nrrd"
        labels = Image(np.eye(16, dtype=np.uint8), study.read_image(case).grid)
        write_labels(labels, study.structures, path)
        write_labels(labels, study.structures, study.prediction_path(case))
    cases = [
        replace(c, label=f"labels/{c.modality}/{c.name}.seg.nrrd", label_use="evaluation", role=Role.TEST)
        for c in study.cases
    ]
    study = study.with_cases(cases)
    pair = failed_report(name, name, name)
    write_pair_report({**pair, "seconds": -1.5}, study.folder / "registrations" / "a--b")
    tables = [write_summary(study), study.folder / "import.csv", study.folder / "evaluation.csv"]
    evaluate(study)
    for path in tables:
        cells = [cell for line in csv.reader(path.open(encoding="utf-8", newline="")) for cell in line]
        assert f"'{name}" in cells or path.name == "import.csv", path
        assert not [c for c in cells if c.startswith(("=", "+", "-", "@")) and c != "-1.5"], path
    assert "-1.5" in tables[0].read_text(encoding="utf-8").split(",")


def test_an_image_of_a_kind_that_is_not_known_is_not_shown_to_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.vtk"
    sitk.WriteImage(sitk.Image(4, 4, sitk.sitkUInt8), str(path))
    with pytest.raises(ImageError, match="no known kind"):
        read_image(path)
