"""What the processes of `test_devices.py` do: `python several_processes.py TASK FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.__main__ import main as run_command
from SegGuidedMMRegLib.config import TrainingConfig, config_from_dict
from SegGuidedMMRegLib.deformation import soft_dice
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.interruption import end
from SegGuidedMMRegLib.losses import segmentation_loss
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit

STEPS = 6


def tiny_network() -> nn.Module:
    settings = {"segmentation": {"channels": (4, 8), "strides": (2,), "residual_units": 1}}
    return build_segmentation_network(2, 2, config_from_dict(settings).segmentation)


class Chain(TrainableStage):
    """Two networks in a row, losses that are no mean over images, an average, and a state.

    Args:
        batch: images in a batch.
        batch_norm: give the first network batch normalisation.
    """

    def __init__(self, batch: int, *, batch_norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        first: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)]
        if batch_norm:
            first.insert(1, nn.BatchNorm2d(4))
        self.networks = {"first": nn.Sequential(*first), "second": tiny_network()}
        self.exported = "second"
        weights = [*self.networks["first"].parameters(), *self.networks["second"].parameters()]
        # Not Adam: it takes whole steps along gradients that are 0 but for rounding (biases before a norm).
        self.optimizers = {"both": torch.optim.SGD(weights, lr=0.1, momentum=0.9)}
        self.ema_decay = 0.9
        self.seen = torch.zeros(())
        self._batch = batch

    def training_step(self, run: Run) -> dict[str, Tensor]:
        images = torch.rand((self._batch, 1, 16, 16), generator=run.generator)
        labels = (images[:, 0] > 0.6).long()
        between = run.networks["first"](images)
        logits = run.networks["second"](between)
        self.seen = 0.9 * self.seen + logits.detach().mean()
        dice = soft_dice(logits.softmax(1)[:, 1:], torch.stack([labels == 1, labels == 2], 1).float())
        present = (labels > 0).flatten(1).any(1)
        loss = (
            segmentation_loss(logits, labels) + (1 - dice[present].mean()) + (between - images).abs().mean()
        )
        run.update(loss)
        return {"loss": loss, "seen": self.seen}

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


def train_chains(folder: Path) -> None:
    """Batches that two processes share evenly, and such as they do not; in parts too."""
    for name, batch, norm, at_once in (
        ("even", 6, True, "all"),
        ("uneven", 5, False, "all"),
        ("one", 1, False, "all"),
        ("parts", 6, False, 2),
    ):
        stage = Chain(batch, batch_norm=norm)
        config = TrainingConfig(device="cpu", images_at_once=at_once)
        fit(stage, name=name, steps=STEPS, folder=folder / name, config=config, reporter=Reporter())
        said = {k: v.double().sum().item() for k, v in stage.networks["first"].state_dict().items()}
        (folder / f"{name}-{processes.rank()}.json").write_text(json.dumps(said))


def fail_on_the_second(*_: Any) -> None:
    """Out of memory in one process while the other waits for it."""
    import torch.distributed as dist

    from SegGuidedMMRegLib.training.devices import make_fabric

    make_fabric(TrainingConfig(device="cpu"))
    if processes.rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")
    dist.barrier()


def wait(study: Any, *_: Any) -> None:
    """Say that it waits, and do."""
    (study / "waits").touch()
    time.sleep(600)


def wait_in_training(study: Any, *_: Any) -> None:
    """One process takes its time, the other waits for it; both say that they are there."""
    import torch.distributed as dist

    from SegGuidedMMRegLib.training.devices import make_fabric

    make_fabric(TrainingConfig(device="cpu"))
    (study.folder / f"waits{processes.rank()}").touch()
    if processes.rank() == 0:
        time.sleep(600)
    dist.barrier()


def main(task: str, *arguments: str) -> int:
    """Do one of the tasks; the exit code."""
    if task == "chains":
        train_chains(Path(arguments[0]))
        return 0
    from SegGuidedMMRegLib import launch, pipeline, study

    if task == "command":
        pipeline.train = wait_in_training  # type: ignore[assignment]
        sys.argv[1:] = arguments
        return run_command()
    if task == "start":
        launch._COMMAND = (__file__, "wait")
        launch.train_on(2, Path(arguments[0]), (), Reporter())
    if task == "wait":
        study.Study.open = Path  # type: ignore[assignment]
    pipeline.train = {"fail": fail_on_the_second, "wait": wait}[task]
    return launch.main(arguments)


if __name__ == "__main__":
    end(main(*sys.argv[1:]))
