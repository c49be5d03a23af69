"""How the pages are made of their templates: what all of them know."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from SegGuidedMMRegLib.report import pictures
from SegGuidedMMRegLib.report.figures import colour_of


def page_template(name: str) -> Template:
    """One of `templates/`; everything that is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("SegGuidedMMRegLib"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, percent=_percent)
    environment.globals.update(
        colour_of=colour_of,
        jacobian_colours=pictures.jacobian_colours(),
        jacobian_factor=2**pictures.JACOBIAN_LIMIT,
    )
    return environment.get_template(name)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"
