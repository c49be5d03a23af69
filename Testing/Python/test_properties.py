"""What must hold for any grid, field, transform and study: hypothesis looks for one that breaks it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from spatial_cases import rotation, smooth_displacement, smooth_image_array

from SegGuidedMMRegLib.cases import Case, Role, Structure
from SegGuidedMMRegLib.displacement import DisplacementField, SpatialTransform
from SegGuidedMMRegLib.folds import corner_jacobians_minimum
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.inversion import invert_field
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.study_file import FORBIDDEN_IN_NAMES, is_reserved
from SegGuidedMMRegLib.transform_files import read_transform, write_transform

quick = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def grids(draw: st.DrawFn, slices: tuple[int, ...] = (1, 9, 12)) -> Grid:
    """Oblique, anisotropic, left-handed or not, of two or three dimensions."""
    size = (draw(st.integers(9, 16)), draw(st.integers(9, 16)), draw(st.sampled_from(slices)))
    spacing = tuple(draw(st.floats(0.2, 4)) for _ in range(3))
    origin = tuple(draw(st.floats(-300, 300)) for _ in range(3))
    turn = rotation(*(draw(st.floats(-3.1, 3.1)) for _ in range(3)))
    flip = np.diag([1.0, 1.0, draw(st.sampled_from([1.0, -1.0]))])
    return Grid(size, spacing, origin, tuple((turn @ flip).ravel()))


@st.composite
def transforms(draw: st.DrawFn) -> SpatialTransform:
    """A smooth field without folds and an affine map, which may hold a reflection."""
    grid = draw(grids())
    field = smooth_displacement(grid, draw(st.floats(0.05, 1.0)), 2.5, draw(st.integers(0, 99)))
    matrix = np.eye(4)
    mirrored = np.diag([draw(st.sampled_from([1.0, -1.0])), 1.0, 1.0])
    matrix[:3, :3] = rotation(*(draw(st.floats(-0.4, 0.4)) for _ in range(3))) @ mirrored
    matrix[:3, :3] *= draw(st.floats(0.7, 1.4))
    matrix[:3, 3] = [draw(st.floats(-20, 20)) for _ in range(3)]
    return SpatialTransform(field, matrix)


def voxels_in(grid: Grid, count: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, np.asarray(grid.size) - 1, (count, 3))


# -- space ----------------------------------------------------------------------------------------------
@quick
@given(grid=grids())
def test_points_lie_where_simpleitk_puts_them_and_lead_back(grid: Grid) -> None:
    image = Image(np.zeros(grid.shape, dtype=np.uint8), grid).to_sitk()
    voxels = voxels_in(grid)
    points = grid.voxels_to_points(voxels)
    expected = [image.TransformContinuousIndexToPhysicalPoint(v) for v in voxels.tolist()]
    np.testing.assert_allclose(points, expected, atol=1e-7)
    np.testing.assert_allclose(grid.points_to_voxels(points), voxels, atol=1e-6)
    np.testing.assert_allclose(grid.unit_to_voxels(grid.voxels_to_unit(voxels)), voxels, atol=1e-9)
    assert grid.contains(points).all()


@quick
@given(grid=grids(), spacing=st.floats(0.3, 6), size=st.integers(2, 30))
def test_grids_of_the_same_box_keep_its_centre_and_sides(grid: Grid, spacing: float, size: int) -> None:
    resized = grid.resized((size, size, grid.size[2]))
    np.testing.assert_allclose(resized.centre_lps_mm, grid.centre_lps_mm, atol=1e-6)
    np.testing.assert_allclose(resized.extent_mm, grid.extent_mm, rtol=1e-9)
    respaced = grid.with_spacing(spacing)
    np.testing.assert_allclose(respaced.centre_lps_mm, grid.centre_lps_mm, atol=1e-6)
    assert respaced.dimension == grid.dimension
    assert all(new >= old - 1e-3 for new, old in zip(respaced.extent_mm, grid.extent_mm, strict=True))
    assert grid.padded(3).points_to_voxels(grid.origin).round(6).tolist()[:2] == [3.0, 3.0]


# -- fields ---------------------------------------------------------------------------------------------
@quick
@given(transform=transforms())
def test_a_transform_takes_points_where_simpleitk_takes_them(transform: SpatialTransform) -> None:
    grid = transform.field.grid
    points = grid.voxels_to_points(voxels_in(grid))
    expected = [transform.to_sitk().TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(transform.transform_points(points), expected, atol=1e-5)


@quick
@given(transform=transforms(), seed=st.integers(0, 9))
def test_an_image_is_warped_as_simpleitk_warps_it(transform: SpatialTransform, seed: int) -> None:
    grid = transform.field.grid
    moving = Image(smooth_image_array(grid.shape, seed), grid)
    warped = transform.warp_image(moving, grid, outside=-7.0).array
    source = moving.to_sitk()
    reference = sitk.Resample(source, source, transform.to_sitk(), sitk.sitkLinear, -7.0, sitk.sitkFloat32)
    np.testing.assert_allclose(warped, sitk.GetArrayFromImage(reference).reshape(grid.shape), atol=1e-4)


@quick
@given(grid=grids(), seed=st.integers(0, 99), amplitude=st.floats(0.05, 0.9))
def test_a_field_and_its_inverse_lead_back(grid: Grid, seed: int, amplitude: float) -> None:
    phi = smooth_displacement(grid, amplitude, 3.0, seed)
    if corner_jacobians_minimum(phi).min() < 0.2:
        return
    psi = invert_field(phi)
    points = grid.points()
    there = points + psi.displacement_lps_mm
    back = there + phi.sampled(there, extend=True)
    missed = np.linalg.norm((back - points) @ grid.lps_to_voxel[:3, :3].T, axis=-1)
    assert missed.max() < 0.02


@quick
@given(grid=grids(), seed=st.integers(0, 99))
def test_an_affine_map_as_a_field_has_its_determinant_as_jacobian_everywhere(grid: Grid, seed: int) -> None:
    d = grid.dimension
    matrix = np.eye(3)
    matrix[:d, :d] += np.random.default_rng(seed).uniform(-0.6, 0.6, (d, d))
    voxels = grid.points_to_voxels(grid.points())
    moved = voxels @ (matrix - np.eye(3)).T @ grid.voxel_to_lps[:3, :3].T
    found = corner_jacobians_minimum(DisplacementField(grid, moved))
    np.testing.assert_allclose(found, np.linalg.det(matrix), atol=1e-4)


# -- files ----------------------------------------------------------------------------------------------
@settings(quick, max_examples=12)
@given(transform=transforms(), suffix=st.sampled_from([".h5", ".tfm", ".nrrd", ".nii.gz", ".mha"]))
def test_a_transform_comes_back_from_every_kind_of_file(transform: SpatialTransform, suffix: str) -> None:
    grid = transform.field.grid
    points = grid.voxels_to_points(np.rint(voxels_in(grid)))  # float32 fields are linear between voxels only
    expected = transform.transform_points(points)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"T ä 左{suffix}"
        write_transform(transform, path)
        np.testing.assert_allclose(read_transform(path).transform_points(points), expected, atol=2e-3)
        if suffix in (".h5", ".tfm"):
            read: sitk.Transform = sitk.ReadTransform(str(path))
        else:
            field = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64)
            read = sitk.DisplacementFieldTransform(field)
        np.testing.assert_allclose([read.TransformPoint(p) for p in points.tolist()], expected, atol=2e-3)


# -- study ----------------------------------------------------------------------------------------------
names = (
    st.text(
        st.characters(exclude_characters=FORBIDDEN_IN_NAMES, exclude_categories=["C", "Z"]),
        min_size=1,
        max_size=40,
    )
    .filter(lambda name: name == name.strip(" .") and "--" not in name and not is_reserved(name))
    .filter(str.isprintable)
)
texts = st.text(st.characters(exclude_categories=["C"]), max_size=60)


@st.composite
def studies(draw: st.DrawFn, folder: Path) -> Study:
    dimension = draw(st.sampled_from([2, 3]))
    words = draw(st.lists(names, min_size=4, max_size=9, unique_by=str.casefold))
    values = draw(st.lists(st.integers(1, 65535), min_size=2, max_size=2, unique=True))
    colour = st.tuples(*[st.integers(0, 255)] * 3)
    source, target, *rest = words
    cases = []
    for n, name in enumerate(rest):
        modality = draw(st.sampled_from([source, target]))
        role = draw(st.sampled_from(list(Role)))
        use = draw(st.sampled_from([None, "evaluation", "training"]))
        if use == "training" and (role == Role.TEST or modality == target):
            use = "evaluation"
        label = f"labels/{n}.seg.nrrd" if use else None
        mirrored, original = draw(st.booleans()), draw(texts)
        cases.append(
            Case(
                name,
                modality,
                f"{n} {draw(texts)}",
                role,
                mirrored,
                f"images/{n}.nrrd",
                label,
                use,
                None,
                original,
            )
        )
    size = tuple(draw(st.integers(2, 64)) for _ in range(dimension))
    spacing = tuple(draw(st.floats(0.01, 10)) for _ in range(dimension))
    return Study.create(
        folder,
        name=draw(names),
        dimension=dimension,
        source=source,
        target=target,
        structures=[Structure(v, w, draw(colour)) for v, w in zip(values, rest[:2], strict=True)],
        grid=Grid.centred((*size, *[1] * (3 - dimension)), (*spacing, *[1.0] * (3 - dimension))),
        cases=cases,
    )


@quick
@given(data=st.data())
def test_a_study_opens_as_it_was_saved(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        study = data.draw(studies(Path(place) / "study"))
        assert Study.open(study.folder) == study
