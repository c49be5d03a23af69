"""Every reader of a file survives damaged ones: a clear error that names the file, soon, and nothing else.

The damage is seeded, so a failure comes back. `SEGMMREG_FUZZ=20` tries 20 times as many files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from mutations import HOSTILE_TEXTS, damaged_bytes, damaged_records, json_bytes
from safetensors.torch import save_file
from spatial_cases import oblique_grid, smooth_displacement, smooth_image_array

from SegGuidedMMRegLib.config import SegmentationConfig, TrainingConfig, load_config, preset, save_config
from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.events import Event
from SegGuidedMMRegLib.fields import SpatialTransform
from SegGuidedMMRegLib.files import read_json_lines
from SegGuidedMMRegLib.images import Image, read_image, read_labels, write_image, write_labels
from SegGuidedMMRegLib.importing.sources import from_list
from SegGuidedMMRegLib.networks.registration import load_registration_network
from SegGuidedMMRegLib.networks.segmentation import (
    build_segmentation_network,
    describe_network,
    load_segmentation_network,
)
from SegGuidedMMRegLib.networks.weights import save_weights
from SegGuidedMMRegLib.pair_report_file import failed_report, read_pair_report, write_pair_report
from SegGuidedMMRegLib.points import PointList, read_points, write_points
from SegGuidedMMRegLib.provenance import changed_since
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Role, Structure, Study
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.checkpoints import Checkpoints
from SegGuidedMMRegLib.transform_files import read_transform, write_transform

TIMES = int(os.environ.get("SEGMMREG_FUZZ", "1"))
SECONDS_A_FILE = 5.0
FEMUR = Structure(1, "femur", (200, 0, 0))
GRID, FLAT = oblique_grid((9, 8, 7)), Grid((16, 12, 1))
VOLUME = Image((smooth_image_array(GRID.shape) * 100).astype(np.int16), GRID)
PICTURE = Image(np.random.default_rng(0).integers(0, 255, FLAT.shape).astype(np.uint8), FLAT)
LABELS = Image((VOLUME.array > 0).astype(np.uint8), GRID)
POINTS = PointList(("a", "b c"), np.array([[1, 2, 3.0], [4, 5, 6]]))


def survives(
    read: Callable[[Path], object], path: Path, contents: Iterable[bytes], *, silent: bool = False
) -> int:
    """Read each of the contents in `path`; how many were accepted."""
    accepted = 0
    for content in contents:
        path.write_bytes(content)
        start = time.monotonic()
        told = _refusal(read, path)
        assert time.monotonic() - start < SECONDS_A_FILE, content[:200]
        accepted += told is None
        if told is not None:
            assert not silent, f"{told} for {content[:200]!r}"
            assert path.name in told, f"the file is not named: {told}"
            assert len(told) < 5000
    return accepted


def _refusal(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def damaged(path: Path, count: int = 60, seed: int = 1) -> list[bytes]:
    return [*HOSTILE_TEXTS, *damaged_bytes(path.read_bytes(), seed, count * TIMES)]


# -- images, transforms, points -------------------------------------------------------------------------
def _write_dicom(path: Path) -> None:
    sitk.WriteImage(sitk.Cast(PICTURE.to_sitk()[:, :, 0], sitk.sitkUInt16), str(path))


IMAGES: dict[str, Callable[[Path], None]] = {
    **{f"v{s}": lambda p: write_image(VOLUME, p) for s in (".nrrd", ".nii.gz", ".nii", ".mha", ".gipl")},
    **{f"p{s}": lambda p: write_image(PICTURE, p) for s in (".png", ".tif", ".jpg", ".bmp")},
    "d.dcm": _write_dicom,
}


@pytest.mark.parametrize("name", IMAGES)
def test_damaged_images_are_refused_or_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    IMAGES[name](path)
    survives(read_image, path, damaged(path))


def test_damaged_segmentations_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "l.seg.nrrd"
    write_labels(LABELS, [FEMUR], path)
    survives(read_labels, path, damaged(path, 120))


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".nrrd", ".nii.gz", ".mha"])
def test_damaged_transforms_are_refused_or_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"forward{suffix}"
    write_transform(SpatialTransform(smooth_displacement(GRID, 1.0, 2.0), np.eye(4)), path)
    survives(read_transform, path, damaged(path))


@pytest.mark.parametrize("suffix", [".csv", ".mrk.json", ".fcsv"])
def test_damaged_points_are_refused_or_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"points{suffix}"
    write_points(POINTS, path)
    contents = damaged(path, 100)
    if suffix == ".mrk.json":
        record = yaml.safe_load(path.read_text())
        contents += [json_bytes(r) for r in damaged_records(record, 2, 150 * TIMES)]
    survives(read_points, path, contents)


# -- a study --------------------------------------------------------------------------------------------
@pytest.fixture
def study(tmp_path: Path) -> Study:
    cases = [
        Case(
            "s1", "dxa", "p1", Role.TRAIN, False, "images/dxa/s1.nrrd", "labels/dxa/s1.seg.nrrd", "training"
        ),
        Case("t1", "xray", "p2", Role.TEST, True, "images/xray/t1.nrrd", landmarks="landmarks/xray/t1.csv"),
    ]
    made = Study.create(
        tmp_path / "study",
        name="knees",
        dimension=2,
        source="dxa",
        target="xray",
        structures=[FEMUR],
        grid=Grid.centred((32, 32, 1), (1.0, 1.0, 1.0)),
        cases=cases,
    )
    made.save_affines({case.key: np.eye(4) for case in cases})
    return made


def yaml_bytes(record: Any) -> bytes:
    return yaml.safe_dump(record, allow_unicode=True).encode()


def test_a_damaged_study_file_is_refused_or_opens(study: Study) -> None:
    path = study.folder / "study.yaml"
    record = yaml.safe_load(path.read_text())
    contents = [*damaged(path, 150), *(yaml_bytes(r) for r in damaged_records(record, 3, 250 * TIMES))]
    accepted = survives(lambda p: Study.open(p.parent), path, contents)
    assert 0 < accepted < len(contents) / 2


def test_damaged_settings_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(preset("quick"), path)
    record = yaml.safe_load(path.read_text())
    contents = [*damaged(path, 100), *(yaml_bytes(r) for r in damaged_records(record, 4, 200 * TIMES))]
    survives(load_config, path, contents)


@pytest.mark.parametrize("suffix", [".csv", ".yaml"])
def test_damaged_lists_are_refused_or_read(tmp_path: Path, suffix: str) -> None:
    write_image(PICTURE, tmp_path / "a.png")
    path = tmp_path / f"list{suffix}"
    rows = [{"image": "a.png", "modality": "dxa", "role": "train", "mirrored": "yes", "spacing": "0.5"}]
    if suffix == ".csv":
        path.write_text("\n".join(",".join(line) for line in (rows[0], rows[0].values())))
        contents = damaged(path, 150)
    else:
        path.write_bytes(yaml_bytes({"cases": rows}))
        records = damaged_records({"cases": rows}, 5, 200 * TIMES)
        contents = [*damaged(path, 60), *(yaml_bytes(r) for r in records)]
    survives(lambda p: from_list(p, {"dxa": "dxa"}), path, contents)


def test_damaged_alignments_are_refused_or_read(study: Study) -> None:
    path = study.affines_path
    record = yaml.safe_load(path.read_text())
    contents = [*damaged(path, 60), *(json_bytes(r) for r in damaged_records(record, 6, 150 * TIMES))]
    survives(lambda _: study.study_to_case(study.cases[0]), path, contents)


# -- results --------------------------------------------------------------------------------------------
def test_a_damaged_report_of_a_pair_is_refused_or_read(tmp_path: Path) -> None:
    path = write_pair_report(failed_report("a", "b", "no luck"), tmp_path)
    record = yaml.safe_load(path.read_text())
    contents = [*damaged(path, 60), *(json_bytes(r) for r in damaged_records(record, 7, 150 * TIMES))]
    survives(lambda p: read_pair_report(p.parent), path, contents)


def test_a_damaged_record_of_a_stage_lets_it_run_again(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    record = {"made_from": {"settings": "ab"}, "made": {"w": "cd"}, "complete": True, "seconds": 1.5}
    contents = [
        *HOSTILE_TEXTS,
        *damaged_bytes(json_bytes(record), 8, 60 * TIMES),
        *(json_bytes(r) for r in damaged_records(record, 9, 150 * TIMES)),
    ]
    digests = FileDigests(tmp_path, tmp_path / "digests.json")
    survives(lambda p: changed_since(p.parent, {"settings": "ab"}, digests), path, contents, silent=True)


def test_a_damaged_checkpoint_lets_training_start_afresh(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "fingerprint", TrainingConfig())
    checkpoints.write({"step": 3, "networks": {"a": torch.zeros(3)}})
    told: list[str] = []
    survives(
        lambda _: checkpoints.read(told.append), checkpoints.path, damaged(checkpoints.path), silent=True
    )
    assert told
    assert all("training starts afresh" in line for line in told)


def test_damaged_lines_of_metrics_and_events_are_left_out_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    survives(lambda p: list(read_json_lines(p)), path, damaged(path, 100), silent=True)
    for content in HOSTILE_TEXTS:
        with pytest.raises(ValueError, match="Not an event line"):
            Event.from_json(content.decode("utf-8", "replace"))


# -- networks -------------------------------------------------------------------------------------------
@pytest.fixture
def trained(tmp_path: Path) -> Path:
    config = SegmentationConfig(channels=(2, 4), strides=(2,), residual_units=0)
    save_weights(build_segmentation_network(2, 1, config), tmp_path / "weights.safetensors")
    describe_network(tmp_path, 2, ["femur"], config, fragment_limits=[0.2])
    return tmp_path


def test_damaged_weights_are_refused_or_read(trained: Path) -> None:
    path = trained / "weights.safetensors"
    survives(lambda p: load_segmentation_network(p.parent), path, damaged(path, 80))


@pytest.mark.parametrize("load", [load_segmentation_network, load_registration_network])
def test_a_damaged_description_of_a_network_makes_none_that_the_weights_do_not_fill(
    trained: Path, load: Callable[[Path], torch.nn.Module]
) -> None:
    path = trained / "network.yaml"
    record = yaml.safe_load(path.read_text())
    if load is load_registration_network:
        record = {"dimension": 2, "channels": 2, "shape": [32, 32]}
    contents = [*damaged(path, 30), *(yaml_bytes(r) for r in damaged_records(record, 10, 120 * TIMES))]

    def read(given: Path) -> None:
        told = _refusal(lambda p: load(p.parent), given)
        if told is not None:  # the weights are the one that is named where both do not fit each other
            raise ValueError(told.replace("weights.safetensors", "network.yaml"))

    survives(read, path, contents)


def test_damaged_samples_are_refused_or_read(tmp_path: Path) -> None:
    AugmentedSamples(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)).save(tmp_path)
    path = tmp_path / "samples.safetensors"
    survives(lambda p: AugmentedSamples.load(p.parent), path, damaged(path, 80))


def test_weights_that_are_not_numbers_are_refused(trained: Path) -> None:
    from safetensors.torch import load_file

    path = trained / "weights.safetensors"
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, path)
    with pytest.raises(ValueError, match=r"weights\.safetensors: .*not numbers \(NaN or infinite"):
        load_segmentation_network(trained)
