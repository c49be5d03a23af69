"""`segmmreg demo`, `train`, `segment`, `register`, `evaluate` and `report`: the long work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done
from SegGuidedMMRegLib.commands.bring import Settings

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.inference import Sample
    from SegGuidedMMRegLib.jobs import Output
    from SegGuidedMMRegLib.pair_report import Report
    from SegGuidedMMRegLib.study import Study


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

    def run(self, reporter: Reporter) -> Done:

        from SegGuidedMMRegLib.demo import demo_lines, run_demo

        found = run_demo(
            self.folder,
            dimension=self.dimension,
            preset_name=self.preset,
            seed=self.seed,
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
            with working_on(study.folder, "train"):
                study.save_settings()
        from SegGuidedMMRegLib.pipeline import train

        train(study, self.stage or None, reporter)
        return Done({"study": self.study})


@dataclass(frozen=True)
class Segment(Command):
    """Segment images with a trained study: all of its own, or others.

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
            written = jobs.segment_files(
                study,
                self.images,
                self.modality,
                self.out,
                mirrored=self.mirrored,
                spacing_mm=self.spacing,
                probabilities=self.probabilities,
                reporter=reporter,
            )
        else:
            written = jobs.segment_study(study, reporter)
        return Done({"files": len(written), "folder": self.out or study.folder / "predictions"})


@dataclass(frozen=True)
class Register(Command):
    """Register a moving image to a fixed one, or all test images of the source to all of the target.

    Writes forward.h5 (for resampling the moving image onto the fixed one) and inverse.h5, the warped image
    and labels, and report.json.

    Examples: segmmreg register knees; segmmreg register knees case1 case7;
    segmmreg register knees a.nrrd b.nrrd --out result
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

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        if (self.moving is None) != (self.fixed is None):
            raise ValueError("Name a moving and a fixed image, or none for all test pairs.")
        if self.moving is None and (self.moving_labels or self.fixed_labels or self.out):
            raise ValueError("--moving-labels, --fixed-labels and --out go with one pair; name it.")
        if (self.moving_landmarks is None) != (self.fixed_landmarks is None):
            raise ValueError("Landmarks come in pairs: give --moving-landmarks and --fixed-landmarks.")
        if self.moving is None and self.moving_landmarks:
            raise ValueError("--moving-landmarks and --fixed-landmarks go with one pair; name it.")
        from SegGuidedMMRegLib import jobs

        output = jobs.Output(tuple(_suffix(f) for f in self.formats), self.spacing)
        if self.moving is not None and self.fixed is not None:
            reports = [self._one(study, self.moving, self.fixed, output, reporter)]
        else:
            reports = jobs.register_study(study, output=output, reporter=reporter)
        failed = [r for r in reports if r["status"] != "ok"]
        if self.moving is not None and failed:
            reporter.log(f"failed: {'; '.join(failed[0]['reasons'])}")
        found = {"pairs": len(reports), "failed": len(failed), "folder": self._folder(study)}
        return Done(found, exit_code=1 if len(failed) == len(reports) else 0)

    def _folder(self, study: Study) -> Path:
        return self.out or study.folder / "registrations"

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


def _suffix(text: str) -> str:
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
    from SegGuidedMMRegLib.inference import Sample
    from SegGuidedMMRegLib.jobs import spacing_note

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
