"""What Reload and Test and ctest run in Slicer: a small study from drawn images to a registration."""

from __future__ import annotations

import slicer_harness
from slicer_module import FOLDER, slicer


def test_slicers_own_test_of_the_module_passes():
    slicer_harness.slot_errors.clear()
    slicer.mrmlScene.Clear(0)
    widget = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    slicer_harness.process_until(lambda: not widget.logic.runner.running(), 120)
    slicer.selfTests["SegGuidedMMReg"](msec=0)
    widget.cleanup()
    slicer.mrmlScene.Clear(0)
    assert not slicer_harness.slot_errors
