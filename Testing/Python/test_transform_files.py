"""Transform files, as SimpleITK and as 3D Slicer understand them."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import exponential, left_handed_grid, oblique_grid, rotation, smooth_displacement, study_to

from SegGuidedMMRegLib.fields import SpatialTransform, pair_transforms
from SegGuidedMMRegLib.hdf5_times import lookup3
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.transform_files import TransformFileError, read_transform, write_transform

SUFFIXES = [".h5", ".tfm", ".nrrd", ".nii.gz", ".mha"]
CASES = {
    "3D": (
        Grid.centred((16, 16, 16), (2.0, 2.0, 2.0)),
        oblique_grid((16, 18, 12)),
        left_handed_grid((14, 16, 12)),
    ),
    "2D": (
        Grid.centred((48, 48, 1), (1.0, 1.0, 1.0)),
        oblique_grid((60, 50, 1), (0.7, 0.9, 3.0)),
        left_handed_grid((56, 64, 1), (0.8, 0.7, 1.0)),
    ),
}


@functools.cache
def delivered(case: str, mirrored: bool) -> tuple[SpatialTransform, Grid, Grid]:
    study, fixed, moving = CASES[case]
    phi, guess = exponential(study, 0.15 * study.size[0], 0.2 * study.size[0])
    forward, _ = pair_transforms(
        phi, guess, study_to(fixed), study_to(moving, mirrored=mirrored), fixed, moving
    )
    return forward, fixed, moving


def inner_points(grid: Grid, count=150) -> np.ndarray:
    rng = np.random.default_rng(3)
    voxels = rng.uniform(0.5, np.maximum(np.asarray(grid.size) - 1.5, 0.5), (count, 3))
    voxels[: count // 2] = np.rint(voxels[: count // 2])
    if grid.dimension == 2:
        voxels[:, 2] = 0
    return grid.voxels_to_points(voxels)


def sitk_transform(path) -> sitk.Transform:
    if path.suffix in (".h5", ".tfm"):
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_simpleitk_and_this_library_read_back_the_same_map(tmp_path, case, mirrored, suffix):
    forward, fixed, _ = delivered(case, mirrored)
    path = tmp_path / f"forward{suffix}"
    write_transform(forward, path)
    points = inner_points(fixed)
    expected = forward.transform_points(points)
    by_itk = [sitk_transform(path).TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(by_itk, expected, atol=2e-4)
    np.testing.assert_allclose(read_transform(path).transform_points(points), expected, atol=2e-4)
    assert read_transform(path).field.grid.dimension == fixed.dimension
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_resampling_with_the_file_gives_our_warped_image(tmp_path, case, mirrored):
    forward, fixed, moving = delivered(case, mirrored)
    image = Image(np.random.default_rng(0).normal(size=moving.shape).astype(np.float32), moving)
    ours = forward.warp_image(image, fixed, outside=-5.0)
    write_transform(forward, tmp_path / "t.h5")
    reference = Image(np.zeros(fixed.shape, np.float32), fixed).to_sitk()
    transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
    theirs = sitk.Resample(image.to_sitk(), reference, transform, sitk.sitkLinear, -5.0)
    np.testing.assert_allclose(sitk.GetArrayFromImage(theirs).reshape(fixed.shape), ours.array, atol=1e-4)
    assert (ours.array != -5).mean() > 0.3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slicer_moves_the_same_points_to_the_same_places(tmp_path, slicer_scene, case, mirrored, suffix):
    forward, fixed, _ = delivered(case, mirrored)
    path = tmp_path / f"forward{suffix}"
    write_transform(forward, path)
    node = slicer_scene.AddNewNodeByClass("vtkMRMLTransformNode")
    storage = slicer_scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    from_parent = node.GetTransformFromParent()
    assert from_parent is not None
    points = inner_points(fixed)
    flip = np.array([-1.0, -1.0, 1.0])
    moved = np.array([from_parent.TransformPoint(p) for p in (points * flip).tolist()]) * flip
    expected = forward.transform_points(points)
    nodes = slice(0, len(points) // 2)  # between voxels Slicer interpolates cubically
    np.testing.assert_allclose(moved[nodes], expected[nodes], atol=1e-3)
    np.testing.assert_allclose(moved, expected, atol=0.1)
    largest = np.linalg.norm(forward.field.displacement_lps_mm, axis=-1).max()
    assert largest > 1.0
    slicer_scene.RemoveNode(node)


def test_a_coarser_file_stays_close_to_the_map_everywhere_in_the_image(tmp_path):
    forward, fixed, _ = delivered("2D", False)
    write_transform(forward, tmp_path / "t.h5", spacing_mm=2.0)
    write_transform(forward, tmp_path / "t.nrrd", spacing_mm=2.0)
    points = fixed.points()
    for name in ("t.h5", "t.nrrd"):
        off = read_transform(tmp_path / name).transform_points(points) - forward.transform_points(points)
        assert np.linalg.norm(off, axis=-1).max() < 0.2
    spacing = np.asarray(read_transform(tmp_path / "t.h5").field.grid.spacing[:2])
    assert ((spacing > 1.8) & (spacing <= 2.0)).all()


def test_a_field_file_is_float32_and_says_its_direction(tmp_path):
    forward, fixed, _ = delivered("3D", False)
    write_transform(forward, tmp_path / "t.nrrd")
    image = sitk.ReadImage(str(tmp_path / "t.nrrd"))
    assert image.GetPixelID() == sitk.sitkVectorFloat32
    assert image.GetMetaData("displacement field type") == "resampling"
    assert image.GetSize() == fixed.size


def test_a_linear_transform_is_read(tmp_path):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rotation(0.1, 0.2, 0.3).ravel().tolist())
    affine.SetCenter((1, 2, 3))
    euler = sitk.Euler3DTransform((4, 5, 6), 0.3, 0.1, 0.0, (1, 0, 2))
    chain = sitk.CompositeTransform([affine, euler])
    sitk.WriteTransform(chain, str(tmp_path / "t.tfm"))
    points = np.random.default_rng(0).normal(0, 30, (20, 3))
    expected = [chain.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(
        read_transform(tmp_path / "t.tfm").transform_points(points), expected, atol=1e-9
    )


def test_a_chain_of_fields_is_sampled_on_the_reference_only(tmp_path):
    grid = oblique_grid()
    field = SpatialTransform(smooth_displacement(grid, 1.0, 4.0)).to_sitk()
    chain = sitk.CompositeTransform([field, sitk.TranslationTransform(3, (1.0, 0.0, 0.0)), field])
    chain.FlattenTransform()
    sitk.WriteTransform(chain, str(tmp_path / "t.h5"))
    with pytest.raises(TransformFileError, match="fixed image"):
        read_transform(tmp_path / "t.h5")
    back = read_transform(tmp_path / "t.h5", reference=grid)
    points = grid.points()[5:8, 5:8, 5:8].reshape(-1, 3)
    expected = [chain.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(back.transform_points(points), expected, atol=1e-3)


def slicer_grid_node(scene, to_parent: bool):
    import slicer
    import vtk

    grid = slicer.vtkOrientedGridTransform()
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_DOUBLE, 3)
    for component in range(3):
        image.GetPointData().GetScalars().FillComponent(component, 0.5)
    grid.SetDisplacementGridData(image)
    node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    if to_parent:
        node.SetAndObserveTransformToParent(grid)
    else:
        node.SetAndObserveTransformFromParent(grid)
    return node


@pytest.mark.parametrize("suffix", [".h5", ".nrrd"])
def test_what_slicer_wrote_is_read_and_its_inverse_kind_is_refused(tmp_path, slicer_scene, suffix):
    storage = slicer_scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
    storage.SetFileName(str(tmp_path / f"from{suffix}"))
    assert storage.WriteData(slicer_grid_node(slicer_scene, to_parent=False)) == 1
    moved = read_transform(tmp_path / f"from{suffix}").transform_points([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(moved, [-1.5, -1.5, 1.5], atol=1e-5)
    storage.SetFileName(str(tmp_path / f"to{suffix}"))
    assert storage.WriteData(slicer_grid_node(slicer_scene, to_parent=True)) == 1
    with pytest.raises(TransformFileError, match=f"to{suffix}.*Slicer"):
        read_transform(tmp_path / f"to{suffix}")


def test_two_dimensional_and_foreign_files_are_refused_by_name(tmp_path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "flat.tfm"))
    sitk.WriteImage(sitk.Image([5, 5], sitk.sitkVectorFloat32), str(tmp_path / "flat.nrrd"))
    sitk.WriteImage(sitk.Image([5, 5, 5], sitk.sitkFloat32), str(tmp_path / "scalar.nrrd"))
    (tmp_path / "broken.h5").write_text("nothing")
    for name in ("flat.tfm", "flat.nrrd", "scalar.nrrd", "broken.h5", "absent.h5", "t.txt.zip"):
        with pytest.raises(TransformFileError, match=name):
            read_transform(tmp_path / name)


def test_the_time_of_writing_is_not_in_the_file(tmp_path: Path) -> None:
    """Its checksums are right all the same: HDF5 checks them when it reads."""
    transform, fixed, _ = delivered("3D", False)
    write_transform(transform, tmp_path / "a.h5")
    time.sleep(1.1)
    write_transform(transform, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    point = fixed.centre_lps_mm
    read = sitk.ReadTransform(str(tmp_path / "b.h5"))
    np.testing.assert_allclose(read.TransformPoint(point), transform.transform_points([point])[0], atol=1e-6)


def test_the_checksum_is_that_of_its_author() -> None:
    assert lookup3(b"") == 0xDEADBEEF  # the values of lookup3.c, driver5
    assert lookup3(b"Four score and seven years ago") == 0x17770551
