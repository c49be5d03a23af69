"""Pictures of what a stage of training made, for who waits for it: means, samples, predictions, a pair.

They lie in `models/<stage>/pictures/` as PNG files, listed in `pictures.json` with a caption each. Only
images for training are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from SegGuidedMMRegLib.documents import parse_json
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.fields import field_from_study
from SegGuidedMMRegLib.files import atomic_path, write_text_atomically
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.registrar import Registrar
from SegGuidedMMRegLib.report import pictures
from SegGuidedMMRegLib.report.alignment_pictures import draw_means
from SegGuidedMMRegLib.report.figures import read_samples
from SegGuidedMMRegLib.report.pictures import Outline
from SegGuidedMMRegLib.samples import Sample
from SegGuidedMMRegLib.segmenter import Segmenter
from SegGuidedMMRegLib.study import Case, Study
from SegGuidedMMRegLib.training_status import PICTURES, PICTURES_INDEX, pictures_made_from

_CASES = 3
_SAMPLES = 3

Drawn = tuple[Figure, str]
"""A picture and its caption."""


def draw_stage(study: Study, stage: str, made_from: str, reporter: Reporter) -> None:
    """Draw the pictures of a stage that is done, if they are not there yet.

    Args:
        study: trained as far as this stage.
        stage: its name.
        made_from: digest of what it made; other pictures are drawn when that has changed.
        reporter: hears why there are no pictures, if they cannot be drawn.
    """
    folder = study.stage_folder(stage)
    if pictures_made_from(folder) == made_from:
        return
    listed = []
    try:
        for number, (figure, caption) in enumerate(_DRAW[stage](study), start=1):
            name = f"{number}.png"
            with atomic_path(folder / PICTURES / name) as path:
                path.write_bytes(pictures.encode_png(figure))
            listed.append({"file": name, "caption": caption})
    except ValueError as error:
        reporter.log(f"{stage}: not all of its pictures could be drawn: {error}")
    record = {"made_from": made_from, "pictures": listed}
    write_text_atomically(folder / PICTURES / PICTURES_INDEX, json.dumps(record, indent=1) + "\n")


# -- the stages -----------------------------------------------------------------------------------------
def _augmentation(study: Study) -> Iterator[Drawn]:
    """Samples with the grid that was warped to make them."""
    grid = study.require_grid()
    for image, labels, displacement, caption in _displaced_samples(study):
        view = pictures.fullest_view(grid, labels > 0)
        field = field_from_study(displacement, grid)
        yield pictures.warped_grid(field, view, image, labels, study.structures), caption


def _segmentation(study: Study) -> Iterator[Drawn]:
    """Predictions of the source network."""
    view = study.training_view()
    unseen = [case for case in view.source_cases if case.label is None]
    cases = [*view.validation_labelled_cases, *unseen, *view.labelled_cases]
    yield from _predictions(study, cases, Segmenter(study, adapted=False))


def _adaptation(study: Study) -> Iterator[Drawn]:
    """Images that were learned from, and predictions of the adapted network."""
    grid = study.require_grid()
    samples = read_samples(study.stage_folder("adaptation"), study, _SAMPLES)
    changes = {"cyclegan": f"translated to {study.target}"}
    how = changes.get(study.config.adaptation.method, "in another contrast")
    for image, labels in samples:
        view = pictures.fullest_view(grid, labels > 0)
        caption = f"{study.source}, {how}"
        yield pictures.overlay(image, view, [Outline(labels)], study.structures), caption
    yield from _predictions(study, study.training_view().target_cases, Segmenter(study))


def _registration(study: Study) -> Iterator[Drawn]:
    """One pair, of one subject where there is such a pair."""
    training = study.training_view()
    subjects = {case.subject: case for case in reversed(training.target_cases)}
    same = [case for case in training.source_cases if case.subject in subjects]
    moving = (*same, *training.source_cases)[0]
    fixed = subjects.get(moving.subject, training.target_cases[0])
    segmenter, sides = Segmenter(study), [Sample.of_case(study, case) for case in (moving, fixed)]
    maps = [segmenter.probabilities(side) for side in sides]
    found = Registrar(study).register(sides[0], sides[1], maps[0], maps[1])
    labels = [segmenter.labels(side, each).array for side, each in zip(sides, maps, strict=True)]
    images = [side.image for side in sides]
    for case, image, own in zip((moving, fixed), images, labels, strict=True):
        yield _outlined(study, image, own), f"{case.key}, predicted"
    grid, structures = images[1].grid, study.structures
    view = pictures.fullest_view(grid, labels[1] > 0)
    warped = found.forward.warp_image(images[0], grid).array
    moved = found.forward.warp_labels(Image(labels[0], images[0].grid), grid).array
    outlines = [Outline(labels[1], dashed=True), Outline(moved)]
    problems = f"; {'; '.join(found.problems)}" if found.problems else ""
    caption = f"{moving.key} registered to {fixed.key} (dashed){problems}"
    yield pictures.overlay(warped, view, outlines, structures), caption
    if found.forward.field.grid.is_close(grid):
        yield pictures.warped_grid(found.forward.field, view, warped, moved, structures), "its warped grid"


_DRAW: dict[str, Callable[[Study], Iterator[Drawn]]] = {
    "prealign": draw_means,
    "augmentation": _augmentation,
    "segmentation": _segmentation,
    "adaptation": _adaptation,
    "registration": _registration,
}


# -- helpers ----------------------------------------------------------------------------------------------
def _predictions(study: Study, cases: Sequence[Case], segmenter: Segmenter) -> Iterator[Drawn]:
    for case in cases[:_CASES]:
        sample = Sample.of_case(study, case)
        labels = segmenter.labels(sample, segmenter.probabilities(sample)).array
        yield _outlined(study, sample.image, labels), f"{case.key}, predicted"


def _outlined(study: Study, image: Image, labels: NDArray[Any]) -> Figure:
    view = pictures.fullest_view(image.grid, labels > 0)
    return pictures.overlay(image.array, view, [Outline(labels)], study.structures)


def _displaced_samples(
    study: Study,
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], str]]:
    """Image, label map (class values), displacement in voxels, caption of the samples that have all that.

    Raises:
        ValueError: if the file is damaged.
    """
    path = study.stage_folder("augmentation") / "samples.safetensors"
    values = np.array([0, *(s.value for s in study.structures)])
    try:
        with safe_open(path, framework="np") as file:
            if "displacements" not in file.keys():  # noqa: SIM118  it is no dict
                return
            about = parse_json(file.metadata()["about"], str(path))
            images, labels = file.get_slice("images"), file.get_slice("labels")
            maps = file.get_slice("displacements")
            for n, row in enumerate(file.get_tensor("displaced_rows").tolist()):
                moving, fixed = about["moving"][row], about["fixed"][row]
                caption = f"{moving} in the shape of {fixed}" if fixed else f"{moving}, deformed"
                yield images[row][0], values[labels[row]], maps[n].astype(np.float32), caption
    except (OSError, SafetensorError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: no readable samples ({error}).") from None
