"""Slice views of our own: made from a layout, upright and fitted on any image, linked, and gone again."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scene_study import GRIDS, some_image
from slicer_harness import layouts
from slicer_module import slicer

from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.NodeTags import BridgeError, Tag
from SegGuidedMMRegGui.ReviewViews import LAYOUT, review_layout
from SegGuidedMMRegGui.Views import Layout, View
from SegGuidedMMRegGui.VolumeNodes import show_image
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid

PAIR = (View("TestLeft", "L", "#6EB04B"), View("TestRight", "R", "#F34A33"))


@pytest.fixture
def scene():
    layouts.start(slicer)
    slicer.mrmlScene.Clear(0)
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(0)


@pytest.fixture
def layout(scene):
    made = Layout(scene, 91001, PAIR)
    yield made
    made.leave()


def volume(scene, image: Image):
    return show_image(scene, image, Tag("image", "study", "m/case"), "case")


def marked(shape: tuple[int, ...]) -> np.ndarray:
    """Bright in the first quarter of rows and columns, so that turned and mirrored pictures differ."""
    array = np.full(shape, 50, np.int16)
    array[..., : shape[-2] // 4, : shape[-1] // 2] = 200
    return array


def test_a_layout_makes_its_views_and_the_former_layout_comes_back(scene, layout):
    node = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    former = node.GetViewArrangement()
    layout.show()
    assert layout.is_shown
    assert [Views.slice_node(view.name).GetLayoutLabel() for view in PAIR] == ["L", "R"]
    assert all(Views.composite_node(view.name).GetLinkedControl() for view in PAIR)
    layout.leave()
    assert node.GetViewArrangement() == former
    count = scene.GetNumberOfNodes()
    layout.show()
    layout.leave()
    assert scene.GetNumberOfNodes() == count


def test_a_layout_that_the_user_has_chosen_meanwhile_stays(scene, layout):
    node = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    layout.show()
    node.SetViewArrangement(node.SlicerLayoutFourUpView)
    layout.leave()
    assert node.GetViewArrangement() == node.SlicerLayoutFourUpView


OPENS_A_SCENE = """
import sys
import slicer_harness
from slicer_harness import layouts
from slicer_harness.application import start_with_module
from slicer_module import FOLDER, slicer
node = layouts.start(slicer)
start_with_module(FOLDER, "SegGuidedMMReg")
assert not any(name.startswith("SegGuidedMMRegGui") for name in sys.modules)
slicer.mrmlScene.SetURL(sys.argv[1])
assert slicer.mrmlScene.Import()
description = node.GetCurrentLayoutDescription()
logics = slicer.app.applicationLogic()
print(node.GetViewArrangement(), *(
    name for name in sys.argv[2:]
    if f'"{name}"' in description and logics.GetSliceLogicByLayoutName(name) is not None
))
"""


def test_a_scene_saved_during_a_review_has_its_views_before_the_module_is_opened(scene, tmp_path):
    review, path = review_layout(scene), tmp_path / "review.mrml"
    review.show()
    assert scene.Commit(str(path))
    review.leave()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    names = [view.name for view in review.views]
    run = subprocess.run(
        [sys.executable, "-c", OPENS_A_SCENE, str(path), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.split() == [str(LAYOUT), *names], run.stderr


def test_a_slicer_without_layout_is_said(scene):
    with pytest.raises(BridgeError, match="without a main window"):
        Layout(slicer.vtkMRMLScene(), 91001, PAIR).show()


def test_a_single_slice_is_seen_upright_as_its_file_has_it(scene, layout):
    layout.show()
    array = marked((100, 100))
    node = volume(scene, Image(array, Grid((100, 100, 1), (0.5, 0.5, 1.0))))
    for view in PAIR:
        Views.show_volumes(view.name, node)
    layout.look_at(node)
    shown = layouts.picture(slicer, "TestLeft")
    assert (shown[..., 3] > 0).mean() > 0.95
    bright = shown[..., 0] > 128
    assert bright[5:60, 5:124].all()
    assert not bright[68:].any()
    assert not bright[:, 132:].any()


@pytest.mark.parametrize("name", GRIDS)
def test_an_image_is_seen_in_its_plane_and_fills_the_view(scene, layout, name):
    layout.show()
    layouts.resize(slicer, "TestRight", 400, 200)
    node = volume(scene, some_image(GRIDS[name]))
    for view in PAIR:
        Views.show_volumes(view.name, node)
    layout.look_at(node)
    for view in PAIR:
        shown = layouts.picture(slicer, view.name)[..., 3] > 0
        rows, columns = shown.any(axis=1), shown.any(axis=0)
        assert max(rows.mean(), columns.mean()) > 0.95
        assert shown[rows][:, columns].mean() > 0.95


def test_the_orientation_of_a_volume_can_be_chosen(scene, layout):
    layout.show()
    node = volume(scene, some_image(Grid((30, 20, 10), (1.0, 1.0, 2.0))))
    assert Views.natural_orientation(node) == "Axial"
    for orientation in Views.ORIENTATIONS:
        layout.look_at(node, orientation)
        assert {Views.slice_node(view.name).GetOrientation() for view in PAIR} == {orientation}


def test_a_slice_under_a_bent_transform_is_looked_at_without_an_error(scene, layout):
    from scene_study import bending_parent

    layout.show()
    node = volume(scene, some_image(GRIDS["oblique"]))
    node.SetAndObserveTransformNodeID(bending_parent(scene).GetID())
    Views.show_volumes("TestLeft", node)
    Views.look_at("TestLeft", node)
    assert layouts.picture(slicer, "TestLeft").any()


def test_moving_one_view_by_hand_moves_the_other(scene, layout):
    layout.show()
    node = volume(scene, some_image(Grid((30, 20, 10), (1.0, 1.0, 2.0))))
    for view in PAIR:
        Views.show_volumes(view.name, node)
    layout.look_at(node)
    logic = Views.slice_logic("TestLeft")
    logic.StartSliceOffsetInteraction()
    logic.SetSliceOffset(logic.GetSliceOffset() + 4)
    logic.EndSliceOffsetInteraction()
    assert Views.slice_node("TestRight").GetSliceOffset() == pytest.approx(logic.GetSliceOffset())
