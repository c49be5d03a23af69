"""A scene without the desktop, and a small untrained study made by hand, to test the scene bridge with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from spatial_cases import left_handed_grid, oblique_grid, rotation, smooth_image_array

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.images import Image, write_image, write_labels
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study

sys.path.insert(0, str(Path(__file__).parents[2] / "SegGuidedMMReg"))

STRUCTURES = (
    Structure(1, "femur", (230, 159, 0)),
    Structure(4, "tibia", (86, 180, 233)),
    Structure(7, "patella", (0, 158, 115)),
)
SLICE = Grid((24, 20, 1), (0.7, 1.3, 1.0), (4.0, -9.0, 30.0), tuple(rotation(0.3, -0.2, 0.5).ravel()))
MIRRORED = Grid((22, 18, 10), (1.0, 1.2, 2.5), (40.0, -3.0, 8.0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
GRIDS = {"oblique": oblique_grid(), "left-handed": left_handed_grid(), "mirrored": MIRRORED, "slice": SLICE}
RAS = np.array([-1.0, -1.0, 1.0])


def new_scene() -> Any:
    """An empty scene with the colours that display nodes refer to."""
    import slicer

    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    segmentations = (
        slicer.vtkSlicerSegmentationsModuleLogic()
    )  # knows how label maps and surfaces are converted
    segmentations.SetMRMLScene(scene)
    files, cache = slicer.vtkDataIOManager(), slicer.vtkCacheManager()
    files.SetCacheManager(cache)
    scene.SetDataIOManager(files)
    scene.SetCacheManager(cache)
    scene.kept_alive = application, segmentations, files
    return scene


def some_image(grid: Grid, seed: int = 1) -> Image:
    return Image((1000 * smooth_image_array(grid.shape, seed)).astype(np.int16), grid)


def some_labels(grid: Grid) -> Image:
    """A block of femur and a block of tibia; no patella."""
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[..., 3:8, 4:9] = 1
    array[..., 10:14, 4:12] = 4
    return Image(array, grid)


def make_study(folder: Path, **grids: Grid) -> Study:
    """A study with a labelled case a grid, the first of the source, the others of the target."""
    grids = grids or {"a": GRIDS["oblique"], "b": GRIDS["left-handed"]}
    cases = []
    for number, (name, grid) in enumerate(grids.items()):
        modality = "target" if number else "source"
        case = Case(
            name=name,
            modality=modality,
            subject=name,
            role=Role.TEST,
            mirrored=False,
            image=f"images/{modality}/{name}.nrrd",
            label=f"labels/{modality}/{name}.seg.nrrd",
            label_use="evaluation",
        )
        write_image(some_image(grid, number), folder / case.image)
        write_labels(some_labels(grid), STRUCTURES, folder / str(case.label))
        cases.append(case)
    dimension = next(iter(grids.values())).dimension
    return Study(
        folder,
        "knees",
        dimension,
        "source",
        "target",
        STRUCTURES,
        None,
        tuple(cases),
        config=None,  # type: ignore[arg-type]
    )


def linear_parent(scene: Any, matrix_lps: np.ndarray, name: str = "parent") -> Any:
    """A transform node that moves what lies under it by a 4x4 of LPS mm."""
    import slicer
    import vtk

    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((flip @ matrix_lps @ flip).ravel().tolist())
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    assert isinstance(node, slicer.vtkMRMLTransformNode)
    node.SetMatrixTransformToParent(matrix)
    return node


def bending_parent(scene: Any, amplitude_mm: float = 6.0) -> Any:
    """A transform node that bends what lies under it (thin-plate splines)."""
    import vtk

    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for n, (x, y, z) in enumerate(np.ndindex(2, 2, 2)):
        position = np.array([x, y, z]) * 80.0 - 40.0
        source.InsertNextPoint(position)
        target.InsertNextPoint(position + amplitude_mm * np.sin([n, n + 1, n + 2]))
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
    node.SetAndObserveTransformToParent(spline)
    return node


def placed(
    angles: tuple[float, float, float], shift: tuple[float, float, float], scale: float = 1.0
) -> np.ndarray:
    """A 4x4 of LPS mm that turns, scales and moves."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation(*angles)
    matrix[:3, 3] = shift
    return matrix


def world_of_voxel(node: Any, voxel: tuple[int, int, int]) -> np.ndarray:
    """Where Slicer shows the centre of a voxel, world LPS mm."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    local = matrix.MultiplyPoint([*map(float, voxel), 1.0])[:3]
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(local, world)
    return np.array(world) * RAS


def read_back(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def save_and_load(scene: Any, folder: Path, kind: str = ".mrb") -> Any:
    """The scene as it comes back from a file, in another scene."""
    import slicer

    loaded = new_scene()
    path = folder / f"saved{kind}"
    if kind == ".mrb":
        assert scene.WriteToMRB(str(path))
        loaded.GetCacheManager().SetRemoteCacheDirectory(str(folder))
        assert loaded.ReadFromMRB(str(path), True)
        return loaded
    files = folder / "files"
    files.mkdir()
    for n in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(n)
        if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene() and not node.GetHideFromEditors():
            assert node.AddDefaultStorageNode() or node.GetStorageNode() is not None, node.GetName()
            storage = node.GetStorageNode()
            storage.SetFileName(str(files / f"{n}.{storage.GetDefaultWriteFileExtension()}"))
            assert storage.WriteData(node), node.GetName()
    scene.SetURL(str(path))
    scene.SetRootDirectory(str(folder))
    assert scene.Commit()
    loaded.SetURL(str(path))
    loaded.SetRootDirectory(str(folder))
    assert loaded.Import()
    assert slicer is not None
    return loaded


def state_of(node: Any) -> tuple[Any, ...]:
    """What must not change about a user's node."""
    import slicer

    parent = node.GetParentTransformNode() if hasattr(node, "GetParentTransformNode") else None
    names = [node.GetAttributeNames()] if node.GetAttributeNames() else []
    content = slicer.util.arrayFromVolume(node).tobytes() if node.IsA("vtkMRMLVolumeNode") else None
    return node.GetMTime(), None if parent is None else parent.GetMTime(), names, content
