"""Parts of a list of pairs as jobs of a cluster (SLURM), or of this machine, by submitit.

A job is the same command with `--part 2/8`: it can as well be started by hand, in a SLURM array, on any
machine that shares the study's folder. submitit keeps scripts and logs in a new folder of the study.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.study import Study, StudyError

System = Literal["slurm", "local"]
_MINUTES = 24 * 60
"""That a job may take, where nothing is said."""


def submit_parts(
    study: Study,
    command: Sequence[str],
    count: int,
    *,
    system: System,
    options: Mapping[str, str],
    reporter: Reporter,
) -> tuple[Path, int]:
    """Start `count` jobs, each a part of the work; those of this machine are waited for.

    Args:
        study: whose folder all jobs see.
        command: of `segmmreg`, with its arguments but `--part`.
        count: of jobs.
        system: "slurm", or "local" for processes of this machine.
        options: of submitit, such as `slurm_partition`, `timeout_min`, `mem_gb`, `cpus_per_task`.
        reporter: hears of the jobs.

    Returns:
        The folder of scripts and logs, and how many of the jobs that were waited for failed.

    Raises:
        StudyError: if there is no such system here, or an option is unknown.
    """
    import submitit

    folder = study.folder / "cluster" / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S_%f")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=system)
        executor.update_parameters(**{"timeout_min": _MINUTES, **{k: _value(v) for k, v in options.items()}})
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise StudyError(f"{system}: {error}") from None
    python = [sys.executable, "-m", "SegGuidedMMRegLib"]
    with executor.batch():
        jobs = [
            executor.submit(
                submitit.helpers.CommandFunction(
                    [*python, *command, "--part", f"{number}/{count}"], cwd=Path.cwd()
                )
            )
            for number in range(1, count + 1)
        ]
    names = ", ".join(str(job.job_id) for job in jobs)
    reporter.log(f"{count} jobs are submitted: {names}; their logs are in {folder}")
    return folder, _failures_of(jobs, reporter) if system == "local" else 0


def _failures_of(jobs: Sequence[Any], reporter: Reporter) -> int:
    """Wait for jobs of this machine; how many ended with an error. If we are ended, they are."""
    from submitit.core.utils import UncompletedJobError

    failed = 0
    reporter.started("jobs", len(jobs))
    try:
        for done, job in enumerate(jobs, start=1):
            try:
                job.result()
            except UncompletedJobError as error:
                failed += 1
                last = (str(error).strip() or "no message").splitlines()[-1]
                reporter.log(f"job {job.job_id} ended with an error ({last}); its log: {job.paths.stderr}")
            reporter.progress("jobs", done, len(jobs))
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise
    return failed


def _value(text: str) -> int | float | str:
    """A number where it is one: submitit tells 60 from "60"."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
