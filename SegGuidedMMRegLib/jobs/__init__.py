"""Segmenting and registering many images: what the command line and the Slicer module ask for.

What is written where: `Study.prediction_path`, `Study.registration_folder`.
"""

from SegGuidedMMRegLib.jobs.maps import SegmentedStudy
from SegGuidedMMRegLib.jobs.registering import (
    Given,
    Output,
    Pair,
    register_files,
    register_images,
    register_study,
    test_pairs,
)
from SegGuidedMMRegLib.jobs.segmenting import (
    SOURCE_ONLY_FOLDER,
    segment_files,
    segment_study,
    spacing_note,
    unadapted_path,
)

__all__ = [
    "SOURCE_ONLY_FOLDER",
    "Given",
    "Output",
    "Pair",
    "SegmentedStudy",
    "register_files",
    "register_images",
    "register_study",
    "segment_files",
    "segment_study",
    "spacing_note",
    "test_pairs",
    "unadapted_path",
]
