"""SegGuidedMMReg: segmentations of two modalities and fold-free transforms from a few labels of one.

What is listed in `__all__` is for other programs, stays, and is described in docs/api.md. Importing this
package imports nothing heavy: each name brings its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from SegGuidedMMRegLib.lazy import lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from SegGuidedMMRegLib import metrics
    from SegGuidedMMRegLib.cases import Case, Role, Structure
    from SegGuidedMMRegLib.displacement import SpatialTransform
    from SegGuidedMMRegLib.evaluation import evaluate
    from SegGuidedMMRegLib.events import ErrorCode, Event, Reporter
    from SegGuidedMMRegLib.images import Image, read_image, read_labels, write_image, write_labels
    from SegGuidedMMRegLib.importing.folders import study_from_folders
    from SegGuidedMMRegLib.jobs import register_study, segment_study
    from SegGuidedMMRegLib.pipeline import train
    from SegGuidedMMRegLib.points import PointList, match_points, read_points, write_points
    from SegGuidedMMRegLib.registrar import Registrar, Registration
    from SegGuidedMMRegLib.report import write_report
    from SegGuidedMMRegLib.samples import Sample
    from SegGuidedMMRegLib.segmenter import Segmenter
    from SegGuidedMMRegLib.space import Grid
    from SegGuidedMMRegLib.study import Study
    from SegGuidedMMRegLib.transform_files import read_transform, write_transform

__all__ = [
    "Case",
    "ErrorCode",
    "Event",
    "Grid",
    "Image",
    "PointList",
    "Registrar",
    "Registration",
    "Reporter",
    "Role",
    "Sample",
    "Segmenter",
    "SpatialTransform",
    "Structure",
    "Study",
    "evaluate",
    "match_points",
    "metrics",
    "read_image",
    "read_labels",
    "read_points",
    "read_transform",
    "register_study",
    "segment_study",
    "study_from_folders",
    "train",
    "write_image",
    "write_labels",
    "write_points",
    "write_report",
    "write_transform",
]

_HOMES = {
    "cases": ("Case", "Role", "Structure"),
    "displacement": ("SpatialTransform",),
    "evaluation": ("evaluate",),
    "events": ("ErrorCode", "Event", "Reporter"),
    "images": ("Image", "read_image", "read_labels", "write_image", "write_labels"),
    "importing.folders": ("study_from_folders",),
    "jobs": ("register_study", "segment_study"),
    "pipeline": ("train",),
    "points": ("PointList", "match_points", "read_points", "write_points"),
    "registrar": ("Registrar", "Registration"),
    "report": ("write_report",),
    "samples": ("Sample",),
    "segmenter": ("Segmenter",),
    "space": ("Grid",),
    "study": ("Study",),
    "transform_files": ("read_transform", "write_transform"),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
