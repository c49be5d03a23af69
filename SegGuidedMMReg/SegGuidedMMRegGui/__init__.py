"""What the module shows and does in Slicer: a panel a step, the jobs, the bridge to the scene.

Computes nothing itself: jobs run in child processes (`python -m SegGuidedMMRegLib`). Of the library only
floors 0 to 2 are imported here, and at file scope nothing but Slicer's own.
"""

import sys
from pathlib import Path

_BESIDE_THE_MODULE = Path(__file__).resolve().parents[1]
_IN_A_CLONE = _BESIDE_THE_MODULE.parent


def _library_home() -> Path:
    """The folder that holds SegGuidedMMRegLib: the module's own when installed, the one above in a clone."""
    for home in (_BESIDE_THE_MODULE, _IN_A_CLONE):
        if (home / "SegGuidedMMRegLib" / "__init__.py").is_file():
            return home
    raise ImportError(
        f"SegGuidedMMRegLib is neither in {_BESIDE_THE_MODULE} nor in {_IN_A_CLONE}: install the whole "
        "extension, or clone the whole repository."
    )


LIBRARY_HOME = _library_home()
if str(LIBRARY_HOME) not in sys.path:
    sys.path.insert(0, str(LIBRARY_HOME))
