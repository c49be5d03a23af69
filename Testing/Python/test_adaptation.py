"""Adaptation as a whole: what it learns from, what it ships, and what it does when a structure vanishes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from SegGuidedMMRegLib.config import Config, config_from_dict
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.networks.segmentation import load_segmentation_network
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.training import adaptation
from SegGuidedMMRegLib.training.adaptation import adapt, choose
from SegGuidedMMRegLib.training.adaptation.collapse import (
    Quality,
    UsualSizes,
    assess,
    confidence,
    structure_sizes,
)
from SegGuidedMMRegLib.training.adaptation.self_training import SelfTraining, soft_label_loss
from SegGuidedMMRegLib.training.adaptation.task import (
    Snapshot,
    predict_labels,
    rarity_weights,
    source_samples,
)
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.segmentation import train_source


def discs(count: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [count, 1, *shape] of bright balls with dark cores, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    images, labels = [], []
    for _ in range(count):
        centre = 0.3 * (torch.rand(len(shape), generator=generator) - 0.5)
        radius = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) ** 0.5
        label = (radius < 0.65).long() + (radius < 0.35).long()
        image = torch.tensor([0.3, 0.9, 0.1])[label] + 0.03 * torch.randn(shape, generator=generator)
        images.append(image.clamp(0, 1)[None])
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


def make_tensors(shape: tuple[int, ...] = (32, 32), labelled: int = 2) -> StudyTensors:
    images, labels = discs(4, shape, seed=0)
    targets, _ = discs(6, shape, seed=1)
    size = (*shape[::-1], 1)[:3]
    return StudyTensors(
        grid=Grid.centred(size, (1.0, 1.0, 1.0)),
        structures=("shell", "core"),
        source_names=tuple("abcd"),
        source_images=images,
        source_labels={row: labels[row] for row in range(labelled)},
        target_names=tuple("efghij"),
        target_images=1 - targets,
        validation_names=(),
        validation_images=torch.empty(0, 1, *shape),
        validation_labels=torch.empty(0, *shape).long(),
    )


def make_config(**adaptation_settings) -> Config:
    return config_from_dict(
        {
            "preset": "quick",
            "training": {"device": "cpu"},
            "segmentation": {
                "steps": 100, "channels": [8, 16, 32], "strides": [2, 2], "residual_units": 1,
                "learning_rate": 5e-3,
            },
            "adaptation": {
                "randomised_steps": 300, "teacher_steps": 6, "learning_rate": 5e-3, "teacher_decay": 0.9,
                **adaptation_settings,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    train_source(make_tensors(), None, make_config(), folder, Reporter())
    return folder


class Oracle(nn.Module):
    """Predicts the discs of inverted images by intensity, but never the structures in `blind`."""

    def __init__(self, *blind: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(60.0))
        self.blind = blind

    def forward(self, images):
        centres = torch.tensor([0.7, 0.1, 0.9]).view(1, 3, *[1] * (images.dim() - 2))
        logits = -self.scale * (images - centres).abs()
        logits[:, list(self.blind)] = -1e3
        return logits


def judge(network: nn.Module, tensors: StudyTensors, **settings) -> Quality:
    usual = UsualSizes.of(tensors.labelled_labels, 2)
    options = {"vanished_share": 0.2, "collapsed_images": 0.3, **settings}
    return assess(
        network, tensors.target_images, usual, generator=torch.Generator().manual_seed(0), **options
    )


def test_sizes_are_voxel_counts():
    labels = torch.tensor([[[0, 1, 1], [2, 2, 2]], [[0, 0, 0], [0, 0, 1]]])
    assert structure_sizes(labels, 3).tolist() == [[2, 3, 0], [1, 0, 0]]


@pytest.mark.parametrize("shape", [(32, 32), (16, 18, 20)])
def test_a_good_network_has_lost_nothing_and_agrees_with_itself(shape):
    quality = judge(Oracle(), make_tensors(shape))
    assert quality.collapsed == ()
    assert quality.vanished == (0.0, 0.0)
    assert quality.plausible > 0.9
    assert quality.agreement > 0.5


def test_a_single_bad_image_of_a_few_counts_but_does_not_decide():
    tensors = make_tensors()
    before = judge(Oracle(), tensors)
    noise = torch.rand(tensors.target_images[0].shape, generator=torch.Generator().manual_seed(0))
    tensors.target_images[0] = noise
    after = judge(Oracle(), tensors)
    assert after.worst_agreement < before.worst_agreement, "the image must count"
    assert after.worst_agreement > 0.75 * before.worst_agreement


def test_a_structure_that_vanished_is_noticed():
    quality = judge(Oracle(2), make_tensors())
    assert quality.collapsed == (1,)
    assert quality.vanished == (0.0, 1.0)


def test_a_structure_that_labels_lack_as_often_has_not_collapsed():
    tensors = make_tensors(labelled=4)
    for row in range(3):
        tensors.source_labels[row] = tensors.source_labels[row].clamp(max=1)
    assert judge(Oracle(2), tensors).collapsed == ()


def test_a_structure_without_any_label_is_refused():
    with pytest.raises(ValueError, match="structure 2"):
        UsualSizes.of(torch.ones(3, 4, 4, dtype=torch.long), 2)


def test_confidence_is_that_of_the_structures_that_win():
    probabilities = torch.tensor([[[0.9, 0.2, 0.4], [0.1, 0.8, 0.6]], [[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]])
    assert torch.allclose(confidence(probabilities), torch.tensor([0.7, 0.0]))


def snapshot(name: str, *collapsed: int, agreement: float = 0.9, must_not_worsen: bool = False) -> Snapshot:
    vanished = tuple(float(index in collapsed) for index in range(2))
    quality = Quality(vanished, collapsed, 1.0, agreement, agreement, 0.9)
    return Snapshot(name, nn.Identity(), quality, must_not_worsen)


@pytest.mark.parametrize(
    ("snapshots", "kept"),
    [
        ([snapshot("source"), snapshot("randomised"), snapshot("teacher")], "teacher"),
        ([snapshot("source"), snapshot("randomised"), snapshot("teacher", 0)], "randomised"),
        ([snapshot("source"), snapshot("randomised", 1), snapshot("teacher", 1)], "source"),
        ([snapshot("source", 0), snapshot("randomised", 0, 1), snapshot("second_try", 1)], "second_try"),
        ([snapshot("randomised"), snapshot("teacher", agreement=0.8, must_not_worsen=True)], "randomised"),
        ([snapshot("randomised"), snapshot("teacher", agreement=0.92, must_not_worsen=True)], "teacher"),
        ([snapshot("randomised", 0), snapshot("teacher", agreement=0.1, must_not_worsen=True)], "teacher"),
    ],
)
def test_the_last_sound_network_is_kept(snapshots, kept):
    assert choose(snapshots).name == kept


def test_images_with_a_rare_structure_are_drawn_more_often():
    weights = rarity_weights(torch.tensor([[5.0, 0.0], [4.0, 0.0], [6.0, 0.0], [5.0, 2.0]]))
    assert weights.sum() == pytest.approx(1.0)
    assert weights[3] == pytest.approx(4 * float(weights[0]))


def test_the_three_kinds_of_source_labels():
    tensors, network = make_tensors(), Oracle()
    images, labels = discs(6, (32, 32), seed=7)
    augmented = AugmentedSamples(images, labels)

    def samples(choice: str):
        return source_samples(tensors, augmented, network, make_config(source_labels=choice))

    assert len(samples("labels").images) == 2
    predicted = samples("labels_predictions")
    assert len(predicted.images) == 4
    assert torch.equal(predicted.labels[2:], predict_labels(network, tensors.source_images[2:]))
    assert torch.allclose(predicted.weights, torch.full((4,), 0.25))
    with_augmented = samples("labels_augmentation")
    assert torch.equal(with_augmented.labels[2:], labels)
    assert float(with_augmented.weights[2:].sum()) == pytest.approx(0.5)


def test_soft_labels_are_learnt_best_where_they_are_met():
    probabilities = torch.rand(3, 3, 5, 5).softmax(1)
    met = soft_label_loss(probabilities.log(), probabilities)
    missed = soft_label_loss(torch.randn(3, 3, 5, 5), probabilities)
    entropy = -(probabilities * probabilities.log()).sum(1).mean((1, 2))
    assert torch.allclose(met, entropy, atol=1e-5)
    assert (met < missed).all()


def target_dice(folder) -> float:
    """Of the network in `folder`, on inverted discs it has not seen."""
    images, labels = discs(8, (32, 32), seed=5)
    predicted = predict_labels(load_segmentation_network(folder), 1 - images)
    return float(
        torch.stack(
            [2 * ((predicted == c) & (labels == c)).sum() / ((predicted == c).sum() + (labels == c).sum())
             for c in (1, 2)]
        ).mean()
    )  # fmt: skip


def test_self_training_gains_on_inverted_images_is_recorded_and_is_not_repeated(tmp_path, source_folder):
    tensors, config, reporter = make_tensors(), make_config(), RecordingReporter()
    result = adapt(tensors, None, config, source_folder=source_folder, folder=tmp_path, reporter=reporter)
    assert result.collapsed == ()
    assert target_dice(tmp_path) > target_dice(source_folder) + 0.2
    record = json.loads((tmp_path / "adaptation.json").read_text())
    assert record["kept"] == result.kept
    assert set(record["snapshots"]) == {"source", "randomised", "teacher"}
    first = result.weights.read_bytes()

    again = RecordingReporter()
    adapt(tensors, None, config, source_folder=source_folder, folder=tmp_path, reporter=again)
    assert result.weights.read_bytes() == first
    assert not [event for event in again.events if event.kind == "progress"]


def test_volumes_are_adapted_too(tmp_path):
    tensors = make_tensors((16, 18, 20))
    config = config_from_dict(
        {
            **make_config(randomised_steps=2, teacher_steps=2, batch_size=1).model_dump(),
            "segmentation": {"steps": 2, "channels": [4, 8], "strides": [2], "residual_units": 0},
        }
    )
    train_source(tensors, None, config, tmp_path / "source", Reporter())
    adapt(
        tensors, None, config, source_folder=tmp_path / "source", folder=tmp_path / "out", reporter=Reporter()
    )
    network = load_segmentation_network(tmp_path / "out")
    assert network(tensors.target_images[:1]).shape == (1, 3, 16, 18, 20)


def test_the_cyclegan_runs_as_a_method(tmp_path, source_folder):
    settings = {"generator_filters": 2, "generator_blocks": 1, "discriminator_filters": 2, "batch_size": 2}
    config = make_config(method="cyclegan", epochs=1, randomised_steps=1, **settings)
    adapt(make_tensors(), None, config, source_folder=source_folder, folder=tmp_path, reporter=Reporter())
    record = json.loads((tmp_path / "adaptation.json").read_text())
    assert {"source", "cyclegan"} <= set(record["snapshots"])
    translated = AugmentedSamples.load(tmp_path)
    assert len(translated.images) == len(translated.labels) > 0
    assert 0 <= translated.images.min() < translated.images.max() <= 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "cyclegan" / "metrics.jsonl").open()]
    assert max(steps) == 3  # six target images, two at a time


def test_without_adaptation_the_source_network_is_delivered(tmp_path, source_folder):
    config = make_config(method="none")
    result = adapt(
        make_tensors(), None, config, source_folder=source_folder, folder=tmp_path, reporter=Reporter()
    )
    assert result.kept == "source"
    assert result.weights.read_bytes() == (source_folder / "weights.safetensors").read_bytes()


class LosesTheCore:
    """A method whose network never predicts structure 2."""

    def snapshots(self, task):
        network = copy.deepcopy(task.source_network)
        network.unet = nn.Sequential(network.unet, Blind())
        return [task.judged("randomised", network)]


class Blind(nn.Module):
    def forward(self, logits):
        return torch.cat([logits[:, :2], torch.full_like(logits[:, 2:], -1e3)], dim=1)


def test_a_network_that_lost_a_structure_is_replaced_by_a_second_try(tmp_path, source_folder, monkeypatch):
    monkeypatch.setitem(adaptation.METHODS, "self_training", LosesTheCore())
    reporter = RecordingReporter()
    result = adapt(
        make_tensors(),
        None,
        make_config(randomised_steps=150),
        source_folder=source_folder,
        folder=tmp_path,
        reporter=reporter,
    )
    assert result.kept == "second_try"
    assert result.collapsed == ()
    assert "'randomised' lost core" in result.remedy
    assert any("lost core" in event.data.get("message", "") for event in reporter.events)


def test_a_collapse_without_remedy_is_said_loudly(tmp_path, source_folder, monkeypatch):
    monkeypatch.setitem(adaptation.METHODS, "self_training", LosesTheCore())
    monkeypatch.setattr(SelfTraining, "snapshots", lambda _self, task: LosesTheCore().snapshots(task))
    tensors, reporter = make_tensors(), RecordingReporter()
    # The cores of the labels are far larger: those of the source network seem to have vanished too.
    for row, label in tensors.source_labels.items():
        tensors.source_labels[row] = torch.where(label == 0, 2, label)
    config = make_config(vanished_share=0.9)
    result = adapt(tensors, None, config, source_folder=source_folder, folder=tmp_path, reporter=reporter)
    assert "core" in result.collapsed
    assert json.loads((tmp_path / "adaptation.json").read_text())["collapsed"] == list(result.collapsed)
    assert any("WARNING: " in event.data.get("message", "") for event in reporter.events)
    ends = [
        event for event in reporter.events if event.kind == "result" and event.data["stage"] == "adaptation"
    ]
    assert ends[0].data["collapsed"] == list(result.collapsed)


def test_a_study_without_target_images_is_refused(tmp_path, source_folder):
    tensors = make_tensors()
    object.__setattr__(tensors, "target_images", tensors.target_images[:0])
    with pytest.raises(ValueError, match="target modality"):
        adapt(tensors, None, make_config(), source_folder=source_folder, folder=tmp_path, reporter=Reporter())
