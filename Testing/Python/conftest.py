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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny two-dimensional study with which everything has been done. Mark its tests as one xdist group,
    "trained", so that one process trains it; change a copy, never itself."""
    from trained_study import finish

    return finish(tmp_path_factory.mktemp("trained"), 2)


@pytest.fixture(scope="session")
def finished_3d(tmp_path_factory):
    """The same in three dimensions, hardly trained; the xdist group is "trained_3d"."""
    from trained_study import finish

    return finish(tmp_path_factory.mktemp("trained_3d"), 3)
