"""Landmarks that a person gives with a pair: they come together, and nothing else breaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli_errors import run
from test_jobs import POSES, Placed, check_pair, points_file, register_copies
from test_refinement import _assert_regular, _smallest_corner_jacobian, _two_legs
from trained_study import SOURCE, TARGET, landmarks, mean_dice, moved_by, values

from SegGuidedMMRegLib.config import RegistrationConfig
from SegGuidedMMRegLib.inverse_pair import JACOBIAN_MARGIN
from SegGuidedMMRegLib.pair_affine import CentredAffine
from SegGuidedMMRegLib.pair_points import UNIT_SHARE, MatchedPoints
from SegGuidedMMRegLib.points import PointsError, read_matched_landmarks
from SegGuidedMMRegLib.refinement import register_maps
from SegGuidedMMRegLib.space import Grid

QUICK = RegistrationConfig(refinement_steps=40)


# -- on drawn maps --------------------------------------------------------------------------------------
def landmark_distance(displacement: torch.Tensor, matrix: np.ndarray, points: MatchedPoints) -> float:
    """Mean mm by which fixed points miss the moving ones, on a grid of 1 mm; nearest voxels do."""
    fixed, moving = points.fixed[0].numpy(), points.moving[0].numpy()
    middle = (np.asarray(displacement.shape[1:]) - 1) / 2
    index = np.rint(fixed + middle).astype(int)
    bent = fixed + displacement.numpy()[:, index[:, 0], index[:, 1]].T
    there = bent[:, ::-1] @ matrix[:2, :2].T + matrix[:2, 3]
    return float(np.linalg.norm(there[:, ::-1] - moving, axis=1).mean())


@pytest.mark.parametrize("affine", [False, True])
def test_landmarks_inside_a_uniform_structure_come_together(affine: bool) -> None:
    maps = _two_legs()
    grid = Grid.centred((80, 96, 1), (1.0, 1.0, 1.0))
    fixed = np.array([[-6.0, -20.0, 0.0], [4.0, -15.0, 0.0], [0.0, 18.0, 0.0]])
    points = MatchedPoints.of_pair(fixed + np.array([3.0, 2.0, 0.0]), fixed, grid)
    config = QUICK.model_copy(update={"affine": affine})
    free = register_maps(maps, maps, None, config, spacing_mm=(1.0, 1.0))
    pulled = register_maps(maps, maps, None, config, spacing_mm=(1.0, 1.0), points=points)
    _assert_regular(pulled)
    for displacement in (pulled.displacement, pulled.inverse_displacement):
        assert _smallest_corner_jacobian(displacement) >= JACOBIAN_MARGIN - 1e-3
    assert landmark_distance(free.displacement, free.affine_lps, points) > 3.0
    assert landmark_distance(pulled.displacement, pulled.affine_lps, points) < 0.7
    assert min(pulled.diagnostics.dice_after) > 0.93


def test_a_misplaced_landmark_folds_nothing() -> None:
    maps = _two_legs()
    grid = Grid.centred((80, 96, 1), (1.0, 1.0, 1.0))
    fixed = np.array([[-6.0, -20.0, 0.0], [-4.0, -20.0, 0.0]])
    points = MatchedPoints.of_pair(fixed[::-1] + np.array([[-15, 0, 0], [15, 0, 0]]), fixed, grid)
    result = register_maps(maps, maps, None, QUICK, spacing_mm=(1.0, 1.0), points=points)
    for displacement in (result.displacement, result.inverse_displacement):
        assert _smallest_corner_jacobian(displacement) >= JACOBIAN_MARGIN - 1e-3


def test_points_are_counted_in_array_order_from_the_centre_and_left_out_beyond_the_grid() -> None:
    grid = Grid.centred((20, 10, 6), (1.0, 2.0, 3.0))
    points = MatchedPoints.of_pair([[1, 2, 3], [0, 0, 0]], [[4, 5, 6], [50, 0, 0]], grid)
    assert len(points) == 1
    assert points.moving.tolist() == [[[3, 2, 1]]]
    assert points.fixed.tolist() == [[[6, 5, 4]]]
    assert points.unit_mm == pytest.approx(UNIT_SHARE * 20)
    assert float(points.misfit()) == pytest.approx(27 / (UNIT_SHARE * 20) ** 2)


def test_an_affine_map_that_explains_the_landmarks_leaves_no_misfit() -> None:
    matrix = torch.tensor([[[1.1, 0.2], [-0.1, 0.9]]])
    shift = torch.tensor([[3.0, -2.0]])
    fixed = torch.tensor([[[1.0, 2.0], [-5.0, 7.0], [4.0, 0.0]]])
    moving = fixed @ matrix.mT + shift
    points = MatchedPoints(moving, fixed, unit_mm=1.0)
    assert float(points.misfit()) > 1
    assert float(points.moved(CentredAffine(matrix, shift)).misfit()) < 1e-9


# -- files ----------------------------------------------------------------------------------------------
def test_landmarks_are_matched_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,x,y,z\nhead,1,2,3\nnotch,4,5,6\nonly,0,0,0\n")
    (tmp_path / "b.csv").write_text("name,x,y,z\nnotch,7,8,9\nhead,10,11,12\n")
    matched = read_matched_landmarks(tmp_path / "a.csv", tmp_path / "b.csv")
    assert matched.names == ("notch", "head")
    assert matched.moving_lps_mm.tolist() == [[4, 5, 6], [1, 2, 3]]
    assert matched.fixed_lps_mm.tolist() == [[7, 8, 9], [10, 11, 12]]
    assert matched.unmatched == ("only",)


def test_landmarks_without_a_common_name_or_with_a_double_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,x,y,z\nhead,1,2,3\n")
    (tmp_path / "b.csv").write_text("name,x,y,z\nfoot,1,2,3\n")
    (tmp_path / "c.csv").write_text("name,x,y,z\nhead,1,2,3\nhead,4,5,6\n")
    with pytest.raises(PointsError, match=r"no landmark name in common \(head; foot\)"):
        read_matched_landmarks(tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(PointsError, match=r"c\.csv: the name 'head' stands there twice"):
        read_matched_landmarks(tmp_path / "a.csv", tmp_path / "c.csv")


# -- on the phantom -------------------------------------------------------------------------------------
def true_landmark_error(pair: Placed) -> float:
    """Mean mm of the phantom's own landmarks, as SimpleITK moves them."""
    names = list(pair.fixed_landmarks)
    start, goal = (np.array([m[n] for n in names]) for m in (pair.fixed_landmarks, pair.moving_landmarks))
    return float(np.linalg.norm(moved_by(pair.forward, start) - goal, axis=1).mean())


def warped_dice(pair: Placed) -> float:
    return mean_dice(values(pair.folder / "warped_labels.seg.nrrd"), values(pair.fixed_labels), 3)


@pytest.mark.xdist_group("trained")
def test_true_landmarks_lower_their_error_and_keep_the_overlap(finished, tmp_path) -> None:
    poses = POSES["oblique"]
    files = []
    for side, modality, pose, number in (("moving", SOURCE, poses[0], 1), ("fixed", TARGET, poses[1], 0)):
        case = finished.study.cases_of(modality, "test")[number]
        known = landmarks(finished.file("landmarks", modality, case.name))
        files += [f"--{side}-landmarks", tmp_path / f"{side}.mrk.json"]
        points_file(files[-1], {name: pose.points(p) for name, p in known.items()})
    plain = register_copies(finished, tmp_path / "plain", poses)
    guided = register_copies(finished, tmp_path / "guided", poses, *files)
    check_pair(guided, dice=0.8)
    assert true_landmark_error(guided) < 0.4 * true_landmark_error(plain)
    assert warped_dice(guided) > warped_dice(plain) - 0.03
    assert plain.report["guiding_landmarks"] is None
    told = guided.report["guiding_landmarks"]
    assert told["mean_after_mm"] == pytest.approx(true_landmark_error(guided), abs=0.05)
    assert guided.report["landmarks"] is None, "the copies are no cases with landmarks for evaluation"


@pytest.mark.xdist_group("trained")
def test_the_landmarks_of_a_case_serve_evaluation_alone(finished, tmp_path) -> None:
    """Registering two cases that have landmarks gives the same map as without their landmark files."""
    study = finished.study
    moving, fixed = (study.cases_of(m, "test")[0] for m in (SOURCE, TARGET))
    assert run("register", study.folder, moving.key, fixed.key, "--out", tmp_path / "with") == 0
    strangers = [finished.file("images", c.modality, c.name) for c in (moving, fixed)]
    flags = [f"--{side}-mirrored" for side, c in (("moving", moving), ("fixed", fixed)) if c.mirrored]
    assert run("register", study.folder, *strangers, *flags, "--out", tmp_path / "without") == 0
    import SimpleITK as sitk

    points = np.array(list(landmarks(finished.file("landmarks", TARGET, fixed.name)).values()))
    here, there = (
        moved_by(sitk.ReadTransform(str(tmp_path / way / "forward.h5")), points)
        for way in ("with", "without")
    )
    assert np.linalg.norm(here - there, axis=1).max() < 0.5


@pytest.mark.xdist_group("trained")
def test_landmarks_of_one_side_alone_are_refused(finished, tmp_path, capsys) -> None:
    code = run(
        *("register", finished.study.folder, "a", "b", "--moving-landmarks", tmp_path / "a.csv"),
    )
    assert code == 2
    assert "--fixed-landmarks" in capsys.readouterr().err
