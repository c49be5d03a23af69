"""What training shows: pictures when a stage is done, curves, the memory that it needs before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from event_lines import of_one_command
from matplotlib.image import imread
from safetensors import safe_open
from trained_study import SOURCE, copy_of, make_study, tiny_config

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.config import override
from SegGuidedMMRegLib.freshness import STAGES
from SegGuidedMMRegLib.pipeline import train
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training_status import stage_curves, stage_pictures, training_of

pytestmark = pytest.mark.xdist_group("trained")


@pytest.fixture(scope="module")
def told(finished) -> dict:
    return training_of(finished.study)


def by_stage(told: dict, what: str) -> dict:
    return {stage["name"]: stage[what] for stage in told["stages"]}


def test_every_stage_has_pictures_that_can_be_read(told) -> None:
    found = by_stage(told, "pictures")
    assert [len(found[stage]) for stage in STAGES] == [4, 4, 3, 6, 4]
    for listed in found.values():
        for picture in listed:
            pixels = imread(picture["path"])
            assert max(pixels.shape[:2]) == 840
            assert pixels[..., :3].std() > 0.05
            assert picture["caption"]


def test_only_images_for_training_are_shown(finished, told) -> None:
    tested = {case.name for case in finished.study.cases if case.role == "test"}
    captions = " ".join(p["caption"] for listed in by_stage(told, "pictures").values() for p in listed)
    assert not [name for name in tested if name in captions]
    assert "dxa_004R, predicted" in captions


def test_the_means_of_prealignment_are_sharper_than_those_by_header_alone(finished, told) -> None:
    listed = by_stage(told, "pictures")["prealign"]
    assert [p["caption"].partition(",")[0] for p in listed] == ["dxa", "dxa", "radiograph", "radiograph"]
    assert "as their headers place them, labels of" in listed[0]["caption"]
    assert "pre-aligned, labels of" in listed[1]["caption"]
    assert "labels" not in listed[2]["caption"] + listed[3]["caption"], "training has none of the target"
    before, after = (imread(listed[n]["path"])[..., :3].mean(-1) for n in (2, 3))
    sharpness = [np.abs(np.gradient(pixels)[0]).mean() / pixels.mean() for pixels in (before, after)]
    assert sharpness[1] > sharpness[0]


def test_without_prealignment_each_mean_is_drawn_once(finished, tmp_path) -> None:
    config = override(finished.study.config, settings=["prealign.method=none"])
    study = copy_of(finished.study, tmp_path / "study", config)
    train(study, ["prealign"])
    captions = [p["caption"] for p in stage_pictures(study.stage_folder("prealign"))]
    assert [caption.partition(",")[0] for caption in captions] == ["dxa", "radiograph"]


def test_the_grid_of_a_sample_is_the_map_that_made_it(finished) -> None:
    """Warped once more, by SimpleITK, the labelled image is the sample."""
    study = finished.study
    with safe_open(study.stage_folder("augmentation") / "samples.safetensors", framework="np") as file:
        about = json.loads(file.metadata()["about"])
        images, maps = file.get_tensor("images"), file.get_tensor("displacements")
        rows = file.get_tensor("displaced_rows")
    tensors = StudyTensors.load(study.training_view())
    assert len(rows) == 4
    for row, displacement in zip(rows, maps, strict=True):
        moving = tensors.source_images[tensors.source_names.index(about["moving"][row])][0].numpy()
        field = sitk.GetImageFromArray(np.moveaxis(displacement[::-1], 0, -1).astype(float), isVector=True)
        warped = sitk.Resample(sitk.GetImageFromArray(moving), sitk.DisplacementFieldTransform(field))
        assert np.abs(displacement).max() > 1
        assert np.abs(sitk.GetArrayFromImage(warped) - images[row][0])[2:-2, 2:-2].mean() < 0.01


def test_pictures_are_told_when_their_stage_is_done(finished) -> None:
    told = {
        e.data["stage"]: e.data["pictures"]
        for e in finished.heard.events
        if e.kind == "result" and "pictures" in e.data
    }
    assert tuple(told) == STAGES
    assert all(Path(p["path"]).is_file() for listed in told.values() for p in listed)


def test_pictures_are_drawn_anew_only_when_what_they_show_has_changed(finished, tmp_path) -> None:
    study = copy_of(finished.study, tmp_path / "study")
    files = sorted(study.folder.rglob("pictures/*.png"))
    files[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in files[1:]}
    train(study)
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == before
    (study.stage_folder("segmentation") / "pictures" / "pictures.json").unlink()
    train(study)
    changed = {path.parts[-3] for path in files[1:] if path.stat().st_mtime_ns != before[path]}
    assert changed == {"segmentation"}


def test_curves_are_those_of_every_run_with_few_points(told) -> None:
    found = by_stage(told, "curves")
    runs = {curve["run"] for curve in found["adaptation"]}
    assert runs == {"adaptation/randomised", "adaptation/teacher"}
    loss = next(c for c in found["segmentation"] if c["metric"] == "loss")
    assert 100 < len(loss["steps"]) == len(loss["values"]) <= 200
    assert loss["steps"] == sorted(loss["steps"])
    assert loss["steps"][-1] == 300
    assert loss["values"][0] > loss["values"][-1]


def test_lines_that_a_kill_left_half_written_are_left_out(tmp_path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert stage_curves(tmp_path / "s") == [{"run": "s", "metric": "loss", "steps": [1], "values": [2]}]


@pytest.mark.parametrize(
    "index", ["", "[]", '{"pictures": [3, {"file": "../../x.png"}, {"file": 4}, {"caption": "c"}]}']
)
def test_a_list_of_pictures_by_a_stranger_shows_nothing_from_elsewhere(tmp_path, index) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "pictures.json").write_text(index)
    assert stage_pictures(tmp_path) == []


def test_memory_is_told_before_anything_is_trained(tmp_path, capsys) -> None:
    study = make_study(tmp_path, config=tiny_config(hurried=True))
    with pytest.raises(SystemExit):
        cli.main(["status", str(study.folder), "--training", "--events"])
    last = of_one_command(capsys.readouterr().out.splitlines(), "status")[-1]
    assert last["training"]["device"] == "cpu"
    assert [stage["name"] for stage in last["training"]["stages"]] == list(STAGES)
    for stage in last["training"]["stages"]:
        assert 1e8 < stage["memory"]["bytes"] < 4e9
        assert stage["curves"] == stage["pictures"] == []


def test_what_to_lower_is_told_where_memory_is_short(finished, monkeypatch) -> None:
    monkeypatch.setattr("SegGuidedMMRegLib.memory.free_memory", lambda _device: 10)
    advice = by_stage(training_of(finished.study), "memory")["segmentation"]["advice"]
    assert "segmentation.batch_size" in advice


def test_a_device_that_is_not_there_is_told_with_all_the_rest(finished, tmp_path) -> None:
    import torch

    absent = "mps" if torch.cuda.is_available() else "cuda"
    config = tiny_config(training={"device": absent})
    told = training_of(copy_of(finished.study, tmp_path / "study", config))
    assert f"no {absent!r} device" in told["problem"]
    assert by_stage(told, "pictures")["segmentation"]


def test_a_study_without_images_is_told_as_one(finished, tmp_path) -> None:
    study = finished.study
    parts = {"name": "s", "dimension": 2, "source": SOURCE, "target": "t", "structures": study.structures}
    empty = Study.create(tmp_path / "empty", **parts)
    assert "no grid" in training_of(empty)["problem"]
