"""A small picture of each case, upright as in 3D Slicer, kept in the study until its image changes.

They lie in `models/cache/thumbnails/`, and say in their header what they were made from. Whoever deletes them
gets new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegLib.cases import Case
from SegGuidedMMRegLib.digests import digest_of
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import WriteError, atomic_path
from SegGuidedMMRegLib.images import Image, read_labels
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.study_file import require_inside, resolve_inside

if TYPE_CHECKING:
    from SegGuidedMMRegLib.report.pictures import View

SIDE = 64
"""Pixels of the longer side."""
STAGE = "thumbnails"
_VERSION = 1
_KEY = "SegGuidedMMReg"
_HEAD_BYTES = 512
_OPACITY = 0.45


def thumbnail_path(study: Study, case: Case) -> Path:
    """Where the picture of a case lies, or will."""
    place = study.folder / "models" / "cache" / "thumbnails" / case.modality / f"{case.name}.png"
    return require_inside(study.folder, place)


def fresh_thumbnail(study: Study, case: Case) -> Path | None:
    """The picture of a case, if it is there and shows what the case's files hold now."""
    path = thumbnail_path(study, case)
    with suppress(OSError), path.open("rb") as file:
        return path if _mark(study, case).encode() in file.read(_HEAD_BYTES) else None
    return None


def make_thumbnails(study: Study, reporter: Reporter) -> list[str]:
    """Make those that are missing or out of date, and tell of each when it is there.

    Returns:
        why some could not be made, a sentence each.
    """
    wanted = [case for case in study.cases if fresh_thumbnail(study, case) is None]
    problems: list[str] = []
    for case in reporter.each(STAGE, wanted):
        try:
            path = _make(study, case)
        except WriteError as error:
            return [*problems, str(error)]
        except (OSError, ValueError) as error:
            problems.append(f"{case.key}: {error}")
        else:
            reporter.result(STAGE, case=case.key, thumbnail=str(path))
    return problems


def _make(study: Study, case: Case) -> Path:
    from PIL import Image as Picture  # comes with matplotlib
    from PIL.PngImagePlugin import PngInfo

    image, mark = study.read_image(case), _mark(study, case)
    labels = _labels(study, case, image)
    view = _view(image, labels)
    size = _size(view, image)
    grey = Picture.fromarray(np.rint(255 * _windowed(image.array, view)).astype(np.uint8)).resize(size)
    pixels = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    if labels is not None:
        shown = np.asarray(Picture.fromarray(view.cut(labels)).resize(size, Picture.Resampling.NEAREST))
        pixels = _painted(pixels, shown, [s.color for s in study.structures])
    info = PngInfo()
    info.add_text(_KEY, mark)
    with atomic_path(thumbnail_path(study, case)) as temporary:
        Picture.fromarray(pixels).save(temporary, format="png", pnginfo=info)
    return thumbnail_path(study, case)


def _mark(study: Study, case: Case) -> str:
    """What a picture is made from: changes with the files of the case, and with the colours over it."""
    files = [case.image] if case.label is None else [case.image, case.label]
    states = [(f, s.st_size, s.st_mtime_ns) for f in files if (s := _state(study.folder, f)) is not None]
    colours = [(s.value, s.color) for s in study.structures] if case.label else []
    return digest_of(_VERSION, states, colours)


def _state(folder: Path, relative: str) -> Any:
    try:
        return resolve_inside(folder, relative).stat()
    except OSError:
        return None


def _labels(study: Study, case: Case, image: Image) -> NDArray[np.uint8] | None:
    """Class indices on the grid of the image; None without labels, or with some that do not fit."""
    if case.label is None:
        return None
    values = read_labels(resolve_inside(study.folder, case.label)).array
    if values.shape != image.array.shape:
        return None
    found = np.zeros(values.shape, dtype=np.uint8)
    for index, structure in enumerate(study.structures[:255], 1):
        found[values == structure.value] = index
    return found


def _view(image: Image, labels: NDArray[np.uint8] | None) -> View:
    """In 3D the plane of finest pixels; the slice with most of the structures, else the middle one."""
    from SegGuidedMMRegLib.report.pictures import views

    found = views(image.grid, None if labels is None else labels > 0)
    spacing = image.grid.axis_spacing
    return max(found, key=lambda v: 0.0 if v.through is None else round(spacing[v.through], 3))


def _windowed(array: NDArray[Any], view: View) -> NDArray[np.float64]:
    """The pixels between the 1st and the 99th percentile of the picture, as 0 to 1."""
    pixels = np.nan_to_num(view.cut(array).astype(float))
    low, high = np.percentile(pixels, [1, 99])
    scaled: NDArray[np.float64] = np.clip((pixels - low) / max(high - low, 1e-12), 0, 1)
    return scaled


def _size(view: View, image: Image) -> tuple[int, int]:
    """Width and height in pixels, as long and wide as the body is in mm."""
    height, width = (float(n) for n in view.cut(image.array).shape)
    height *= view.aspect
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _painted(
    pixels: NDArray[np.uint8], classes: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    table = np.array([(0, 0, 0), *colours[:255]], dtype=float)
    share = np.where(classes > 0, _OPACITY, 0.0)[..., None]
    return np.rint((1 - share) * pixels + share * table[classes]).astype(np.uint8)
