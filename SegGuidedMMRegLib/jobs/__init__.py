"""Segmenting and registering many images: what the command line and the Slicer module ask for.

What is written where: `Study.prediction_path`, `Study.registration_folder`. Each name brings its module when
it is first used: which pairs there are is told without torch, in no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from SegGuidedMMRegLib.lazy import lazily

if TYPE_CHECKING:
    from SegGuidedMMRegLib.jobs.cohort import Run, Tally, register_study
    from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
    from SegGuidedMMRegLib.jobs.pair_list import pairs_from_csv, pairs_to_csv, read_side
    from SegGuidedMMRegLib.jobs.pairs import (
        Choice,
        Pair,
        Pairs,
        Side,
        all_pairs,
        listed,
        pairs_of_cases,
        pairs_to,
        spacing_note,
        test_pairs,
    )
    from SegGuidedMMRegLib.jobs.registering import register_files, register_images
    from SegGuidedMMRegLib.jobs.results import Given, Output
    from SegGuidedMMRegLib.jobs.segmenting import (
        SOURCE_ONLY_FOLDER,
        Segmented,
        segment_files,
        segment_study,
        unadapted_path,
    )

__all__ = [
    "SOURCE_ONLY_FOLDER",
    "Choice",
    "Given",
    "Output",
    "Pair",
    "Pairs",
    "Run",
    "Segmented",
    "SegmentedStudy",
    "Side",
    "Tally",
    "all_pairs",
    "listed",
    "pairs_from_csv",
    "pairs_of_cases",
    "pairs_to",
    "pairs_to_csv",
    "read_side",
    "register_files",
    "register_images",
    "register_study",
    "segment_files",
    "segment_study",
    "spacing_note",
    "test_pairs",
    "unadapted_path",
]

_HOMES = {
    "cohort": ("Run", "Tally", "register_study"),
    "maps": ("SegmentedStudy",),
    "pair_list": ("pairs_from_csv", "pairs_to_csv", "read_side"),
    "pairs": (
        *("Choice", "Pair", "Pairs", "Side"),
        *("all_pairs", "listed", "pairs_of_cases", "pairs_to", "spacing_note", "test_pairs"),
    ),
    "registering": ("register_files", "register_images"),
    "results": ("Given", "Output"),
    "segmenting": ("SOURCE_ONLY_FOLDER", "Segmented", "segment_files", "segment_study", "unadapted_path"),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
