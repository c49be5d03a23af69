"""How the module looks: it fits a panel 480 pixels wide, nothing overlaps, and another style is followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import slicer_harness
from reported_study import make_reported_study, with_warped_images
from slicer_harness import layouts
from slicer_module import FOLDER, slicer

import ctk
import qt
from SegGuidedMMRegGui.CurvePlots import CurvePlots
from SegGuidedMMRegGui.ReviewViews import FIXED
from SegGuidedMMRegGui.Views import slice_node

WIDTH, HEIGHT = 480, 700
STEPS = ("study", "annotate", "train", "register", "review", "export")


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    return with_warped_images(make_reported_study(tmp_path_factory.mktemp("looks") / "knees")).folder


@pytest.fixture
def widget(knees):
    """The module with a study in a scroll area, as Slicer shows it."""
    layouts.start(slicer)
    slicer_harness.slot_errors.clear()
    qt.QSettings().clear()
    slicer.mrmlScene.Clear(0)
    opened = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    area = qt.QScrollArea()
    area.setWidgetResizable(True)
    area.setWidget(opened.widget)
    area.resize(WIDTH, HEIGHT)
    area.show()
    opened.panels["study"].open(str(knees))
    settle(opened)
    yield opened
    opened.cleanup()
    area.close()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors


def settle(widget) -> None:
    for _ in range(2):
        slicer_harness.process_until(lambda: not widget.logic.runner.running(), 90)
        for _ in range(30):
            qt.QApplication.processEvents()


def overlaps(root) -> list[tuple[str, ...]]:
    """Names of widgets in one layout that lie on each other."""
    found = []
    for parent in (root, *root.findChildren(qt.QWidget)):
        children = parent.children() if parent.layout() is not None else ()
        seen = [child for child in children if child.inherits("QWidget") and child.isVisible()]
        for number, one in enumerate(seen):
            for other in seen[number + 1 :]:
                common = one.geometry.intersected(other.geometry)
                if common.width() > 1 and common.height() > 1:
                    found.append((parent.objectName, one.objectName, other.objectName))
    return found


def review_a_pair(widget) -> None:
    panel = widget.panels["review"]
    slicer_harness.process_until(lambda: panel._list.count and not panel._list._timer.active)
    panel._ui.pairsTable.setCurrentCell(0, 0)
    slicer_harness.process_until(lambda: panel._name() == panel._list.pairs[0])
    panel._ui.acceptButton.click()


def test_each_step_fits_a_narrow_panel_and_nothing_overlaps(widget):
    for step in STEPS:
        getattr(widget.ui, f"{step}Button").collapsed = False
        settle(widget)
        if step == "review":
            review_a_pair(widget)
            settle(widget)
        assert widget.widget.minimumSizeHint.width() <= WIDTH, step
        assert overlaps(widget.widget) == [], step
        assert widget.widget.height >= widget.widget.heightForWidth(widget.widget.width), step


def test_steps_that_are_folded_take_no_more_than_their_headings(widget):
    widget.ui.registerButton.collapsed = False
    settle(widget)
    folded = [getattr(widget.ui, f"{step}Button") for step in STEPS if step != "register"]
    assert all(section.collapsed for section in folded)
    assert max(section.height for section in folded) <= 30


def test_the_names_of_pairs_can_be_read_in_full(widget):
    widget.ui.reviewButton.collapsed = False
    review_a_pair(widget)
    settle(widget)
    table = widget.panels["review"]._ui.pairsTable
    words = table.item(0, 0).text().replace("d3--r3", "9074878L--9098409R")
    assert table.columnWidth(0) > table.fontMetrics().horizontalAdvance(words) + 8


def test_the_review_hides_what_would_cover_the_pair_and_shows_it_again(widget):
    bridge, panel = widget.workplace.bridge, widget.panels["review"]
    drawn = bridge.show_labels(bridge.study.cases[0])
    users = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    users.CreateDefaultDisplayNodes()
    assert drawn.GetDisplayNode().GetVisibility()
    widget.ui.reviewButton.collapsed = False
    review_a_pair(widget)
    contours = widget.workplace.pair.contours.GetDisplayNode()
    assert contours.GetVisibility()
    assert slice_node(FIXED.name).GetID() in contours.GetViewNodeIDs()
    assert not drawn.GetDisplayNode().GetVisibility()
    assert users.GetDisplayNode().GetVisibility()
    panel.left()
    assert drawn.GetDisplayNode().GetVisibility()


def test_curves_follow_another_style():
    slicer_harness.slot_errors.clear()
    place = qt.QWidget()
    layout = qt.QGridLayout(place)
    plots = CurvePlots(layout)
    plots.show({("segmentation", "loss"): [(1, 1.0), (2, 0.5)]})
    label = layout.itemAt(0).widget()
    before = qt.QApplication.palette()
    dark = qt.QApplication.palette()
    dark.setColor(qt.QPalette.Base, qt.QColor("#202020"))
    try:
        qt.QApplication.setPalette(dark)
        ground = qt.QColor("#202020")
        slicer_harness.process_until(lambda: label.pixmap.toImage().pixelColor(1, 1) == ground, 5)
    finally:
        qt.QApplication.setPalette(before)
    plots.close()
    assert not slicer_harness.slot_errors


def test_what_the_module_hides_in_a_folded_section_stays_hidden():
    section = ctk.ctkCollapsibleButton("more")
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    for label in (shown, hidden):
        layout.addWidget(label)
    section.collapsed = True
    hidden.visible = False
    section.collapsed = False
    assert not shown.isHidden()
    assert hidden.isHidden()
