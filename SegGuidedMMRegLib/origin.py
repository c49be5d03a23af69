"""By what a result was made: version, state of the sources, settings, seed, device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.config import Config
from SegGuidedMMRegLib.digests import digest_of

_GIT_SECONDS = 5.0


def origin(config: Config, device: str | None = None) -> dict[str, Any]:
    """What to write into a result, so that it can be made again.

    Args:
        config: of the study.
        device: what it was computed on, where that matters.

    Returns:
        `version` of this library; `git` commit and whether files differ from it, None where the library does
        not run from a checkout; `settings`, the digest of all settings; `preset`; `seed`; `python`, `torch`
        and `system`; `device` if given. Nothing that differs from run to run.
    """
    found: dict[str, Any] = {
        "version": __version__,
        "git": git_state(),
        "preset": config.preset,
        "settings": digest_of(config.model_dump(mode="json"))[:16],
        "seed": config.training.seed,
        "python": platform.python_version(),
        "torch": _version_of("torch"),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return found if device is None else {**found, "device": device}


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the library runs from, and whether it was changed since. Never fails."""
    package = Path(__file__).parent
    if not _git(package, "ls-files", "--", "__init__.py"):  # in a checkout that is not ours
        return None
    changed = _git(package, "status", "--porcelain", "--", ".") != ""
    return {"commit": _git(package, "rev-parse", "HEAD"), "changed": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
