"""The same images on other grids and in other places give the same map in physical space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import rotation
from trained_study import (
    SOURCE,
    TARGET,
    Finished,
    moved_by,
    three_dimensional,
    values,
    voxel_centres,
)

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.importing.labels import read_matching_labels
from SegGuidedMMRegLib.jobs import Given, register_files
from SegGuidedMMRegLib.samples import Sample

pytestmark = pytest.mark.xdist_group("trained")

Copy = Callable[[sitk.Image, int], sitk.Image]


# -- copies of an image (`interpolator` for resampling) ---------------------------------------------------
def flipped(image: sitk.Image, _interpolator: int, axis: int = 0) -> sitk.Image:
    """The same voxels counted from the other end of an axis: a left-handed grid, the same physical image."""
    last = [0, 0, 0]
    last[axis] = image.GetSize()[axis] - 1
    direction = np.reshape(image.GetDirection(), (3, 3)).copy()
    direction[:, axis] *= -1
    copied = sitk.GetImageFromArray(np.flip(sitk.GetArrayFromImage(image), axis=2 - axis).copy())
    copied.SetSpacing(image.GetSpacing())
    copied.SetOrigin(image.TransformIndexToPhysicalPoint(last))
    copied.SetDirection(direction.ravel().tolist())
    return copied


def permuted(image: sitk.Image, _interpolator: int) -> sitk.Image:
    """Rows and columns swapped: left-handed again, the same physical image."""
    return sitk.PermuteAxes(image, [1, 0, 2])


def placed_by(matrix: np.ndarray) -> Copy:
    """The image carried through space by a rigid 4x4 matrix; its voxels stay."""

    def copy(image: sitk.Image, _interpolator: int) -> sitk.Image:
        copied = sitk.Image(image)
        copied.SetOrigin((matrix[:3, :3] @ image.GetOrigin() + matrix[:3, 3]).tolist())
        copied.SetDirection((matrix[:3, :3] @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
        return copied

    return copy


def resampled(turn: np.ndarray, spacing: tuple[float, float, float], margin: float = 1.25) -> Copy:
    """The same physical image on an oblique, anisotropic and left-handed grid that covers it."""

    def copy(image: sitk.Image, interpolator: int) -> sitk.Image:
        direction = np.reshape(image.GetDirection(), (3, 3)) @ turn @ np.diag([1.0, -1.0, 1.0])
        centre = np.asarray(
            image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        )
        flat = image.GetSize()[2] == 1
        step = np.array([*spacing[:2], image.GetSpacing()[2] if flat else spacing[2]])
        extent = np.array(image.GetSize()) * image.GetSpacing() * margin
        size = np.array(
            [*np.ceil(extent[:2] / step[:2]), 1 if flat else np.ceil(extent[2] / step[2])], dtype=int
        )
        onto = sitk.Image(size.tolist(), image.GetPixelID())
        onto.SetSpacing(step.tolist())
        onto.SetDirection(direction.ravel().tolist())
        onto.SetOrigin((centre - direction @ ((size - 1) / 2 * step)).tolist())
        return sitk.Resample(image, onto, sitk.Transform(), interpolator)

    return copy


def rigid(turn: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift
    return matrix


HERE = np.eye(4)
ELSEWHERE = rigid(np.eye(3), (140.0, -300.0, 95.0))
# Picture right stays the patient's left, picture down are the feet: how a coronal slice is shown.
CORONAL = rigid(np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), (30.0, 80.0, -500.0))


@dataclass(frozen=True)
class Variant:
    """How the moving or the fixed image is copied, and where its points come to lie."""

    copy: Copy
    place: np.ndarray = field(default_factory=lambda: HERE)
    tolerance_mm: float = 0.05


EXACT = {
    "left-handed": Variant(flipped),
    "rows for columns": Variant(permuted),
    "elsewhere": Variant(placed_by(ELSEWHERE), ELSEWHERE),
}
VARIANTS_2D = {
    **EXACT,
    "coronal": Variant(placed_by(CORONAL), CORONAL),
    "oblique, anisotropic": Variant(resampled(rotation(0, 0, 0.3), (2.1, 3.2, 1.0)), HERE, 1.0),
}
VARIANTS_3D = {
    **EXACT,
    "oblique, anisotropic": Variant(resampled(rotation(0.2, -0.15, 0.3), (4.2, 5.0, 6.5)), HERE, 2.5),
}


class Bench:
    """Registers copies of one pair of a study, by its true labels."""

    def __init__(self, finished: Finished, folder: Path) -> None:
        self.finished, self.folder = finished, folder
        study = finished.study
        self.names = {m: study.cases_of(m, "test")[0].name for m in (SOURCE, TARGET)}
        self.plain = self.register("plain", {})

    def original(self, what: str, modality: str) -> sitk.Image:
        """An image or its labels; pictures with a margin of zeros, as on an oblique grid."""
        image = three_dimensional(self.finished.file(what, modality, self.names[modality]))
        return sitk.ConstantPad(image, [14, 14, 0], [14, 14, 0]) if image.GetSize()[2] == 1 else image

    def register(self, name: str, copies: dict[str, Variant], mirrored: str | None = None) -> Path:
        """Folder of the registration of the copies (by modality) of the two images."""
        sides, labels = [], []
        for modality in (SOURCE, TARGET):
            paths = []
            for what, interpolator in (("images", sitk.sitkLinear), ("labels", sitk.sitkNearestNeighbor)):
                image = self.original(what, modality)
                if modality in copies:
                    image = copies[modality].copy(image, interpolator)
                paths.append(self.folder / name / f"{modality}_{what}.nrrd")
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(image, str(paths[-1]))
            study = self.finished.study
            side = Sample.of_file(study, paths[0], modality, mirrored=modality == mirrored)
            sides.append(side)
            labels.append(read_matching_labels(paths[1], side.image, study.structures))
        out = self.folder / name / "result"
        report = register_files(study, *sides, out, given=Given(labels[0], labels[1]))
        assert report["status"] == "ok", report["reasons"]
        return out

    def points(self) -> np.ndarray:
        """Points of the fixed image inside its structures, LPS mm."""
        labels = self.original("labels", TARGET)
        inside = voxel_centres(labels)[values(labels).ravel() > 0]
        return inside[:: max(1, len(inside) // 300)]

    def compare(self, name: str, copies: dict[str, Variant]) -> np.ndarray:
        """How far (mm) the map between the copies differs from that between the originals, for each point."""
        folder = self.register(name, copies)
        place = {m: copies[m].place if m in copies else HERE for m in (SOURCE, TARGET)}
        start = self.points()
        expected = through(place[SOURCE], moved_by(forward(self.plain), start))
        return np.linalg.norm(moved_by(forward(folder), through(place[TARGET], start)) - expected, axis=1)


def forward(folder: Path) -> sitk.Transform:
    return sitk.ReadTransform(str(folder / "forward.h5"))


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(scope="module")
def bench(finished, tmp_path_factory) -> Bench:
    return Bench(finished, tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module")
def bench_3d(finished_3d, tmp_path_factory) -> Bench:
    return Bench(finished_3d, tmp_path_factory.mktemp("space_3d"))


@pytest.mark.parametrize("which", [SOURCE, TARGET])
@pytest.mark.parametrize("name", VARIANTS_2D)
def test_a_picture_on_another_grid_is_mapped_the_same(bench, name, which):
    variant = VARIANTS_2D[name]
    off = bench.compare(f"{name} {which}", {which: variant})
    assert off.mean() < variant.tolerance_mm


def test_two_pictures_on_other_grids_are_mapped_the_same(bench):
    copies = {SOURCE: VARIANTS_2D["coronal"], TARGET: VARIANTS_2D["oblique, anisotropic"]}
    assert bench.compare("both", copies).mean() < 1.0


def test_a_mirrored_picture_is_mapped_to_the_mirror_image(bench):
    image = bench.original("images", SOURCE)
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    reflection = np.diag([-1.0, 1.0, 1.0, 1.0])
    reflection[0, 3] = 2 * centre[0]

    def other_side(picture: sitk.Image, _interpolator: int) -> sitk.Image:
        turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(picture)[..., ::-1].copy())
        turned.CopyInformation(picture)
        return turned

    folder = bench.register("mirrored", {SOURCE: Variant(other_side)}, mirrored=SOURCE)
    start = bench.points()
    expected = through(reflection, moved_by(forward(bench.plain), start))
    assert np.linalg.norm(moved_by(forward(folder), start) - expected, axis=1).mean() < 0.05


# -- pictures that do not know their size ---------------------------------------------------------------
def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def png(finished, tmp_path) -> tuple[Path, Path]:
    """A picture of 16 bit that has no spacing, and the same as a NIfTI file that has."""
    case = finished.study.cases_of(TARGET, "test")[0]
    image = sitk.ReadImage(str(finished.file("images", TARGET, case.name)))
    whole = sitk.Cast(sitk.RescaleIntensity(image, 0, 60000), sitk.sitkUInt16)
    paths = tmp_path / "knee.nii.gz", tmp_path / "knee.png"
    sitk.WriteImage(whole, str(paths[0]))
    bare = sitk.GetImageFromArray(sitk.GetArrayFromImage(whole))
    sitk.WriteImage(bare, str(paths[1]))
    return paths


def test_a_png_with_its_spacing_given_is_segmented_like_a_file_that_knows_it(finished, png, tmp_path, capsys):
    spacing = sitk.ReadImage(str(png[0])).GetSpacing()[0]
    segment = ("segment", finished.study.folder)
    for path, out, more in ((png[0], "a", ()), (png[1], "b", ("--spacing", spacing))):
        assert run(*segment, path, "--modality", TARGET, "--out", tmp_path / out, *more) == 0
    assert "1 mm is assumed" not in capsys.readouterr().out
    first, second = (sitk.ReadImage(str(tmp_path / out / "knee.seg.nrrd")) for out in ("a", "b"))
    np.testing.assert_allclose(second.GetSpacing()[:2], first.GetSpacing()[:2])
    assert (values(first) != values(second)).mean() < 1e-3


def test_without_a_spacing_one_is_told_once_that_1_mm_is_assumed(finished, png, tmp_path, capsys):
    (tmp_path / "other.png").write_bytes(png[1].read_bytes())
    out = ("--modality", TARGET, "--out", tmp_path / "out")
    assert run("segment", finished.study.folder, png[1], tmp_path / "other.png", *out) == 0
    assert capsys.readouterr().out.count("1 mm is assumed") == 1


def test_the_spacing_of_a_registered_png_is_that_of_its_transforms(finished, png, tmp_path, capsys):
    moving = finished.study.cases_of(SOURCE, "test")[0]
    spacing = sitk.ReadImage(str(png[0])).GetSpacing()[0]
    register = ("register", finished.study.folder, moving.name)
    assert run(*register, png[0], "--out", tmp_path / "a") == 0
    assert run(*register, png[1], "--fixed-spacing", spacing, "--out", tmp_path / "b") == 0
    assert "1 mm is assumed" not in capsys.readouterr().out
    points = voxel_centres(three_dimensional(png[0]))
    first, second = (moved_by(forward(tmp_path / out), points) for out in ("a", "b"))
    assert np.linalg.norm(first - second, axis=1).mean() < 0.1


def test_images_of_one_name_do_not_overwrite_each_others_segmentations(finished, png, tmp_path, capsys):
    out = ("--modality", TARGET, "--out", tmp_path / "out")
    assert run("segment", finished.study.folder, *png, *out) == 2
    assert "'knee'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.xdist_group("trained_3d")
@pytest.mark.parametrize("name", VARIANTS_3D)
def test_a_volume_on_another_grid_is_mapped_the_same(bench_3d, name):
    variant = VARIANTS_3D[name]
    off = bench_3d.compare(name, {SOURCE: variant, TARGET: variant})
    assert off.mean() < variant.tolerance_mm
