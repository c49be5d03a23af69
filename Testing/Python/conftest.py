"""What several test files share."""

from __future__ import annotations

import pytest

LONGEST = (
    "trained",
    "test_slicer_train",
    "test_devices",
    "test_memory",
    "test_slicer_self_test",
    "test_slicer_tutorial",
    "trained_3d",
    "test_slicer_register",
    "test_slicer_review",
    "slicer_train",
    "test_slicer_annotate",
    "test_status",
    "test_slicer_export",
)
"""Groups of half a minute or more: they begin first, so that no process waits for the others at the end."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # groups go to the processes in the order of collection, see below


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`: the tests of a file go to one process, which makes their fixtures once, and so
    do those of a group that several files share."""
    if not getattr(config.option, "loadgroup", False):
        return
    groups = {item: _group(item) for item in items}
    rank = {group: number for number, group in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(groups[item], len(rank)))
    for item, group in groups.items():
        _tell_group(item, group)


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return item.path.stem if mark is None else mark.args[0]


def _tell_group(item: pytest.Item, group: str) -> None:
    """xdist sends it with the name of the test. What xdist 3.8 changes for that, pytest 9.2 does not read any
    more, and nothing is grouped (pytest-xdist issue 1386)."""
    if hasattr(item, "_id"):
        item._id = type(item._id).parse(f"{item.nodeid}@{group}")
    else:
        item.add_marker(pytest.mark.xdist_group(group))


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
