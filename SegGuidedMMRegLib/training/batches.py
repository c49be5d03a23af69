"""Whole batches for a network, of which it sees what fits into memory, and each process its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.out_of_memory import is_out_of_memory, release_memory

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class ImagesAtOnce:
    """How many images of a batch go through a network at once (`training.images_at_once`).

    Attributes:
        count: None for the whole batch.
        adaptive: whether it may be lowered when memory runs out; not by one of several processes.
        largest: the most images that came as one batch so far.
    """

    count: int | None = None
    adaptive: bool = False
    largest: int = 1

    @staticmethod
    def of(setting: int | Literal["all", "auto"]) -> ImagesAtOnce:
        """What the setting says."""
        adaptive = setting == "auto" and processes.count() == 1
        return ImagesAtOnce(setting if isinstance(setting, int) else None, adaptive)

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
        self.at_once = at_once

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output for the whole batch; in each of several processes, whole too."""
        if processes.count() == 1:
            return self.share(*inputs)
        images = len(inputs[0])
        share = -(-images // processes.count())
        rows = torch.arange(share, device=inputs[0].device) + processes.rank() * share
        # Where the batch does not divide evenly the last image is computed again, and left out of the result.
        mine = self.share(*(x[rows.clamp(max=images - 1)] for x in inputs))
        whole: Tensor = _Gathered.apply(mine)
        return whole[:images]

    def share(self, *inputs: Tensor) -> Tensor:
        """The output for what this process computes, in parts if memory asks for it."""
        images, most = len(inputs[0]), self.at_once.count
        self.at_once.largest = max(self.at_once.largest, images)
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


class _Gathered(torch.autograd.Function):
    """The rows of all processes; back goes the gradient of one's own rows.

    Every process derives the same loss from the whole, so the gradients of weights that it finds this way are
    its part of a sum (`sum_gradients`).
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        start = processes.rank() * len(mine)
        ctx.rows = slice(start, start + len(mine))
        parts = [torch.empty_like(mine) for _ in range(processes.count())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient[ctx.rows]


class _Summed(torch.autograd.Function):
    """The sum over all processes; back goes the sum of the gradients."""

    @staticmethod
    def forward(_ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_gradients(optimizer: Optimizer) -> None:
    """Add up, over all processes, the gradients of what `optimizer` trains."""
    if processes.count() == 1:
        return
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    gradients = [w.grad for w in weights if w.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of all processes, on any device (torch's own is for GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same shape; N is this process's share of the batch."""
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        values = x.float()
        count = values.numel() // values.shape[1] * processes.count()
        mean = _Summed.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(axes)) / count
        self._keep(mean.detach(), variance.detach() * count / max(count - 1, 1))
        factor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * factor.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.0 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""


def share_statistics(network: nn.Module) -> None:
    """Let the batch normalisation of `network` see the whole batch where several processes share it."""
    if processes.count() == 1:
        return
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SharedBatchNorm):
            layer.__class__ = SharedBatchNorm  # with all it holds, so that optimisers keep their weights


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
