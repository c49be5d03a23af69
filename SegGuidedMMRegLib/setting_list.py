"""Every setting of a study as a program shows it: value, value of the preset, kind, limits, explanation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin

from SegGuidedMMRegLib.config import Config, fitted_to_dimension, preset

Kind = Literal["flag", "whole", "number", "choice", "text"]


@dataclass(frozen=True)
class Setting:
    """A setting of a study.

    Attributes:
        name: as in `segmentation.steps=500`.
        kind: yes or no, whole number, number, one of `choices`, or a text that is read as YAML.
        value: as it is.
        preset_value: what the study's preset says.
        help: what it does; `segmmreg info --settings` prints the same.
        choices: the values of a choice.
        minimum, maximum: the smallest and largest number that is allowed; None where there is no limit.
        above, below: numbers that it must be larger or smaller than.
    """

    name: str
    kind: Kind
    value: Any
    preset_value: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def record(self) -> dict[str, Any]:
        """As plain values, for programs."""
        return asdict(self)


def settings_of(config: Config, dimension: int) -> list[Setting]:
    """All settings of a study of this dimension, section by section."""
    usual = fitted_to_dimension(preset(config.preset), dimension)
    return [
        _setting(f"{section}.{name}", field, getattr(values, name), getattr(getattr(usual, section), name))
        for section, values in _sections(config)
        for name, field in type(values).model_fields.items()
    ]


def _sections(config: Config) -> Iterable[tuple[str, Any]]:
    return ((name, getattr(config, name)) for name in type(config).model_fields if name != "preset")


def _setting(name: str, field: Any, value: Any, usual: Any) -> Setting:
    kind = _kind(field.annotation)
    limits = {key: _limit(field.metadata, key) for key in ("ge", "le", "gt", "lt")}
    return Setting(
        name,
        kind,
        _plain(value, kind),
        _plain(usual, kind),
        field.description or "",
        get_args(field.annotation) if kind == "choice" else (),
        limits["ge"],
        limits["le"],
        limits["gt"],
        limits["lt"],
    )


def _kind(annotation: Any) -> Kind:
    if get_origin(annotation) is Literal:
        return "choice"
    plain: dict[Any, Kind] = {bool: "flag", int: "whole", float: "number"}
    return plain.get(annotation, "text")


def _plain(value: Any, kind: Kind) -> Any:
    """A text as it is written in YAML."""
    if kind != "text":
        return value
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _limit(metadata: Iterable[Any], key: str) -> float | None:
    return next((getattr(each, key) for each in metadata if hasattr(each, key)), None)
