"""The report of a registered pair, on knees whose true map is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from reported_study import centring, shifted, true_transform

from SegGuidedMMRegLib import metrics
from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.fields import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.pair_report import PairSide, pair_report, share_frame
from SegGuidedMMRegLib.pair_report_file import failed_report, pair_reports, write_pair_report
from SegGuidedMMRegLib.phantom import make_knee, phantom_structures
from SegGuidedMMRegLib.space import Grid


class Pair:
    """Two knees and the true transforms between them."""

    def __init__(self, dimension: int, size: int) -> None:
        self.structures = [Structure(s.value, s.name, s.color) for s in phantom_structures(dimension)]
        self.moving_knee, self.fixed_knee = (
            make_knee(np.random.default_rng([3, n]), modality, dimension=dimension, size=size)
            for n, modality in enumerate(("dxa", "radiograph"))
        )
        self.affine = centring(self.fixed_knee, self.moving_knee)
        self.forward = true_transform(self.fixed_knee, self.moving_knee, self.affine)
        self.inverse = true_transform(self.moving_knee, self.fixed_knee, np.linalg.inv(self.affine))
        self.moving, self.fixed = (
            PairSide(name, k.modality, k.image, k.labels, shifted(k.labels, 2), k.landmarks)
            for name, k in (("d1", self.moving_knee), ("r1", self.fixed_knee))
        )

    def report(self, **changes: object) -> dict:
        given = {
            "moving": self.moving,
            "fixed": self.fixed,
            "forward": self.forward,
            "inverse": self.inverse,
            "structures": self.structures,
            "prealignment_lps": self.affine,
            "seconds": 2.0,
        }
        return pair_report(**{**given, **changes})


@pytest.fixture(scope="module", params=[(2, 96), (3, 40)], ids=["2D", "3D"])
def pair(request):
    return Pair(*request.param)


def test_the_true_map_passes_every_check(pair):
    report = pair.report()
    assert report["status"] == "ok"
    assert report["reasons"] == []
    assert report["labels"] == {"moving": "truth", "fixed": "truth"}
    assert report["mean"]["in_view"]["dice"] > 0.9 > report["mean"]["before"]["dice"]
    assert report["mean"]["in_view"]["hd95_mm"] < 1.5 * max(pair.fixed.image.grid.axis_spacing)
    assert report["folds"]["total"] == 0
    assert report["folds"]["smallest_jacobian"] > 0
    assert report["inverse_consistency"]["mean_voxels"] < 0.1
    assert report["landmarks"]["mean_after_mm"] < 0.1 < report["landmarks"]["mean_before_mm"]
    assert report["seconds"] == 2.0
    assert [s["name"] for s in report["structures"]] == [s.name for s in pair.structures]


def test_overlap_after_is_that_of_the_labels_looked_up_at_the_true_places(pair):
    report = pair.report()
    places = pair.forward.transform_points(pair.fixed.image.grid.points().reshape(-1, 3))
    grid, labels = pair.moving.truth.grid, pair.moving.truth.array
    voxels = np.rint(grid.points_to_voxels(places)).astype(int)[:, : grid.dimension]
    inside = np.all((voxels >= 0) & (voxels < np.array(grid.size[: grid.dimension])), axis=1)
    warped = np.zeros(len(voxels), int)
    warped[inside] = labels[tuple(voxels[inside].T[::-1])]
    values = [s.value for s in pair.structures]
    expected = metrics.dice(warped.reshape(pair.fixed.image.grid.shape), pair.fixed.truth.array, values)
    found = {s["value"]: s["after"]["dice"] for s in report["structures"]}
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_size_of_a_structure_is_known_before_after_and_in_the_fixed_image(pair):
    voxel = np.prod(pair.fixed.image.grid.axis_spacing)
    for structure, row in zip(pair.structures, pair.report()["structures"], strict=True):
        counted = (pair.fixed.truth.array == structure.value).sum() * voxel
        assert row["fixed_size"] == pytest.approx(counted)
        warped = pair.forward.warp_labels(pair.moving.truth, pair.fixed.image.grid).array
        assert row["after"]["size"] == pytest.approx((warped == structure.value).sum() * voxel)
        assert row["before"]["size"] > 0


def test_predictions_are_compared_unless_both_sides_have_a_truth(pair):
    no_truth = replace(pair.fixed, truth=None)
    report = pair.report(fixed=no_truth)
    assert report["labels"] == {"moving": "prediction", "fixed": "prediction"}
    given = pair.report(fixed=no_truth, moving=replace(pair.moving, given=True))
    assert given["labels"] == {"moving": "given", "fixed": "prediction"}
    mixed = pair.report(fixed=no_truth, moving=replace(pair.moving, prediction=None))
    assert mixed["labels"] == {"moving": "truth", "fixed": "prediction"}
    assert mixed["mean"]["after"]["dice"] < report["mean"]["after"]["dice"]  # only one side is shifted


def test_a_pair_without_labels_is_still_checked_for_folds(pair):
    report = pair.report(moving=replace(pair.moving, truth=None, prediction=None))
    assert (report["labels"], report["structures"], report["mean"]["after"]) == (None, [], None)
    assert report["folds"]["forward"]["voxels"] == np.prod(pair.fixed.image.grid.size)


def test_folds_fail_the_pair_and_are_counted_where_they_are(pair):
    displacement = pair.forward.field.displacement_lps_mm.copy()
    femur = np.argwhere(pair.fixed.truth.array == pair.structures[0].value)
    middle = tuple(femur[len(femur) // 2])
    displacement[middle] += 20 * np.asarray(pair.fixed.image.grid.spacing)
    folded = SpatialTransform(DisplacementField(pair.forward.field.grid, displacement), pair.affine)
    report = pair.report(forward=folded)
    assert report["status"] == "failed"
    assert any("folds" in reason for reason in report["reasons"])
    assert report["folds"]["forward"]["folded"] == report["folds"]["total"] > 0
    assert report["structures"][0]["folds"]["folded"] > 0


def test_an_inverse_that_does_not_return_fails_the_pair(pair):
    astray = SpatialTransform(
        DisplacementField(pair.inverse.field.grid, pair.inverse.field.displacement_lps_mm + 3.0),
        pair.inverse.affine_lps,
    )
    report = pair.report(inverse=astray)
    assert report["status"] == "failed"
    assert any("on average, above 0.1" in reason for reason in report["reasons"])
    assert any("at worst, above 0.5" in reason for reason in report["reasons"])


def test_what_the_caller_knows_fails_the_pair_too(pair):
    report = pair.report(problems=["did not converge"], warnings=["the patella took no part"])
    assert (report["status"], report["reasons"]) == ("failed", ["did not converge"])
    assert report["warnings"][0] == "the patella took no part"


def test_a_structure_that_one_side_lacks_is_named(pair):
    lost = pair.structures[-1]
    array = np.where(pair.moving.truth.array == lost.value, 0, pair.moving.truth.array)
    report = pair.report(moving=replace(pair.moving, truth=Image(array, pair.moving.truth.grid)))
    entry = report["structures"][-1]["after"]
    assert (entry["dice"], entry["hd95_mm"]) == (0.0, None)
    assert entry["reason"] == "absent from the moving labels"
    assert f"{lost.name} is absent from the moving labels" in report["warnings"]


def test_landmarks_are_matched_by_name(pair):
    points = pair.fixed.landmarks
    turned = type(points)(points.names[::-1], np.asarray(points.points_lps_mm)[::-1])
    assert pair.report(fixed=replace(pair.fixed, landmarks=turned))["landmarks"]["mean_after_mm"] < 0.1
    assert pair.report(fixed=replace(pair.fixed, landmarks=None))["landmarks"] is None


def test_a_moving_image_that_ends_early_is_told_apart_from_a_bad_transform():
    pair = Pair(2, 96)
    half = replace(pair.moving.image.grid, size=(96, 67, 1))
    moving = replace(
        pair.moving,
        image=Image(pair.moving.image.array[:67], half),
        truth=Image(pair.moving.truth.array[:67], half),
    )
    report = pair.report(moving=moving)
    femur, tibia = report["structures"][:2]
    assert tibia["covered"] < 0.9 < femur["covered"]
    assert tibia["in_view"]["assd_mm"] < 3 < tibia["after"]["assd_mm"]
    outside = re.compile(r".*\(\d+%\) lies? partly outside the moving image")
    assert any(outside.fullmatch(warning) for warning in report["warnings"])


def test_the_state_as_files_lie_is_left_out_for_images_that_do_not_meet():
    near, far = Grid((9, 9, 1)), Grid((9, 9, 1), origin=(100.0, 0.0, 0.0))
    assert share_frame(near, near)
    assert not share_frame(near, far)


def test_the_file_is_plain_json_and_reads_back(pair, tmp_path):
    report = pair.report()
    path = write_pair_report(report, tmp_path / "registrations" / "d1--r1")
    write_pair_report(failed_report("d2", "r1", "no overlap"), tmp_path / "registrations" / "d2--r1")
    (tmp_path / "registrations" / "d3--r1").mkdir()
    (tmp_path / "registrations" / "d3--r1" / "report.json").write_text('{"moving": "d3"')
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    unreadable: list[str] = []
    found = list(pair_reports(tmp_path / "registrations", unreadable))
    assert found[0] == {**report, "pair": "d1--r1"}
    assert (found[1]["status"], found[1]["reasons"]) == ("failed", ["no overlap"])
    assert len(unreadable) == 1
    assert "d3--r1" in unreadable[0]
