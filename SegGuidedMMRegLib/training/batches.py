"""How much of a batch a network sees at once: all of it, or parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from SegGuidedMMRegLib.out_of_memory import is_out_of_memory, release_memory

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class ImagesAtOnce:
    """How many images of a batch go through a network at once (`training.images_at_once`).

    Attributes:
        count: None for the whole batch.
        adaptive: whether it may be lowered when memory runs out.
        largest: the most images that came as one batch so far.
    """

    count: int | None = None
    adaptive: bool = False
    largest: int = 1

    @staticmethod
    def of(setting: int | Literal["all", "auto"]) -> ImagesAtOnce:
        """What the setting says."""
        return ImagesAtOnce(setting if isinstance(setting, int) else None, setting == "auto")

    def lower(self) -> bool:
        """Halve it, where that is allowed and possible; from the whole batch of one image to one by one."""
        if not self.adaptive or self.count == 1:
            return False
        self.count = max(1, (self.count or self.largest) // 2)
        return True


def in_batches(
    items: Sequence[Item],
    at_once: ImagesAtOnce,
    work: Callable[[Sequence[Item]], Made],
    *,
    name: str,
    log: Callable[[str], None],
) -> Iterator[tuple[Sequence[Item], Made]]:
    """Batches of `items` with what `work` makes of them, half as many at once when memory runs out.

    Args:
        items: in order.
        at_once: how many; `largest` at most.
        work: a function whose result for an item does not depend on the others of its batch.
        name: of what is done, for the log.
        log: hears of fewer at once.
    """
    done = 0
    while done < len(items):
        batch = items[done : done + min(at_once.count or at_once.largest, at_once.largest)]
        try:
            made = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not (is_out_of_memory(error) and at_once.lower()):
                raise
        else:
            yield batch, made
            done += len(batch)
            continue
        release_memory()  # here the error, which holds what `work` had in memory, is gone
        log(f"{name}: memory ran out; goes on with {at_once.count} at once.")


class WholeBatch(nn.Module):
    """A network that is given whole batches, and takes them in parts if memory asks for it.

    A part is computed twice, once more when its gradient is asked for, so that only one part's activations
    are held at a time (Chen et al., Training deep nets with sublinear memory cost, 2016). Outputs and
    gradients are those of the whole batch, but for networks with batch normalisation, whose statistics are
    then those of the parts.

    Args:
        network: from tensors [N, ...] to a tensor [N, ...].
        at_once: shared by the networks of a run.
    """

    def __init__(self, network: nn.Module, at_once: ImagesAtOnce) -> None:
        super().__init__()
        self.network = network
        self._at_once = at_once

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output for the whole batch."""
        images, most = len(inputs[0]), self._at_once.count
        self._at_once.largest = max(self._at_once.largest, images)
        if most is None:
            whole: Tensor = self.network(*inputs)
            return whole
        # Every k-th image makes a part, so that a pair which comes in both orders stays together.
        parts = -(-images // most)
        found = torch.cat([self._part([x[first::parts] for x in inputs]) for first in range(parts)])
        rows = torch.arange(images, device=found.device)
        return found[torch.cat([rows[first::parts] for first in range(parts)]).argsort()]

    def _part(self, inputs: list[Tensor]) -> Any:
        return checkpoint(self.network, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> Any:
        return nullcontext(), _statistics_kept(self.network)


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch normalisation counts what passes here as seen before."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, counted) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, counted
