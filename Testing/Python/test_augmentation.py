"""More labelled images by registration: they must carry the labels to where they belong, or be dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from SegGuidedMMRegLib.config import Config, config_from_dict
from SegGuidedMMRegLib.deformation import corner_jacobians, soft_dice
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.training.augmentation import augment, choose_pairs, load_samples, warp_labels
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.augmentation.velocity import VelocityRegistration
from SegGuidedMMRegLib.training.data import StudyTensors


def ellipses(count: int, shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 1, *shape] of a bright core in a grey shell, at random, and labels [N, *shape]."""
    drawn = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    images, labels = [], []
    for _ in range(count):
        centre = (torch.rand(len(shape), generator=drawn) - 0.5) * 0.25
        radius = 0.45 + 0.2 * torch.rand(len(shape), generator=drawn)
        distance = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radius, strict=True))
        assert isinstance(distance, torch.Tensor)
        image = 0.5 * torch.sigmoid((1 - distance) * 8) + 0.4 * torch.sigmoid((0.3 - distance) * 16)
        images.append((image + 0.01 * torch.randn(shape, generator=drawn)).clamp(0, 1))
        labels.append((distance < 1).long() + (distance < 0.3).long())
    return torch.stack(images)[:, None], torch.stack(labels)


def study(
    shape: tuple[int, ...] = (48, 40), count: int = 6, labelled: int = 2, seed: int = 0
) -> StudyTensors:
    images, labels = ellipses(count, shape, seed)
    size = (*shape[::-1], 1) if len(shape) == 2 else shape[::-1]
    empty = torch.empty(0, 1, *shape)
    return StudyTensors(
        grid=Grid.centred(size, (1.0, 1.0, 1.0)),  # type: ignore[arg-type]
        structures=("shell", "core"),
        source_names=tuple(f"s{i}" for i in range(count)),
        source_images=images,
        source_labels={row: labels[row] for row in range(labelled)},
        target_names=(),
        target_images=empty,
        validation_names=(),
        validation_images=empty,
        validation_labels=torch.empty(0, *shape).long(),
    )


def settings(**augmentation: Any) -> Config:
    return config_from_dict(
        {"augmentation": {"iterations": 60, **augmentation}, "training": {"device": "cpu"}}
    )


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    one_hot = [torch.nn.functional.one_hot(x.long(), 3).movedim(-1, 1).float() for x in (a, b)]
    return float(soft_dice(*one_hot)[:, 1:].mean())


@pytest.mark.parametrize("shape", [(48, 40), (24, 28, 20)])
def test_carried_labels_lie_on_the_other_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = study(shape)
    _, truth = ellipses(6, shape)
    samples = augment(tensors, settings(working_downsampling=1), tmp_path, Reporter())
    assert len(samples.images) >= 6
    rows = [[tensors.source_names.index(name) for name in names] for names in (samples.moving, samples.fixed)]
    before = dice(truth[rows[0]], truth[rows[1]])
    after = dice(samples.labels, truth[rows[1]])
    assert set(rows[0]) == {0, 1}
    assert set(rows[1]) <= {2, 3, 4, 5}
    assert after > 0.9
    assert after > before + 0.1


def test_the_displacement_of_two_equal_images_is_nothing() -> None:
    images, _ = ellipses(1, (48, 40))
    found = VelocityRegistration(2, 20, 0.1, 3.0, 0.1).displacement(images, images, torch.Generator())
    assert found.abs().max() < 0.5  # Adam's first steps are of full length whatever the gradient


def test_pairs_do_not_influence_each_other() -> None:
    images, _ = ellipses(4, (32, 32))
    method = VelocityRegistration(1, 12, 0.1, 3.0, 0.1)
    together = method.displacement(images[:2], images[2:], torch.Generator())
    alone = method.displacement(images[1:2], images[3:], torch.Generator())
    torch.testing.assert_close(together[1:], alone, atol=0.05, rtol=0)


def test_bad_pairs_are_dropped_counted_and_reported(tmp_path: Path) -> None:
    tensors = study()
    tensors.source_images[4] = torch.rand(1, 48, 40, generator=torch.Generator().manual_seed(5))
    reporter = RecordingReporter()
    samples = augment(tensors, settings(working_downsampling=1, min_similarity=0.5), tmp_path, reporter)
    assert "s4" not in samples.fixed
    assert sum(samples.dropped.values()) == 2
    result = next(event.data for event in reporter.events if event.kind == "result")
    assert (result["kept"], result["made"], result["dropped"]) == (6, 8, samples.dropped)


def test_when_all_are_dropped_it_says_what_to_do(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    samples = augment(study(), settings(min_similarity=2.0, iterations=4), tmp_path, reporter)
    assert len(samples.images) == 0
    assert load_samples(tmp_path) is None
    assert any("augmentation.min_similarity" in event.data.get("message", "") for event in reporter.events)


def test_a_folded_sample_is_dropped(tmp_path: Path) -> None:
    wild = settings(method="elastic", samples=8, elastic_control_points=8, elastic_sigma=20.0)
    assert augment(study(), wild, tmp_path, Reporter()).dropped == {"folded": 8}


def test_elastic_samples_keep_names_and_need_no_partner(tmp_path: Path) -> None:
    samples = augment(study(), settings(method="elastic", samples=6), tmp_path, Reporter())
    assert samples.moving == ("s0", "s1", "s0", "s1", "s0", "s1")
    assert set(samples.fixed) == {""}
    assert set(samples.labels.unique().tolist()) == {0, 1, 2}


def test_a_gradicon_network_is_trained_in_two_stages_and_used(tmp_path: Path) -> None:
    quick = settings(
        method="gradicon", samples=4, steps_per_stage=2, batch_size=2, learning_rate=1e-3, min_similarity=-1.0
    )
    samples = augment(study((32, 32)), quick, tmp_path, Reporter())
    assert len(samples.images) + sum(samples.dropped.values()) == 4
    for stage in ("stage1", "stage2"):
        assert (tmp_path / stage / "weights.safetensors").exists()


def test_the_same_seed_gives_the_same_samples_and_the_file_holds_them(tmp_path: Path) -> None:
    made = settings(iterations=6, samples=4, min_similarity=-1.0)
    one = augment(study(), made, tmp_path / "1", Reporter())
    two = augment(study(), made, tmp_path / "2", Reporter())
    read = AugmentedSamples.load(tmp_path / "1")
    for other in (two, read):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.moving, one.fixed, one.dropped) == (other.moving, other.fixed, other.dropped)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"samples\.safetensors"):
        load_samples(tmp_path)


def test_pairs_use_every_labelled_image_and_no_image_with_itself() -> None:
    drawn = torch.Generator().manual_seed(0)
    assert len(choose_pairs(study(), 0, drawn)) == 8
    assert [m for m, _ in choose_pairs(study(), 5, drawn)] == [0, 1, 0, 1, 0]
    all_labelled = choose_pairs(study(labelled=6), 0, drawn)
    assert len(all_labelled) == 30
    assert all(m != f for m, f in all_labelled)


def test_warped_labels_follow_a_known_shift() -> None:
    labels = torch.zeros(16, 16, dtype=torch.long)
    labels[4:10, 6:12] = 2
    shift = torch.zeros(2, 16, 16)
    shift[0] = 3.0  # fixed p shows moving p + 3
    assert torch.equal(warp_labels(labels, shift, 3)[1:7, 6:12], torch.full((6, 6), 2))
    assert corner_jacobians(shift[None]).min() > 0.99
