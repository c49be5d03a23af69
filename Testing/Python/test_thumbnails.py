"""Small pictures of cases: upright, made once, made anew when what they show has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from reported_study import make_reported_study

from SegGuidedMMRegLib import thumbnails
from SegGuidedMMRegLib.events import Event, RecordingReporter, Reporter
from SegGuidedMMRegLib.files import WriteError
from SegGuidedMMRegLib.images import Image, write_image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.thumbnails import SIDE, fresh_thumbnail, make_thumbnails, thumbnail_path


@pytest.fixture
def knees(tmp_path: Path) -> Study:
    return make_reported_study(tmp_path / "knees", 2, 32)


def _pixels(study: Study, name: str) -> np.ndarray:
    with Picture.open(thumbnail_path(study, study.case(name))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def _with_image(study: Study, name: str, image: Image) -> Study:
    """The study with another image of a case, which has no labels then."""
    case = study.case(name)
    write_image(image, study.folder / case.image)
    kept = [replace(c, label=None, label_use=None) if c == case else c for c in study.cases]
    return study.with_cases(kept)


def test_each_case_gets_one_and_only_once(knees: Study) -> None:
    heard = RecordingReporter()
    assert make_thumbnails(knees, heard) == []
    told = [e.data for e in heard.events if e.kind == "result"]
    assert [t["case"] for t in told] == [case.key for case in knees.cases]
    assert all(Path(t["thumbnail"]).is_file() for t in told)
    again = RecordingReporter()
    make_thumbnails(knees, again)
    assert [e for e in again.events if e.kind == "result"] == []


def test_it_is_out_of_date_when_image_labels_or_colours_change(knees: Study) -> None:
    make_thumbnails(knees, Reporter())
    case = knees.case("d1")
    image = knees.read_image(case)
    write_image(Image(image.array[::-1].copy(), image.grid), knees.folder / case.image)
    assert fresh_thumbnail(knees, case) is None
    first, *others = knees.structures
    recoloured = replace(knees, structures=(replace(first, color=(1, 2, 3)), *others))
    assert fresh_thumbnail(recoloured, knees.case("d2")) is None
    assert fresh_thumbnail(knees, knees.case("d2")) is not None
    (knees.folder / str(knees.case("d2").label)).touch()
    assert fresh_thumbnail(knees, knees.case("d2")) is None


def test_structures_are_shown_in_their_colours(knees: Study) -> None:
    make_thumbnails(knees, Reporter())
    labelled = _pixels(knees, "d1")
    assert (labelled.max(axis=2) - labelled.min(axis=2)).max() > 50
    plain = _with_image(knees, "d1", knees.read_image(knees.case("d1")))
    make_thumbnails(plain, Reporter())
    grey = _pixels(plain, "d1")
    assert (grey.max(axis=2) == grey.min(axis=2)).all()


def test_a_radiograph_stands_as_it_is_stored_and_keeps_its_shape(knees: Study) -> None:
    array = np.zeros((80, 40), np.uint8)
    array[:20, :] = 200
    study = _with_image(knees, "r1", Image(array, Grid((40, 80, 1), (0.5, 0.25, 1.0))))
    make_thumbnails(study, Reporter())
    pixels = _pixels(study, "r1")
    assert pixels.shape[:2] == (SIDE, SIDE)
    assert pixels[:12].min() > 200
    assert pixels[24:].max() < 50


def test_a_volume_is_shown_with_the_head_on_top_and_the_front_on_the_left(tmp_path: Path) -> None:
    study = make_reported_study(tmp_path / "volumes", 3, 24)
    array = np.zeros((30, 40, 8), np.float32)  # k, j, i = z, y, x; slices along x
    array[20:, :, 4] = 100  # towards the head
    array[:, :10, 4] += 50  # towards the front
    image = Image(array, Grid((8, 40, 30), (4.0, 1.0, 1.0)))
    study = _with_image(study, "d1", image)
    make_thumbnails(study, Reporter())
    pixels = _pixels(study, "d1")[..., 0]
    height, width = pixels.shape
    assert height < width == SIDE
    assert pixels[: height // 4, width // 2 :].mean() > pixels[-height // 4 :, width // 2 :].mean() + 50
    assert pixels[-height // 4 :, : width // 5].mean() > pixels[-height // 4 :, width // 2 :].mean() + 50


def test_an_image_that_cannot_be_read_is_told_and_the_others_get_theirs(knees: Study) -> None:
    (knees.folder / knees.case("d2").image).write_bytes(b"NRRD0004\n")
    problems = make_thumbnails(knees, Reporter())
    assert len(problems) == 1
    assert problems[0].startswith("dxa/d2: ")
    assert fresh_thumbnail(knees, knees.case("d3")) is not None


def test_a_study_that_cannot_be_written_to_says_so_once(
    knees: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> None:
        raise WriteError(f"{path} could not be written (Permission denied).")

    monkeypatch.setattr(thumbnails, "atomic_path", read_only)
    (problem,) = make_thumbnails(knees, Reporter())
    assert "d1.png could not be written" in problem


def test_info_tells_where_they_are(knees: Study) -> None:
    from SegGuidedMMRegLib.commands.info import Info

    before = Info(study=knees.folder).run(Reporter()).found
    assert {case["thumbnail"] for case in before["cases"]} == {None}
    after = Info(study=knees.folder, thumbnails=True).run(Reporter()).found
    assert all(Path(case["thumbnail"]).is_file() for case in after["cases"])
    assert Event("result", dict(after)).to_json()


def test_a_picture_is_readable_by_other_programs(knees: Study) -> None:
    make_thumbnails(knees, Reporter())
    assert sitk.ReadImage(str(thumbnail_path(knees, knees.case("d1")))).GetSize()[1] == SIDE
