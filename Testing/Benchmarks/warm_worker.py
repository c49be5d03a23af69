"""How much processor time `segmmreg worker` takes for a pair, and for the same pair after an edit.

    segmmreg demo demo
    python Testing/Benchmarks/warm_worker.py demo/study

Prints a Markdown table: CPU-seconds as the `result` events say them, with one thread; the memory of the
worker, and how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from SegGuidedMMRegLib.study import Case, Study


class Worker:
    """A worker with one thread."""

    def __init__(self, study: Path) -> None:
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "SegGuidedMMRegLib", "worker", str(study)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},
        )
        self._until(lambda e: e["event"] == "result" and e["stage"] == "load")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The result of a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        self.process.stdin.flush()
        told = self._until(lambda e: e["event"] in ("result", "error") and e.get("request") == request["id"])
        if told["event"] == "error" or told.get("status", "ok") != "ok":
            sys.exit(f"{request['id']}: {told}")
        return told

    def _until(self, wanted: Any) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if wanted(event):
                return event
        sys.exit("The worker has ended.")

    def resident_mib(self) -> float | None:
        """Memory that it takes, where the system says so."""
        path = Path(f"/proc/{self.process.pid}/statm")
        if not path.exists():
            return None
        return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def fresh_copy(study: Study, case: Case, folder: Path, number: int) -> dict[str, Any]:
    """An image that the worker has not seen."""
    path = folder / f"{number}-{case.name}{''.join(Path(case.image).suffixes)}"
    shutil.copy(study.folder / case.image, path)
    return {"file": path, "modality": case.modality, "mirrored": case.mirrored}


def measure(folder: Path, turns: int, more: int) -> list[tuple[str, list[float]]]:
    """CPU-seconds of each kind of request."""
    study = Study.open(folder)
    cases = [study.cases_of(m, "test") for m in (study.source, study.target)]
    worker = Worker(folder)
    found: dict[str, list[float]] = {}

    def ask(kind: str, **request: Any) -> dict[str, Any]:
        told = worker.ask(id=f"{kind} {len(found.get(kind, []))}", **request)
        found.setdefault(kind, []).append(told["cpu_seconds"])
        return told

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        for turn in range(turns):
            moving, fixed = (c[turn % len(c)] for c in cases)
            pair = {
                "moving": fresh_copy(study, moving, out, turn),
                "fixed": fresh_copy(study, fixed, out, turn),
                "out": out / "pair",
            }
            ask("a pair of new images", do="register", **pair)
            told = ask("segmenting a known image", do="segment", images=[pair["fixed"]], out=out / "labels")
            edited = {**pair, "fixed": {**pair["fixed"], "labels": told["files"][0]}}
            ask("the pair again, a segmentation edited", do="register", **edited)
            case = {"case": cases[0][turn % len(cases[0])].key}
            ask("a draft of labels (propagate)", do="propagate", image=case, out=out / "drafts")
            ask("the next case to label (suggest)", do="suggest")
            if turn == 2:
                before = worker.resident_mib()
        for number in range(more):
            worker.ask(id=number, do="register", **edited)
        after = worker.resident_mib()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    print(
        f"Images of {fresh_size(study, cases[0][0])}, study grid {study.require_grid().size}, "
        f"{study.config.registration.refinement_steps} refinement steps, {turns} pairs."
    )
    if before and after:
        print(f"Memory: {before:.0f} MiB, {after:.0f} MiB after {more} more pairs.")
    if hasattr(os, "getloadavg"):
        print(f"Load of the last 15 minutes: {os.getloadavg()[2]:.1f} on {os.cpu_count()} cores.")
    return list(found.items())


def fresh_size(study: Study, case: Case) -> str:
    """Voxels of an image, in words."""
    return " × ".join(map(str, study.read_image(case).grid.size[: study.dimension]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--more", type=int, default=100, help="pairs to look at the memory")
    given = parser.parse_args()
    if given.turns < 3:
        parser.error("--turns must be 3 or more")
    rows = measure(given.study, given.turns, given.more)
    print("\n| request | CPU-seconds, median | largest |\n|---|---|---|")
    for kind, seconds in rows:
        print(f"| {kind} | {median(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
