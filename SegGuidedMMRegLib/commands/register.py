"""`segmmreg register`: one pair of images, or many."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.jobs import Output, Pairs
    from SegGuidedMMRegLib.pair_report_file import Report
    from SegGuidedMMRegLib.samples import Sample
    from SegGuidedMMRegLib.study import Study

_FILES = ("transforms", "image", "labels")


@dataclass(frozen=True)
class Register(Command):
    """Register a moving image to a fixed one, or many pairs: all test images of source to all of target.

    Writes forward.h5 (for resampling the moving image onto the fixed one) and inverse.h5, the warped image
    and labels, and report.json, and for many pairs the table registrations/summary.csv. Pairs that are
    finished are not done again. The exit code is 1 if a pair failed.

    Examples: segmmreg register knees; segmmreg register knees case1 case7;
    segmmreg register knees a.nrrd b.nrrd --out result;
    segmmreg register knees --pairs pairs.csv; segmmreg register knees --to case1 --workers 8;
    segmmreg register knees --all --list pairs.csv
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    moving: Annotated[Positional[str | None], arg(metavar="MOVING")] = None
    """A case of the study, or an image file."""
    fixed: Annotated[Positional[str | None], arg(metavar="FIXED")] = None
    """A case of the study, or an image file."""
    moving_labels: Path | None = None
    """Segmentation to use instead of the predicted one."""
    fixed_labels: Path | None = None
    """Segmentation to use instead of the predicted one."""
    moving_landmarks: Path | None = None
    """Points of the moving image (.csv, .mrk.json, .fcsv) that shall meet those of the fixed one."""
    fixed_landmarks: Path | None = None
    """Points of the fixed image; those of the same names belong together."""
    moving_modality: str | None = None
    """Of a moving image file; the source without it."""
    fixed_modality: str | None = None
    """Of a fixed image file; the target without it."""
    moving_mirrored: bool = False
    """The moving image file shows the other side of the body."""
    fixed_mirrored: bool = False
    """The fixed image file shows the other side of the body."""
    moving_spacing: tuple[float, ...] = ()
    """Pixel size in mm of a moving image file that does not know its own (PNG, JPEG)."""
    fixed_spacing: tuple[float, ...] = ()
    """Pixel size in mm of a fixed image file that does not know its own (PNG, JPEG)."""
    out: Path | None = None
    """Folder for the result; registrations/MOVING--FIXED of the study without it."""
    formats: tuple[str, ...] = ()
    """Also write the transforms as .nrrd, .nii.gz, .mha or .tfm."""
    spacing: float | None = None
    """Spacing of the written fields in mm; that of the images without it."""

    pairs: Path | None = None
    """A CSV with a pair a row: columns moving, fixed, and others (docs/cohorts.md)."""
    all: bool = False
    """Every case of the study to every other."""
    to: str | None = None
    """Every case of the study to this one, or to this image file: a template."""
    roles: tuple[Literal["train", "validation", "test"], ...] = ()
    """Of the cases that take part; all with --all and --to, else test."""
    part: str | None = None
    """Only part 2 of 8, as 2/8: the others are left to other machines or jobs."""
    list: Path | None = None
    """Only write which pairs these are to a CSV, which --pairs reads; nothing is registered."""
    again: bool = False
    """Also the pairs that are finished."""
    outputs: tuple[str, ...] = ("transforms", "image", "labels")
    """Files that are written: transforms, image and labels (warped); none leaves all but report.json out."""
    workers: int = 0
    """Processes; 0 is one a core, fewer where there is little to do, one on a GPU."""
    submit: Literal["slurm", "local"] | None = None
    """Leave the work to jobs of a SLURM cluster that sees the study's folder, or of this machine."""
    jobs: int = 0
    """How many, each a part of the pairs."""
    job_options: tuple[str, ...] = ()
    """Of the jobs, as submitit names them: slurm_partition=gpu timeout_min=60 mem_gb=8 cpus_per_task=4."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        self._check()
        from SegGuidedMMRegLib import jobs

        output = jobs.Output(
            tuple(transform_suffix(f) for f in self.formats), self.spacing, _files(self.outputs)
        )
        if self.moving is not None and self.fixed is not None:
            return self._done_one(
                study, self._one(study, self.moving, self.fixed, output, reporter), reporter
            )
        pairs = self._pairs(study)
        if self.list is not None:
            jobs.pairs_to_csv(pairs, self.list)
            reporter.log(f"{len(pairs)} pairs: {self.list}")
            return Done({"pairs": len(pairs), "list": self.list})
        if self.submit is not None:
            return self._submitted(study, pairs, reporter)
        run = jobs.Run(self.again, self.workers, None if self.part is None else _part(self.part))
        tally = jobs.register_study(study, pairs, output=output, run=run, reporter=reporter)
        for name, reason in tally.failures:
            reporter.log(f"failed: {name}: {reason}")
        if tally.failed > len(tally.failures):
            reporter.log(f"{tally.failed - len(tally.failures)} more failed; {tally.summary} lists them")
        found = {
            "pairs": tally.pairs,
            "registered": tally.done,
            "skipped": tally.skipped,
            "failed": tally.failed,
            "folder": study.folder / "registrations",
            "summary": tally.summary,
        }
        return Done(found, exit_code=1 if tally.failed else 0)

    def _check(self) -> None:
        """Raise ValueError for options that contradict each other."""
        if (self.moving is None) != (self.fixed is None):
            raise ValueError("Name a moving and a fixed image, or none for all test pairs.")
        lists = {"MOVING FIXED": self.moving, "--pairs": self.pairs, "--all": self.all, "--to": self.to}
        given = [name for name, value in lists.items() if value]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say which pairs; give one of them.")
        for_one = {
            "--moving-labels": self.moving_labels,
            "--fixed-labels": self.fixed_labels,
            "--moving-landmarks": self.moving_landmarks,
            "--fixed-landmarks": self.fixed_landmarks,
            "--out": self.out,
            "--moving-mirrored": self.moving_mirrored,
            "--moving-spacing": self.moving_spacing,
        }
        if self.moving is None and (wrong := [name for name, value in for_one.items() if value]):
            raise ValueError(f"{wrong[0]} goes with one pair; name it, or use a column of --pairs.")
        if (self.submit is None) != (self.jobs == 0):
            raise ValueError("--submit and --jobs go together: --submit slurm --jobs 8.")
        if self.submit is not None and self.part is not None:
            raise ValueError("--submit makes the parts itself; leave --part out.")
        if self.workers < 0 or self.jobs < 0:
            raise ValueError("--workers and --jobs are numbers of processes and jobs, 0 or more.")
        for_many = {
            "--submit": self.submit,
            "--roles": self.roles,
            "--part": self.part,
            "--again": self.again,
            "--workers": self.workers,
            "--list": self.list,
        }
        if self.moving is not None and (wrong := [name for name, value in for_many.items() if value]):
            raise ValueError(f"{wrong[0]} goes with many pairs, not with one.")
        if self.pairs is not None and self.roles:
            raise ValueError("--roles chooses cases of the study; --pairs names its pairs itself.")
        if (self.moving_landmarks is None) != (self.fixed_landmarks is None):
            raise ValueError("Landmarks come in pairs: give --moving-landmarks and --fixed-landmarks.")

    def _pairs(self, study: Study) -> Pairs:
        from SegGuidedMMRegLib import jobs
        from SegGuidedMMRegLib.study import Role

        if self.pairs is not None:
            return jobs.pairs_from_csv(study, self.pairs)
        roles = tuple(Role(r) for r in self.roles)
        if self.all:
            return jobs.all_pairs(study, jobs.Choice(roles, self.moving_modality, self.fixed_modality))
        if self.to is not None:
            template = jobs.read_side(
                study,
                self.to,
                self.fixed_modality or study.target,
                mirrored=self.fixed_mirrored,
                spacing_mm=self.fixed_spacing,
            )
            return jobs.pairs_to(study, template, jobs.Choice(roles, self.moving_modality))
        modalities = self.moving_modality or study.source, self.fixed_modality or study.target
        return jobs.all_pairs(study, jobs.Choice(roles or (Role.TEST,), *modalities))

    def _submitted(self, study: Study, pairs: Pairs, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.jobs.cluster import submit_parts

        options = dict(_option(text) for text in self.job_options)
        folder, failed = submit_parts(
            study,
            self._command(),
            self.jobs,
            system=self.submit or "local",
            options=options,
            reporter=reporter,
        )
        found = {"pairs": len(pairs), "jobs": self.jobs, "failed_jobs": failed, "logs": folder}
        return Done(found, exit_code=1 if failed else 0)

    def _command(self) -> Sequence[str]:
        """This command for one job, without its part."""
        workers = self.workers or (1 if self.submit == "local" else 0)
        values: dict[str, object] = {
            "--pairs": self.pairs and self.pairs.resolve(),
            "--to": self.to,
            "--moving-modality": self.moving_modality,
            "--fixed-modality": self.fixed_modality,
            "--spacing": self.spacing,
            "--workers": workers,
        }
        lists = {
            "--roles": self.roles,
            "--fixed-spacing": self.fixed_spacing,
            "--formats": self.formats,
            "--outputs": self.outputs,
        }
        flags = {"--all": self.all, "--again": self.again, "--fixed-mirrored": self.fixed_mirrored}
        command = ["register", str(self.study.resolve())]
        command += [str(word) for key, value in values.items() if value for word in (key, value)]
        command += [str(word) for key, entries in lists.items() if entries for word in (key, *entries)]
        return command + [flag for flag, given in flags.items() if given]

    def _done_one(self, study: Study, report: Report, reporter: Reporter) -> Done:
        failed = report["status"] != "ok"
        if failed:
            reporter.log(f"failed: {'; '.join(report['reasons'])}")
        found = {"pairs": 1, "failed": int(failed), "folder": self.out or study.folder / "registrations"}
        return Done(found, exit_code=int(failed))

    def _one(self, study: Study, moving: str, fixed: str, output: Output, reporter: Reporter) -> Report:
        from SegGuidedMMRegLib import jobs
        from SegGuidedMMRegLib.importing.labels import read_matching_labels
        from SegGuidedMMRegLib.points import read_matched_landmarks

        sides = (
            _sample(
                study,
                moving,
                self.moving_modality or study.source,
                mirrored=self.moving_mirrored,
                spacing_mm=self.moving_spacing,
                reporter=reporter,
            ),
            _sample(
                study,
                fixed,
                self.fixed_modality or study.target,
                mirrored=self.fixed_mirrored,
                spacing_mm=self.fixed_spacing,
                reporter=reporter,
            ),
        )
        labels = [
            None if path is None else read_matching_labels(path, side.image, study.structures)
            for path, side in zip((self.moving_labels, self.fixed_labels), sides, strict=True)
        ]
        landmarks = None
        if self.moving_landmarks and self.fixed_landmarks:
            landmarks = read_matched_landmarks(self.moving_landmarks, self.fixed_landmarks)
        names = [side.case or side.name for side in sides]
        out = self.out or study.registration_folder(*names)
        given = jobs.Given(labels[0], labels[1], landmarks)
        return jobs.register_files(study, *sides, out, given=given, output=output, reporter=reporter)


def transform_suffix(text: str) -> str:
    """`text` as the suffix of transform files; ValueError for another."""
    known = (".nrrd", ".nii.gz", ".mha", ".tfm", ".h5")
    suffix = text if text.startswith(".") else f".{text}"
    if suffix not in known:
        raise ValueError(f"Transforms can be written as {', '.join(known)}, not {text!r}.")
    return suffix


def _sample(
    study: Study,
    text: str,
    modality: str,
    *,
    mirrored: bool,
    spacing_mm: tuple[float, ...],
    reporter: Reporter,
) -> Sample:
    """The case, or the image file, that `text` names."""
    from SegGuidedMMRegLib.images import spacing_is_known
    from SegGuidedMMRegLib.jobs import spacing_note
    from SegGuidedMMRegLib.samples import Sample

    if any(text in (c.name, c.key) for c in study.cases):
        return Sample.of_case(study, study.case(text))
    if not Path(text).exists():
        raise ValueError(
            f"{text!r} is neither a case of the study (`segmmreg info {study.folder}` lists them) nor a file."
        )
    sample = Sample.of_file(study, Path(text), modality, mirrored=mirrored, spacing_mm=spacing_mm)
    if not (spacing_mm or spacing_is_known(text)):
        reporter.log(spacing_note(Path(text)))
    return sample


def _files(words: tuple[str, ...]) -> tuple[str, ...]:
    """Kinds of files, named apart or with commas between."""
    asked = [word for text in words for word in text.split(",") if word]
    known = (*_FILES, "none")
    for word in asked:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"--outputs takes {', '.join(known)}, not {word!r}{hint}")
    if "none" in asked and len(asked) > 1:
        raise ValueError("--outputs none leaves all files out; name it alone.")
    return tuple(f for f in _FILES if f in asked)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"--job-options takes names and values, such as timeout_min=60, not {text!r}.")
    return name, value


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise ValueError(f"--part takes a number and a count, such as 2/8, not {text!r}.")
    return int(found[1]), int(found[2])
