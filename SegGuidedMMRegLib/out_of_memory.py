"""Running out of memory, on any device: how it is recognised, and the error that says what to lower."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from SegGuidedMMRegLib.events import ErrorCode

_SIGNS = (
    "out of memory",  # CUDA, MPS
    "can't allocate memory",  # torch on a CPU, Linux
    "not enough memory",  # torch on a CPU, Windows
    "alloc_failed",  # cuDNN and cuBLAS: CUDNN_STATUS_ALLOC_FAILED
    "failed to allocate memory",  # ITK
    "bad_alloc",
    "cannot allocate memory",  # the system
)


class OutOfMemoryError(MemoryError):
    """Memory ran out.

    Attributes:
        remedy: what to lower, a sentence that names settings and their values.
    """

    error_code = ErrorCode.OUT_OF_MEMORY

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch and ITK say so in a RuntimeError, the system in an OSError."""
    if isinstance(error, MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(sign in told for sign in _SIGNS)


@contextmanager
def memory_remedy(what: str, remedy: str) -> Iterator[None]:
    """Raise `OutOfMemoryError` with `remedy` where memory runs out inside; the innermost remedy counts.

    Args:
        what: was being done, for the message.
        remedy: a sentence.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{what}: memory ran out ({_first_line(error)}).", remedy) from error


def release_memory() -> None:
    """Give back to the device what nobody holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no details given").splitlines()[0].rstrip(".")
