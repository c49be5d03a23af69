"""What several test files share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def slicer_scene():
    """A scene of 3D Slicer's own libraries, without the desktop; skipped without `slicer-core`."""
    slicer = pytest.importorskip("slicer")
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    yield scene
    scene.Clear(True)
