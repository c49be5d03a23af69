"""Pre-alignment: the stage that finds `study_to_case` of every image, and keeps it.

`affines.json` holds the maps, `alignments.json` how they were found, `reference_<modality>.nrrd` what an
image is aligned to (see `alignment.py`). They are made again only for an image, a flag, a grid or
settings that changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from SegGuidedMMRegLib.config import PrealignConfig
from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.images import Image, read_image, write_image
from SegGuidedMMRegLib.pace import Pace
from SegGuidedMMRegLib.space import FloatArray, Grid
from SegGuidedMMRegLib.study import Case, Role, Study
from SegGuidedMMRegLib.study_file import resolve_inside
from SegGuidedMMRegLib.training.affine_features import Picture, resample_picture
from SegGuidedMMRegLib.training.alignment import (
    REFERENCE_IMAGES,
    Alignment,
    Coarse,
    Subject,
    align_image,
    bring_across,
    coarse,
    make_reference,
    spread,
)

_STAGE = "prealign"
_VERSION = 1
_SAVE_SECONDS, _SAVE_SHARE = 5.0, 0.02
_OUTSIDE = -1.0


def pending(study: Study, digests: FileDigests) -> list[Case]:
    """The cases whose map has to be found, or found anew."""
    kept = _kept(study.stage_folder(_STAGE), _settings(study, study.config.prealign))
    if not study.affines_path.is_file():
        return list(study.cases)
    return [c for c in study.cases if kept.get(c.key, {}).get("digest") != _digest(study, c, digests)]


def run(study: Study, config: PrealignConfig, reporter: Reporter, digests: FileDigests | None = None) -> None:
    """Align what is not aligned yet, and keep the maps in the study.

    References are made once, from images of role train, and stay while the grid and the settings do: an image
    that is added later changes no map of another.

    Args:
        study: its images, flags and grid.
        config: what is searched.
        reporter: told of progress and of every image that only its header could place.
        digests: of the study's files.
    """
    known = digests or FileDigests.of_study(study.folder)
    folder = study.stage_folder(_STAGE)
    settings = _settings(study, config)
    kept = _kept(folder, settings)
    made_from = {case.key: _digest(study, case, known) for case in study.cases}
    current = {k: r for k, r in kept.items() if made_from.get(k) == r["digest"]}
    missing = [case for case in study.cases if case.key not in current]
    if not missing and study.affines_path.is_file():
        return
    reporter.started(_STAGE, len(missing))
    with _threads() as pool:
        references = _references(study, config, pool, reporter)
        _keep(study, folder, settings, current)
        pace = Pace(_SAVE_SECONDS, _SAVE_SHARE)

        def align(case: Case) -> Alignment:
            return align_image(
                _subject(study, case), references.get(case.modality), study.require_grid(), config
            )

        for done, (case, found) in enumerate(zip(missing, pool.map(align, missing), strict=True), start=1):
            current[case.key] = _record(found, made_from[case.key])
            if pace.is_due():
                with pace.saving():
                    _keep(study, folder, settings, current)
            reporter.progress(_STAGE, done, len(missing), score=found.score)
            if config.method == "affine" and found.level == "centre":
                reporter.log(f"{case.key}: placed by its header alone ({found.reason}).")
    _keep(study, folder, settings, current)
    levels = [r["level"] for r in current.values()]
    reporter.result(
        _STAGE, images=len(levels), **{level: levels.count(level) for level in sorted(set(levels))}
    )


def prealign_file(study: Study, image: Image, modality: str, *, mirrored: bool) -> FloatArray:
    """`study_to_case` (4x4, LPS mm) of an image that is not part of the study.

    Args:
        study: one whose pre-alignment has run.
        image: the image.
        modality: one of the study's two.
        mirrored: whether it shows the other side of the body.

    Raises:
        ValueError: if the study has no reference of this modality yet.
    """
    folder = study.stage_folder(_STAGE)
    reference = None
    if study.config.prealign.method != "none":
        path = _reference_path(folder, modality)
        if not path.is_file():
            raise ValueError(
                f"{path}: no reference for {modality!r} yet; run `segmmreg train {study.folder}` first."
            )
        reference = _read_reference(path)
    subject = Subject(image, modality, mirrored)
    return align_image(subject, reference, study.require_grid(), study.config.prealign).study_to_case


def _references(
    study: Study, config: PrealignConfig, pool: ThreadPoolExecutor, reporter: Reporter
) -> dict[str, Picture]:
    """References of both modalities in study space, read where they are kept, else made and kept."""
    if config.method == "none":
        return {}
    folder = study.stage_folder(_STAGE)
    fresh = _stored(folder).get("settings") == _settings(study, config)
    found: dict[str, Picture] = {}
    for modality in (study.source, study.target):
        path = _reference_path(folder, modality)
        if fresh and path.is_file():
            found[modality] = _read_reference(path)
            continue
        cases = study.cases_of(modality, Role.TRAIN) or study.cases_of(modality)
        if not cases:
            continue
        fresh = False  # a target reference hangs on that of the source
        chosen = spread(cases, REFERENCE_IMAGES)
        reporter.log(f"{modality}: making a reference from {len(chosen)} images.")
        grid = study.require_grid()

        def read(case: Case, grid: Grid = grid) -> Coarse:
            return coarse(_subject(study, case), grid, config)

        images = list(pool.map(read, chosen))
        picture = make_reference(images, grid, config, lambda f, items: list(pool.map(f, items)))
        if modality == study.target and study.source in found:
            across = bring_across(found[study.source], picture, config)
            reporter.log(
                f"{modality}: brought to {study.source} by {across.level}, score {across.score:.2f}."
            )
            picture = resample_picture(picture, across.matrix, picture.grid)
        found[modality] = picture
        _write_reference(picture, path)
    return found


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """A thread a core; nobody waits for them when something goes wrong, or somebody interrupts."""
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _subject(study: Study, case: Case) -> Subject:
    return Subject(study.read_image(case), case.modality, case.mirrored)


def _reference_path(folder: Path, modality: str) -> Path:
    return folder / f"reference_{modality}.nrrd"


def _write_reference(picture: Picture, path: Path) -> None:
    write_image(
        Image(np.where(picture.valid, picture.array, _OUTSIDE).astype(np.float32), picture.grid), path
    )


def _read_reference(path: Path) -> Picture:
    image = read_image(path)
    valid = image.array >= 0
    return Picture(np.where(valid, image.array, 0).astype(np.float32), valid, image.grid)


# -- what is kept -------------------------------------------------------------------------------------------
def _settings(study: Study, config: PrealignConfig) -> str:
    """Digest of all that the maps of all images depend on."""
    grid = study.require_grid()
    return digest_of(
        _VERSION, config.model_dump(mode="json"), grid.size, grid.spacing, study.source, study.target
    )


def _digest(study: Study, case: Case, digests: FileDigests) -> str:
    """Digest of all that the map of one image depends on."""
    return digest_of(digests(resolve_inside(study.folder, case.image)), case.mirrored, case.modality)


def _stored(folder: Path) -> dict[str, Any]:
    path = folder / "alignments.json"
    try:
        stored = read_json(path)
    except (ValueError, OSError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _kept(folder: Path, settings: str) -> dict[str, dict[str, Any]]:
    stored = _stored(folder)
    records = stored.get("alignments")
    if stored.get("settings") != settings or not isinstance(records, dict):
        return {}
    return {key: record for key, record in records.items() if _is_whole(record)}


def _is_whole(record: object) -> bool:
    """Whether a stored alignment is one of ours; a damaged one is made anew."""
    if not isinstance(record, dict) or not {"digest", "level", "score", "reason"} <= record.keys():
        return False
    try:
        matrix = np.asarray(record.get("study_to_case_lps"), dtype=float)
    except (ValueError, TypeError):
        return False
    return matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())


def _record(found: Alignment, digest: str) -> dict[str, Any]:
    return {
        "digest": digest,
        "level": found.level,
        "score": round(found.score, 4),
        "reason": found.reason,
        "study_to_case_lps": found.study_to_case.tolist(),
    }


def _keep(study: Study, folder: Path, settings: str, records: Mapping[str, dict[str, Any]]) -> None:
    ordered = {case.key: records[case.key] for case in study.cases if case.key in records}
    study.save_affines({key: np.asarray(r["study_to_case_lps"]) for key, r in ordered.items()})
    text = json.dumps({"settings": settings, "alignments": ordered}, indent=1)
    write_text_atomically(folder / "alignments.json", text)
