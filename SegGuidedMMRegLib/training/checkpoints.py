"""The rolling checkpoint of a training run: one file, replaced whole, of tensors and plain values only."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.config import TrainingConfig
from SegGuidedMMRegLib.files import atomic_path
from SegGuidedMMRegLib.pace import Pace

CHECKPOINT_FILE = "checkpoint.pt"
_DAMAGED = (
    *(RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError),
    *(OSError, OverflowError, pickle.UnpicklingError),
)
"""What torch's reader raises for files that are not whole."""


class Checkpoints:
    """Reads and writes the checkpoint of `folder`, and knows when the next is due."""

    def __init__(self, folder: Path, fingerprint: str, config: TrainingConfig) -> None:
        self.path = folder / CHECKPOINT_FILE
        self._fingerprint = fingerprint
        self._pace = Pace(config.checkpoint_seconds, config.checkpoint_share)

    def is_due(self) -> bool:
        """Whether it is time for one."""
        return self._pace.is_due()

    def write(self, record: dict[str, Any]) -> None:
        """Replace the checkpoint by `record`, whole or not at all; of several processes, the first does."""
        if not processes.is_first():
            return
        with self._pace.saving(), atomic_path(self.path) as path, path.open("wb") as file:
            torch.save(
                {**record, "fingerprint": self._fingerprint}, file
            )  # to a path, it would hold its name

    def read(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """The checkpoint, on the CPU; None if there is none to go on from, and `log` is told why."""
        if not self.path.exists():
            return None
        try:
            record: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            same = record["fingerprint"] == self._fingerprint
        except _DAMAGED as error:
            log(f"{self.path}: not readable ({type(error).__name__}), training starts afresh.")
            return None
        if not same:
            log(f"{self.path}: made with other settings, data or first weights, training starts afresh.")
            return None
        return record


def fingerprint_of(settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> str:
    """A hash of JSON-like `settings` and of the weights that `networks` begin with."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key in sorted(networks):
        for tensor in networks[key].state_dict().values():
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
