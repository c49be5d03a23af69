"""`segmmreg demo`, `train`, `segment`, `register`, `evaluate` and `report`: the long work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.commands.base import Command, Done
from SegGuidedMMRegLib.commands.bring import Settings

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter


@dataclass(frozen=True)
class Demo(Command):
    """See it all on drawn knees: a study, its training, registrations, and a report.

    Example: segmmreg demo demo
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Where to put it."""
    preset: Literal["default", "quick", "paper"] = "quick"
    """quick takes minutes on two cores."""
    dimension: Literal[2, 3] = 2
    """Of the images."""
    seed: int = 0
    """Of knees and training."""
    small: bool = False
    """Fewer and smaller knees and a short training: a minute that shows whether all works here."""

    def run(self, reporter: Reporter) -> Done:

        from SegGuidedMMRegLib.demo import demo_lines, run_demo

        found = run_demo(
            self.folder,
            dimension=self.dimension,
            preset_name=self.preset,
            seed=self.seed,
            small=self.small,
            reporter=reporter,
        )
        for line in demo_lines(found):
            reporter.log(line)
        return Done({"study": found.study.folder, "report": found.report})


@dataclass(frozen=True)
class Train(Command):
    """Run the stages that are missing or out of date; what was cut off goes on where it was.

    Example: segmmreg train knees --set segmentation.steps=500
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    stage: tuple[str, ...] = ()
    """Only these, and what they need: prealign, augmentation, segmentation, adaptation, registration."""
    auto_batch: bool = False
    """When memory runs out, go on with fewer images at once (training.images_at_once=auto)."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.config import fitted_to_dimension, override
        from SegGuidedMMRegLib.locks import working_on
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        wanted = self.settings
        changes = [*wanted.set, *(["training.images_at_once=auto"] if self.auto_batch else [])]
        config = override(study.config, wanted.preset, wanted.config, changes)
        if wanted.preset:
            config = fitted_to_dimension(config, study.dimension)
        if config != study.config:
            study = replace(study, config=config)
            if processes.is_first():
                with working_on(study.folder, "train"):
                    study.save_settings()
        from SegGuidedMMRegLib.pipeline import train
        from SegGuidedMMRegLib.training.devices import wanted_devices

        devices = wanted_devices(config.training) if processes.count() == 1 else 1
        if devices > 1:
            from SegGuidedMMRegLib.launch import train_on

            train_on(devices, self.study, self.stage, reporter)
        else:
            train(study, self.stage or None, reporter)
        return Done({"study": self.study})


@dataclass(frozen=True)
class Segment(Command):
    """Segment images with a trained study: all of its own, or others.

    Images whose segmentations are up to date are left alone. The exit code is 1 if one of several failed.

    Examples: segmmreg segment knees; segmmreg segment knees new1.png new2.png --modality radiograph --out
    results
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGES")] = ()
    """Image files from outside the study; none: all images of the study, into its predictions folder."""
    modality: str | None = None
    """Of these images: the name of the source or the target modality."""
    out: Path | None = None
    """Folder for the segmentations of these images."""
    mirrored: bool = False
    """These images show the other side of the body."""
    spacing: tuple[float, ...] = ()
    """Pixel size in mm, for files that do not know theirs (PNG, JPEG): one number, or one an axis."""
    probabilities: bool = False
    """Also write a volume of probabilities a structure."""
    again: bool = False
    """Also the images whose segmentations are up to date."""
    workers: int = 0
    """Processes; 0 is one a core, fewer where there is little to do, one on a GPU."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        if self.images and (self.modality is None or self.out is None):
            raise ValueError(
                f"Images from outside the study need --modality ({study.source} or {study.target}) and "
                "--out FOLDER."
            )
        if not self.images and (
            self.out or self.modality or self.mirrored or self.spacing or self.probabilities
        ):
            raise ValueError(
                "--modality, --out, --mirrored, --spacing and --probabilities go with images; name some."
            )
        from SegGuidedMMRegLib import jobs

        if self.images and self.modality is not None and self.out is not None:
            found = jobs.segment_files(
                study,
                self.images,
                self.modality,
                self.out,
                mirrored=self.mirrored,
                spacing_mm=self.spacing,
                probabilities=self.probabilities,
                again=self.again,
                workers=self.workers,
                reporter=reporter,
            )
        else:
            found = jobs.segment_study(study, reporter, again=self.again, workers=self.workers)
        if len(self.images) == 1 and found.failures:
            raise ValueError(found.failures[0][1])
        told = {
            "files": len(found.written),
            "skipped": found.skipped,
            "failed": len(found.failures),
            "folder": self.out or study.folder / "predictions",
        }
        return Done(told, exit_code=1 if found.failures else 0)


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure predictions and registrations against labels and landmarks: evaluation.csv and evaluation.json.

    Example: segmmreg evaluate knees
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        from SegGuidedMMRegLib.evaluation import evaluate

        evaluate(study, reporter)
        return Done({"table": study.folder / "evaluation.csv"})


@dataclass(frozen=True)
class ReportPage(Command):
    """Write report.html: one page with pictures and tables of the whole study.

    Example: segmmreg report knees
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        from SegGuidedMMRegLib.report import write_report

        return Done({"page": write_report(study, reporter)})
