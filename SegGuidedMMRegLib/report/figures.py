"""The pictures of a study's report: which cases and pairs are shown, and how each is drawn."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from SegGuidedMMRegLib.evaluation import group_of, predictions_of
from SegGuidedMMRegLib.fields import SpatialTransform, fold_mask
from SegGuidedMMRegLib.images import Image, read_image, read_labels
from SegGuidedMMRegLib.pair_report import on_grid
from SegGuidedMMRegLib.pair_report_file import Report, against_of
from SegGuidedMMRegLib.report import pictures
from SegGuidedMMRegLib.report.pictures import Outline
from SegGuidedMMRegLib.sampling import value_outside
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case, Structure, Study
from SegGuidedMMRegLib.study_file import require_inside
from SegGuidedMMRegLib.training_status import stage_pictures
from SegGuidedMMRegLib.transform_files import read_transform

T = TypeVar("T")
_MOST_BYTES = 4_000_000
"""Of a picture on the page that was drawn earlier."""
SHOWN_SAMPLES = 6


@dataclass(frozen=True)
class Picture:
    """One picture on the page: bytes as a data URI, caption, words for those who cannot see it, a number."""

    source: str
    caption: str
    alternative: str
    figure: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures that belong together, side by side, under a title."""

    title: str
    note: str
    pictures: list[Picture]


def worst_median_best(items: Sequence[T], score: Callable[[T], float | None], each: int) -> list[T]:
    """The `each` worst, middle and best items by `score` (`None` is worst), in that order, none twice."""
    ordered = sorted(items, key=lambda item: -1.0 if (s := score(item)) is None else s)
    if len(ordered) <= 3 * each:
        return ordered
    middle = (len(ordered) - each) // 2
    return [*ordered[:each], *ordered[middle : middle + each], *ordered[-each:]]


def picture(figure: Figure, caption: str, alternative: str, number: str = "") -> Picture:
    """A figure as a picture of the page."""
    encoded = base64.b64encode(pictures.encode(figure)).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{encoded}", caption, alternative, number)


# -- predictions --------------------------------------------------------------------------------------------
def prediction_strip(study: Study, case: Case, dice: dict[str, float | None]) -> Strip:
    """A case with its predictions (solid) and, where there is one, its truth (dashed).

    Args:
        study: of the case.
        case: with at least one prediction.
        dice: mean Dice by state of prediction.
    """
    image = study.read_image(case)
    truth = None if case.label is None else on_grid(study.read_evaluation_labels(case), image.grid).array
    shown = []
    for state, path in predictions_of(study, case).items():
        predicted = on_grid(read_labels(path), image.grid).array
        outlines = (
            [Outline(predicted)] if truth is None else [Outline(truth, dashed=True), Outline(predicted)]
        )
        view = pictures.fullest_view(image.grid, (predicted if truth is None else truth) > 0)
        figure = pictures.overlay(image.array, view, outlines, study.structures)
        overlap = dice.get(state)
        number = "" if overlap is None else f"Dice {overlap:.3f}"
        shown.append(picture(figure, state, f"{case.key} {view.name} with outlines, {state}", number))
    return Strip(case.name, group_of(case), shown)


# -- training samples ---------------------------------------------------------------------------------------
def drawn_strip(study: Study, stage: str, title: str, note: str) -> Strip | None:
    """The pictures that were drawn when a stage was done; `None` if there are none that can be read."""
    shown = []
    for entry in stage_pictures(study.stage_folder(stage)):
        try:
            path = require_inside(study.folder, Path(entry["path"]))
            if path.stat().st_size > _MOST_BYTES:
                continue
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        except (OSError, ValueError):
            continue
        caption = entry["caption"]
        shown.append(Picture(f"data:image/png;base64,{encoded}", caption, f"{title}: {caption}"))
    return Strip(title, note, shown) if shown else None


def sample_strip(study: Study, stage: str, title: str, note: str) -> Strip | None:
    """Some of the images that a stage made to learn from (`samples.safetensors`); `None` if it kept none."""
    folder = study.stage_folder(stage)
    if study.grid is None or not (folder / "samples.safetensors").is_file():
        return None
    shown = []
    for n, (image, labels) in enumerate(read_samples(folder, study, SHOWN_SAMPLES), start=1):
        view = pictures.fullest_view(study.grid, labels > 0)
        figure = pictures.overlay(image, view, [Outline(labels)], study.structures)
        shown.append(picture(figure, "", f"{title}, number {n}"))
    return Strip(title, note, shown) if shown else None


def read_samples(folder: Path, study: Study, most: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Images and label maps (class values) spread over the samples of a stage; none if they are damaged."""
    path = folder / "samples.safetensors"
    values = np.array([0, *(s.value for s in study.structures)])
    try:
        with safe_open(path, framework="np") as file:
            images, labels = file.get_slice("images"), file.get_slice("labels")
            count = images.get_shape()[0]
            chosen = sorted({round(n) for n in np.linspace(0, count - 1, most)} if count else [])
            return [(images[n][0], values[labels[n]]) for n in chosen]
    except (OSError, SafetensorError, IndexError):
        return []


# -- pairs --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Side:
    image: Image
    labels: NDArray[Any] | None
    is_truth: bool

    def outlines(self) -> list[Outline]:
        return [] if self.labels is None else [Outline(self.labels, dashed=self.is_truth)]


@dataclass(frozen=True)
class PairEntry:
    """A registered pair on the page: its report, its pictures, or why there are none."""

    report: Report
    against: str
    strips: list[Strip]
    missing: str


def pair_entry(study: Study, report: Report, folder: Path, home: Path) -> PairEntry:
    """A pair with its pictures (arguments as of `pair_strips`)."""
    try:
        return PairEntry(report, against_of(report), pair_strips(study, report, folder, home), "")
    except (ValueError, OSError) as error:
        return PairEntry(report, against_of(report), [], f"No pictures: {error}")


def pair_strips(study: Study, report: Report, folder: Path, home: Path) -> list[Strip]:
    """A registered pair, a strip a view: moving, fixed, warped, checkerboard, warped grid, Jacobian map.

    Of images that are no cases of the study, only what lies in the folder: warped, warped grid, Jacobian map.
    Labels that were given with the pair are drawn only as they were written, warped.

    Args:
        study: of the two images.
        report: of the pair.
        folder: of the pair.
        home: folder that this must lie in, also where links are followed.

    Raises:
        ValueError: if an image or the transform cannot be read.
    """
    if not all(_is_case(study, report, side) for side in ("moving", "fixed")):
        return _strips_of_the_folder(study, report, folder, home)
    labels = report["labels"] or {"moving": "", "fixed": ""}
    moving = _side(study, report["moving"], report["moving_modality"], labels["moving"])
    fixed = _side(study, report["fixed"], report["fixed_modality"], labels["fixed"])
    forward = read_transform(require_inside(home, folder / "forward.h5"))
    warped = forward.warp_image(moving.image, fixed.image.grid, outside=value_outside(moving.image))
    views = pictures.views(fixed.image.grid, _mask(fixed.labels))
    moving_views = pictures.views(moving.image.grid, _mask(moving.labels))
    if labels["moving"] == "given":
        warped_labels = _written_labels(folder, home, fixed.image.grid)
    else:
        warped_labels = _warped_labels(moving, forward, fixed.image.grid)
    on_fixed = [*fixed.outlines(), *([] if warped_labels is None else [Outline(warped_labels)])]
    folds = fold_mask(forward.field)
    strips = []
    for view, moving_view in zip(views, moving_views, strict=True):
        drawn = [
            (
                pictures.overlay(moving.image.array, moving_view, moving.outlines(), study.structures),
                "moving",
            ),
            (pictures.overlay(fixed.image.array, view, fixed.outlines(), study.structures), "fixed"),
            (pictures.overlay(warped.array, view, on_fixed, study.structures), "moving, warped"),
            (pictures.checkerboard(warped.array, fixed.image.array, view), "warped and fixed in turn"),
            *_field_pictures(forward, folds, fixed, warped, view.name),
        ]
        strips.append(_strip(report, view.name, drawn))
    return strips


def _strips_of_the_folder(study: Study, report: Report, folder: Path, home: Path) -> list[Strip]:
    forward = read_transform(require_inside(home, folder / "forward.h5"))
    warped = read_image(require_inside(home, folder / "warped_image.nrrd"))
    shown = _Side(warped, _written_labels(folder, home, warped.grid), False)
    folds = fold_mask(forward.field)
    strips = []
    for view in pictures.views(warped.grid, _mask(shown.labels)):
        drawn = [
            (pictures.overlay(warped.array, view, shown.outlines(), study.structures), "moving, warped"),
            *_field_pictures(forward, folds, shown, warped, view.name),
        ]
        strips.append(_strip(report, view.name, drawn))
    return strips


def _strip(report: Report, view_name: str, drawn: Sequence[tuple[Figure, str]]) -> Strip:
    pair = f"{report['moving']} to {report['fixed']} {view_name}"
    return Strip(view_name, "", [picture(f, name, f"{pair}: {name}") for f, name in drawn])


def _is_case(study: Study, report: Report, side: str) -> bool:
    name, modality = report[side], report[f"{side}_modality"]
    return any(c.name == name and modality in ("", c.modality) for c in study.cases)


def _field_pictures(
    forward: SpatialTransform, folds: NDArray[np.bool_], fixed: _Side, warped: Image, view_name: str
) -> list[tuple[Figure, str]]:
    """The warped grid and the Jacobian map, on the grid of the field (it may be coarser than the image's)."""
    field = forward.field
    labels = (
        None if fixed.labels is None else on_grid(Image(fixed.labels, fixed.image.grid), field.grid).array
    )
    background = warped.array if warped.grid.is_close(field.grid) else None
    view = next(v for v in pictures.views(field.grid, _mask(labels)) if v.name == view_name)
    return [
        (pictures.warped_grid(field, view, background), "grid, warped"),
        (pictures.jacobian_map(field, folds, view, labels), "change of size"),
    ]


def _side(study: Study, name: str, modality: str, kind: str) -> _Side:
    case = study.case(name, modality or None)
    image = study.read_image(case)
    if kind == "truth" and case.label is not None:
        return _Side(image, on_grid(study.read_evaluation_labels(case), image.grid).array, True)
    path = study.prediction_path(case)
    if kind not in ("", "given") and path.is_file():
        return _Side(image, on_grid(read_labels(path), image.grid).array, False)
    return _Side(image, None, False)


def _warped_labels(moving: _Side, forward: SpatialTransform, grid: Grid) -> NDArray[Any] | None:
    if moving.labels is None:
        return None
    return forward.warp_labels(Image(moving.labels, moving.image.grid), grid).array


def _written_labels(folder: Path, home: Path, grid: Grid) -> NDArray[Any] | None:
    """The moving labels as they were written with the pair; `None` if they were left out."""
    path = folder / "warped_labels.seg.nrrd"
    return on_grid(read_labels(require_inside(home, path)), grid).array if path.is_file() else None


def _mask(labels: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    return None if labels is None else labels > 0


def colour_of(structure: Structure) -> str:
    """The colour of a structure for a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*structure.color)
