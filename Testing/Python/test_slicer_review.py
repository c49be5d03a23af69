"""Step 5: pairs are listed, looked at in three views, decided about; what belongs to an earlier pair goes."""

from __future__ import annotations

import csv
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import slicer_harness
from reported_study import make_reported_study
from slicer_harness import layouts
from slicer_module import Gaps, module_opened, slicer

import qt
from SegGuidedMMRegGui import Views
from SegGuidedMMRegGui.JobRunner import JobRunner
from SegGuidedMMRegGui.NodeTags import nodes_of
from SegGuidedMMRegGui.ReviewPanel import ReviewPanel
from SegGuidedMMRegGui.ReviewViews import FIXED, MOVING, OVERLAY
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import read_labels, write_labels
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.transform_files import read_transform

LEGEND = "vtkMRMLColorLegendDisplayNode"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return with_warped_labels(make_reported_study(tmp_path_factory.mktemp("review") / "knees", 2))


@pytest.fixture(scope="module")
def made_3d(tmp_path_factory) -> Path:
    return with_warped_labels(make_reported_study(tmp_path_factory.mktemp("review_3d") / "knees", 3, 32))


def with_warped_labels(study: Study) -> Path:
    """As a registration leaves them beside its transforms."""
    cases = {case.name: case for case in study.cases}
    for folder in (study.folder / "registrations").iterdir():
        moving, fixed = (cases[name] for name in folder.name.split("--"))
        labels = read_labels(study.folder / moving.label)
        forward = read_transform(folder / "forward.h5")
        warped = forward.warp_labels(labels, study.read_image(fixed).grid)
        write_labels(warped, study.structures, folder / "warped_labels.seg.nrrd")
    return study.folder


@pytest.fixture
def widget():
    layouts.start(slicer)
    with module_opened() as opened:
        yield opened


def open_review(widget, folder: Path):
    """The panel with the study open, all pairs listed and the step unfolded."""
    widget.panels["study"].open(str(folder))
    slicer_harness.process_until(lambda: widget.workplace.folder == str(folder), 60)
    panel = widget.panels["review"]
    widget.ui.reviewButton.collapsed = False
    listed(panel)
    return panel


def listed(panel) -> None:
    slicer_harness.process_until(lambda: not panel._list._timer.active)


@pytest.fixture
def panel(widget, made, tmp_path):
    folder = tmp_path / "knees"
    shutil.copytree(made, folder)
    return open_review(widget, folder)


@pytest.fixture
def panel_3d(widget, made_3d, tmp_path):
    folder = tmp_path / "knees3d"
    shutil.copytree(made_3d, folder)
    return open_review(widget, folder)


def choose(panel, pair: str) -> None:
    """As a click on the pair's row does."""
    table = panel._ui.pairsTable
    table.setCurrentCell(panel._list.pairs.index(pair), 0)
    read(panel)


def read(panel) -> None:
    """Let what was asked for be shown."""
    slicer_harness.process_until(lambda: panel._reading is None)


def cells(table) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def picture(view) -> np.ndarray:
    return layouts.picture(slicer, view.name)[..., 0].astype(int)


# -- pairs --------------------------------------------------------------------------------------------------
def test_the_pairs_of_the_study_are_listed_with_result_and_dice(panel):
    rows = cells(panel._ui.pairsTable)
    assert [row[0] for row in rows] == ["d3 → r3", "d3 → r4", "d4 → r3", "d4 → r4"]
    assert [row[1] for row in rows] == ["ok", "ok", "ok", "failed"]
    assert all(float(row[2]) > 0.8 for row in rows[:3])
    assert panel._ui.countLabel.text == "4 pairs, 4 not reviewed"


def test_a_pair_that_was_registered_meanwhile_is_listed(widget, panel):
    registrations = Path(widget.workplace.folder) / "registrations"
    widget.ui.reviewButton.collapsed = True
    shutil.copytree(registrations / "d3--r3", registrations / "d3--r1")
    widget.ui.reviewButton.collapsed = False
    listed(panel)
    assert panel._list.pairs[0] == "d3--r1"
    assert panel._ui.countLabel.text == "5 pairs, 5 not reviewed"


def test_a_pair_is_seen_as_fixed_moving_and_both(panel):
    choose(panel, "d3--r3")
    fixed, moving, both = (picture(view) for view in (FIXED, MOVING, OVERLAY))
    assert panel._ui.pairLabel.text == "d3 → r3"
    assert fixed.std() > 10
    assert moving.std() > 10
    assert np.abs(both - (fixed + moving) / 2).mean() < 6
    pair = panel.workplace.pair
    assert pair.shown.GetParentTransformNode() is pair.forward
    names = [Views.composite_node(view.name).GetForegroundVolumeID() for view in (MOVING, OVERLAY)]
    assert names == [None, pair.shown.GetID()]


def test_contours_are_seen_over_the_fixed_image_and_can_be_hidden(panel):
    choose(panel, "d3--r3")
    contours = panel.workplace.pair.contours
    display = contours.GetDisplayNode()
    ids = [Views.slice_node(view.name).GetID() for view in (FIXED, OVERLAY)]
    assert list(display.GetViewNodeIDs()) == ids
    assert display.GetVisibility()
    panel._ui.contoursCheck.checked = False
    assert not display.GetVisibility()
    panel._ui.contoursCheck.checked = True
    panel.left()
    assert not display.GetViewNodeIDs()


def test_next_and_previous_go_through_the_list_by_key(panel):
    ui = panel._ui
    assert ui.nextButton.shortcut.toString() == "Ctrl+PgDown"
    for pair in ("d3--r3", "d3--r4", "d4--r3"):
        ui.nextButton.click()
        read(panel)
        assert panel._name() == pair
        assert ui.pairsTable.currentRow() == panel._list.pairs.index(pair)
    ui.previousButton.click()
    read(panel)
    assert panel._name() == "d3--r4"
    ui.previousButton.click()
    read(panel)
    ui.previousButton.click()
    assert panel._name() == "d3--r3"
    assert "no other pair" in ui.messageLabel.text


def test_nodes_of_the_pair_before_go_and_those_of_the_user_stay(panel):
    scene = panel.workplace.scene
    bridge = panel.workplace.bridge
    case = bridge.study.cases_of("dxa", "test")[0]
    mine = bridge.show_case(case)
    before = scene.GetNumberOfNodes()
    for pair in ("d3--r3", "d3--r4", "d4--r3", "d3--r3"):
        choose(panel, pair)
    assert {node.GetName() for node in bridge.nodes(kind="forward")} == {"d3 to r3 forward"}
    assert len(bridge.nodes(kind="image")) == 2
    assert scene.IsNodePresent(mine)
    once = scene.GetNumberOfNodes()
    choose(panel, "d4--r3")
    choose(panel, "d3--r3")
    assert scene.GetNumberOfNodes() == once > before


def test_nodes_of_another_scene_are_never_removed(widget, panel):
    folder, scene = panel.workplace.folder, panel.workplace.scene
    choose(panel, "d3--r3")
    scene.Clear(0)
    widget.enter()
    open_review(widget, Path(folder))
    bridge = panel.workplace.bridge
    cases = {case.name: case for case in bridge.study.cases}
    mine = [bridge.show_case(cases["d3"]), scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "mine")]
    choose(panel, "d4--r4")
    choose(panel, "d4--r3")
    assert all(scene.IsNodePresent(node) for node in mine)


def test_a_damaged_pair_says_what_is_wrong_and_the_next_one_is_shown(panel):
    broken = Path(panel.workplace.folder) / "registrations" / "d3--r3" / "forward.h5"
    broken.write_bytes(b"no transform")
    choose(panel, "d3--r3")
    assert "forward.h5" in panel._ui.messageLabel.text
    choose(panel, "d3--r4")
    assert panel._name() == "d3--r4"
    assert panel._ui.messageLabel.text == ""


def test_a_failed_pair_says_why(panel):
    choose(panel, "d4--r4")
    assert "failed" in panel._ui.pairLabel.text
    assert "folds in" in panel._ui.pairLabel.text


# -- views --------------------------------------------------------------------------------------------------
def test_the_third_view_compares_in_four_ways_each_with_its_number(panel):
    ui = panel._ui
    choose(panel, "d3--r3")
    seen = {}
    for index, unit in enumerate((" %", " / s", " mm", " mm")):
        ui.modeBox.currentIndex = index
        assert ui.amountLabel.text.endswith(unit)
        seen[index] = picture(OVERLAY)
        ui.amountSlider.value = ui.amountSlider.value + 20
    assert not np.array_equal(seen[0], seen[2])
    ui.modeBox.currentIndex = 0
    ui.amountSlider.value = 0
    assert np.abs(picture(OVERLAY) - picture(FIXED)).mean() < 2
    ui.amountSlider.value = 100
    assert np.abs(picture(OVERLAY) - picture(MOVING)).mean() < 3
    assert ui.amountLabel.text == "100 %"


def test_brightness_is_set_a_layer_and_reset(panel):
    ui = panel._ui
    choose(panel, "d3--r3")
    fixed, moving = picture(FIXED), picture(MOVING)
    ui.fixedBrightnessSlider.value = 40
    assert picture(FIXED).mean() > fixed.mean() + 20
    assert np.array_equal(picture(MOVING), moving)
    ui.movingContrastSlider.value = 60
    assert picture(MOVING).std() > moving.std()
    ui.plainButton.click()
    assert np.array_equal(picture(FIXED), fixed)
    assert np.array_equal(picture(MOVING), moving)
    assert ui.fixedBrightnessSlider.value == 0


def test_the_moving_image_can_be_seen_as_it_was_on_its_own(panel):
    choose(panel, "d3--r3")
    warped = picture(MOVING)
    panel._ui.unwarpedCheck.checked = True
    node = Views.composite_node(MOVING.name)
    assert node.GetBackgroundVolumeID() != panel.workplace.pair.shown.GetID()
    assert not np.array_equal(picture(MOVING), warped)
    assert Views.slice_node(MOVING.name).GetViewGroup() != Views.slice_node(FIXED.name).GetViewGroup()
    panel._ui.unwarpedCheck.checked = False
    assert np.array_equal(picture(MOVING), warped)


def test_grid_and_arrows_are_shown_in_the_second_view_alone(panel):
    ui = panel._ui
    choose(panel, "d3--r3")
    forward = panel.workplace.pair.forward
    assert forward.GetDisplayNode() is None
    ui.lookBox.currentIndex = 1
    display = forward.GetDisplayNode()
    assert display.GetVisualizationMode() == display.VIS_MODE_GRID
    assert list(display.GetViewNodeIDs()) == [Views.slice_node(MOVING.name).GetID()]
    ui.spacingBox.value = 5.0
    assert display.GetGridSpacingMm() == 5.0
    ui.lookBox.currentIndex = 2
    assert display.GetVisualizationMode() == display.VIS_MODE_GLYPH
    assert display.GetVisibility()
    panel.left()
    assert not display.GetVisibility()


def test_planes_can_be_chosen_for_volumes_and_stay_those_of_a_slice(panel_3d):
    choose(panel_3d, "d3--r3")
    ui = panel_3d._ui
    assert ui.orientationBox.enabled
    for index, orientation in enumerate(Views.ORIENTATIONS):
        ui.orientationBox.currentIndex = index + 1
        views = (FIXED, MOVING, OVERLAY)
        normals = [
            Views.slice_node(view.name).GetSliceToRAS().GetElement(n, 2) for view in views for n in range(3)
        ]
        axis = {"Axial": 2, "Coronal": 1, "Sagittal": 0}[orientation]
        assert [abs(n) > 0.7 for n in normals] == [n == axis for _ in views for n in range(3)]
        assert picture(FIXED).std() > 5


def test_planes_of_a_study_in_two_dimensions_cannot_be_chosen(panel):
    choose(panel, "d3--r3")
    assert not panel._ui.orientationBox.enabled


def test_the_users_layout_comes_back_and_nothing_is_left_behind(panel):
    scene = panel.workplace.scene
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    panel.left()
    former = layout.GetViewArrangement()
    choose(panel, "d3--r3")
    assert layout.GetViewArrangement() == former
    panel.opened()
    assert layout.GetViewArrangement() != former
    panel.left()
    before = scene.GetNumberOfNodes()
    for mode in range(4):
        panel.opened()
        panel._ui.modeBox.currentIndex = mode
        panel.left()
        gc.collect()
        assert layout.GetViewArrangement() == former
        assert scene.GetNumberOfNodes() == before
        assert not panel._look.views.comparison._flicker.active


@pytest.mark.parametrize("mode", range(4))
def test_deleted_nodes_and_a_closed_scene_are_survived(widget, panel, mode):
    choose(panel, "d3--r3")
    panel._ui.modeBox.currentIndex = mode
    scene = panel.workplace.scene
    scene.RemoveNode(panel.workplace.pair.shown)
    panel._ui.contoursCheck.checked = False
    panel._ui.amountSlider.value = 30
    scene.RemoveNode(panel.workplace.pair.forward)
    panel._ui.lookBox.currentIndex = 1
    panel._ui.acceptButton.click()
    scene.Clear(0)
    panel._ui.movingBrightnessSlider.value = 10
    widget.enter()
    slicer_harness.process_until(lambda: True)


def test_a_scene_that_is_closed_shows_no_pair(widget, panel):
    choose(panel, "d3--r3")
    panel.workplace.scene.Clear(0)
    widget.enter()
    assert panel.workplace.pair is None
    assert not panel._ui.acceptButton.enabled
    assert "an open study" in panel._ui.acceptButton.toolTip


def test_a_pair_that_another_step_shows_is_looked_at(panel):
    bridge = panel.workplace.bridge
    from SegGuidedMMRegGui.PairFiles import read_pair

    cases = {case.name: case for case in bridge.study.cases}
    pair = read_pair(Path(panel.workplace.folder) / "registrations" / "d4--r3")
    nodes = bridge.show_pair(pair, moving=bridge.show_case(cases["d4"]), fixed=bridge.show_case(cases["r3"]))
    panel.workplace.show_pair(nodes)
    assert panel._ui.pairLabel.text == "d4 → r3"
    assert picture(OVERLAY).std() > 5


def test_the_change_of_volume_is_laid_over_the_fixed_image_with_folds_and_legend(panel):
    ui = panel._ui
    choose(panel, "d4--r4")
    plain = layouts.picture(slicer, FIXED.name)
    ui.changeCheck.checked = True
    slicer_harness.process_until(lambda: ui.foldsLabel.text, 90)
    folded = json.loads((panel.workplace.pair.folder / "report.json").read_text())["folds"]["forward"][
        "folded"
    ]
    assert ui.foldsLabel.text == f"{folded} voxels fold."
    assert folded > 0
    ui.changeSlider.value = 100
    coloured = layouts.picture(slicer, FIXED.name)[..., :3].astype(int)
    assert not np.array_equal(coloured, plain[..., :3])
    magenta = (coloured[..., 0] > 200) & (coloured[..., 1] < 80) & (coloured[..., 2] > 200)
    assert 0 < magenta.mean() < 0.1
    assert ui.legendLabel.pixmap.width() > 100
    legend = slicer.mrmlScene.GetFirstNodeByClass(LEGEND)
    assert legend.GetDisplayableNode() is panel._look.views._change
    assert legend.GetViewNodeIDs() == (Views.slice_node(FIXED.name).GetID(),)
    ui.changeCheck.checked = False
    assert slicer.mrmlScene.GetNumberOfNodesByClass(LEGEND) == 0
    assert np.array_equal(layouts.picture(slicer, FIXED.name), plain)
    assert not list(panel.workplace.bridge._temporary.rglob("change.nrrd"))


def test_the_legend_in_the_views_goes_with_the_map_and_never_stays_behind(panel, tmp_path):
    ui, scene = panel._ui, slicer.mrmlScene
    choose(panel, "d3--r3")
    ui.changeCheck.checked = True
    for other in ("d4--r4", "d3--r3"):
        slicer_harness.process_until(lambda: ui.foldsLabel.text, 90)
        assert scene.GetNumberOfNodesByClass(LEGEND) == 1
        choose(panel, other)
        assert scene.GetNumberOfNodesByClass(LEGEND) == 0
    slicer_harness.process_until(lambda: ui.foldsLabel.text, 90)
    assert scene.GetNumberOfNodesByClass(LEGEND) == 1
    panel.left()
    assert scene.GetNumberOfNodesByClass(LEGEND) == 0
    saved = next(node for node in nodes_of(scene, kind="jacobian"))
    slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(saved)  # as in a scene that was saved
    ui.changeCheck.checked = False
    panel.opened()
    assert scene.GetNumberOfNodesByClass(LEGEND) == 0


def test_the_legend_in_the_panel_follows_the_style(panel):
    ui = panel._ui
    choose(panel, "d4--r4")
    ui.changeCheck.checked = True
    slicer_harness.process_until(lambda: ui.foldsLabel.text, 90)
    text = qt.QColor("#fedcba")
    before = qt.QApplication.palette()
    other = qt.QApplication.palette()
    other.setColor(qt.QPalette.WindowText, text)

    def colours() -> set[str]:
        image = ui.legendLabel.pixmap.toImage()
        places = ((x, y) for x in range(image.width()) for y in range(14, image.height()))
        return {image.pixelColor(x, y).name() for x, y in places}

    assert text.name() not in colours()
    try:
        qt.QApplication.setPalette(other)
        slicer_harness.process_until(lambda: text.name() in colours(), 5)
    finally:
        qt.QApplication.setPalette(before)
    ui.changeCheck.checked = False
    assert ui.legendLabel.text == ""


def test_choices_are_kept_in_the_scene(widget, panel, tmp_path):
    ui = panel._ui
    choose(panel, "d3--r3")
    ui.modeBox.currentIndex = 2
    ui.amountSlider.value = 60
    ui.contoursCheck.checked = False
    ui.spacingBox.value = 7.5
    scene, path = panel.workplace.scene, str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit()
    scene.Clear(0)
    widget.enter()
    assert (ui.modeBox.currentIndex, ui.spacingBox.value, ui.contoursCheck.checked) == (0, 10.0, True)
    scene.SetURL(path)
    assert scene.Connect()
    widget.enter()
    assert (ui.modeBox.currentIndex, ui.spacingBox.value, ui.contoursCheck.checked) == (2, 7.5, False)
    assert ui.amountLabel.text == "30.0 mm"


# -- measures and decisions ---------------------------------------------------------------------------------
def test_measures_stand_a_structure_before_and_after(panel):
    choose(panel, "d3--r3")
    rows = cells(panel._ui.measuresTable)
    report = json.loads((panel.workplace.pair.folder / "report.json").read_text())
    first = report["structures"][0]
    assert rows[0][0] == "femur"
    assert rows[0][1] == f"{first['before']['dice']:.3f} → {first['after']['dice']:.3f}"
    assert rows[0][2] == f"{first['before']['hd95_mm']:.1f} → {first['after']['hd95_mm']:.1f}"
    size = f"{first['before']['size']:.0f} → {first['after']['size']:.0f} ({first['fixed_size']:.0f})"
    assert rows[0][3] == "0"
    assert rows[0][4] == size
    summary = panel._ui.summaryLabel.text
    assert f"{report['inverse_consistency']['mean_mm']:.3f} mm on average" in summary
    assert f"{report['landmarks']['mean_before_mm']:.2f} mm before" in summary


def test_landmarks_of_the_scene_are_measured(panel):
    choose(panel, "d3--r3")
    bridge, ui = panel.workplace.bridge, panel._ui
    cases = {case.name: case for case in bridge.study.cases}
    ui.fixedPointsBox.setCurrentNode(bridge.show_landmarks(cases["r3"]))
    ui.movingPointsBox.setCurrentNode(bridge.show_landmarks(cases["d3"]))
    marks = json.loads((panel.workplace.pair.folder / "report.json").read_text())["landmarks"]
    assert f"{marks['mean_before_mm']:.2f} mm before" in ui.pointsLabel.text
    assert f"{marks['mean_after_mm']:.2f} mm after" in ui.pointsLabel.text
    assert f"{len(marks['names'])} points" in ui.pointsLabel.text
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "others")
    other.AddControlPoint([0.0, 0.0, 0.0], "nowhere")
    ui.movingPointsBox.setCurrentNode(other)
    assert "no point of the same name" in ui.pointsLabel.text


def test_a_decision_with_comment_is_kept_in_the_study_and_as_csv(panel):
    ui = panel._ui
    choose(panel, "d3--r3")
    ui.commentEdit.text, ui.reviewerEdit.text = "good, =fine", "Ann"
    ui.acceptButton.click()
    assert cells(ui.pairsTable)[0][3] == "accepted"
    assert ui.countLabel.text == "4 pairs, 3 not reviewed"
    assert "Ann: good" in ui.decisionLabel.text
    table = Path(panel.workplace.folder) / "registrations" / "reviews.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["pair"], row["verdict"], row["comment"]) == ("d3--r3", "accepted", "good, =fine")
    choose(panel, "d3--r4")
    assert ui.commentEdit.text == ""
    ui.doubtButton.click()
    choose(panel, "d3--r3")
    assert ui.commentEdit.text == "good, =fine"


def test_pairs_not_reviewed_yet_are_gone_through(panel):
    ui = panel._ui
    for pair in ("d3--r4", "d4--r3"):
        choose(panel, pair)
        ui.rejectButton.click()
    ui.filterBox.currentIndex = 1
    listed(panel)
    assert panel._list.pairs == ("d3--r3", "d4--r4")
    choose(panel, "d3--r3")
    ui.acceptButton.click()
    ui.nextButton.click()
    read(panel)
    assert panel._name() == "d4--r4"
    ui.filterBox.currentIndex = 3
    listed(panel)
    assert panel._list.pairs == ("d3--r4", "d4--r3")


def test_a_decision_about_an_earlier_result_is_shown_as_outdated(panel):
    choose(panel, "d3--r3")
    panel._ui.acceptButton.click()
    report = panel.workplace.pair.folder / "report.json"
    record = json.loads(report.read_text())
    report.write_text(json.dumps({**record, "seconds": 9.0}))
    choose(panel, "d3--r4")
    choose(panel, "d3--r3")
    assert cells(panel._ui.pairsTable)[0][3] == "outdated (accepted)"
    assert panel._ui.decisionLabel.text.startswith("Another result was accepted")


def test_a_decision_that_cannot_be_written_is_said(panel, monkeypatch):
    choose(panel, "d3--r3")
    (Path(panel.workplace.folder) / "registrations" / "reviews.jsonl").mkdir()
    panel._ui.acceptButton.click()
    assert "reviews.jsonl" in panel._ui.messageLabel.text
    assert cells(panel._ui.pairsTable)[0][3] == ""


def test_shortcuts_stand_on_the_buttons(panel):
    for name in ("accept", "doubt", "reject", "next", "previous", "again", "undo"):
        button = getattr(panel._ui, f"{name}Button")
        assert button.shortcut.toString() in button.text.replace("\n", " ")


def test_many_pairs_are_listed_without_keeping_the_window_busy(made, tmp_path):
    layouts.start(slicer)
    folder = tmp_path / "many"
    shutil.copytree(made, folder)
    report = (folder / "registrations" / "d3--r3" / "report.json").read_bytes()
    for n in range(1500):
        place = folder / "registrations" / f"m{n:04}--f"
        place.mkdir()
        (place / "report.json").write_bytes(report)
    workplace = Workplace(slicer.mrmlScene, JobRunner())
    panel = ReviewPanel(workplace)
    workplace.watchers.append(panel.study_changed)
    workplace.open(str(folder))
    with Gaps() as gaps:
        gaps.spin(lambda: panel._list.count == 1504, 60)
        panel._ui.filterBox.currentIndex = 1
        gaps.spin(lambda: not panel._list._timer.active, 60)
    assert panel._list.count == len(panel._list.pairs) == 1504
    panel.cleanup()
    workplace.cleanup()
    workplace.runner.cleanup()
    assert gaps.longest < 0.1
