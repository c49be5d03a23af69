"""The stages of the method in order; runs what is missing or out of date, goes on with what was cut off.

Pre-align → augment by registration → segment the source → adapt to the target → register by segmentation
(paper, 3.2 to 3.4). Each stage notes what it was made from, so a changed setting, image or label reruns what
depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from SegGuidedMMRegLib import __version__, provenance
from SegGuidedMMRegLib.config import Config, save_config
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.out_of_memory import memory_remedy
from SegGuidedMMRegLib.study import Study, StudyError, TrainingView
from SegGuidedMMRegLib.study_file import resolve_inside
from SegGuidedMMRegLib.training import prealign
from SegGuidedMMRegLib.training.adaptation import adapt
from SegGuidedMMRegLib.training.augmentation import AugmentedSamples, augment, load_samples
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.loop import make_fabric
from SegGuidedMMRegLib.training.registration import train_registration
from SegGuidedMMRegLib.training.segmentation import train_source

TRAINED_STAGES = ("augmentation", "segmentation", "adaptation", "registration")
STAGES = ("prealign", *TRAINED_STAGES)
_UPSTREAM = {
    "augmentation": (),
    "segmentation": ("augmentation",),
    "adaptation": ("augmentation", "segmentation"),
    "registration": ("segmentation", "adaptation"),
}


@dataclass(frozen=True)
class _Context:
    """What a stage works with."""

    study: Study
    tensors: StudyTensors
    reporter: Reporter

    @property
    def config(self) -> Config:
        return self.study.config


def train(study: Study, stages: Sequence[str] | None = None, reporter: Reporter | None = None) -> None:
    """Train a study: the named stages and whatever they need, or all.

    Args:
        study: with images, and labels for some source images.
        stages: of `STAGES`; those that come before are run too where they are missing or out of date.
        reporter: hears what is run and why.

    Raises:
        StudyError: for an unknown stage, or a study that lacks images.
        BusyError: if another training works on the study.
        ValueError: where a stage cannot be trained; the message names the remedy.
    """
    reporter = reporter or Reporter()
    wanted = _wanted(stages)
    _check(study)
    with working_on(study.folder, "train"):
        _train(study, wanted, reporter)


def _train(study: Study, wanted: set[str], reporter: Reporter) -> None:
    with memory_remedy("prealign", memory_remedies(study.config)["prealign"]):
        prealign.run(study, study.config.prealign, reporter)
    if wanted == {"prealign"}:
        return
    view = study.training_view()
    tensors = StudyTensors.load(view, reporter=reporter)
    context = _Context(study, tensors, reporter)
    inputs = _inputs(view)
    digests: dict[str, str] = {}
    for stage in TRAINED_STAGES:
        made_from = {
            "settings": provenance.digest_of(
                getattr(study.config, stage).model_dump(mode="json"), study.config.training.seed
            ),
            **inputs,
            **{f"stage {upstream}": digests[upstream] for upstream in _UPSTREAM[stage]},
        }
        digests[stage] = provenance.digest_of(made_from)
        if stage in wanted:
            _run_if_needed(stage, made_from, context)


def _run_if_needed(stage: str, made_from: dict[str, str], context: _Context) -> None:
    folder = context.study.stage_folder(stage)
    why = provenance.changed_since(folder, made_from)
    if why is None:
        context.reporter.log(f"{stage}: up to date")
        return
    context.reporter.log(f"{stage}: runs ({why})")
    start = time.monotonic()
    provenance.begin(folder, made_from)
    save_config(context.config, folder / "config.yaml")
    with memory_remedy(stage, memory_remedies(context.config)[stage]):
        _RUN[stage](context)
    provenance.complete(
        folder,
        made_from,
        seconds=round(time.monotonic() - start, 1),
        version=__version__,
        torch=torch.__version__,
        seed=context.config.training.seed,
        device=str(make_fabric(context.config.training).device),
    )


def memory_remedies(config: Config) -> dict[str, str]:
    """What to lower in each stage when memory runs out outside the loop of training, which knows better."""
    coarser = "or choose a coarser study grid (`segmmreg new --grid-spacing`)."
    augmentation, registration = config.augmentation, config.registration
    return {
        "prealign": f"Lower prealign.working_size (now {config.prealign.working_size}), {coarser}",
        "augmentation": (
            f"Lower augmentation.batch_size (now {augmentation.batch_size}) or augmentation.samples (now "
            f"{augmentation.samples}), raise augmentation.working_downsampling (now "
            f"{augmentation.working_downsampling}), {coarser}"
        ),
        "segmentation": (
            f"Lower segmentation.batch_size (now {config.segmentation.batch_size}) or augmentation.samples "
            f"(now {augmentation.samples}), {coarser}"
        ),
        "adaptation": (
            f"Lower adaptation.batch_size (now {config.adaptation.batch_size}) or augmentation.samples (now "
            f"{augmentation.samples}), {coarser}"
        ),
        "registration": (
            f"Lower registration.batch_size (now {registration.batch_size}), raise "
            f"registration.working_downsampling (now {registration.working_downsampling}), {coarser}"
        ),
    }


# -- the stages -----------------------------------------------------------------------------------------


def _augmentation(context: _Context) -> None:
    augment(context.tensors, context.config, context.study.stage_folder("augmentation"), context.reporter)


def _segmentation(context: _Context) -> None:
    folder = context.study.stage_folder("segmentation")
    train_source(context.tensors, _augmented(context), context.config, folder, context.reporter)


def _adaptation(context: _Context) -> None:
    study = context.study
    adapt(
        context.tensors,
        _augmented(context),
        context.config,
        source_folder=study.stage_folder("segmentation"),
        folder=study.stage_folder("adaptation"),
        reporter=context.reporter,
    )


def _registration(context: _Context) -> None:
    study = context.study
    train_registration(
        context.tensors,
        context.config,
        study.stage_folder("segmentation"),
        study.stage_folder("adaptation"),
        study.stage_folder("registration"),
        reporter=context.reporter,
    )


_RUN: dict[str, Callable[[_Context], None]] = {
    "augmentation": _augmentation,
    "segmentation": _segmentation,
    "adaptation": _adaptation,
    "registration": _registration,
}


def _augmented(context: _Context) -> AugmentedSamples | None:
    return load_samples(context.study.stage_folder("augmentation"))


# -- what they are made from ----------------------------------------------------------------------------


def _inputs(view: TrainingView) -> dict[str, str]:
    """Digests of what training reads: grid and structures, images with their place, labels."""
    images, labels = [], []
    for case in view.cases:
        affine = view.study_to_case(case).round(9).tolist()
        images.append((case.key, case.role.value, affine, _content(view, case.image)))
        if case.label is not None:
            labels.append((case.key, _content(view, case.label)))
    structures = [(structure.value, structure.name) for structure in view.structures]
    return {
        "grid": provenance.digest_of(view.grid.size, view.grid.spacing),
        "structures": provenance.digest_of(structures),
        "images": provenance.digest_of(images),
        "labels": provenance.digest_of(labels),
    }


def _content(view: TrainingView, path: str) -> str:
    return provenance.digest_of(resolve_inside(view.folder, path))


def _wanted(stages: Sequence[str] | None) -> set[str]:
    if stages is None:
        return set(STAGES)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise StudyError(f"There is no stage {unknown[0]!r}; stages are {', '.join(STAGES)}.")
    wanted: set[str] = set()
    for stage in stages:
        wanted |= {stage, *_UPSTREAM.get(stage, ())}
    if wanted & {"adaptation", "registration"}:
        wanted |= {"augmentation", "segmentation"}
    return wanted


def _check(study: Study) -> None:
    study.require_grid()
    for modality in (study.source, study.target):
        if not study.cases_of(modality, "train"):
            raise StudyError(
                f"{study.folder}: no training image of {modality!r}. Add some with `segmmreg add`, or move "
                "subjects from test to training."
            )
