"""A page of chosen pairs alone, to be handed on with their files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from SegGuidedMMRegLib import __version__
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.pair_report_file import Report
from SegGuidedMMRegLib.report.figures import pair_entry
from SegGuidedMMRegLib.report.page import page_template
from SegGuidedMMRegLib.study import Study

PAIRS_WITH_PICTURES = 30
_MOST_ROWS = 1000


def write_pairs_page(
    study: Study, pairs: Sequence[tuple[Path, Report]], path: Path, table: str = "pairs.csv"
) -> None:
    """Write a page of these pairs, whole or not at all.

    Args:
        study: that they were registered with.
        pairs: folder and report of each. The first `PAIRS_WITH_PICTURES` get pictures, if both their images
            are cases of the study.
        path: of the page.
        table: what the page calls the table of all pairs.
    """
    entries = [pair_entry(study, report, folder, folder) for folder, report in pairs[:PAIRS_WITH_PICTURES]]
    page = page_template("pairs.html").render(
        study=study,
        reports=[report for _, report in pairs],
        pairs=entries,
        most_rows=_MOST_ROWS,
        table=table,
        version=__version__,
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )
    write_text_atomically(path, page)
