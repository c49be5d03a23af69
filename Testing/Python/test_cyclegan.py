"""The paper's adaptation: Eq. 2 and 3 term by term, and a training that goes on where it was cut off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from SegGuidedMMRegLib.config import AdaptationConfig, TrainingConfig
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.networks.weights import load_weights
from SegGuidedMMRegLib.training.adaptation.cyclegan import (
    CycleGanStage,
    ImagePool,
    cycle_loss,
    deceit_loss,
    half_constant,
    judgement_loss,
    semantic_terms,
    total_loss,
    translate,
)
from SegGuidedMMRegLib.training.adaptation.task import SourceSamples
from SegGuidedMMRegLib.training.loop import fit


class Scale(nn.Module):
    """A generator that one can compute by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x


class Threshold(nn.Module):
    """A segmenter that one can compute by hand: logits (0, slope · (x - 1/2))."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.slope * (x - 0.5)], dim=1)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    source, target = torch.rand(2, 1, 6, 6), torch.rand(2, 1, 6, 6)
    labels = torch.randint(2, (2, 6, 6))
    networks = {
        "G_ST": Scale(0.8),
        "G_TS": Scale(1.1),
        "S_S": Threshold(4.0).requires_grad_(False),
        "S_T": Threshold(3.0),
    }
    return networks, source, labels, target


def terms_of(networks, source, labels, target):
    cycles = translate(networks["G_ST"], networks["G_TS"], source, target)
    return semantic_terms(networks["S_S"], networks["S_T"], cycles, labels)


def foreground_by_hand(slope, x):
    return 1 / (1 + torch.exp(-slope * (x - 0.5)))


def one_minus_dice_by_hand(p, q):
    """1 - 2Σpq / (Σp + Σq) of foreground probabilities [N, 1, *shape]; mean over classes and images."""
    losses = []
    for a, b in ((1 - p, 1 - q), (p, q)):
        overlap, total = (a * b).flatten(1).sum(1), (a + b).flatten(1).sum(1)
        losses.append(1 - 2 * overlap / total)
    return torch.stack(losses).mean()


def test_the_four_semantic_terms_are_those_of_equation_2(parts):
    networks, source, labels, target = parts
    found = terms_of(networks, source, labels, target)
    truth = labels[:, None].float()
    on_target = foreground_by_hand(3.0, target)
    by_hand = {
        "translated": one_minus_dice_by_hand(foreground_by_hand(3.0, 0.8 * source), truth),
        "source_cycle": one_minus_dice_by_hand(foreground_by_hand(4.0, 1.1 * 0.8 * source), truth),
        "target_pair": one_minus_dice_by_hand(on_target, foreground_by_hand(4.0, 1.1 * target)),
        "target_cycle": one_minus_dice_by_hand(on_target, foreground_by_hand(3.0, 0.8 * 1.1 * target)),
    }
    assert found.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert float(found[name].detach()) == pytest.approx(float(value), abs=1e-5), name


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("translated", {"S_T", "G_ST"}),
        ("source_cycle", {"G_ST", "G_TS"}),
        ("target_pair", {"S_T", "G_TS"}),
        ("target_cycle", {"S_T", "G_ST", "G_TS"}),
    ],
)
def test_each_term_reaches_the_networks_it_should_and_never_the_frozen_one(parts, term, reached):
    networks, source, labels, target = parts
    terms_of(networks, source, labels, target)[term].backward()
    found = {
        name
        for name, network in networks.items()
        if any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())
    }
    assert found == reached


def test_the_last_term_reaches_the_target_network_through_both_of_its_arguments(parts):
    networks, source, labels, target = parts
    slope = networks["S_T"].slope
    (found,) = torch.autograd.grad(terms_of(networks, source, labels, target)["target_cycle"], slope)
    free = torch.tensor(3.0, requires_grad=True)
    again = 0.8 * 1.1 * target
    (both,) = torch.autograd.grad(
        one_minus_dice_by_hand(foreground_by_hand(free, target), foreground_by_hand(free, again)), free
    )
    (one,) = torch.autograd.grad(
        one_minus_dice_by_hand(foreground_by_hand(free, target), foreground_by_hand(3.0, again)), free
    )
    assert float(found) == pytest.approx(float(both), abs=1e-5)
    assert float(found) != pytest.approx(float(one), abs=1e-4)


def test_cycle_and_adversarial_losses_by_hand(parts):
    networks, source, _, target = parts
    cycles = translate(networks["G_ST"], networks["G_TS"], source, target)
    assert float(cycle_loss(cycles).detach()) == pytest.approx(
        0.12 * float(source.mean() + target.mean()), abs=1e-5
    )
    scores = torch.tensor([0.5, 1.0])
    assert float(deceit_loss(scores)) == pytest.approx(0.125)
    assert float(judgement_loss(torch.tensor([1.0, 0.0]), scores)) == pytest.approx(0.5 * (0.5 + 0.625))


def test_the_total_has_the_weights_of_the_paper():
    one = torch.tensor(1.0)
    semantic = dict.fromkeys(("a", "b", "c", "d"), one)
    assert float(total_loss((one, one), one, semantic, AdaptationConfig())) == 1 * 2 + 10 * 1 + 5 * 4


def test_the_learning_rate_stays_for_half_of_training_and_falls_to_nothing():
    assert [half_constant(done) for done in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]


def test_a_full_pool_gives_older_images_about_half_of_the_time():
    pool, generator = ImagePool(size=10), torch.Generator().manual_seed(0)
    older = 0
    for step in range(210):
        fresh = torch.full((1, 1, 2, 2), float(step))
        older += int(pool.exchange(fresh, generator)[0, 0, 0, 0] != step)
    assert len(pool.images) == 10
    assert 70 < older < 130


class TinySegmenter(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))


def make_stage(batch_size: int = 2):
    torch.manual_seed(0)
    images = torch.rand(4, 1, 24, 24)
    samples = SourceSamples(images, (images[:, 0] > 0.5).long(), torch.full((4,), 0.25))
    config = AdaptationConfig(
        method="cyclegan",
        batch_size=batch_size,
        learning_rate=1e-3,
        generator_filters=4,
        generator_blocks=1,
        discriminator_filters=4,
    )
    return CycleGanStage(
        TinySegmenter(), samples, 1 - torch.rand(4, 1, 24, 24), config, torch.Generator().manual_seed(1)
    )


class CutOffError(Exception):
    pass


def test_training_changes_all_networks_but_the_source_network(tmp_path):
    stage = make_stage()
    before = {
        name: [weight.clone() for weight in network.parameters()] for name, network in stage.networks.items()
    }
    for old, new in zip(before["source_network"], before["target_network"], strict=True):
        assert torch.equal(old, new)
    fit(stage, name="c", steps=2, folder=tmp_path, config=TrainingConfig(device="cpu"), reporter=Reporter())
    for name, network in stage.networks.items():
        same = all(torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
        assert same == (name == "source_network"), name
    assert all(weight.grad is None for weight in stage.networks["source_network"].parameters())


def test_a_training_that_was_cut_off_ends_like_one_that_was_not(tmp_path):
    config = TrainingConfig(device="cpu", checkpoint_seconds=1e-6, checkpoint_share=1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(make_stage(), name="c", steps=30, folder=whole, config=config, reporter=Reporter())

    stage = make_stage()
    step_as_usual = stage.training_step

    def until_27(run):
        if run.step == 27:  # the pool holds 50 images by then
            raise CutOffError
        return step_as_usual(run)

    stage.training_step = until_27
    with pytest.raises(CutOffError):
        fit(stage, name="c", steps=30, folder=cut, config=config, reporter=Reporter())
    fit(make_stage(), name="c", steps=30, folder=cut, config=config, reporter=Reporter())

    networks = TinySegmenter(), TinySegmenter()
    for network, folder in zip(networks, (whole, cut), strict=True):
        load_weights(network, folder / "weights.safetensors")
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a, b)
