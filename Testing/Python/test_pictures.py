"""Pictures are the right way up, to scale, and show what they are meant to show."""

from __future__ import annotations

import io
from itertools import permutations, product

import numpy as np
import pytest
from matplotlib.image import imread

from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.fields import DisplacementField, fold_mask
from SegGuidedMMRegLib.report import charts, pictures
from SegGuidedMMRegLib.space import Grid

FLAT = Grid((40, 30, 1), (1.0, 2.0, 1.0))
SOLID = Grid((7, 6, 5), (1.0, 1.0, 3.0))


def pixels(figure) -> np.ndarray:
    """The figure's JPEG as an array (row, column, RGB) of 0 to 255."""
    return imread(io.BytesIO(pictures.encode(figure, quality=95)), format="jpeg").astype(int)


def marked(grid: Grid, point_lps_mm) -> np.ndarray:
    image = np.zeros(grid.shape)
    image[tuple(np.rint(grid.points_to_voxels(point_lps_mm)).astype(int)[: grid.dimension][::-1])] = 1
    return image


def test_row_0_of_a_radiograph_is_on_top_and_its_first_column_on_the_left():
    image = np.zeros(FLAT.shape)
    image[0] = 1
    image[:, 0] = 1
    shown = pixels(pictures.overlay(image, pictures.views(FLAT)[0])).mean(-1)
    height, width = shown.shape
    assert min(shown[2, width // 2], shown[height // 2, 2]) > 200
    assert max(shown[-3, width // 2], shown[height // 2, -3]) < 50


def test_pictures_are_to_scale():
    figure = pictures.overlay(np.random.default_rng(0).random(FLAT.shape), pictures.views(FLAT)[0])
    height, width = pixels(figure).shape[:2]
    assert max(height, width) == pictures.LARGEST_SIDE
    assert height / width == pytest.approx(30 * 2 / 40, rel=0.01)


def test_volumes_are_seen_as_radiologists_see_them():
    """LPS: x to the patient's left, y to the back, z to the head."""
    patient_left_front_head = SOLID.voxels_to_points((6, 0, 4))
    image = marked(SOLID, patient_left_front_head)
    corners = {}
    for view in pictures.views(SOLID, image > 0):
        cut = view.cut(image)
        row, column = np.argwhere(cut == 1)[0]
        corners[view.name] = (
            "top" if row == 0 else "bottom" if row == cut.shape[0] - 1 else "",
            "left" if column == 0 else "right" if column == cut.shape[1] - 1 else "",
        )
    assert corners == {
        "axial": ("top", "right"),
        "coronal": ("top", "right"),
        "sagittal": ("top", "left"),
    }


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_same_volume_stored_in_another_order_gives_the_same_pictures(order):
    image = np.random.default_rng(1).random(SOLID.shape)
    focus = image > 0.9
    expected = [(v.name, v.aspect, v.cut(image)) for v in pictures.views(SOLID, focus)]
    for flips in product((False, True), repeat=3):
        stored = image.transpose([2 - a for a in order[::-1]])[
            tuple(slice(None, None, -1 if f else 1) for f in flips[::-1])
        ]
        direction = np.eye(3)[:, list(order)] * np.where(flips, -1.0, 1.0)
        size = tuple(SOLID.size[a] for a in order)
        grid = Grid(size, tuple(SOLID.spacing[a] for a in order), (0, 0, 0), tuple(direction.ravel()))
        mask = stored > 0.9
        for view, (name, aspect, cut) in zip(pictures.views(grid, mask), expected, strict=True):
            assert (view.name, view.aspect) == (name, pytest.approx(aspect))
            # Of slices that are equally full the first is shown, which depends on the order.
            if focus.sum(axis=_others(SOLID, name)).tolist().count(mask_max(focus, name)) == 1:
                assert np.array_equal(view.cut(stored), cut)


def _others(grid: Grid, name: str) -> tuple[int, int]:
    through = {"axial": 0, "coronal": 1, "sagittal": 2}[name]
    return tuple(a for a in range(3) if a != through)


def mask_max(focus: np.ndarray, name: str) -> int:
    return int(focus.sum(axis=_others(SOLID, name)).max())


def test_the_view_that_shows_most_is_not_along_a_thin_stack():
    focus = np.zeros((4, 40, 40), bool)
    focus[:, 10:30, 10:30] = True
    assert pictures.fullest_view(Grid((40, 40, 4), (1, 1, 3)), focus).name == "axial"


def test_outlines_have_the_colour_of_their_structure_and_lie_on_its_border():
    labels = np.zeros(FLAT.shape, int)
    labels[10:20, 10:30] = 5
    view = pictures.views(FLAT)[0]
    red = Structure(5, "bone", (255, 0, 0))
    shown = pixels(pictures.overlay(np.eye(30, 40), view, [pictures.Outline(labels)], [red]))
    is_red = (shown[..., 0] > 150) & (shown[..., 1] < 100)
    rows, columns = np.nonzero(is_red)
    scale = shown.shape[1] / 40
    assert columns.min() / scale == pytest.approx(10, abs=0.5)
    assert columns.max() / scale == pytest.approx(30, abs=0.5)
    assert rows.min() / (2 * scale) == pytest.approx(10, abs=0.5)
    dashed = pixels(pictures.overlay(np.eye(30, 40), view, [pictures.Outline(labels, dashed=True)], [red]))
    assert 0.2 * is_red.sum() < ((dashed[..., 0] > 150) & (dashed[..., 1] < 100)).sum() < 0.9 * is_red.sum()


def test_a_checkerboard_shows_both_images():
    dark, bright = np.zeros(FLAT.shape), np.ones(FLAT.shape)
    dark[0], bright[0] = 1, 0  # a constant image has no contrast to show
    shown = pixels(pictures.checkerboard(dark, bright, pictures.views(FLAT)[0])).mean(-1)
    assert 0.3 < (shown > 128).mean() < 0.7


@pytest.mark.parametrize("grid", [FLAT, Grid((20, 18, 16), (1, 1, 2))], ids=["2D", "3D"])
def test_a_jacobian_map_is_white_red_or_blue_and_marks_folds(grid):
    for stretch, channels in ((1.0, "white"), (1.7, "red"), (0.6, "blue")):
        points = grid.points() - grid.centre_lps_mm
        factor = stretch ** (1 / grid.dimension)
        field = DisplacementField(grid, (factor - 1) * points * ([1, 1, 0] if grid.dimension == 2 else 1))
        view = pictures.views(grid)[0]
        shown = pixels(pictures.jacobian_map(field, fold_mask(field), view))
        red, _, blue = shown.reshape(-1, 3).mean(0)
        assert {"white": min(red, blue) > 235, "red": red > blue + 50, "blue": blue > red + 50}[channels]
    folds = np.zeros(grid.shape, bool)
    folds[tuple(n // 2 for n in grid.shape)] = True
    shown = pixels(pictures.jacobian_map(field, folds, view))
    assert ((shown[..., 0] > 200) & (shown[..., 1] < 80) & (shown[..., 2] > 150)).any()


def test_the_warped_grid_follows_the_field():
    def bright_columns(shift: float) -> np.ndarray:
        displacement = np.zeros((*FLAT.shape, 3))
        displacement[..., 0] = shift
        shown = pixels(pictures.warped_grid(DisplacementField(FLAT, displacement), pictures.views(FLAT)[0]))
        return shown[:, :, 1].mean(0)

    still, moved, whole = bright_columns(0.0), bright_columns(1.25), bright_columns(2.5)
    assert np.corrcoef(still, moved)[0, 1] < 0.5  # half a cell of 60 mm / 24
    assert np.corrcoef(still[60:-60], whole[60:-60])[0, 1] > 0.9


def test_curves_survive_a_cut_off_file_and_a_single_point(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 1.0, "name": "x"}\n{"step": 20, "loss": NaN}\n[1]\n{"step": 30, "lo'
    )
    (curve,) = charts.read_curves(path, "<run>")
    assert (curve.steps, curve.values) == ((10,), (1.0,))
    drawing = charts.draw(curve)
    assert "&lt;run&gt;" in drawing
    assert "nan" not in drawing
    long = charts.Curve("run", "loss", tuple(range(100_000)), tuple(range(100_000)))
    assert len(charts.draw(long)) < 20_000
