"""`segmmreg info`, `status` and `set`: this machine, a study, how it stands, its settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.study import Case, Study


@dataclass(frozen=True)
class Info(Command):
    """Say what this machine has and what is missing; with a study, what it holds."""

    study: Annotated[Positional[Path | None], arg(metavar="STUDY")] = None
    """Folder of a study."""
    settings: bool = False
    """Print every setting of every stage with its value in each preset, as a Markdown table; with a study,
    its own settings and what its preset says."""

    thumbnails: bool = False
    """Make small pictures of the study's images, where they are missing or the images have changed."""

    def run(self, reporter: Reporter) -> Done:
        if self.settings and self.study is not None:
            return _study_settings(reporter, self.study)
        if self.settings:
            return _told(reporter, _settings_table())
        if self.study is not None:
            return _study(reporter, self.study, thumbnails=self.thumbnails)
        return _machine(reporter)


@dataclass(frozen=True)
class ShowStatus(Command):
    """Say how a study stands: what is done, what is missing or out of date and why, and who works on it.

    Example: segmmreg status knees
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    training: bool = False
    """Also say what training needs on this machine, and where its pictures are; with --events its curves
    too."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.status import status_of
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        status = status_of(study)
        for line in status.lines():
            reporter.log(line)
        if not self.training:
            return Done({"study": self.study, **status.record()})
        from SegGuidedMMRegLib.training_status import training_lines, training_of

        training = training_of(study)
        for line in training_lines(training):
            reporter.log(line)
        return Done({"study": self.study, **status.record(), "training": training})


@dataclass(frozen=True)
class SetSettings(Command):
    """Change the settings of a study: its preset, single ones, or both.

    What was made with other settings is out of date then.

    Examples: segmmreg set knees segmentation.steps=500 training.device=cpu; segmmreg set knees --preset quick
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    settings: Annotated[Positional[tuple[str, ...]], arg(metavar="SETTINGS")] = ()
    """Single settings, such as segmentation.steps=500; `segmmreg info --settings` lists them."""
    preset: Literal["default", "quick", "paper"] | None = None
    """Take all other settings from a preset."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.config import fitted_to_dimension, override, preset
        from SegGuidedMMRegLib.locks import working_on
        from SegGuidedMMRegLib.study import Study

        Study.open(self.study)  # a folder that holds none is left alone
        with working_on(self.study, "train"):
            study = Study.open(self.study)
            base = study.config
            if self.preset is not None:
                base = fitted_to_dimension(preset(self.preset), study.dimension)
            study = replace(study, config=override(base, settings=self.settings, where=str(self.study)))
            study.save_settings()
        return _study_settings(reporter, self.study)


def _told(reporter: Reporter, lines: list[str]) -> Done:
    for line in lines:
        reporter.log(line)
    return Done()


def _machine(reporter: Reporter) -> Done:
    from SegGuidedMMRegLib.environment import facts, lines

    found = facts()
    for line in lines(found):
        reporter.log(line)
    missing = any(fact.remedy for fact in found)
    return Done({"facts": [asdict(fact) for fact in found]}, exit_code=1 if missing else 0)


def _study(reporter: Reporter, folder: Path, *, thumbnails: bool = False) -> Done:
    from SegGuidedMMRegLib.freshness import untrained_stages
    from SegGuidedMMRegLib.study import Study
    from SegGuidedMMRegLib.study_record import to_record
    from SegGuidedMMRegLib.thumbnails import make_thumbnails

    study = Study.open(folder)
    for problem in make_thumbnails(study, reporter) if thumbnails else ():
        reporter.log(f"no picture: {problem}")
    for line in _study_lines(study):
        reporter.log(line)
    cases = [{**asdict(case), **_files_of(study, case)} for case in study.cases]
    about = {"name": study.name, "dimension": study.dimension, "preset": study.config.preset}
    modalities = {"source": study.source, "target": study.target}
    parts = {name: to_record(study)[name] for name in ("structures", "grid")}
    found = {"study": folder, **about, **modalities, **parts, "cases": cases}
    return Done({**found, "untrained": untrained_stages(study)})


def _files_of(study: Study, case: Case) -> dict[str, object]:
    """What lies in the folder beside what `study.yaml` says; a draft is a segmentation without a use."""
    from SegGuidedMMRegLib.thumbnails import fresh_thumbnail

    return {
        "predicted": study.prediction_path(case).is_file(),
        "draft": case.label is None and study.label_path(case).is_file(),
        "thumbnail": fresh_thumbnail(study, case),
    }


def _study_lines(study: Study) -> list[str]:
    from SegGuidedMMRegLib.commands.bring import summary

    lines = [f"{study.name}: {study.dimension}D, preset {study.config.preset}", *summary(study)]
    for case in study.cases:
        parts = (
            case.role.value,
            f"subject {case.subject}",
            "mirrored" if case.mirrored else "",
            f"labels for {case.label_use}" if case.label_use else "",
            "landmarks" if case.landmarks else "",
        )
        lines.append(f"  {case.key}: {', '.join(p for p in parts if p)}")
    return lines


def _study_settings(reporter: Reporter, folder: Path) -> Done:
    from SegGuidedMMRegLib.config import PresetName
    from SegGuidedMMRegLib.setting_list import settings_of
    from SegGuidedMMRegLib.study import Study

    study = Study.open(folder)
    found = settings_of(study.config, study.dimension)
    reporter.log(f"preset: {study.config.preset}")
    for setting in found:
        changed = "" if setting.value == setting.preset_value else f" (preset: {setting.preset_value})"
        reporter.log(f"{setting.name}: {setting.value}{changed}")
    about = {"study": folder, "preset": study.config.preset, "presets": get_args(PresetName)}
    return Done({**about, "settings": [setting.record() for setting in found]})


def _settings_table() -> list[str]:
    from SegGuidedMMRegLib.config import Config, preset

    presets = {name: preset(name).model_dump() for name in ("paper", "default", "quick")}  # type: ignore[arg-type]
    lines = ["| setting | paper | default | quick | meaning |", "|---|---|---|---|---|"]
    for section, field in Config.model_fields.items():
        for name, setting in getattr(field.annotation, "model_fields", {}).items():
            values = " | ".join(_shown(values[section][name]) for values in presets.values())
            lines.append(f"| `{section}.{name}` | {values} | {setting.description or ''} |")
    return lines


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
