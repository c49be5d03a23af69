"""The stages of the method in order; runs what is missing or out of date, goes on with what was cut off.

Pre-align → augment by registration → segment the source → adapt to the target → register by segmentation
(paper, 3.2 to 3.4). Each stage notes what it was made from, so a changed setting, image or label reruns what
depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from SegGuidedMMRegLib import processes, provenance
from SegGuidedMMRegLib.config import Config, TrainingConfig, save_config
from SegGuidedMMRegLib.digests import FileDigests
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.freshness import MADE, STAGES, TRAINED_STAGES, Freshness, wanted_stages
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.memory import StudySize, advice, memory_need
from SegGuidedMMRegLib.origin import origin
from SegGuidedMMRegLib.out_of_memory import memory_remedy
from SegGuidedMMRegLib.study import Study, StudyError
from SegGuidedMMRegLib.training import prealign
from SegGuidedMMRegLib.training.adaptation import adapt
from SegGuidedMMRegLib.training.augmentation import AugmentedSamples, augment, load_samples
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.devices import (
    by_first,
    device_of,
    first_goes_ahead,
    make_fabric,
    wanted_devices,
)
from SegGuidedMMRegLib.training.registration import train_registration
from SegGuidedMMRegLib.training.segmentation import train_source

__all__ = ["STAGES", "TRAINED_STAGES", "train"]


@dataclass(frozen=True)
class _Context:
    """What a stage works with."""

    study: Study
    reporter: Reporter
    digests: FileDigests

    @cached_property
    def tensors(self) -> StudyTensors:
        """The images, read when a stage needs them."""
        view = self.study.training_view()
        with first_goes_ahead():
            return StudyTensors.load(view, reporter=self.reporter, digests=self.digests)

    @cached_property
    def size(self) -> StudySize:
        """What decides how much memory the stages need."""
        return StudySize.of(self.study)

    def tell_need(self, stage: str) -> None:
        """Say how much memory a stage needs, and what to lower where there is less."""
        if not processes.is_first():
            return
        need = memory_need(stage, self.config, self.size, device_of(self.config.training).type)
        message = str(need)
        if need.is_too_much:
            remedy = advice(need, self.config, self.size, memory_remedies(self.config)[stage])
            message = f"WARNING: {message}, and will probably run out. {remedy}"
        self.reporter.memory(stage, message, need.bytes, need.free, need.device)

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
    wanted = wanted_stages(stages)
    _check(study)
    digests = FileDigests.of_study(study.folder)
    _meet(study.config.training, reporter)
    with working_on(study.folder, "train") if processes.is_first() else nullcontext():
        _train(study, wanted, reporter, digests)
        by_first(digests.save)


def _meet(config: TrainingConfig, reporter: Reporter) -> None:
    """Let the processes of one job find each other, or say that there is only one."""
    if processes.count() > 1:
        device = make_fabric(config).device
        reporter.log(f"{processes.count()} processes train together, this one on {device}.")
    elif (wanted := wanted_devices(config)) > 1:
        reporter.log(
            f"training.devices asks for {wanted} devices, this process uses one; `segmmreg train` and "
            "torchrun start a process for each."
        )


def _train(study: Study, wanted: set[str], reporter: Reporter, digests: FileDigests) -> None:
    context = _Context(study, reporter, digests)
    with memory_remedy("prealign", memory_remedies(study.config)["prealign"]):
        context.tell_need("prealign")
        by_first(lambda: prealign.run(study, study.config.prealign, reporter, digests))
    freshness = Freshness(study, digests)
    by_first(lambda: _draw_alignment(context, freshness))
    by_first(digests.save)
    if wanted == {"prealign"}:
        return
    for stage in TRAINED_STAGES:
        if stage in wanted:
            _run_if_needed(stage, context, freshness)


def _run_if_needed(stage: str, context: _Context, freshness: Freshness) -> None:
    folder = context.study.stage_folder(stage)
    made_from = by_first(lambda: freshness.made_from(stage))
    why = by_first(lambda: provenance.changed_since(folder, made_from, freshness.digests))
    if why is None:
        by_hand = by_first(lambda: provenance.replaced(folder, freshness.digests))
        context.reporter.log(
            f"{stage}: up to date" + (f" ({', '.join(by_hand)} replaced by hand)" if by_hand else "")
        )
        by_first(lambda: _draw(stage, context, freshness))
        return
    context.reporter.log(f"{stage}: runs ({why})")
    context.tensors  # noqa: B018  what cannot be read is told before an earlier result is cleared away
    context.tell_need(stage)
    start = time.monotonic()
    by_first(lambda: _begin(folder, made_from, context))
    with memory_remedy(stage, memory_remedies(context.config)[stage]):
        _RUN[stage](context)
    by_first(lambda: _complete(stage, made_from, start, context, freshness))
    by_first(lambda: _draw(stage, context, freshness))


def _draw(stage: str, context: _Context, freshness: Freshness) -> None:
    """Pictures of what the stage made, and tell that it is done."""
    from SegGuidedMMRegLib.report.stage_pictures import draw_stage
    from SegGuidedMMRegLib.training_status import stage_pictures

    draw_stage(context.study, stage, freshness.made(stage), context.reporter)
    context.reporter.result(stage, pictures=stage_pictures(context.study.stage_folder(stage)))


def _draw_alignment(context: _Context, freshness: Freshness) -> None:
    """Pictures of pre-alignment, if images lie otherwise than they show."""
    from SegGuidedMMRegLib.training_status import pictures_made_from

    if pictures_made_from(context.study.stage_folder("prealign")) != freshness.made("prealign"):
        _draw("prealign", context, freshness)


def _begin(folder: Path, made_from: dict[str, str], context: _Context) -> None:
    provenance.begin(folder, made_from)
    save_config(context.config, folder / "config.yaml")


def _complete(
    stage: str, made_from: dict[str, str], start: float, context: _Context, freshness: Freshness
) -> None:
    folder = context.study.stage_folder(stage)
    made = {name: freshness.digests(folder / name) for name in MADE[stage]}
    provenance.complete(
        folder,
        made_from,
        {name: digest for name, digest in made.items() if digest},
        seconds=round(time.monotonic() - start, 1),
        **origin(context.config, str(device_of(context.config.training))),
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


# -- what must be there ----------------------------------------------------------------------------------


def _check(study: Study) -> None:
    study.require_grid()
    for modality in (study.source, study.target):
        if not study.cases_of(modality, "train"):
            raise StudyError(
                f"{study.folder}: no training image of {modality!r}. Add some with `segmmreg add`, or move "
                "subjects from test to training."
            )
