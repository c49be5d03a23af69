"""The folder of a registered pair, read: no MRML here, so that it may be done outside the main thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegLib.displacement import DisplacementField
from SegGuidedMMRegLib.documents import read_json
from SegGuidedMMRegLib.images import LabelMap, read_labels
from SegGuidedMMRegLib.transform_files import SpatialTransform, read_transform


@dataclass(frozen=True)
class PairResult:
    """What a registration wrote.

    Attributes:
        folder: where.
        report: `report.json` (docs/formats.md).
        forward, inverse: None where the registration failed before there was one.
        labels: the moving labels on the fixed grid, structure values; None where there are none.
        vectors_ras_mm: by `forward` and `inverse`, the vectors [voxels, 3] as Slicer takes them.
    """

    folder: Path
    report: Mapping[str, Any]
    forward: SpatialTransform | None
    inverse: SpatialTransform | None
    labels: LabelMap | None
    vectors_ras_mm: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """ok or failed."""
        return str(self.report["status"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed."""
        return tuple(str(reason) for reason in self.report.get("reasons", ()))


def read_pair(folder: Path | str) -> PairResult:
    """Read the result of a registration.

    Raises:
        BridgeError: naming the folder, if there is no finished registration in it.
        ValueError: naming the file that is damaged.
    """
    folder = Path(folder)
    path = folder / "report.json"
    if not path.is_file():
        raise BridgeError(
            f"{folder}: holds no finished registration (report.json is missing). Register it again."
        )
    report = read_json(path)
    if not isinstance(report, dict) or report.get("status") not in ("ok", "failed"):
        raise BridgeError(f"{path}: is no report of a registration. Register the pair again.")
    forward, inverse = (
        _transform(folder / f"{name}.h5", report["status"]) for name in ("forward", "inverse")
    )
    path = folder / "warped_labels.seg.nrrd"
    labels = read_labels(path) if path.is_file() else None
    transforms = {"forward": forward, "inverse": inverse}
    vectors = {name: vectors_ras_mm(t.field) for name, t in transforms.items() if t is not None}
    return PairResult(folder, report, forward, inverse, labels, vectors)


def vectors_ras_mm(field: DisplacementField) -> NDArray[np.float32]:
    """The vectors of a field, [voxels, 3], RAS mm."""
    values = field.displacement_lps_mm.reshape(-1, 3)
    return (values * np.array([-1, -1, 1], values.dtype)).astype(np.float32)


def _transform(path: Path, status: str) -> SpatialTransform | None:
    if path.is_file() or status == "ok":
        return read_transform(path)
    return None
