"""Files, folders and names that are not what they should be: one message, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_images import CR, write_dicom

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.fields import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.images import ImageError, read_image
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.labels import parse_structures
from SegGuidedMMRegLib.importing.sources import clean_name, from_folders
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.transform_files import write_transform


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def says(capsys):
    """Runs a command and gives its exit code and what it printed."""

    def command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run(*arguments)
        heard = capsys.readouterr()
        assert "Traceback" not in heard.err + heard.out
        return code, heard.err if code else heard.out

    return command


def picture(path: Path, seed: int = 0, shape: tuple[int, ...] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def labels(path: Path, values: tuple[int, ...] = (1, 2)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((20, 16), dtype=np.uint8)
    for n, value in enumerate(values):
        array[4 + 6 * n : 8 + 6 * n, 3:12] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for n in range(4):
        picture(tmp_path / "dxa" / f"d{n}.nrrd", n)
        picture(tmp_path / "xray" / f"x{n}.nrrd", 9 + n)
    for n in range(2):
        labels(tmp_path / "labels" / f"d{n}.nrrd")
    return tmp_path


def new(folders: Path, *more: object) -> tuple[object, ...]:
    given = ("--source", "dxa", "--source-images", folders / "dxa", "--source-labels", folders / "labels")
    given += ("--target", "xray", "--target-images", folders / "xray")
    return ("new", folders / "study", *given, "--structures", "1=femur", "2=tibia", *more)


# -- cut-off files --------------------------------------------------------------------------------------
def _volume(path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 2000, (6, 20, 16)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    return path


def _radiograph(path: Path) -> Path:
    write_dicom(path, np.random.default_rng(0).integers(0, 99, (20, 16)).astype(np.uint16), CR, "1.2.3")
    return path


CUT = {
    "a.nrrd": _volume,
    "a.nii.gz": _volume,
    "a.nii": _volume,
    "a.mha": _volume,
    "a.gipl": _volume,
    "a.dcm": _radiograph,
    **dict.fromkeys(("a.png", "a.tif", "a.jpg", "a.bmp"), picture),
}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", CUT)
def test_an_image_that_is_cut_off_is_refused_whatever_its_format(
    tmp_path: Path, name: str, share: float
) -> None:
    path = CUT[name](tmp_path / name)
    assert read_image(path).array.size
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError) as told:
        read_image(path)
    message = str(told.value)
    assert message.startswith(str(path))
    assert any(word in message for word in ("cut off", "cannot be read as an image", "0 bytes", "damaged"))
    assert "0x" not in message


def test_a_cut_off_image_is_left_out_of_a_study_and_the_others_come_in(folders: Path, says) -> None:
    path = folders / "dxa" / "d3.nii.gz"
    (folders / "dxa" / "d3.nrrd").unlink()
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).random((20, 16))), str(path))
    path.write_bytes(path.read_bytes()[:-200])
    code, told = says(*new(folders))
    assert code == 0
    assert f"left out: {path}: is cut off" in told
    assert len(Study.open(folders / "study").cases) == 7


# -- files and folders in each other's place ------------------------------------------------------------
def test_what_is_no_file_is_left_out_by_name(folders: Path, says) -> None:
    (folders / "dxa" / "folder.nrrd").mkdir()
    (folders / "dxa" / "empty.nrrd").touch()
    (folders / "dxa" / "loop.nrrd").symlink_to(folders / "dxa" / "loop.nrrd")
    (folders / "dxa" / "gone.nrrd").symlink_to(folders / "nowhere.nrrd")
    os.mkfifo(folders / "dxa" / "pipe.nrrd")
    code, told = says(*new(folders))
    assert code == 0
    for name in ("folder.nrrd", "empty.nrrd", "loop.nrrd", "gone.nrrd", "pipe.nrrd"):
        assert any(name in line for line in told.splitlines() if line.startswith("left out")), name
    assert len(Study.open(folders / "study").cases) == 8


@pytest.mark.parametrize("what", ["empty folder", "no such folder", "file with nothing", "loop"])
def test_images_that_are_not_there_make_no_study(folders: Path, says, what: str) -> None:
    shutil.rmtree(folders / "dxa")
    if what == "empty folder":
        (folders / "dxa").mkdir()
        shutil.rmtree(folders / "labels")
        (folders / "labels").mkdir()
    if what == "file with nothing":
        (folders / "dxa").touch()
    if what == "loop":
        (folders / "dxa").symlink_to(folders / "dxa")
    code, told = says(*new(folders))
    if what in ("empty folder", "file with nothing"):  # the other modality is there
        assert code == 0
        assert "no dxa image" in told
        assert what == "empty folder" or f"left out: {folders / 'dxa'}: is empty, 0 bytes" in told
        return
    assert code == 2
    assert str(folders / "dxa") in told
    assert not (folders / "study").exists()


def test_a_study_that_is_a_file_or_a_folder_in_place_of_its_file_is_named(folders: Path, says) -> None:
    (folders / "file").write_text("hello")
    code, told = says("info", folders / "file")
    assert code == 2
    assert "not a study" in told
    (folders / "odd" / "study.yaml").mkdir(parents=True)
    code, told = says("info", folders / "odd")
    assert code == 2
    assert "study.yaml" in told


# -- names ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "a..b",
        "CON",
        "nul.x",
        "x" * 200,
        "a\u202eb",
        "a\tb",
        "a'b",
        "a;b",
        "$(touch x)",
        "`x`",
        "%s{0}",
        "=1+1",
    ],
)
def test_a_file_of_any_name_becomes_a_case_that_opens_again(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "in" / f"{name}.png")
    found = from_folders("dxa", [tmp_path / "in"])
    from SegGuidedMMRegLib.config import preset

    study, _ = new_study(
        tmp_path / "study",
        found.candidates,
        name="s",
        source="dxa",
        target="xray",
        structures=parse_structures(["1=femur"]),
        config=preset("quick"),
    )
    (case,) = Study.open(study.folder).cases
    assert case.name == clean_name(name)
    path = (study.folder / case.image).resolve()
    assert path.parent == (study.folder / "images" / "dxa").resolve()
    assert path.is_file()
    assert study.read_image(case).array.shape == (20, 16)


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/x", "C:x", "CON", "com1", "aux.png", "x" * 300])
def test_a_modality_or_structure_of_a_name_that_no_system_can_hold_is_refused(
    folders: Path, says, name: str
) -> None:
    given = ("--source-images", folders / "dxa", "--structures", "1=femur")
    code, told = says("new", folders / "study", "--source", name, *given)
    assert code == 2
    assert "can't be used as a name" in told
    code, told = says(*new(folders)[:-2], f"2={name}")
    assert code == 2
    assert "name" in told.lower()
    assert not (folders / "study").exists()


# -- transforms of something else -----------------------------------------------------------------------
@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """An image, another far away, and the transform that belongs to the first."""
    near = picture(tmp_path / "near.nrrd")
    far = sitk.ReadImage(str(picture(tmp_path / "far.nrrd", 1)))
    far.SetOrigin((500.0, 500.0))
    sitk.WriteImage(far, str(tmp_path / "far.nrrd"))
    grid = read_image(near).grid
    u = np.zeros((*grid.shape, 3))
    u[..., 0] = 2.0
    write_transform(SpatialTransform(DisplacementField(grid, u)), tmp_path / "forward.h5")
    return tmp_path


def apply(folder: Path, image: str, reference: str, out: str = "out.nrrd") -> tuple[object, ...]:
    where = ("--reference", folder / reference, "--out", folder / out)
    return ("apply", folder / "forward.h5", folder / image, *where)


def test_a_transform_of_another_image_is_refused(moved: Path, says) -> None:
    assert says(*apply(moved, "near.nrrd", "near.nrrd"))[0] == 0
    code, told = says(*apply(moved, "far.nrrd", "near.nrrd", "other.nrrd"))
    assert code == 2
    assert "far.nrrd: the transform takes no voxel of the reference into this image" in told
    assert not (moved / "other.nrrd").exists()


def test_a_reference_that_the_transform_hardly_knows_is_told(moved: Path, says) -> None:
    image = sitk.ReadImage(str(moved / "near.nrrd"))
    image.SetOrigin((0.0, 14.0))
    sitk.WriteImage(image, str(moved / "beside.nrrd"))
    code, told = says(*apply(moved, "near.nrrd", "beside.nrrd"))
    assert code == 0
    assert "of the same pair?" in told
    assert "of the reference lies in the image" in told
    assert "field covers only" in told
    assert "same pair" not in says(*apply(moved, "near.nrrd", "near.nrrd", "again.nrrd"))[1]


def test_a_finer_export_than_memory_allows_is_refused(moved: Path) -> None:
    from SegGuidedMMRegLib.transform_files import read_transform

    with pytest.raises(ValueError, match="Give a larger one"):
        write_transform(read_transform(moved / "forward.h5"), moved / "x.nrrd", spacing_mm=1e-4)
    assert not (moved / "x.nrrd").exists()


def test_a_grid_that_no_machine_holds_is_refused(folders: Path, says) -> None:
    code, told = says(*new(folders, "--grid-spacing", "0.0001"))
    assert code == 2
    assert "Choose a coarser one" in told
    assert not (folders / "study").exists()


@pytest.mark.parametrize("spacing", ["0", "-1", "nan", "inf"])
def test_a_spacing_that_is_none_is_refused(folders: Path, says, spacing: str) -> None:
    for path in folders.rglob("*.nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_suffix(".png")))
        path.unlink()
    code, told = says(*new(folders, f"--spacing={spacing}"))
    assert code == 2
    assert "above 0 mm" in told


@pytest.mark.parametrize("spacing", ["0.0", "nan"])
def test_a_file_that_says_no_spacing_is_refused_by_name(tmp_path: Path, spacing: str) -> None:
    path = tmp_path / "a.nrrd"
    lines = ["NRRD0004", "type: uchar", "dimension: 2", "space dimension: 2", "sizes: 16 20", "encoding: raw"]
    lines += [f"space directions: ({spacing},0) (0,{spacing})", "space origin: (0,0)"]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + bytes(range(256)) + bytes(64))
    with pytest.raises(ImageError, match=r"a\.nrrd"):
        read_image(path)
