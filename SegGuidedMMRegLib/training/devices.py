"""The devices of a training job: which, in what precision, and how several processes work as one.

Each process has a device of its own and draws the same batches from the same seeds. A network is given the
whole batch; each process computes its share of the rows, and all get the whole output (`batches.py`). So the
loss, whatever it is, is that of the whole batch on every process, and the sum of the processes' gradients is
its gradient: what comes out does not depend on the number of devices. Files are written by the first process.

Lightning Fabric, which takes more than a second to import, is imported where something is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PATIENCE = timedelta(days=7)
"""How long a process waits for another. The first may work alone for hours; who started the processes sees
that one has died, and ends the others."""

Result = TypeVar("Result")
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


def device_of(config: TrainingConfig) -> torch.device:
    """The device of `make_fabric`, for work that needs nothing else of it.

    Raises:
        ValueError: as `make_fabric`.
    """
    if processes.count() > 1:
        return make_fabric(config).device
    there = _require_device(config)
    kind: str = config.device
    if kind == "auto":
        kind = next((name for name, is_there in there.items() if is_there), "cpu")
    return torch.device(kind) if kind == "cpu" else torch.device(kind, 0)


def make_fabric(config: TrainingConfig) -> Fabric:
    """Device and precision; `auto` is CUDA, else MPS, else CPU, in mixed precision on CUDA only.

    In a process that is one of several, it waits for the others, once.

    Raises:
        ValueError: if the device is not there, or there are fewer than processes.
    """
    _require_device(config)
    if config.precision != "auto":
        return _fabric(config, config.precision)
    fabric = _fabric(config, "32-true")
    if fabric.device.type != "cuda":
        return fabric
    return _fabric(config, "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed")


def wanted_devices(config: TrainingConfig) -> int:
    """How many devices of this machine the settings ask for; `auto` is every CUDA device.

    Raises:
        ValueError: if there are fewer.
    """
    cards = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if config.devices == "auto":
        return max(1, cards)
    _require_devices(config, config.devices)
    return config.devices


def by_first(work: Callable[[], Result]) -> Result:
    """Let the first process do it; all go on with its result when it is done.

    The result is sent to the others, so it has to be small.
    """
    if processes.count() == 1:
        return work()
    sent = [work() if processes.is_first() else None]
    dist.broadcast_object_list(sent)
    return sent[0]  # type: ignore[return-value]


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process does it, then the others do: for work whose result it leaves on the disk."""
    if not processes.is_first():
        by_first(_nothing)
    yield
    if processes.is_first():
        by_first(_nothing)


def _nothing() -> None:
    """What there is to do where only the waiting counts."""


def require_the_same(value: object, what: str) -> None:
    """Make sure that all processes hold the same.

    Raises:
        ValueError: if `value` is not that of the first.
    """
    first = by_first(lambda: value)
    if value != first:
        raise ValueError(
            f"Process {processes.rank()} found {what}: {value}, but the first process {first}. All machines "
            "must see the same study folder; on a network folder turn the caching of file names off."
        )


def _require_device(config: TrainingConfig) -> dict[str, bool]:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(config.device, True):
        raise ValueError(
            f"There is no {config.device!r} device here: set training.device to auto or cpu "
            "(`segmmreg train STUDY --set training.device=auto`); `segmmreg info` shows what there is."
        )
    return there


def _fabric(config: TrainingConfig, precision: Precision) -> Fabric:
    from lightning_fabric import Fabric

    here = processes.count_here()
    if processes.count() == 1:
        return Fabric(accelerator=config.device, devices=1, precision=precision)
    from SegGuidedMMRegLib.training.strategy import WholeBatches

    _require_devices(config, here)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it tells that it begins, in a box
    fabric = Fabric(
        accelerator="cpu" if config.device == "auto" and not torch.cuda.is_available() else config.device,
        devices=here,
        num_nodes=processes.count() // here,
        strategy=WholeBatches(timeout=_PATIENCE),
        precision=precision,
    )
    fabric.launch()
    return fabric


def _require_devices(config: TrainingConfig, wanted: int) -> None:
    cards = torch.cuda.device_count()
    on_cuda = config.device == "cuda" or (config.device == "auto" and cards > 0)
    if wanted > 1 and ((on_cuda and wanted > cards) or config.device == "mps"):
        found = f"{cards} CUDA devices" if on_cuda else "one MPS device"
        raise ValueError(
            f"{wanted} devices are asked for (training.devices, or torchrun), but this machine has {found}. "
            "Set training.devices lower, or to auto."
        )
