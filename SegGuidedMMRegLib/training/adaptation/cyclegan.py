"""The paper's adaptation: a CycleGAN whose segmentations must agree at each step of the cycle (3.3, B.3).

Images I_S of the source come with labels M_S, images I_T of the target without. G_ST and G_TS translate,
D_S and D_T judge, S_S is the trained segmentation network of the source, frozen, and S_T, which starts from
its weights, is what comes out. The functions are the terms of Eq. 2 and 3, one each; `CycleGanStage` trains
on them.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SegGuidedMMRegLib.config import AdaptationConfig
from SegGuidedMMRegLib.losses import dice_loss
from SegGuidedMMRegLib.networks.translation import Discriminator, Generator
from SegGuidedMMRegLib.training.adaptation.task import EXAMPLES, AdaptationTask, Snapshot, SourceSamples
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.data import checksum
from SegGuidedMMRegLib.training.devices import by_first
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit, seed_of


@dataclass(frozen=True)
class Cycles:
    """Both cycles of a batch; every tensor is [N, 1, *shape] in [0, 1].

    Attributes:
        source: I_S.
        as_target: G_ST(I_S).
        source_again: G_TS(G_ST(I_S)).
        target: I_T.
        as_source: G_TS(I_T).
        target_again: G_ST(G_TS(I_T)).
    """

    source: Tensor
    as_target: Tensor
    source_again: Tensor
    target: Tensor
    as_source: Tensor
    target_again: Tensor


def translate(to_target: nn.Module, to_source: nn.Module, source: Tensor, target: Tensor) -> Cycles:
    """Send both [N, 1, *shape] once around, with G_ST = `to_target` and G_TS = `to_source`."""
    as_target, as_source = to_target(source), to_source(target)
    return Cycles(source, as_target, to_source(as_target), target, as_source, to_target(as_source))


def semantic_terms(
    source_network: nn.Module, target_network: nn.Module, cycles: Cycles, source_labels: Tensor
) -> dict[str, Tensor]:
    """The four terms of Eq. 2, each 1 - Dice, with S_S = `source_network` and S_T = `target_network`.

    * `translated`: L(S_T(G_ST(I_S)), M_S), reaches S_T and G_ST;
    * `source_cycle`: L(S_S(G_TS(G_ST(I_S))), M_S), reaches both generators;
    * `target_pair`: L(S_T(I_T), S_S(G_TS(I_T))), reaches S_T and G_TS;
    * `target_cycle`: L(S_T(I_T), S_T(G_ST(G_TS(I_T)))), reaches S_T, by both ways, and both generators.

    Args:
        source_network: gives logits; its weights are frozen by whoever made it.
        target_network: gives logits.
        cycles: of the batch.
        source_labels: M_S, class indices [N, *shape].
    """
    on_target = target_network(cycles.target)
    return {
        "translated": dice_loss(target_network(cycles.as_target), source_labels),
        "source_cycle": dice_loss(source_network(cycles.source_again), source_labels),
        "target_pair": dice_loss(on_target, source_network(cycles.as_source).softmax(1)),
        "target_cycle": dice_loss(on_target, target_network(cycles.target_again).softmax(1)),
    }


def cycle_loss(cycles: Cycles) -> Tensor:
    """ℓ_cycle: mean absolute difference after both cycles (Zhu et al., 2017, Eq. 2)."""
    return F.l1_loss(cycles.source_again, cycles.source) + F.l1_loss(cycles.target_again, cycles.target)


def deceit_loss(scores_of_translated: Tensor) -> Tensor:
    """ℓ_GAN as a generator sees it, least squares: its images should be scored 1."""
    return (scores_of_translated - 1).square().mean()


def judgement_loss(scores_of_real: Tensor, scores_of_translated: Tensor) -> Tensor:
    """ℓ_GAN as a discriminator sees it, least squares, halved as in Zhu et al.: real 1, translated 0."""
    return 0.5 * ((scores_of_real - 1).square().mean() + scores_of_translated.square().mean())


def total_loss(
    deceit: tuple[Tensor, Tensor], cycle: Tensor, semantic: dict[str, Tensor], config: AdaptationConfig
) -> Tensor:
    """Eq. 3 as the generators and S_T see it: the GAN, the cycles and the terms of Eq. 2, weighted."""
    semantic_sum = torch.stack(list(semantic.values())).sum()
    return (
        config.lambda_gan * (deceit[0] + deceit[1])
        + config.lambda_cycle * cycle
        + config.lambda_semantic * semantic_sum
    )


def half_constant(done: float) -> float:
    """The learning rate stays for half of the training, then falls to 0 in a line (Zhu et al., 2017)."""
    return min(1.0, 2 * (1 - done))


class ImagePool:
    """The last translated images: a discriminator gets half of its negatives from here (Zhu et al., 2017)."""

    def __init__(self, size: int = 50) -> None:
        self.images: Tensor | None = None
        self._size = size

    def exchange(self, fresh: Tensor, generator: torch.Generator) -> Tensor:
        """Put images [N, 1, *shape] in and get as many; once full, half of the time older ones."""
        fresh = fresh.detach()
        stored = fresh[:0] if self.images is None else self.images.to(fresh)
        if len(stored) + len(fresh) <= self._size:
            self.images = torch.cat([stored, fresh])
            return fresh
        rows = torch.randperm(len(stored), generator=generator, device=generator.device)[: len(fresh)]
        swap = torch.rand(len(rows), generator=generator, device=generator.device) < 0.5
        rows, swap = rows.to(fresh.device), swap.to(fresh.device).view(-1, *[1] * (fresh.dim() - 1))
        new, older = fresh[: len(rows)], stored[rows]
        stored[rows] = torch.where(swap, new, older)
        self.images = stored
        return torch.cat([torch.where(swap, older, new), fresh[len(rows) :]])


class CycleGanStage(TrainableStage):
    """Trains S_T with the two generators and the two discriminators.

    Args:
        source_network: S_S, trained; it is copied and frozen, S_T starts as another copy.
        samples: I_S and M_S.
        target_images: I_T, [M, 1, *shape].
        config: weights of the terms, sizes of the networks, batch size, learning rate.
        generator: the first weights of the new networks come from it.
    """

    def __init__(
        self,
        source_network: nn.Module,
        samples: SourceSamples,
        target_images: Tensor,
        config: AdaptationConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._samples, self._target_images = samples, target_images
        self._config = config
        self._pools = {"judge_source": ImagePool(), "judge_target": ImagePool()}
        self.exported = "target_network"
        self.schedule = half_constant
        parts = (samples.images, samples.labels, samples.weights, target_images)
        self.settings = {**config.model_dump(mode="json"), "data": [checksum(x) for x in parts]}
        self.memory_remedy = (
            f"adaptation.batch_size (now {config.batch_size}) or adaptation.generator_filters "
            f"(now {config.generator_filters})"
        )
        self.networks = self._build(source_network, tuple(target_images.shape[2:]), generator)
        self.optimizers = {
            "translation": self._adam("to_target", "to_source", "target_network"),
            "judges": self._adam("judge_source", "judge_target"),
        }

    def _build(
        self, source_network: nn.Module, shape: tuple[int, ...], generator: torch.Generator
    ) -> dict[str, nn.Module]:
        config = self._config
        size = {"filters": config.generator_filters, "blocks": config.generator_blocks}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return {
                "to_target": Generator(len(shape), **size),
                "to_source": Generator(len(shape), **size),
                "judge_source": Discriminator(shape, config.discriminator_filters),
                "judge_target": Discriminator(shape, config.discriminator_filters),
                "source_network": copy.deepcopy(source_network).requires_grad_(False),
                "target_network": copy.deepcopy(source_network).requires_grad_(True),
            }

    def _adam(self, *names: str) -> torch.optim.Adam:
        weights = itertools.chain.from_iterable(self.networks[name].parameters() for name in names)
        return torch.optim.Adam(weights, lr=self._config.learning_rate, betas=(0.5, 0.999))

    def training_step(self, run: Run) -> dict[str, Tensor]:
        """One step of generators and S_T, then one of the discriminators, on one batch."""
        source, labels = self._samples.draw(self._config.batch_size, run.generator)
        target = self._target_batch(run)
        networks = run.networks
        self._train_judges(False)
        cycles = translate(networks["to_target"], networks["to_source"], source, target)
        semantic = semantic_terms(networks["source_network"], networks["target_network"], cycles, labels)
        deceit = (
            deceit_loss(networks["judge_target"](cycles.as_target)),
            deceit_loss(networks["judge_source"](cycles.as_source)),
        )
        cycle = cycle_loss(cycles)
        loss = total_loss(deceit, cycle, semantic, self._config)
        run.update(loss, "translation")

        self._train_judges(True)
        judgement = self._judgement(run, "judge_target", cycles.target, cycles.as_target)
        judgement = judgement + self._judgement(run, "judge_source", cycles.source, cycles.as_source)
        run.update(judgement, "judges")
        found = {
            "loss": loss,
            "deceit": deceit[0] + deceit[1],
            "cycle": cycle,
            "judgement": judgement,
            **semantic,
        }
        return {name: value.detach() for name, value in found.items()}

    def _target_batch(self, run: Run) -> Tensor:
        size, device = (self._config.batch_size,), run.generator.device
        return self._target_images[
            torch.randint(len(self._target_images), size, generator=run.generator, device=device)
        ]

    def _judgement(self, run: Run, judge: str, real: Tensor, translated: Tensor) -> Tensor:
        shown = self._pools[judge].exchange(translated, run.generator)
        return judgement_loss(run.networks[judge](real), run.networks[judge](shown))

    def _train_judges(self, wanted: bool) -> None:
        for name in ("judge_source", "judge_target"):
            self.networks[name].requires_grad_(wanted)

    def state(self) -> dict[str, Tensor]:
        """The pools."""
        return {name: pool.images.cpu() for name, pool in self._pools.items() if pool.images is not None}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the pools back."""
        for name, pool in self._pools.items():
            pool.images = state.get(name)


class CycleGan:
    """The paper's way to adapt."""

    def snapshots(self, task: AdaptationTask) -> list[Snapshot]:
        """Train for `adaptation.epochs` passes over the larger of both sets of images; one network."""
        settings, seed = task.config.adaptation, task.config.training.seed
        generator = torch.Generator().manual_seed(seed_of(seed, "adaptation", "cyclegan", "first weights"))
        stage = CycleGanStage(task.source_network, task.samples, task.target_images, settings, generator)
        images = max(len(task.samples.images), len(task.target_images))
        fit(
            stage,
            name="adaptation/cyclegan",
            steps=settings.epochs * math.ceil(images / settings.batch_size),
            folder=task.folder / "cyclegan",
            config=task.config.training,
            reporter=task.reporter,
        )
        by_first(lambda: _keep_examples(stage.networks["to_target"], task))
        return [task.judged("cyclegan", stage.networks["target_network"])]


@torch.no_grad()
def _keep_examples(to_target: nn.Module, task: AdaptationTask) -> None:
    """Write a few of the translated images, for people to look at."""
    some = slice(0, EXAMPLES)
    translated = torch.cat([to_target(image[None]) for image in task.samples.images[some]])
    AugmentedSamples(translated, task.samples.labels[some]).save(task.folder)
