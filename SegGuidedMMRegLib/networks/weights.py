"""Weights of a network on disk: safetensors, which hold numbers and never code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from SegGuidedMMRegLib.files import atomic_path


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state of `network` to the safetensors file `path`, whole or not at all."""
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


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
        raise ValueError(
            f"{path}: weights of another network ({' '.join(shown[:2])}). Train this stage again, or "
            "restore the settings it was trained with."
        ) from None
