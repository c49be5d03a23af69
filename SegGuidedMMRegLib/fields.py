"""Fields and transforms: the one place from which others import them.

* `displacement.py`: `DisplacementField` and `SpatialTransform`, sampled and applied;
* `inversion.py`: inverse fields, the delivered pair of a registration, how well it closes;
* `border.py`: how a field goes on beyond its border;
* `folds.py`: Jacobian determinants at the corners of voxels.
"""

from __future__ import annotations

from SegGuidedMMRegLib.border import fade_to_border
from SegGuidedMMRegLib.displacement import (
    DisplacementField,
    FieldError,
    SpatialTransform,
    field_from_study,
    field_to_study,
)
from SegGuidedMMRegLib.folds import corner_jacobians_minimum, fold_mask
from SegGuidedMMRegLib.inversion import inverse_consistency_error, invert_field, pair_transforms

__all__ = [
    "DisplacementField",
    "FieldError",
    "SpatialTransform",
    "corner_jacobians_minimum",
    "fade_to_border",
    "field_from_study",
    "field_to_study",
    "fold_mask",
    "inverse_consistency_error",
    "invert_field",
    "pair_transforms",
]
