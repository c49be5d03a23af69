"""Weights of a network on disk: safetensors, which hold numbers and never code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from SegGuidedMMRegLib.files import atomic_path

Network = TypeVar("Network", bound=nn.Module)

DESCRIPTION_FILE = "network.yaml"
"""Beside the weights: what kind of network they are of."""
_REMEDY = "Train this stage again, or restore the settings it was trained with."


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state of `network` to the safetensors file `path`, whole or not at all."""
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_network(build: Callable[[], Network], path: Path) -> Network:
    """The network that `build` makes with the weights in `path`, on the CPU, ready for inference.

    Its description may come from a stranger and name a network of any size: it is made only where the file is
    large enough for its weights.

    Raises:
        ValueError: naming the file, if it is absent, damaged, or of another network.
    """
    try:
        with torch.device("meta"):
            needed = sum(t.numel() * t.element_size() for t in build().state_dict().values())
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{path.parent / DESCRIPTION_FILE}: describes no network ({error}). {_REMEDY}"
        ) from None
    if path.is_file() and needed > path.stat().st_size:
        raise ValueError(
            f"{path}: weights of another network (the one described beside it needs {needed} bytes). "
            f"{_REMEDY}"
        )
    network = build()
    load_weights(network, path)
    return network.eval()


def load_weights(network: nn.Module, path: Path) -> None:
    """Read the safetensors file `path` into `network`, wherever that lies.

    Raises:
        ValueError: naming the file, if it is absent, damaged, or of another network.
    """
    try:
        state: dict[str, torch.Tensor] = load_file(path)
        broken = [key for key, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
        if broken:
            raise ValueError(
                f"{path}: the weights hold values that are not numbers (NaN or infinite, first in "
                f"{broken[0]}). Train this stage again."
            )
        network.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no readable weights ({error}). Train this stage again.") from None
    except RuntimeError as error:
        shown = str(error).splitlines()
        raise ValueError(f"{path}: weights of another network ({' '.join(shown[:2])}). {_REMEDY}") from None
