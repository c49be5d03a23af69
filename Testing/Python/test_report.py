"""The tables and the page of a study, on phantom knees whose figures are known."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from reported_study import make_reported_study, with_warped_images

from SegGuidedMMRegLib import metrics
from SegGuidedMMRegLib.config import config_from_dict
from SegGuidedMMRegLib.evaluation import evaluate, predictions_of
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.images import read_labels
from SegGuidedMMRegLib.pair_report_file import read_pair_report
from SegGuidedMMRegLib.report import write_report
from SegGuidedMMRegLib.report.figures import pair_strips, worst_median_best
from SegGuidedMMRegLib.study import Study


class Page(HTMLParser):
    """Tags, links and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_reported_study(tmp_path_factory.mktemp("flat") / "study")


@pytest.fixture(scope="module")
def evaluation(study):
    return evaluate(study, Reporter())


@pytest.fixture(scope="module")
def page(study):
    return write_report(study, Reporter()).read_text(encoding="utf-8")


def rows_of(study: Study) -> list[dict[str, str]]:
    with (study.folder / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- tables -------------------------------------------------------------------------------------------------
def test_each_number_of_the_table_is_the_measure_of_its_files(study, evaluation):
    rows = [r for r in rows_of(study) if r["kind"] == "segmentation"]
    images, extra = 8, 2  # the target's two test images were predicted twice
    assert len(rows) == (images + extra) * len(study.structures) * 3
    case = study.case("r3")
    truth = study.read_evaluation_labels(case)
    for state, path in predictions_of(study, case).items():
        predicted = read_labels(path).array
        for structure in study.structures:
            (row,) = (
                r
                for r in rows
                if (r["case"], r["state"], r["structure"], r["measure"])
                == ("r3", state, structure.name, "dice")
            )
            expected = metrics.dice(predicted, truth.array, [structure.value])[structure.value]
            assert float(row["value"]) == pytest.approx(expected)


def test_a_missing_measure_is_an_empty_cell_with_a_reason(study, evaluation):
    lost = study.structures[-1].name
    found = [
        r
        for r in rows_of(study)
        if (r["state"], r["structure"], r["measure"]) == ("without adaptation", lost, "hd95_mm")
    ]
    assert {(r["value"], r["reason"]) for r in found} == {("", "absent from the prediction")}


def test_cases_whose_labels_were_learned_from_stand_apart(study, evaluation):
    groups = {(r["case"], r["group"]) for r in rows_of(study) if r["kind"] == "segmentation"}
    assert ("d1", "seen in training") in groups
    assert ("d3", "test") in groups
    assert ("r1", "train") in groups  # its labels were for evaluation only
    assert set(evaluation.summary["segmentation"]["dxa"]["prediction"]) == {"seen in training", "test"}


def test_the_headline_tells_the_gain(evaluation):
    headline = evaluation.summary["headline"]
    assert headline["target_dice_without_adaptation"] < 0.7 < headline["target_dice_with_adaptation"]
    assert headline["registration_dice_before"] < headline["registration_dice_after"]
    assert headline["landmark_error_after_mm"] < 0.5 < headline["landmark_error_before_mm"]
    assert (headline["pairs"], headline["failed_pairs"], headline["measured_against"]) == (4, 1, "truth")
    assert headline["folded_voxels"] > 0


def test_the_summary_is_plain_json_and_is_reported(study):
    reporter = RecordingReporter()
    evaluate(study, reporter)
    text = (study.folder / "evaluation.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    (result,) = (e for e in reporter.events if e.kind == "result")
    assert result.data["pairs"] == record["headline"]["pairs"] == 4
    progress = [e.data["step"] for e in reporter.events if e.kind == "progress"]
    assert progress == list(range(1, 9))


def test_what_is_missing_or_damaged_is_listed_and_the_rest_goes_on(study, tmp_path):
    copy = replace(study, folder=tmp_path / "copy")
    shutil.copytree(study.folder, copy.folder)
    copy.prediction_path(copy.case("d3")).unlink()
    (copy.folder / "registrations" / "d3--r3" / "report.json").write_text("{")
    problems = evaluate(copy, Reporter()).summary["problems"]
    assert any("dxa/d3 has labels but no prediction" in p for p in problems)
    assert any("d3--r3/report.json is damaged" in p for p in problems)


def test_without_adaptation_there_is_one_prediction_of_the_target(study):
    config = config_from_dict({"preset": "quick", "adaptation": {"method": "none"}})
    states = set(predictions_of(replace(study, config=config), study.case("r1")))
    assert states == {"prediction"}


# -- the page -----------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_from_elsewhere(page):
    tags = Page(page).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,/9j/") or tag != "img"
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", page)
    assert len(page) < 10e6
    anchors = {a["href"][1:] for tag, a in tags if tag == "a"}
    assert anchors <= {a["id"] for _, a in tags if "id" in a}


def test_every_tag_is_closed(page):
    stack = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, _):
            if tag not in ("meta", "img", "br"):
                stack.append(tag)

        def handle_startendtag(self, tag, _):
            pass

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Checker().feed(page)
    assert stack == []


def test_the_page_says_what_was_gained_and_what_failed(study, page):
    text = Page(page).text
    headline = evaluate(study, Reporter()).summary["headline"]
    for key in ("target_dice_without_adaptation", "target_dice_with_adaptation", "registration_dice_after"):
        assert f"{headline[key]:.3f}" in text
    assert "1 registration failed and must not be used" in text
    assert "d4 → r4" in text
    assert "the transform folds in" in text
    assert f"Adaptation lost {study.structures[-1].name}" in text
    assert "From 2 hand-segmented dxa images the program learned" in text


def test_names_from_files_are_text_not_markup(page):
    assert "<b>d1</b>.dcm" not in page
    assert "&lt;b&gt;d1&lt;/b&gt;.dcm" in page


def test_each_pair_is_shown_in_six_pictures(page):
    alternatives = [a["alt"] for tag, a in Page(page).tags if tag == "img"]
    for pair in ("d3 to r3", "d3 to r4", "d4 to r3", "d4 to r4"):
        assert sum(a.startswith(pair) for a in alternatives) == 6
    assert sum("with outlines" in a for a in alternatives) == 2 * 2 + 2  # target twice, source once
    assert sum("Augmented" in a for a in alternatives) == 2


def test_the_pictures_of_prealignment_are_on_the_page_and_nothing_from_elsewhere(study, tmp_path):
    copy = replace(study, folder=tmp_path / "copy")
    shutil.copytree(study.folder, copy.folder)
    folder, secret = copy.folder / "models/prealign/pictures", tmp_path / "secret.png"
    folder.mkdir(parents=True)
    secret.write_bytes(b"secret")
    (folder / "1.png").write_bytes(b"a picture")
    (folder / "2.png").symlink_to(secret)
    (folder / "3.png").write_bytes(bytes(5_000_000))
    listed = [{"file": f"{n}.png", "caption": f"<b>mean {n}"} for n in (1, 2, 3, 4)]
    (folder / "pictures.json").write_text(json.dumps({"made_from": "x", "pictures": listed}))
    tags = Page(write_report(copy, Reporter()).read_text(encoding="utf-8")).tags
    shown = [a for tag, a in tags if tag == "img" and a["alt"].startswith("Pre-alignment")]
    assert [a["alt"] for a in shown] == ["Pre-alignment: <b>mean 1"]
    assert base64.b64decode(shown[0]["src"].partition(",")[2]) == b"a picture"


def test_training_curves_are_drawn_for_every_run(page):
    drawn = [a["aria-label"] for tag, a in Page(page).tags if tag == "svg" and "aria-label" in a]
    assert sum(d.startswith("segmentation: ") for d in drawn) == 3
    assert sum(d.startswith("adaptation/teacher: ") for d in drawn) == 3


def test_a_volume_is_shown_in_three_directions(tmp_path):
    study = make_reported_study(tmp_path / "solid", dimension=3, size=32)
    alternatives = [
        a["alt"] for tag, a in Page(write_report(study, Reporter()).read_text()).tags if tag == "img"
    ]
    for view in ("axial", "coronal", "sagittal"):
        assert sum(a.startswith(f"d3 to r3 {view}") for a in alternatives) == 6


def test_a_study_that_has_only_images_still_has_a_page(study, tmp_path):
    bare = replace(study, folder=tmp_path / "bare")
    for part in ("images", "labels"):
        shutil.copytree(study.folder / part, bare.folder / part)
    text = Page(write_report(bare, Reporter()).read_text(encoding="utf-8")).text
    assert "There are no predictions yet" in text
    assert "Nothing has been trained yet" in text


def test_a_pair_whose_transform_is_gone_says_so(study, tmp_path):
    copy = replace(study, folder=tmp_path / "copy")
    shutil.copytree(study.folder, copy.folder)
    (copy.folder / "registrations" / "d3--r3" / "forward.h5").unlink()
    page = Page(write_report(copy, Reporter()).read_text(encoding="utf-8"))
    assert "No pictures: " in page.text
    assert not any(a.get("alt", "").startswith("d3 to r3") for _, a in page.tags)


def test_a_pair_of_images_from_outside_the_study_shows_what_its_folder_holds(study, tmp_path):
    copy = replace(study, folder=tmp_path / "copy")
    shutil.copytree(study.folder, copy.folder)
    path = with_warped_images(copy).folder / "registrations" / "d3--r3" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "moving": "new", "moving_modality": "dxa"}))
    page = Page(write_report(copy, Reporter()).read_text(encoding="utf-8"))
    shown = [a["alt"] for _, a in page.tags if a.get("alt", "").startswith("new to r3")]
    assert [alt.split(": ")[1] for alt in shown] == ["moving, warped", "grid, warped", "change of size"]
    assert "No pictures: " not in page.text


def test_predictions_are_not_drawn_for_a_pair_whose_segmentations_were_given(study, tmp_path):
    copy = replace(study, folder=tmp_path / "copy")
    shutil.copytree(study.folder, copy.folder)
    folder = with_warped_images(copy).folder / "registrations" / "d3--r3"
    report = json.loads((folder / "report.json").read_text())
    report["labels"] = {"moving": "given", "fixed": "given"}
    (folder / "report.json").write_text(json.dumps(report))
    assert "measured on given labels" in Page(write_report(copy, Reporter()).read_text(encoding="utf-8")).text
    for predicted in (copy.folder / "predictions").glob("*/*3.seg.nrrd"):
        predicted.write_bytes(b"not to be read")
    strips = pair_strips(copy, read_pair_report(folder), folder, copy.folder)
    assert len(strips[0].pictures) == 6


def test_the_worst_the_middle_and_the_best_are_shown():
    scores = [0.5, None, 0.9, 0.1, 0.7, 0.3, 0.8]
    assert worst_median_best(scores, lambda s: s, 1) == [None, 0.5, 0.9]
    assert worst_median_best(scores[:3], lambda s: s, 1) == [None, 0.5, 0.9]
    assert len(worst_median_best(list(range(100)), float, 3)) == 9


def test_thousands_of_pairs_make_no_thousands_of_lines(study, page, tmp_path):
    many = replace(study, folder=tmp_path / "many")
    shutil.copytree(study.folder, many.folder)
    registrations = many.folder / "registrations"
    text = (registrations / "d3--r3" / "report.json").read_text(encoding="utf-8")
    bad = (registrations / "d4--r4" / "report.json").read_text(encoding="utf-8")
    for n in range(1500):
        folder = registrations / f"copy{n}"
        folder.mkdir()
        (folder / "report.json").write_text(bad if n < 100 else text, encoding="utf-8")
    large = write_report(many, Reporter()).read_text(encoding="utf-8")
    assert len(large) < len(page) + 2_000_000, "besides the pictures of some more pairs"
    assert "The 200 worst of 1504 pairs" in Page(large).text
    assert "and 51 more, listed in evaluation.csv" in Page(large).text
    assert large.count("<tr>") < 400
    rows = rows_of(many)
    per_pair = len([r for r in rows_of(study) if r["case"] == "d3--r3"])
    assert len([r for r in rows if r["case"] == "d3--r3"]) == 1401 * per_pair
