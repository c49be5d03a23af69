"""The source network: built for any shape, trained from few labels, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_augmentation import ellipses, study

from SegGuidedMMRegLib.config import Config, SegmentationConfig, config_from_dict, preset
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.losses import dice_loss, segmentation_loss
from SegGuidedMMRegLib.networks.segmentation import (
    build_segmentation_network,
    load_segmentation_network,
    read_uncertainty,
)
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.data import StudyTensors, study_labels
from SegGuidedMMRegLib.training.segmentation import LabelledPool, train_source, validation_dice

SMALL = SegmentationConfig(channels=(8, 16, 32), strides=(2, 2), residual_units=1)


def settings(**segmentation: Any) -> Config:
    small = {"channels": [8, 16, 32], "strides": [2, 2], "residual_units": 1, "batch_size": 4}
    return config_from_dict({"segmentation": {**small, **segmentation}, "training": {"device": "cpu"}})


def with_validation(tensors: StudyTensors) -> StudyTensors:
    images, labels = ellipses(3, tensors.grid.shape, seed=9)
    return replace(
        tensors, validation_names=("v0", "v1", "v2"), validation_images=images, validation_labels=labels
    )


@pytest.mark.parametrize("shape", [(33, 47), (32, 32), (17, 20, 13)])
def test_any_shape_goes_in_and_comes_out(shape: tuple[int, ...]) -> None:
    network = build_segmentation_network(len(shape), 3, SMALL)
    assert network(torch.rand(2, 1, *shape)).shape == (2, 4, *shape)


def test_padding_does_not_shift_the_result() -> None:
    network = build_segmentation_network(2, 1, SMALL).eval()
    image = torch.rand(1, 1, 40, 40)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    whole = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(network(padded), network(whole)[..., 1:-1, 1:-1])


def test_the_papers_network_has_its_channels_and_full_resolution() -> None:
    network = build_segmentation_network(2, 4, preset("paper").segmentation)
    assert network.multiple == 1
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.57e6, rel=0.01)


@pytest.mark.parametrize(("dimension", "structures"), [(4, 2), (2, 0)])
def test_impossible_networks_are_refused(dimension: int, structures: int) -> None:
    with pytest.raises(ValueError, match="got"):
        build_segmentation_network(dimension, structures, SMALL)


def test_dice_loss_is_zero_for_the_truth_and_takes_probabilities() -> None:
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert dice_loss(one_hot * 50, labels) < 1e-4
    torch.testing.assert_close(dice_loss(one_hot, labels), dice_loss(one_hot, one_hot))
    torch.testing.assert_close(
        segmentation_loss(one_hot, labels), segmentation_loss(one_hot, one_hot), atol=1e-5, rtol=0
    )


def test_few_labels_teach_the_network_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    tensors = with_validation(study((32, 32), labelled=4))
    result = train_source(tensors, None, settings(steps=200, learning_rate=5e-3), tmp_path, Reporter())
    network = load_segmentation_network(tmp_path)
    assert result.score is not None
    assert result.score > 0.8
    assert validation_dice(network, tensors) == pytest.approx(result.score, abs=1e-5)


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    tensors = study((32, 32))
    paths = [train_source(tensors, None, settings(steps=4), tmp_path / n, Reporter()).weights for n in "ab"]
    one, two = (load_file(path) for path in paths)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_mixed_precision_trains_too(tmp_path: Path) -> None:
    config = settings(steps=3)
    mixed = config.model_copy(
        update={"training": config.training.model_copy(update={"precision": "bf16-mixed"})}
    )
    weights = load_file(train_source(study((32, 32)), None, mixed, tmp_path, Reporter()).weights)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_volume_is_trained_alike(tmp_path: Path) -> None:
    train_source(study((12, 16, 10)), None, settings(steps=2), tmp_path, Reporter())
    assert load_segmentation_network(tmp_path)(torch.rand(1, 1, 12, 16, 10)).shape == (1, 3, 12, 16, 10)


def test_the_network_knows_the_pieces_of_the_labels_unless_they_do_not_matter(tmp_path: Path) -> None:
    tensors = study((32, 32))
    for name, asked, limits in (("on", True, (0.2, 0.2)), ("off", False, (0.0, 0.0))):
        config = settings(steps=1, drop_fragments=asked)
        train_source(tensors, None, config, tmp_path / name, Reporter())
        assert load_segmentation_network(tmp_path / name).fragment_limits == limits


def test_a_network_of_another_version_is_told(tmp_path: Path) -> None:
    train_source(study((32, 32)), None, settings(steps=1), tmp_path, Reporter())
    assert read_uncertainty(tmp_path) == 0
    path = tmp_path / "network.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("uncertainty")))
    load_segmentation_network(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 'uncertainty'.*another version"):
        read_uncertainty(tmp_path)
    path.write_text("\n".join(lines[: lines.index("fragment_limits:")]))
    with pytest.raises(ValueError, match=r"network.yaml lacks 'fragment_limits'.*another version"):
        load_segmentation_network(tmp_path)


def test_an_untrained_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Train this stage first"):
        load_segmentation_network(tmp_path)


def test_batches_hold_the_wished_share_of_augmented_samples() -> None:
    tensors = study((16, 16))
    extra = AugmentedSamples(torch.full((5, 1, 16, 16), 7.0), torch.ones((5, 16, 16), dtype=torch.uint8))
    images, labels = LabelledPool(tensors, extra, 0.25).draw(2000, torch.Generator().manual_seed(0))
    assert (images.amax((1, 2, 3)) == 7).float().mean() == pytest.approx(0.25, abs=0.03)
    assert labels.dtype == torch.int64
    alone, _ = LabelledPool(tensors, None, 0.25).draw(50, torch.Generator())
    assert alone.max() <= 1


def test_labels_come_to_study_space_where_the_affine_says() -> None:
    image_grid = Grid.centred((40, 30, 1), (0.5, 0.5, 1.0))
    grid = Grid.centred((20, 20, 1), (1.0, 1.0, 1.0))
    labels = np.zeros(image_grid.shape, dtype=np.uint8)
    labels[10:20, 12:28] = 2  # x -4..4 mm, y -2.5..2.5 mm about the centre
    shift = np.eye(4)
    shift[0, 3] = -3.0  # a study point x lies at x - 3 in the case
    found = study_labels(labels, image_grid, grid, shift, 3)
    points = grid.points()
    expected = (np.abs(points[..., 0] - 3) < 4) & (np.abs(points[..., 1]) < 2.5)
    assert set(np.unique(found)) == {0, 2}
    assert ((found == 2) == expected).mean() > 0.97
