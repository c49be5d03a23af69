"""Two images in one view: blend, flicker, checkerboard and a hole at the cursor, as pictures of the view."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
import slicer_harness
from slicer_harness import layouts
from slicer_module import slicer

from SegGuidedMMRegGui import TransformNodes, Views
from SegGuidedMMRegGui.Comparison import Comparison
from SegGuidedMMRegGui.NodeTags import Tag
from SegGuidedMMRegGui.Views import Layout, View
from SegGuidedMMRegGui.VolumeNodes import show_image
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid

VIEW = "TestOverlay"
GRID = Grid((128, 128, 1), (1.0, 1.0, 1.0), (-63.5, -63.5, 0.0))
SHIFT_MM = 16.0


@pytest.fixture
def scene():
    slicer_harness.slot_errors.clear()
    layouts.start(slicer)
    slicer.mrmlScene.Clear(0)
    layout = Layout(slicer.mrmlScene, 91002, (View(VIEW, "O", "#808080"),))
    layout.show()
    layouts.resize(slicer, VIEW, 256, 256)
    yield slicer.mrmlScene
    layout.leave()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


@pytest.fixture
def images(scene):
    """A dark fixed image; a moving one, bright but for its left quarter, warped 16 mm to the right."""
    fixed = show_image(scene, Image(np.full(GRID.shape, 60, np.int16), GRID), Tag("image", "s", "a/f"), "f")
    bright = np.full(GRID.shape, 200, np.int16)
    bright[:, :32] = 0
    moving = show_image(scene, Image(bright, GRID), Tag("image", "s", "b/m"), "m")
    shift = np.zeros((*GRID.shape, 3), np.float32)
    shift[..., 0] = -SHIFT_MM
    transform = SpatialTransform(DisplacementField(GRID, shift))
    forward = TransformNodes.show_transform(scene, transform, Tag("forward", "s", "m--f"), "forward")
    moving.SetAndObserveTransformNodeID(forward.GetID())
    for node in (fixed, moving):
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(255, 127.5)
    Views.show_volumes(VIEW, fixed)
    Views.look_at(VIEW, fixed)
    return fixed, moving


@pytest.fixture
def comparison(scene, images):
    made = Comparison(scene, VIEW)
    made.show(*images)
    yield made
    made.close()


def seen() -> np.ndarray:
    return layouts.picture(slicer, VIEW)[..., 0].astype(int)


def settle() -> None:
    """Let drawings that are due be drawn."""
    end = time.monotonic() + 0.08
    slicer_harness.process_until(lambda: time.monotonic() > end)


def test_images_are_blended_by_the_opacity(comparison):
    for opacity, value in ((0.0, 60), (0.5, 130), (1.0, 200)):
        comparison.opacity = opacity
        comparison.update()
        assert seen()[128, 200] == pytest.approx(value, abs=2)
        assert seen()[128, 120] == pytest.approx(value, abs=2)


def test_the_images_flicker_in_turn_and_stop(comparison):
    comparison.mode, comparison.flickers_per_s, comparison.opacity = "flicker", 40.0, 1.0
    comparison.update()
    values = set()
    slicer_harness.process_until(lambda: values.add(seen()[128, 200]) or len(values) == 2, 5)
    assert values == {60, 200}
    comparison.mode = "blend"
    comparison.update()
    now = seen()[128, 200]
    settle()
    assert seen()[128, 200] == now == 200


def test_a_checkerboard_shows_squares_of_its_size_of_the_warped_image(comparison):
    comparison.mode, comparison.square_mm = "checkerboard", 16.0
    comparison.update()
    picture = seen()
    pixels = round(16 * 256 / 128)
    rows, columns = np.indices(picture.shape) // pixels
    odd = (rows + columns) % 2 == 0
    middle = np.zeros_like(odd)
    middle[pixels // 2 :: pixels, pixels // 2 :: pixels] = True
    first, second = (set(picture[middle & part & (columns > 3)]) for part in (odd, ~odd))
    assert sorted([first, second], key=min) == [{60}, {200}]
    comparison.square_mm = 32.0
    comparison.update()
    assert not np.array_equal(seen(), picture)


def test_the_image_is_seen_warped(comparison):
    """The dark quarter of the moving image ends at 32 mm; warped 16 mm to the right, at 48 mm."""
    comparison.mode, comparison.radius_mm = "reveal", 1000.0
    comparison.update()
    layouts.hover(slicer, VIEW, 128, 128)
    settle()
    assert np.flatnonzero(seen()[60] > 150).min() == pytest.approx(256 * (32 + SHIFT_MM) / 128, abs=2)


def test_brightness_stays_that_of_each_image(comparison, images):
    comparison.mode, comparison.square_mm = "checkerboard", 16.0
    comparison.update()
    images[1].GetDisplayNode().SetWindowLevel(800, 400)
    assert set(np.unique(seen()[:, 120:250])) <= {60, 63, 64}
    images[0].GetDisplayNode().SetWindowLevel(120, 60)
    assert 127 in seen() or 128 in seen()


def test_the_cursor_reveals_a_circle_of_the_other_image_and_follows(comparison):
    comparison.mode, comparison.radius_mm = "reveal", 10.0
    comparison.update()
    for x, y in ((200, 128), (150, 60)):
        layouts.hover(slicer, VIEW, x, y)
        settle()
        rows, columns = np.nonzero(seen() == 200)
        assert columns.mean() == pytest.approx(x, abs=1.5)
        assert 255 - rows.mean() == pytest.approx(y, abs=1.5)
        assert len(rows) == pytest.approx(np.pi * (10 * 2) ** 2, rel=0.05)


def test_squares_stay_in_place_when_the_view_moves(comparison):
    comparison.mode, comparison.square_mm = "checkerboard", 16.0
    comparison.update()
    before = seen()
    node = Views.slice_node(VIEW)
    x, y, z = node.GetXYZOrigin()
    node.SetXYZOrigin(x + 8, y, z)  # 8 mm are 16 pixels
    settle()
    assert np.array_equal(seen()[20:-20, 120:220], before[20:-20, 136:236])


def test_a_mixed_slice_of_512_pixels_is_drawn_within_100_ms(comparison):
    layouts.resize(slicer, VIEW, 512, 512)
    comparison.mode = "checkerboard"
    comparison.update()
    took = []
    for side in (10.0, 20.0, 30.0, 40.0, 50.0):
        comparison.square_mm = side
        start = time.process_time()
        comparison.update()
        took.append(time.process_time() - start)
    assert min(took) < 0.1


@pytest.mark.parametrize("mode", ["blend", "flicker", "checkerboard", "reveal"])
def test_nothing_is_left_behind(scene, images, mode):
    before, watchers = scene.GetNumberOfNodes(), observers(scene)
    made = Comparison(scene, VIEW)
    made.mode = mode
    made.show(*images)
    settle()
    made.close()
    gc.collect()
    assert scene.GetNumberOfNodes() == before
    assert observers(scene) == watchers
    assert not made._flicker.active
    assert not made._drawing.active


def observers(scene) -> int:
    """Those of the cursor."""
    node = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return int(node.HasObserver(slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent))


@pytest.mark.parametrize("mode", ["blend", "flicker", "checkerboard", "reveal"])
def test_deleted_images_and_a_closed_scene_are_survived(scene, comparison, images, mode):
    comparison.mode, comparison.flickers_per_s = mode, 40.0
    comparison.update()
    scene.RemoveNode(images[1])
    layouts.hover(slicer, VIEW, 10, 10)
    settle()
    comparison.update()
    assert seen()[128, 200] == 60
    scene.Clear(0)
    settle()
    comparison.update()


def test_a_view_of_several_slices_or_of_none_and_an_unloaded_image_are_no_error(scene, images, comparison):
    comparison.mode = "checkerboard"
    comparison.update()
    node, mixed = Views.slice_node(VIEW), comparison._mixed
    for size in ((64, 48, 4), (0, 0, 1), (64, 48, 1)):  # the light box of Slicer has four slices in one view
        node.SetDimensions(*size)
        mixed.update(comparison._mask(mixed))
    assert mixed.node.GetImageData().GetDimensions()[0] > 1
    images[1].SetAndObserveImageData(None)
    mixed.update(comparison._mask(mixed))
