"""Segmenting and registering in the images' own space, compared with SimpleITK, Slicer and the phantom."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import rotation
from test_cli_errors import run
from trained_study import (
    SOURCE,
    TARGET,
    Finished,
    copy_of,
    landmarks,
    mean_dice,
    moved_by,
    three_dimensional,
    values,
    voxel_centres,
)

from SegGuidedMMRegLib import jobs
from SegGuidedMMRegLib.segmenter import Segmenter

pytestmark = pytest.mark.xdist_group("trained")

FORMATS = (".tfm", ".nrrd", ".nii.gz", ".mha")
_FLIP = np.array([-1.0, -1.0, 1.0])


# -- copies of the phantom elsewhere in space -----------------------------------------------------------
@dataclass(frozen=True)
class Pose:
    """How a copy lies in space and on which grid: the same knee, turned and shifted as a whole.

    Attributes:
        angles: of the turn, radians.
        shift_mm: after it.
        stretch: factors of the spacing along i, j, k.
        reversed_axis: image axis that is stored backwards, which makes the grid left-handed.
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reversed_axis: int | None = None

    def points(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points) @ rotation(*self.angles).T + self.shift_mm

    def image(self, path: Path, *, labels: bool = False) -> sitk.Image:
        image = three_dimensional(path)
        stretch = np.where(np.array(image.GetSize()) == 1, 1.0, self.stretch)
        if (stretch != 1).any():
            size = np.maximum(1, np.round(image.GetSize() / stretch)).astype(int)
            how = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
            spacing = (np.array(image.GetSpacing()) * stretch).tolist()
            place = (image.GetOrigin(), spacing, image.GetDirection())
            image = sitk.Resample(image, size.tolist(), sitk.Transform(3, sitk.sitkIdentity), how, *place)
        direction = np.reshape(image.GetDirection(), (3, 3)).copy()
        origin, array = np.array(image.GetOrigin()), values(image)
        if self.reversed_axis is not None:
            last = [0, 0, 0]
            last[self.reversed_axis] = image.GetSize()[self.reversed_axis] - 1
            origin = np.array(image.TransformIndexToPhysicalPoint(last))
            direction[:, self.reversed_axis] *= -1
            array = np.flip(array, 2 - self.reversed_axis)
        placed = sitk.GetImageFromArray(np.ascontiguousarray(array))
        placed.SetSpacing(image.GetSpacing())
        placed.SetDirection((rotation(*self.angles) @ direction).ravel().tolist())
        placed.SetOrigin(self.points(origin).tolist())
        return placed


POSES = {
    "as they are": (Pose(), Pose()),
    "anisotropic, unequal grids": (Pose(stretch=(0.8, 1.3, 1.2)), Pose(stretch=(1.25, 0.9, 0.8))),
    "left-handed": (Pose(reversed_axis=1), Pose(reversed_axis=0, shift_mm=(40, -300, 12))),
    "oblique": (
        Pose(angles=(0.15, -0.1, 0.1), shift_mm=(100, -50, 30)),
        Pose(angles=(-0.1, 0.2, -0.1), shift_mm=(-20, 70, 400)),
    ),
    "all at once": (
        Pose(angles=(0.1, -0.2, 0.15), shift_mm=(-200, 5, 9), stretch=(1.2, 0.8, 0.9), reversed_axis=0),
        Pose(angles=(-0.2, 0.1, 0.1), shift_mm=(77, 7, -70), stretch=(0.9, 1.1, 1.3), reversed_axis=1),
    ),
}


@dataclass(frozen=True)
class Placed:
    """A pair of copies that were registered with given labels."""

    folder: Path
    report: dict[str, Any]
    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image
    moving_labels: sitk.Image
    fixed_landmarks: dict[str, np.ndarray]
    moving_landmarks: dict[str, np.ndarray]

    @property
    def forward(self) -> sitk.Transform:
        return sitk.ReadTransform(str(self.folder / "forward.h5"))

    @property
    def inverse(self) -> sitk.Transform:
        return sitk.ReadTransform(str(self.folder / "inverse.h5"))


def register_copies(finished: Finished, out: Path, poses: tuple[Pose, Pose], *options: object) -> Placed:
    """Put a left moving knee and a right fixed one elsewhere in space and register them as strangers."""
    parts: dict[str, Any] = {}
    arguments: list[object] = []
    for side, modality, pose, number in (
        ("moving", SOURCE, poses[0], 1),
        ("fixed", TARGET, poses[1], 0),
    ):
        case = finished.study.cases_of(modality, "test")[number]
        image = pose.image(finished.file("images", modality, case.name))
        labels = pose.image(finished.file("labels", modality, case.name), labels=True)
        points = landmarks(finished.file("landmarks", modality, case.name))
        parts |= {side: image, f"{side}_labels": labels}
        parts[f"{side}_landmarks"] = {name: pose.points(p) for name, p in points.items()}
        out.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(out / f"{side}.nrrd"))
        sitk.WriteImage(labels, str(out / f"{side}_labels.nrrd"))
        arguments += [f"--{side}-labels", out / f"{side}_labels.nrrd"]
        if case.mirrored:
            arguments.append(f"--{side}-mirrored")
    files = (out / "moving.nrrd", out / "fixed.nrrd")
    code = run("register", finished.study.folder, *files, *arguments, "--out", out / "pair", *options)
    report = json.loads((out / "pair" / "report.json").read_text())
    assert code == 0, report["reasons"]
    return Placed(out / "pair", report, **parts)


def check_pair(pair: Placed, *, dice: float) -> None:
    """What must hold for every registered pair, by SimpleITK and by what the phantom knows."""
    warped = sitk.Resample(
        sitk.Cast(pair.moving, sitk.sitkFloat64), pair.fixed, pair.forward, sitk.sitkLinear
    )
    ours = values(pair.folder / "warped_image.nrrd").reshape(values(warped).shape)
    scale = np.ptp(values(pair.moving))
    wrong = np.abs(ours - values(warped)) > 1e-3 * scale
    assert wrong.mean() < 2e-3, "apart from the rim, where rounding decides whether a point is inside"
    moved = sitk.Resample(pair.moving_labels, pair.fixed, pair.forward, sitk.sitkNearestNeighbor)
    labels = values(pair.folder / "warped_labels.seg.nrrd").reshape(values(moved).shape)
    assert (labels != values(moved)).mean() < 2e-3

    structures = len(pair.report["structures"])
    after = mean_dice(values(moved), values(pair.fixed_labels), structures)
    assert after == pytest.approx(pair.report["mean"]["after"]["dice"], abs=0.01)
    assert after > dice
    assert after > pair.report["mean"]["before"]["dice"]
    assert pair.report["folds"]["total"] == 0

    names = [n for n in pair.fixed_landmarks if n in pair.moving_landmarks]
    start, goal = (np.array([m[n] for n in names]) for m in (pair.fixed_landmarks, pair.moving_landmarks))
    error = np.linalg.norm(moved_by(pair.forward, start) - goal, axis=1)
    assert error.mean() < 10.0, "the phantom's own map, in the images' own space"

    x = voxel_centres(pair.fixed)[::5]
    y = moved_by(pair.forward, x)
    index = np.array([pair.moving.TransformPhysicalPointToContinuousIndex(p) for p in y.tolist()])
    inside = ((index >= -0.5) & (index <= np.array(pair.moving.GetSize()) - 0.5)).all(axis=1)
    there_and_back = np.linalg.norm(moved_by(pair.inverse, y[inside]) - x[inside], axis=1)
    voxel = min(s for s, n in zip(pair.fixed.GetSpacing(), pair.fixed.GetSize(), strict=True) if n > 1)
    assert there_and_back.mean() < 0.1 * voxel
    assert there_and_back.max() < 0.5 * voxel


@pytest.mark.parametrize("poses", POSES.values(), ids=POSES)
def test_pictures_anywhere_in_space_are_registered_as_simpleitk_sees_it(finished, tmp_path, poses):
    check_pair(register_copies(finished, tmp_path, poses), dice=0.8)


@pytest.mark.xdist_group("trained_3d")
@pytest.mark.parametrize("poses", [POSES["anisotropic, unequal grids"], POSES["all at once"]])
def test_volumes_anywhere_in_space_are_registered_as_simpleitk_sees_it(finished_3d, tmp_path, poses):
    check_pair(register_copies(finished_3d, tmp_path, poses), dice=0.7)


# -- segmenting -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [0, 1])
def test_a_file_from_outside_is_segmented_like_a_case(finished, tmp_path, number):
    case = finished.study.cases_of(TARGET, "test")[number]
    image = sitk.ReadImage(str(finished.file("images", TARGET, case.name)))
    sitk.WriteImage(image, str(tmp_path / "stranger.nii.gz"))
    options = ("--mirrored",) if case.mirrored else ()
    out = tmp_path / "out"
    assert (
        run(
            *("segment", finished.study.folder, tmp_path / "stranger.nii.gz", "--modality", TARGET),
            *("--out", out, "--probabilities", *options),
        )
        == 0
    )
    labels = sitk.ReadImage(str(out / "stranger.seg.nrrd"))
    known = values(finished.study.prediction_path(case))
    np.testing.assert_array_equal(labels.GetSize()[:2], image.GetSize()[:2])
    np.testing.assert_allclose(labels.GetSpacing()[:2], image.GetSpacing()[:2])
    assert (values(labels).reshape(known.shape) != known).mean() < 1e-3
    names = [s.name for s in finished.study.structures]
    assert labels.GetMetaData("Segment0_Name") == names[0]
    shares = np.stack([values(out / f"stranger.{name}.nrrd").ravel() for name in names])
    assert shares.dtype == np.float32
    assert shares.min() >= 0
    assert shares.sum(axis=0).max() < 1 + 1e-4
    for n, share in enumerate(shares, start=1):
        sure = share > 0.5
        assert (values(labels).ravel()[sure] == n).all()


def test_an_oblique_left_handed_picture_is_segmented_where_the_knee_is(finished, tmp_path):
    case = finished.study.cases_of(TARGET, "test")[0]
    for name, pose in (("plain", Pose()), ("turned", POSES["all at once"][1])):
        image = pose.image(finished.file("images", TARGET, case.name))
        truth = pose.image(finished.file("labels", TARGET, case.name), labels=True)
        sitk.WriteImage(image, str(tmp_path / f"{name}.nrrd"))
        jobs.segment_files(finished.study, [tmp_path / f"{name}.nrrd"], TARGET, tmp_path)
        labels = sitk.ReadImage(str(tmp_path / f"{name}.seg.nrrd"))
        np.testing.assert_allclose(labels.GetDirection(), image.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(labels.GetOrigin(), image.GetOrigin(), atol=1e-4)
        assert mean_dice(values(labels), values(truth), 3) > 0.7


def test_each_image_is_segmented_once(finished, tmp_path, monkeypatch):
    study = copy_of(finished.study, tmp_path / "study")
    for path in (study.folder / "models" / "cache" / "probabilities").iterdir():
        path.unlink()
    asked: list[str] = []
    segment = Segmenter.probabilities
    monkeypatch.setattr(
        Segmenter, "probabilities", lambda self, sample: asked.append(sample.name) or segment(self, sample)
    )
    jobs.register_study(study, run=jobs.Run(again=True))
    assert sorted(asked) == sorted(c.name for m in (SOURCE, TARGET) for c in study.cases_of(m, "test"))
    jobs.register_study(study, run=jobs.Run(again=True))
    assert len(asked) == 4


# -- transform files ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def written(finished, tmp_path_factory) -> Placed:
    """An oblique, left-handed pair, one knee mirrored, in all formats."""
    poses, out = POSES["all at once"], tmp_path_factory.mktemp("written")
    return register_copies(finished, out, poses, "--formats", *FORMATS)


@pytest.fixture(scope="module")
def coarse(finished, tmp_path_factory) -> Placed:
    """The same pair with fields of 6 mm."""
    poses, out = POSES["all at once"], tmp_path_factory.mktemp("coarse")
    return register_copies(finished, out, poses, "--formats", *FORMATS, "--spacing", 6)


def as_sitk(path: Path) -> sitk.Transform:
    if path.suffix in (".h5", ".tfm"):
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def inner_voxels(image: sitk.Image) -> np.ndarray:
    """Voxel centres that are not at the rim."""
    return voxel_centres(image).reshape(*values(image).shape, 3)[:, 2:-2, 2:-2].reshape(-1, 3)


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_formats_hold_the_same_map(written, suffix):
    for name, image, reference in (
        ("forward", written.fixed, written.forward),
        ("inverse", written.moving, written.inverse),
    ):
        points = inner_voxels(image)
        moved = moved_by(as_sitk(written.folder / f"{name}{suffix}"), points)
        np.testing.assert_allclose(moved, moved_by(reference, points), atol=1e-3)


def test_coarser_files_are_smaller_and_close(written, coarse):
    for suffix in (".h5", *FORMATS):
        fine_path, path = (p.folder / f"forward{suffix}" for p in (written, coarse))
        assert path.stat().st_size < 0.6 * fine_path.stat().st_size
        points = inner_voxels(coarse.fixed)
        off = np.linalg.norm(moved_by(as_sitk(path), points) - moved_by(written.forward, points), axis=1)
        assert off.mean() < 1.0
    assert coarse.report["folds"]["total"] == 0


@pytest.mark.parametrize("suffix", [".h5", *FORMATS])
@pytest.mark.parametrize("name", ["forward", "inverse"])
def test_slicer_moves_the_same_points_to_the_same_places(written, slicer_scene, name, suffix):
    node = slicer_scene.AddNewNodeByClass("vtkMRMLTransformNode")
    storage = slicer_scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
    storage.SetFileName(str(written.folder / f"{name}{suffix}"))
    assert storage.ReadData(node) == 1
    from_parent = node.GetTransformFromParent()
    image = written.fixed if name == "forward" else written.moving
    points = inner_voxels(image)[::7]
    moved = np.array([from_parent.TransformPoint(p) for p in (points * _FLIP).tolist()]) * _FLIP
    expected = moved_by(written.forward if name == "forward" else written.inverse, points)
    np.testing.assert_allclose(moved, expected, atol=2e-3)
    slicer_scene.RemoveNode(node)
    slicer_scene.RemoveNode(storage)


def test_slicer_resamples_the_moving_image_as_we_do(written, slicer_scene):
    import slicer

    def load(path: Path) -> object:
        node = slicer_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        storage = slicer_scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(str(path))
        storage.SetSingleFile(1)
        assert storage.ReadData(node) == 1
        return node

    transform = slicer_scene.AddNewNodeByClass("vtkMRMLTransformNode")
    storage = slicer_scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
    storage.SetFileName(str(written.folder / "forward.h5"))
    assert storage.ReadData(transform) == 1
    moving, fixed = load(written.folder.parent / "moving.nrrd"), load(written.folder.parent / "fixed.nrrd")
    moving.SetAndObserveTransformNodeID(transform.GetID())
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(slicer_scene)
    result = logic.ResampleVolumeToReferenceVolume(moving, fixed)
    found = slicer.util.arrayFromVolume(result)
    ours = values(written.folder / "warped_image.nrrd").reshape(found.shape)
    assert (np.abs(found - ours) > 1e-2 * np.ptp(ours)).mean() < 0.01


def test_an_earlier_run_leaves_no_file_beside_a_later_one(finished, tmp_path):
    poses = POSES["as they are"]
    register_copies(finished, tmp_path, poses, "--formats", ".nrrd")
    pair = register_copies(finished, tmp_path, poses)
    assert sorted(p.name for p in pair.folder.iterdir()) == [
        "forward.h5",
        "inverse.h5",
        "report.json",
        "warped_image.nrrd",
        "warped_labels.seg.nrrd",
    ]


def test_a_warped_ct_image_is_air_where_the_moving_one_does_not_reach(finished, tmp_path):
    moving, fixed = (finished.study.cases_of(m, "test")[0] for m in (SOURCE, TARGET))
    image = sitk.ReadImage(str(finished.file("images", SOURCE, moving.name)))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) - 1000, str(tmp_path / "ct.nrrd"))
    mirrored = ["--moving-mirrored"] if moving.mirrored else []
    out = tmp_path / "out"
    assert run(
        "register", finished.study.folder, tmp_path / "ct.nrrd", fixed.key, *mirrored, "--out", out
    ) in (0, 1)
    reference = sitk.ReadImage(str(out / "warped_image.nrrd"))
    forward = sitk.ReadTransform(str(out / "forward.h5"))
    ct = sitk.ReadImage(str(tmp_path / "ct.nrrd"))
    least = float(values(tmp_path / "ct.nrrd").min())
    goal = sitk.Resample(ct, reference, forward, sitk.sitkLinear, least)
    np.testing.assert_allclose(values(reference), values(goal), atol=0.5)
    assert values(reference).max() < 0


# -- segmmreg apply, segmmreg export --------------------------------------------------------------------
def test_apply_moves_image_and_labels_as_simpleitk_does(written, tmp_path):
    files = written.folder.parent
    for name, transform, moving, fixed in (
        ("forward", written.forward, "moving", "fixed"),
        ("inverse", written.inverse, "fixed", "moving"),
    ):
        apply = ("apply", written.folder / f"{name}.h5")
        onto = ("--reference", files / f"{fixed}.nrrd")
        assert run(*apply, files / f"{moving}.nrrd", *onto, "--out", tmp_path / f"{name}.nrrd") == 0
        labels = files / f"{moving}_labels.nrrd"
        out = tmp_path / f"{name}.seg.nrrd"
        assert run(*apply, labels, *onto, "--labels", "--out", out) == 0
        reference = getattr(written, fixed)
        goal = sitk.Resample(
            sitk.Cast(getattr(written, moving), sitk.sitkFloat64), reference, transform, sitk.sitkLinear
        )
        off = np.abs(values(tmp_path / f"{name}.nrrd").reshape(values(goal).shape) - values(goal))
        assert (off > 1e-3 * np.ptp(values(goal))).mean() < 2e-3
        goal = sitk.Resample(
            getattr(written, f"{moving}_labels"), reference, transform, sitk.sitkNearestNeighbor
        )
        assert (values(out).reshape(values(goal).shape) != values(goal)).mean() < 2e-3
        np.testing.assert_allclose(
            sitk.ReadImage(str(out)).GetDirection(), reference.GetDirection(), atol=1e-6
        )


def points_file(path: Path, points: dict[str, np.ndarray]) -> None:
    """Points as other programs write them: CSV in LPS, Slicer's formats in RAS."""
    if path.suffix == ".csv":
        rows = [f"{name},{p[0]},{p[1]},{p[2]}" for name, p in points.items()]
        path.write_text("\n".join(["name,x,y,z", *rows]))
    elif path.suffix == ".fcsv":
        rows = [
            f"id{n},{p[0]},{p[1]},{p[2]},0,0,0,1,1,1,0,{name},,"
            for n, (name, p) in enumerate((name, p * _FLIP) for name, p in points.items())
        ]
        head = ["# Markups fiducial file version = 5.0", "# CoordinateSystem = RAS"]
        head.append("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID")
        path.write_text("\n".join([*head, *rows]))
    else:
        control = [
            {"id": str(n), "label": name, "position": (p * _FLIP).tolist(), "positionStatus": "defined"}
            for n, (name, p) in enumerate(points.items())
        ]
        part = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": control}
        path.write_text(json.dumps({"markups": [part]}))


def points_in(path: Path) -> dict[str, np.ndarray]:
    """Name to LPS mm."""
    if path.suffix == ".csv":
        return landmarks(path)
    if path.suffix == ".fcsv":
        lines = path.read_text().splitlines()
        flip = _FLIP if any("RAS" in line for line in lines[:3]) else 1
        rows = [line.split(",") for line in lines if not line.startswith("#")]
        return {row[11]: np.array(row[1:4], dtype=float) * flip for row in rows}
    (part,) = json.loads(path.read_text())["markups"]
    flip = _FLIP if part["coordinateSystem"] == "RAS" else 1
    return {p["label"]: np.array(p["position"]) * flip for p in part["controlPoints"]}


@pytest.mark.parametrize("suffix", [".csv", ".mrk.json", ".fcsv"])
def test_apply_carries_points_there_and_back(written, tmp_path, suffix):
    start, there, back = (tmp_path / f"{name}{suffix}" for name in ("start", "there", "back"))
    points_file(start, written.fixed_landmarks)
    assert run("apply", written.folder / "forward.h5", start, "--out", there) == 0
    moved = points_in(there)
    assert list(moved) == list(written.fixed_landmarks)
    expected = moved_by(written.forward, np.array(list(written.fixed_landmarks.values())))
    np.testing.assert_allclose(np.array(list(moved.values())), expected, atol=1e-3)
    assert run("apply", written.folder / "inverse.h5", there, "--out", back) == 0
    for name, point in points_in(back).items():
        assert np.linalg.norm(point - written.fixed_landmarks[name]) < 0.5 * written.fixed.GetSpacing()[0]


def test_export_does_not_replace_what_is_there_unless_asked(finished, tmp_path, capsys):
    pair = sorted((finished.study.folder / "registrations").glob("*--*"))[0]
    command = ("export", finished.study.folder, pair.name, "--out", tmp_path, "--formats", ".h5", ".nii.gz")
    assert run(*command) == 0
    target = tmp_path / pair.name
    image = sitk.ReadImage(str(target / "warped_image.nrrd"))
    points = voxel_centres(image if image.GetDimension() == 3 else sitk.JoinSeries(image))
    moved = [moved_by(as_sitk(target / f"forward{suffix}"), points) for suffix in (".h5", ".nii.gz")]
    np.testing.assert_allclose(moved[0], moved_by(as_sitk(pair / "forward.h5"), points), atol=1e-6)
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-3)
    before = {p.name: p.stat().st_mtime_ns for p in target.iterdir()}
    assert {"warped_image.nrrd", "warped_labels.seg.nrrd"} < set(before)
    capsys.readouterr()
    assert run(*command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in target.iterdir()} == before
    assert run(*command, "--overwrite") == 0
    assert {p.name for p in target.iterdir()} == set(before)


def test_export_leaves_failed_pairs_out(finished, tmp_path, capsys):
    study = copy_of(finished.study, tmp_path / "study")
    path = sorted((study.folder / "registrations").glob("*/report.json"))[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "reasons": ["it folds"]}))
    assert run("export", study.folder, "--out", tmp_path / "out", "--volumes", "none") == 0
    assert "it folds" in "".join(capsys.readouterr())
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert path.parent.name not in written
    assert len(written) == 3
