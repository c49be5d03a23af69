"""Volumes, labels and fields as large as they come, 512 x 512 x 200: no step of the GUI thread is long."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("slicer")

from scene_study import STRUCTURES, linear_parent, new_scene, placed

from SegGuidedMMRegGui.NodeTags import Tag
from SegGuidedMMRegGui.SegmentationNodes import reading_segments, showing_labels
from SegGuidedMMRegGui.TransformNodes import showing_transform, showing_volume_change_map
from SegGuidedMMRegGui.VolumeNodes import comparing_with_shown, reading_volume, showing_image
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid

GRID = Grid((512, 512, 200), (0.7, 0.7, 1.5), (10.0, -20.0, 30.0))
HALF = Grid((256, 256, 160), (1.4, 1.4, 1.9), (10.0, -20.0, 30.0))
TAG = Tag("image", "study", "m/case")
MOST_S = 0.1


@pytest.fixture(scope="module")
def scene():
    return new_scene()


@pytest.fixture(scope="module")
def image():
    array = np.empty(GRID.shape, np.int16)
    array[:] = np.arange(512, dtype=np.int16)
    return Image(array, GRID)


@pytest.fixture(scope="module")
def labels():
    array = np.zeros(GRID.shape, np.uint8)
    array[50:100, 100:250, 100:400], array[50:100, 250:400, 100:400] = 1, 4
    return Image(array, GRID)


def short(steps):
    """What the steps make, none of which may be long."""
    longest = 0.0
    while True:
        before = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            assert max(longest, time.thread_time() - before) < MOST_S
            return end.value
        longest = max(longest, time.thread_time() - before)


def test_an_image_is_shown_compared_and_read_in_short_steps(scene, image):
    node = short(showing_image(scene, image, TAG, "v", (0.0, 500.0)))
    assert short(comparing_with_shown(node))
    again = Image(image.array[::-1].copy(), GRID)  # into the node that is there
    assert short(showing_image(scene, again, TAG, "v", (0.0, 500.0))) is node
    node.SetAndObserveTransformNodeID(linear_parent(scene, placed((0.1, 0, 0), (5, 0, 0))).GetID())
    world = short(reading_volume(node))
    np.testing.assert_array_equal(world.image.array[0], image.array[-1])
    assert not world.resampled


def test_labels_are_shown_twice_and_read_in_short_steps(scene, labels):
    tag = Tag("labels", "study", "m/case")
    for _ in range(2):
        node = short(showing_labels(scene, labels, STRUCTURES, tag, "l"))
    found = short(reading_segments(node, STRUCTURES, GRID))
    np.testing.assert_array_equal(found.labels.array, labels.array)


def test_a_field_and_its_change_of_volume_are_shown_in_short_steps(scene):
    field = DisplacementField(HALF, np.zeros((*HALF.shape, 3), np.float32))
    vectors = np.zeros((int(np.prod(HALF.size)), 3), np.float32)
    short(showing_transform(scene, SpatialTransform(field), TAG, "t", vectors=vectors))
    ones = Image(np.ones(HALF.shape, np.float32), HALF)
    node = short(showing_volume_change_map(scene, ones, TAG, "c"))
    assert node.GetAttribute("SegGuidedMMReg.Folds") == "0"
