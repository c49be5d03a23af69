"""What every stage and result of a study would be made from now, to be compared with what it was made from.

A stage depends on its settings, on the inputs that it reads, on the files that earlier stages made (by
content, so a stage that was run again and made the same does not let others run) and on its method's version,
a number that grows when the code of the stage gives something else. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from SegGuidedMMRegLib import provenance
from SegGuidedMMRegLib.config import PAIR_SETTINGS
from SegGuidedMMRegLib.digests import FileDigests, digest_of
from SegGuidedMMRegLib.documents import parse_json
from SegGuidedMMRegLib.image_files import nrrd_key
from SegGuidedMMRegLib.study import Case, Role, Study, StudyError, TrainingView
from SegGuidedMMRegLib.study_file import resolve_inside

TRAINED_STAGES = ("augmentation", "segmentation", "adaptation", "registration")
STAGES = ("prealign", *TRAINED_STAGES)

METHOD_VERSIONS = {"augmentation": 1, "segmentation": 2, "adaptation": 5, "registration": 1, "prediction": 1}
"""Of the code of each stage; raise one when the same inputs give other results. `prealign` has its own."""

UPSTREAM: dict[str, tuple[str, ...]] = {
    "augmentation": (),
    "segmentation": ("augmentation",),
    "adaptation": ("augmentation", "segmentation"),
    "registration": ("segmentation", "adaptation"),
}
MADE: dict[str, tuple[str, ...]] = {
    "prealign": ("affines.json",),
    "augmentation": ("samples.safetensors",),
    "segmentation": ("weights.safetensors", "network.yaml"),
    "adaptation": ("weights.safetensors", "network.yaml"),
    "registration": ("weights.safetensors", "network.yaml"),
}
"""Files of a stage that others read."""

_INPUTS: dict[str, tuple[str, ...]] = {
    "augmentation": ("source images", "labels"),
    "segmentation": ("source images", "labels", "validation images"),
    "adaptation": ("source images", "labels", "target images"),
    "registration": ("source images", "labels", "target images"),
}

_HEADER_KEY = "SegGuidedMMReg"

State = Literal["up to date", "out of date", "missing", "cut off", "damaged", "waits", "running"]


@dataclass(frozen=True)
class Prediction:
    """A predicted segmentation, there or not.

    Attributes:
        case: of it.
        adapted: whether the target's own network makes it.
        path: of its file.
        made_from: digest of what it would be made from.
    """

    case: Case
    adapted: bool
    path: Path
    made_from: str

    def is_fresh(self) -> bool:
        """Whether the file is there, as it would be made now."""
        try:
            record = parse_json(nrrd_key(self.path, _HEADER_KEY) or "", str(self.path))
        except ValueError:
            return False
        return isinstance(record, dict) and record.get("made_from") == self.made_from

    def header(self, origin: Mapping[str, object]) -> dict[str, str]:
        """What the header of the file says of that: a JSON object, in one entry that other programs skip."""
        return {_HEADER_KEY: json.dumps({"made_from": self.made_from, **origin})}


@dataclass(frozen=True)
class Found:
    """How a stage or a kind of result stands.

    Attributes:
        name: of it.
        state: of it; `waits` is made anew when something before it has been.
        why: in words; "" where all is well.
        about: what its record says: finished, seconds, device, version.
    """

    name: str
    state: State
    why: str = ""
    about: dict[str, object] | None = None


class Freshness:
    """Digests of a study as it stands on disk now.

    Args:
        study: whose images, where they are needed, are pre-aligned.
        digests: of its files.
    """

    def __init__(self, study: Study, digests: FileDigests) -> None:
        self.study, self.digests = study, digests
        self._inputs: dict[str, str] | None = None

    def made_from(self, stage: str) -> dict[str, str]:
        """What a trained stage would be made from.

        Raises:
            StudyError: if an image is not pre-aligned.
        """
        study, inputs = self.study, self._read_inputs()
        apart = PAIR_SETTINGS if stage == "registration" else set()
        settings = getattr(study.config, stage).model_dump(mode="json", exclude=apart)
        return {
            "settings": digest_of(settings, study.config.training.seed),
            "method": str(METHOD_VERSIONS[stage]),
            **{name: inputs[name] for name in ("grid", "structures", *_INPUTS[stage])},
            **{f"result of {before}": self.made(before) for before in UPSTREAM[stage]},
        }

    def made(self, stage: str) -> str:
        """Digest of the files that a stage has made; they need not be the ones that it made itself."""
        folder = self.study.stage_folder(stage)
        return self.digests.of_all(folder / name for name in MADE[stage])

    def predictions(self) -> list[Prediction]:
        """The predicted segmentations that the study has when all cases are segmented.

        Raises:
            StudyError: if a case is not pre-aligned.
        """
        found = []
        for case in self.study.cases:
            compared = case.modality == self.study.target and case.role == Role.TEST
            for adapted in (True, False) if compared else (True,):
                path = self.study.prediction_path(case, adapted=adapted)
                found.append(Prediction(case, adapted, path, self._prediction(case, adapted)))
        return found

    def evaluation(self) -> dict[str, str]:
        """Digests of what the evaluation would be made from."""
        folder = self.study.folder
        labels = (c.label for c in self.study.cases if c.label is not None)
        predicted = (
            self.study.prediction_path(c, adapted=a) for c in self.study.cases for a in (True, False)
        )
        return {
            "cases": digest_of([(c.key, c.role, c.label_use) for c in self.study.cases]),
            "labels": self.digests.of_all(resolve_inside(folder, label) for label in labels),
            "segmentations": self.digests.of_all(predicted),
            "registrations": self.digests.of_all(sorted(folder.glob("registrations/*/report.json"))),
        }

    def page(self) -> str:
        """Digest of what the report page would be made from."""
        stages = (self.study.stage_folder(stage) / provenance.STAGE_FILE for stage in TRAINED_STAGES)
        return self.digests.of_all([self.study.folder / "evaluation.json", *stages])

    def _prediction(self, case: Case, adapted: bool) -> str:
        study = self.study
        stage = "adaptation" if adapted and case.modality == study.target else "segmentation"
        return digest_of(
            METHOD_VERSIONS["prediction"],
            self.made(stage),
            self._grid(),
            [(s.value, s.name, s.color) for s in study.structures],
            self._placed(case),
        )

    def stages(self) -> list[Found]:
        """How all trained stages stand, in their order."""
        found: dict[str, Found] = {}
        for stage in TRAINED_STAGES:
            found[stage] = self._stage(stage, [found[b] for b in UPSTREAM[stage]])
        return list(found.values())

    def _stage(self, stage: str, upstream: Sequence[Found]) -> Found:
        folder = self.study.stage_folder(stage)
        record = provenance.StageRecord.read(folder)
        about = dict(record.about) if record else None
        why = provenance.changed_since(folder, self.made_from(stage), self.digests)
        waiting = [f.name for f in upstream if f.state != "up to date"]
        if record is None:
            return Found(stage, "missing", f"after {', '.join(waiting)}" if waiting else "", about)
        if why is None and waiting:
            return Found(stage, "waits", f"{' and '.join(waiting)} may change", about)
        if why is None:
            by_hand = ", ".join(provenance.replaced(folder, self.digests))
            return Found(stage, "up to date", f"{by_hand} replaced by hand" if by_hand else "", about)
        word, _, reason = why.partition(": ")
        return Found(stage, _STATES[word], reason, about)

    def _read_inputs(self) -> dict[str, str]:
        """Digests of what training reads: grid and structures, images with their place, labels."""
        if self._inputs is None:
            view = self.study.training_view()
            validation = view.validation_labelled_cases
            self._inputs = {
                "grid": self._grid(),
                "structures": digest_of([(s.value, s.name) for s in view.structures]),
                "source images": digest_of([self._placed(c) for c in view.source_cases]),
                "labels": digest_of([(c.key, self._label(view, c)) for c in view.labelled_cases]),
                "target images": digest_of([self._placed(c) for c in view.target_cases]),
                "validation images": digest_of([(self._placed(c), self._label(view, c)) for c in validation]),
            }
        return self._inputs

    def _grid(self) -> str:
        grid = self.study.require_grid()
        return digest_of(grid.size, grid.spacing)

    def _placed(self, case: Case) -> tuple[str, object, str]:
        place = self.study.study_to_case(case).round(9).tolist()
        return case.key, place, self.digests(resolve_inside(self.study.folder, case.image))

    def _label(self, view: TrainingView, case: Case) -> str:
        return "" if case.label is None else self.digests(resolve_inside(view.folder, case.label))


_STATES: dict[str, State] = {
    "missing": "missing",
    "out of date": "out of date",
    "was cut off": "cut off",
    "damaged": "damaged",
}


def untrained_stages(study: Study) -> list[str]:
    """The stages that segmenting and registering need, and whose network is not there yet."""
    needed = ("segmentation", "adaptation", *(("registration",) if study.config.registration.steps else ()))
    return [s for s in needed if not all((study.stage_folder(s) / name).is_file() for name in MADE[s])]


def wanted_stages(stages: Sequence[str] | None) -> set[str]:
    """The named stages and whatever they need, or all.

    Raises:
        StudyError: for an unknown stage.
    """
    if stages is None:
        return set(STAGES)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise StudyError(f"There is no stage {unknown[0]!r}; stages are {', '.join(STAGES)}.")
    wanted: set[str] = set()
    for stage in stages:
        wanted |= {stage, *UPSTREAM.get(stage, ())}
    if wanted & {"adaptation", "registration"}:
        wanted |= {"augmentation", "segmentation"}
    return wanted
