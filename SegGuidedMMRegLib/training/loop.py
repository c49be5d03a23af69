"""The training loop of every stage, on Lightning Fabric: device, precision, checkpoints, resume, metrics.

A stage says what one step is (`TrainableStage.training_step`), the loop does the rest. A step draws its
random numbers from a generator seeded by (seed, name, step), so a run that was cut off and goes on from its
checkpoint ends with the same weights as one that was not. Nothing in the loop waits for the device except
once in a while, when the metrics are written.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.config import TrainingConfig
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.networks.weights import load_weights, save_weights
from SegGuidedMMRegLib.out_of_memory import is_out_of_memory, memory_remedy, release_memory
from SegGuidedMMRegLib.training.batches import ImagesAtOnce, WholeBatch, share_statistics, sum_gradients
from SegGuidedMMRegLib.training.checkpoints import Checkpoints, fingerprint_of
from SegGuidedMMRegLib.training.devices import by_first, make_fabric, require_the_same
from SegGuidedMMRegLib.training.journal import Journal

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WEIGHTS_FILE = "weights.safetensors"


def constant(_done: float) -> float:
    """The learning rate stays."""
    return 1.0


def one_cycle(done: float) -> float:
    """The learning rate rises from 1/25 to 1 over the first 30 % of training and falls to 0, as cosines.

    Source: Smith and Topin, Super-convergence, 2018, without the cycle of momentum.
    """
    warm_up = 0.3
    if done < warm_up:
        return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * done / warm_up))
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


class TrainableStage(ABC):
    """What `fit` trains. Fill `networks` and `optimizers`, and say what one step is.

    Attributes:
        networks: every network that a step calls, by name. `fit` moves them to the device; those of which no
            parameter requires a gradient stay in evaluation mode.
        optimizers: by name; their parameters belong to `networks`.
        exported: name of the network whose weights the stage ends with.
        ema_decay: of the average of the exported network's weights; 0 for no average.
        schedule: from the share of training that is done, 0 to 1, to a factor on all learning rates.
        settings: whatever decides the outcome besides name, seed, steps and first weights (JSON values); a
            checkpoint made with other settings is not continued.
        memory_remedy: what to lower when memory runs out, e.g. "segmentation.batch_size (now 8)".
        validations: how often `validate` is asked during training.
    """

    def __init__(self) -> None:
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.exported = "network"
        self.ema_decay = 0.0
        self.schedule: Callable[[float], float] = constant
        self.settings: dict[str, Any] = {}
        self.memory_remedy = "the batch size"
        self.validations = 20

    @abstractmethod
    def training_step(self, run: Run) -> dict[str, Tensor]:
        """One step: draw a batch with `run.generator`, call `run.networks[...]`, end with `run.update(loss)`.

        Returns:
            Metrics by name: scalars on the device, without `.item()`; always the same names.
        """

    def validate(self, _network: nn.Module) -> float | None:
        """How good the exported network (averaged, if there is an average) is, higher is better.

        None if there is nothing to measure with; then the last weights are kept.
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors besides weights and optimisers that the next steps depend on, such as a pool of images."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if state:
            raise NotImplementedError(f"{type(self).__name__} has state but cannot take it back.")


@dataclass
class Run:
    """A run of `fit` as a step sees it.

    Attributes:
        name: of the run, part of the seeds.
        seed: of the run.
        steps: number of steps in all.
        fabric: device and precision.
        networks: the networks of the stage, wrapped so that calling one with a batch uses the right precision
            and no more memory than there is.
        optimizers: wrapped too; use `update`.
        averaged: the average of the exported network's weights (a mean teacher), or None.
        generator: on the device, seeded for this step.
        at_once: how many images of a batch go through a network at once.
        step: number of this step, from 0.
    """

    name: str
    seed: int
    steps: int
    fabric: Fabric
    networks: dict[str, Any]
    optimizers: dict[str, Any]
    averaged: nn.Module | None
    generator: torch.Generator
    at_once: ImagesAtOnce
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def update(self, loss: Tensor, optimizer: str | None = None) -> None:
        """Step down the gradient of `loss` with the optimiser of that name (the first if not named)."""
        chosen = self.optimizers[optimizer or next(iter(self.optimizers))]
        chosen.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        sum_gradients(chosen.optimizer)
        chosen.step()

    def go_to(self, step: int) -> None:
        """Make `step` the current one and seed its random numbers."""
        self.step = step
        value = seed_of(self.seed, self.name, step)
        self.generator.manual_seed(value)
        torch.manual_seed(value)  # for layers that draw for themselves (dropout); `fit` restores it


@dataclass(frozen=True)
class FitResult:
    """What training ended with.

    Attributes:
        weights: file of the exported network's weights.
        step: that they are from: the best one if something was validated, else the last.
        score: of the validation, or None.
    """

    weights: Path
    step: int
    score: float | None


@dataclass
class _Progress:
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def fit(
    stage: TrainableStage,
    *,
    name: str,
    steps: int,
    folder: Path,
    config: TrainingConfig,
    reporter: Reporter,
) -> FitResult:
    """Train `stage` for `steps` steps, or what is left of them, and write its weights into `folder`.

    The best weights by validation if the stage validates, else the averaged, else the last ones end in
    `weights.safetensors` and in `stage.networks[stage.exported]`, in evaluation mode. A run that is finished
    is not repeated: its weights are read.

    Args:
        stage: what to train; its networks are left on the device.
        name: of the stage, for events and seeds.
        steps: number of steps in all, counting those of an earlier run that is continued.
        folder: gets weights, checkpoint, metrics.jsonl, log.txt; made if absent.
        config: seed, device, precision, images at once, time between checkpoints.
        reporter: hears about progress about twice a second.

    Raises:
        TrainingError: if the loss is no longer finite.
        OutOfMemoryError: if memory runs out, and fewer images at once are not allowed or do not help.
    """
    journal = Journal(name, folder, reporter)
    identity = {"name": name, "steps": steps, "seed": config.seed, "stage": stage.settings}
    checkpoints = Checkpoints(folder, fingerprint_of(identity, stage.networks), config)
    fabric = make_fabric(config)
    record = checkpoints.read(journal.log)
    require_the_same(record and (record["finished"], record["step"]), "the checkpoint of " + str(folder))
    if record and record["finished"] and (folder / WEIGHTS_FILE).exists():
        _read_finished(stage, folder, fabric)
        return FitResult(folder / WEIGHTS_FILE, record["step"], record["score"])

    with torch.random.fork_rng(), memory_remedy(name, _remedy(stage, config)):
        run = _set_up(stage, name, steps, config, fabric)
        done = _restore(stage, run, record) if record and not record["finished"] else _Progress()
        if done.step:
            journal.log(f"{name}: continued after step {done.step} of {steps}.")
        reporter.started(name, steps)
        journal.begin(done.step)
        done = _train_within_memory(stage, run, done, journal, checkpoints)

    result = _finish(stage, run, done, folder)
    # From here on the checkpoint only says that the run is finished; the weights lie beside it.
    ended = {"step": result.step, "score": result.score, "images_at_once": run.at_once.count}
    by_first(lambda: checkpoints.write({"finished": True, **ended}))
    found = "" if result.score is None else f", validation {result.score:.4f} at step {result.step}"
    journal.log(f"{name}: {steps} steps on {fabric.device}{found}.")
    return result


def _train_within_memory(
    stage: TrainableStage, run: Run, done: _Progress, journal: Journal, checkpoints: Checkpoints
) -> _Progress:
    """Train; each time memory runs out, go back to the checkpoint and on with half as many images at once.

    A step that ran out of memory may have changed weights or a stage's state, so it is never gone on with.
    """
    if run.at_once.adaptive and not done.step:
        checkpoints.write(_record(stage, run, done))
    while True:
        try:
            _train(stage, run, done, journal, checkpoints)
            return done
        except (MemoryError, RuntimeError) as error:
            record = checkpoints.read(journal.log) if is_out_of_memory(error) else None
            if record is None or not run.at_once.lower():
                raise
        # Outside the handler, for the error holds what the step had in memory.
        for optimizer in run.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        release_memory()
        fewer = run.at_once.count
        done = _restore(stage, run, record)
        run.at_once.count = fewer
        checkpoints.write(_record(stage, run, done))
        journal.begin(done.step)
        journal.log(
            f"{run.name}: memory ran out; goes on after step {done.step} of {run.steps} with "
            f"{run.at_once.count} images at once, computed twice: slower, the batches stay the same."
        )


def _train(
    stage: TrainableStage, run: Run, done: _Progress, journal: Journal, checkpoints: Checkpoints
) -> None:
    window = min(max(1, run.steps // 200), 50)
    validate_every = max(1, run.steps // max(stage.validations, 1))
    rates = {key: [group["initial_lr"] for group in o.param_groups] for key, o in stage.optimizers.items()}
    _to_training_mode(run)
    while done.step < run.steps:
        run.go_to(done.step)
        _set_rates(stage, rates, done.step / run.steps)
        journal.add(stage.training_step(run))
        _update_average(stage, run)
        done.step += 1

        last = done.step == run.steps
        checkpoint_is_due = not last and checkpoints.is_due()
        if done.step == 1 or done.step % window == 0 or last or checkpoint_is_due:
            journal.write(done.step)
        if done.step % validate_every == 0 or last:
            _validate(stage, run, done, journal)
        if checkpoint_is_due:
            checkpoints.write(_record(stage, run, done))
        journal.progress(done.step, run.steps)


def seed_of(seed: int, *what: str | int) -> int:
    """A seed for one purpose: 63 bits that depend on `seed` and on every word of `what`."""
    text = "/".join(str(part) for part in (seed, *what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _set_up(stage: TrainableStage, name: str, steps: int, config: TrainingConfig, fabric: Fabric) -> Run:
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
    at_once = ImagesAtOnce.of(config.images_at_once)
    for network in stage.networks.values():
        share_statistics(network)
    networks = {
        key: WholeBatch(fabric.setup_module(network), at_once) for key, network in stage.networks.items()
    }
    optimizers = {key: fabric.setup_optimizers(optimizer) for key, optimizer in stage.optimizers.items()}
    averaged = None
    if stage.ema_decay > 0:
        averaged = copy.deepcopy(stage.networks[stage.exported]).requires_grad_(False).eval()
    generator = torch.Generator(fabric.device)
    return Run(name, config.seed, steps, fabric, networks, optimizers, averaged, generator, at_once)


def _to_training_mode(run: Run) -> None:
    for network in run.networks.values():
        network.train(any(parameter.requires_grad for parameter in network.parameters()))


def _set_rates(stage: TrainableStage, rates: dict[str, list[float]], done: float) -> None:
    factor = stage.schedule(done)
    for key, optimizer in stage.optimizers.items():
        for group, rate in zip(optimizer.param_groups, rates[key], strict=True):
            group["lr"] = rate * factor


@torch.no_grad()
def _update_average(stage: TrainableStage, run: Run) -> None:
    if run.averaged is None:
        return
    decay = min(stage.ema_decay, (1 + run.step) / (10 + run.step))  # a young average forgets faster
    current = stage.networks[stage.exported]
    torch._foreach_lerp_(list(run.averaged.parameters()), list(current.parameters()), 1 - decay)
    for old, new in zip(run.averaged.buffers(), current.buffers(), strict=True):
        old.copy_(new)


@torch.no_grad()
def _validate(stage: TrainableStage, run: Run, done: _Progress, journal: Journal) -> None:
    network = run.averaged if run.averaged is not None else stage.networks[stage.exported]
    network.eval()
    score = by_first(lambda: stage.validate(network))
    _to_training_mode(run)
    if score is None:
        return
    journal.write_validation(done.step, score)
    if done.best_score is None or score > done.best_score:
        done.best_score, done.best_step = score, done.step
        done.best_weights = {key: t.detach().cpu().clone() for key, t in network.state_dict().items()}


def _record(stage: TrainableStage, run: Run, done: _Progress) -> dict[str, Any]:
    return {
        "finished": False,
        "step": done.step,
        "best": {"score": done.best_score, "step": done.best_step, "weights": done.best_weights},
        "networks": {key: network.state_dict() for key, network in stage.networks.items()},
        "optimizers": {key: optimizer.state_dict() for key, optimizer in stage.optimizers.items()},
        "averaged": run.averaged.state_dict() if run.averaged is not None else {},
        "precision": run.fabric.strategy.precision.state_dict(),
        "stage": stage.state(),
        "images_at_once": run.at_once.count,
    }


def _restore(stage: TrainableStage, run: Run, record: dict[str, Any]) -> _Progress:
    for key, network in stage.networks.items():
        network.load_state_dict(record["networks"][key])
    for key, optimizer in stage.optimizers.items():
        optimizer.load_state_dict(record["optimizers"][key])
    if run.averaged is not None:
        run.averaged.load_state_dict(record["averaged"])
    run.fabric.strategy.precision.load_state_dict(record["precision"])
    stage.load_state(record["stage"])
    if run.at_once.adaptive:
        run.at_once.count = record.get("images_at_once")
    best = record["best"]
    return _Progress(record["step"], best["score"], best["step"], best["weights"])


def _read_finished(stage: TrainableStage, folder: Path, fabric: Fabric) -> None:
    load_weights(stage.networks[stage.exported], folder / WEIGHTS_FILE)
    for network in stage.networks.values():
        network.to(fabric.device).eval()


def _finish(stage: TrainableStage, run: Run, done: _Progress, folder: Path) -> FitResult:
    exported = stage.networks[stage.exported]
    if done.best_weights:
        exported.load_state_dict(done.best_weights)
    elif run.averaged is not None:
        exported.load_state_dict(run.averaged.state_dict())
    for network in stage.networks.values():
        network.eval()
    by_first(lambda: save_weights(exported, folder / WEIGHTS_FILE))
    step = done.best_step if done.best_weights else run.steps
    return FitResult(folder / WEIGHTS_FILE, step, done.best_score)


def _remedy(stage: TrainableStage, config: TrainingConfig) -> str:
    """What to lower, the setting that changes no result first."""
    lower = f"Lower {stage.memory_remedy}, or choose a coarser study grid (`segmmreg new --grid-spacing`)."
    alone = processes.count() == 1
    if config.images_at_once == 1 or (config.images_at_once == "auto" and alone):
        return lower
    how = "--auto-batch or --set" if alone else "--set"
    return f"Use {how} training.images_at_once=1: slower, with the same batches. {lower}"
