"""Reading and writing images and label maps, and resampling them, against SimpleITK."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk
from spatial_cases import left_handed_grid, oblique_grid, smooth_image_array

from SegGuidedMMRegLib.images import (
    Image,
    ImageError,
    Segment,
    check_image,
    normalise_intensity,
    normalised_study_image,
    read_image,
    read_labels,
    resample,
    spacing_is_known,
    write_image,
    write_labels,
)
from SegGuidedMMRegLib.space import Grid

GRIDS = {
    "oblique": oblique_grid(),
    "left-handed": left_handed_grid(),
    "oblique slice": oblique_grid((40, 30, 1), (0.7, 1.2, 3.0)),
}


def a_picture(shape=(30, 40), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


# -- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
def test_an_image_comes_back_with_values_type_and_place(tmp_path, name, suffix, kind):
    grid = GRIDS[name]
    array = (smooth_image_array(grid.shape) * 100 + 50).astype(kind)
    write_image(Image(array, grid), tmp_path / f"image{suffix}")
    back = read_image(tmp_path / f"image{suffix}")
    assert back.array.dtype == kind
    np.testing.assert_array_equal(back.array, array)
    assert back.grid.is_close(grid)
    assert [p.name for p in tmp_path.iterdir()] == [f"image{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_pictures_are_read_as_one_slice(tmp_path, suffix, kind):
    if suffix == ".bmp" and kind == np.uint16:
        pytest.skip("BMP holds 8 bit")
    array = a_picture().astype(kind) * (200 if kind == np.uint16 else 1)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"p{suffix}"))
    image = read_image(tmp_path / f"p{suffix}")
    assert image.grid.dimension == 2
    assert image.array.dtype == kind
    np.testing.assert_array_equal(image.array, array)
    assert image.grid.spacing == (1, 1, 1)


def test_a_grey_jpeg_is_read(tmp_path):
    array = np.full((20, 30), 90, dtype=np.uint8)
    array[:, 15:] = 200
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "p.jpg"))
    assert np.abs(read_image(tmp_path / "p.jpg").array.astype(int) - array).max() < 8


def test_a_picture_of_equal_channels_is_grey(tmp_path):
    array = a_picture()
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array] * 3, -1), isVector=True), str(tmp_path / "p.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").array, array)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_colour_photograph_is_refused_by_name(tmp_path, channels):
    array = np.stack([a_picture(seed=c) for c in range(channels)], -1)
    array[..., 3:] = 255
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "photo.png"))
    with pytest.raises(ImageError, match=r"photo\.png.*grey"):
        read_image(tmp_path / "photo.png")


def test_time_series_and_vectors_are_refused_but_a_single_time_point_is_not(tmp_path):
    series = sitk.GetImageFromArray(np.zeros((2, 4, 5, 6)), isVector=False)
    sitk.WriteImage(series, str(tmp_path / "series.nii.gz"))
    with pytest.raises(ImageError, match=r"series\.nii\.gz.*single time point"):
        read_image(tmp_path / "series.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 2)), isVector=True), str(tmp_path / "v.nrrd"))
    with pytest.raises(ImageError, match=r"v\.nrrd"):
        read_image(tmp_path / "v.nrrd")
    sitk.WriteImage(series[..., :1], str(tmp_path / "one.nii.gz"))
    assert read_image(tmp_path / "one.nii.gz").grid.shape == (4, 5, 6)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "broken.nrrd").write_bytes(b"not an image")
    for name in ("broken.nrrd", "absent.nrrd"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="no DICOM series"):
        read_image(tmp_path / "folder")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_along_any_axis_becomes_two_dimensional_in_place(axis):
    size = [12, 14, 16]
    size[axis] = 1
    grid = oblique_grid(tuple(size))
    source = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=size[::-1]))
    source.SetSpacing(grid.spacing)
    source.SetOrigin(grid.origin)
    source.SetDirection(grid.direction)
    image = Image.from_sitk(source)
    assert image.grid.dimension == 2
    there = image.to_sitk()
    for index in ([0, 0, 0], [n // 2 for n in size]):
        point = source.TransformIndexToPhysicalPoint(index)
        assert there[there.TransformPhysicalPointToIndex(point)] == source[index]


def test_a_line_of_voxels_is_refused():
    with pytest.raises(ImageError, match="two axes"):
        Image.from_sitk(sitk.Image([1, 1, 8], sitk.sitkUInt8))


# -- spacing ----------------------------------------------------------------------------------------------


def test_a_picture_without_spacing_gets_the_given_one_or_one_millimetre(tmp_path):
    path = tmp_path / "p.png"
    sitk.WriteImage(sitk.GetImageFromArray(a_picture()), str(path))
    assert not spacing_is_known(path)
    assert read_image(path).grid.spacing == (1, 1, 1)
    assert read_image(path, spacing_mm=0.2).grid.spacing[:2] == (0.2, 0.2)
    assert read_image(path, spacing_mm=(0.2, 0.3)).grid.spacing[:2] == (0.2, 0.3)
    with pytest.raises(ImageError, match=r"p\.png.*spacing"):
        read_image(path, spacing_mm=0.0)


@pytest.mark.parametrize(("spacing", "known"), [(25.4 / 72, False), (25.4 / 300, False), (0.143, True)])
def test_the_resolution_of_a_screen_is_no_spacing(tmp_path, spacing, known):
    image = sitk.GetImageFromArray(a_picture())
    image.SetSpacing((spacing, spacing))
    for name in ("p.tif", "p.png"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert spacing_is_known(tmp_path / name) is known
        found = read_image(tmp_path / name).grid.spacing[0]
        assert found == pytest.approx(spacing if known else 1.0, rel=1e-3)


def test_spacing_that_a_file_knows_is_not_overruled(tmp_path):
    grid = GRIDS["oblique slice"]
    write_image(Image(smooth_image_array(grid.shape), grid), tmp_path / "i.nrrd")
    assert spacing_is_known(tmp_path / "i.nrrd")
    assert read_image(tmp_path / "i.nrrd", spacing_mm=9.0).grid.is_close(grid)


# -- DICOM ------------------------------------------------------------------------------------------------


_VR = {"0020|0032": "DS", "0020|0037": "DS", "0028|0030": "DS", "0018|1164": "DS", "0028|1052": "DS"}
_VR |= {"0028|1053": "DS", "0020|0013": "IS", "0028|0004": "CS", "0008|0060": "CS", "0008|103e": "LO"}
_VR |= {"0010|0020": "LO"}


def _element(tag: str, vr: str, value: bytes) -> bytes:
    """One data element, explicit VR, little endian."""
    group, element = (int(part, 16) for part in tag.split("|"))
    value += (b"\0" if vr in ("UI", "OW") else b" ") * (len(value) % 2)
    if vr == "OW":
        return struct.pack("<HH2s2xI", group, element, vr.encode(), len(value)) + value
    return struct.pack("<HH2sH", group, element, vr.encode(), len(value)) + value


def write_dicom(path, array, tags, series="1.2.826.0.1.3680043.2.1125.1") -> None:
    """A DICOM file by hand: SimpleITK's writer would set spacing and photometric interpretation itself."""
    array = np.asarray(array)
    signed = array.dtype == np.int16
    uid = f"{series}.{abs(hash(str(path))) % 10**8}"
    text = {
        "0008|0018": uid,
        "0020|000d": series + ".9",
        "0020|000e": series,
        "0028|0004": "MONOCHROME2",
        **tags,
    }
    numbers = {"0028|0002": 1, "0028|0010": array.shape[0], "0028|0011": array.shape[1], "0028|0100": 16}
    numbers |= {"0028|0101": 16, "0028|0102": 15, "0028|0103": int(signed)}
    elements = {tag: _element(tag, _VR.get(tag, "UI"), value.encode()) for tag, value in text.items()}
    elements |= {tag: _element(tag, "US", struct.pack("<H", value)) for tag, value in numbers.items()}
    elements["7fe0|0010"] = _element("7fe0|0010", "OW", array.astype("<i2" if signed else "<u2").tobytes())
    meta = b"".join(
        _element(tag, "UI", value.encode())
        for tag, value in {
            "0002|0002": text["0008|0016"],
            "0002|0003": uid,
            "0002|0010": "1.2.840.10008.1.2.1",
        }.items()
    )
    length = _element("0002|0000", "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(elements[t] for t in sorted(elements)))


CR = {"0008|0016": "1.2.840.10008.5.1.4.1.1.1", "0008|0060": "CR"}
CT = {"0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0060": "CT"}


def test_a_radiograph_uses_pixel_spacing_or_else_that_of_the_detector(tmp_path):
    array = a_picture().astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", array, {**CR, "0018|1164": "0.2\\0.1"})
    write_dicom(tmp_path / "b.dcm", array, {**CR, "0018|1164": "0.2\\0.1", "0028|0030": "0.4\\0.3"})
    assert read_image(tmp_path / "a.dcm").grid.spacing[:2] == pytest.approx((0.1, 0.2))
    assert read_image(tmp_path / "b.dcm").grid.spacing[:2] == pytest.approx((0.3, 0.4))
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array, array)
    assert spacing_is_known(tmp_path / "a.dcm")


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_so_that_bright_is_bright(tmp_path, signed):
    array = a_picture().astype(np.int16 if signed else np.uint16)
    write_dicom(tmp_path / "a.dcm", array, {**CR, "0028|0004": "MONOCHROME1"})
    write_dicom(tmp_path / "b.dcm", array, CR)
    seen = read_image(tmp_path / "a.dcm").array.astype(int)
    assert np.ptp(seen + array) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm").array, array)


def write_slices(
    folder, count=4, skip=(), series="1.2.826.0.1.3680043.2.1125.2", *, patient=None, description=None
) -> np.ndarray:
    folder.mkdir(exist_ok=True, parents=True)
    volume = np.random.default_rng(1).integers(0, 1000, (count, 12, 14)).astype(np.int16)
    for k in range(count):
        if k in skip:
            continue
        tags = {
            **CT,
            "0028|0030": "0.5\\0.7",
            "0020|0037": "1\\0\\0\\0\\0\\-1",  # coronal: rows to the left, columns to the feet
            "0020|0032": f"10\\{20 + 3 * k}\\30",
            "0020|0013": str(k),
            "0028|1052": "-100",
            "0028|1053": "1" if k == 0 else "2.5",
            "0008|103e": description or f"series {series[-1]}",
            **({} if patient is None else {"0010|0020": patient}),
        }
        write_dicom(folder / f"{series[-1]}_{k}.dcm", volume[k], tags, series)
    return volume


def test_a_series_keeps_its_orientation_spacing_and_rescaled_values(tmp_path):
    volume = write_slices(tmp_path / "ct")
    image = read_image(tmp_path / "ct")
    assert spacing_is_known(tmp_path / "ct")
    assert image.grid.size == (14, 12, 4)
    for k, j, i in [(0, 0, 0), (3, 5, 7), (2, 8, 1), (1, 4, 4)]:
        point = (10 + 0.7 * i, 20 + 3 * k, 30 - 0.5 * j)
        voxel = np.rint(image.grid.points_to_voxels(point)).astype(int)
        np.testing.assert_allclose(image.grid.voxels_to_points(voxel), point, atol=1e-6)
        assert image.array[tuple(voxel[::-1])] == (1 if k == 0 else 2.5) * volume[k, j, i] - 100


def test_a_series_with_a_missing_slice_is_refused(tmp_path):
    write_slices(tmp_path / "ct", count=6, skip=(2,))
    with pytest.raises(ImageError, match="missing"):
        read_image(tmp_path / "ct")


def test_several_series_in_a_folder_are_listed_and_refused(tmp_path):
    write_slices(tmp_path / "ct")
    write_slices(tmp_path / "ct", series="1.2.826.0.1.3680043.2.1125.3")
    with pytest.raises(ImageError, match=r"2 DICOM series(.|\n)*series 2: 4 files(.|\n)*series 3: 4 files"):
        read_image(tmp_path / "ct")


# -- what is refused at import ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (5.0, "empty")]
)
def test_images_that_teach_nothing_are_refused(values, message):
    array = np.full((6, 7), 5.0)
    array[2, 3] = values
    with pytest.raises(ImageError, match=f"x.nrrd.*{message}"):
        check_image(Image(array, Grid((7, 6, 1))), "x.nrrd")


def test_a_usual_image_passes_the_check():
    check_image(Image(a_picture(), Grid((40, 30, 1))), "x.nrrd")


# -- label maps -------------------------------------------------------------------------------------------

STRUCTURES = (
    Segment(1, "femur", (230, 25, 75)),
    Segment(3, "kneecap é", (60, 180, 75)),
    Segment(9, "absent", (0, 0, 255)),
)


def some_labels(grid) -> Image:
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[..., 2:8, 3:9] = 1
    array[..., 10:14, 5:15] = 3
    return Image(array, grid)


@pytest.mark.parametrize("name", GRIDS)
def test_a_segmentation_comes_back_with_names_and_colours(tmp_path, name):
    labels = some_labels(GRIDS[name])
    write_labels(labels, STRUCTURES, tmp_path / "l.seg.nrrd")
    back = read_labels(tmp_path / "l.seg.nrrd")
    np.testing.assert_array_equal(back.array, labels.array)
    assert back.grid.is_close(labels.grid)
    assert back.segments == STRUCTURES


@pytest.mark.parametrize("name", GRIDS)
def test_slicer_opens_a_segmentation_with_names_colours_and_voxels(tmp_path, slicer_scene, name):
    labels = some_labels(GRIDS[name])
    write_labels(labels, STRUCTURES, tmp_path / "l.seg.nrrd")
    node = slicer_scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer_scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "l.seg.nrrd"))
    assert storage.ReadData(node) == 1
    segmentation = node.GetSegmentation()
    found = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    assert [s.GetName() for s in found] == [s.name for s in STRUCTURES]
    for seen, wanted in zip(found, STRUCTURES, strict=True):
        np.testing.assert_allclose(np.asarray(seen.GetColor()) * 255, wanted.color, atol=0.51)
        assert seen.GetLabelValue() == wanted.value

    storage.SetFileName(str(tmp_path / "again.seg.nrrd"))
    assert storage.WriteData(node) == 1
    again = read_labels(tmp_path / "again.seg.nrrd")
    assert again.segments == STRUCTURES
    on_grid = resample(Image(again.array, again.grid), labels.grid, interpolation="nearest")
    np.testing.assert_array_equal(on_grid.array, labels.array)


def write_layers(path, masks) -> None:
    image = sitk.GetImageFromArray(np.stack(masks, -1).astype(np.uint8), isVector=True)
    for n in range(len(masks)):
        for key, value in {
            "ID": f"s{n}",
            "Name": f"part {n}",
            "Color": "1 0 0",
            "LabelValue": "1",
            "Layer": str(n),
        }.items():
            image.SetMetaData(f"Segment{n}_{key}", value)
    sitk.WriteImage(image, str(path))


def test_layers_without_overlap_are_merged_and_numbered_in_order(tmp_path):
    masks = np.zeros((2, 4, 8, 8), dtype=bool)
    masks[0, :, :4], masks[1, :, 5:] = True, True
    write_layers(tmp_path / "l.seg.nrrd", masks)
    labels = read_labels(tmp_path / "l.seg.nrrd")
    np.testing.assert_array_equal(labels.array, masks[0] + 2 * masks[1].astype(int))
    assert [(s.value, s.name) for s in labels.segments] == [(1, "part 0"), (2, "part 1")]


def test_overlapping_layers_are_refused_by_name(tmp_path):
    masks = np.ones((2, 4, 8, 8), dtype=bool)
    write_layers(tmp_path / "l.seg.nrrd", masks)
    with pytest.raises(ImageError, match="'part 0' and 'part 1' overlap"):
        read_labels(tmp_path / "l.seg.nrrd")


@pytest.mark.parametrize(("value", "message"), [(0.5, "whole numbers"), (-1.0, "0")])
def test_label_maps_of_fractions_or_negative_numbers_are_refused(tmp_path, value, message):
    array = np.zeros((6, 7), dtype=np.float32)
    array[2] = value
    write_image(Image(array, Grid((7, 6, 1))), tmp_path / "l.nrrd")
    with pytest.raises(ImageError, match=message):
        read_labels(tmp_path / "l.nrrd")


def test_whole_numbers_stored_as_floats_are_labels(tmp_path):
    labels = some_labels(GRIDS["oblique"])
    write_image(Image(labels.array.astype(np.float32), labels.grid), tmp_path / "l.nii.gz")
    back = read_labels(tmp_path / "l.nii.gz")
    assert back.array.dtype == np.uint8
    np.testing.assert_array_equal(back.array, labels.array)


def test_a_label_value_without_a_structure_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"\[3\]"):
        write_labels(some_labels(GRIDS["oblique"]), STRUCTURES[:1], tmp_path / "l.seg.nrrd")


def test_a_picture_cannot_hold_a_volume_or_floats(tmp_path):
    for image in (
        Image(np.zeros(GRIDS["oblique"].shape, np.uint8), GRIDS["oblique"]),
        Image(np.zeros((5, 5)), Grid((5, 5, 1))),
    ):
        with pytest.raises(ImageError, match=r"p\.png"):
            write_image(image, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


# -- resampling and intensities ---------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("fixed", GRIDS)
def test_resampling_looks_up_the_image_at_the_mapped_points(interpolation, fixed):
    grid, source = GRIDS[fixed], oblique_grid((50, 50, 40), (1.2, 1.3, 1.4), (-20, 10, -15), (0.1, 0.1, 0.4))
    matrix = np.diag([-1.0, 1.1, 1.0, 1.0])
    matrix[:3, 3] = source.centre_lps_mm - matrix[:3, :3] @ grid.centre_lps_mm
    slope = np.array([0.4, -0.3, 0.2])
    out = resample(
        Image(source.points() @ slope, source), grid, matrix, interpolation=interpolation, outside=-999.0
    )
    points = grid.points() @ matrix[:3, :3].T + matrix[:3, 3]
    inside = source.contains(points, margin_voxels=8)
    assert inside.sum() > 100
    np.testing.assert_allclose(out.array[inside], (points @ slope)[inside], atol=0.05)
    assert (out.array[~source.contains(points, margin_voxels=-1)] == -999).all()


def test_a_slice_is_resampled_by_splines_within_its_plane():
    grid = GRIDS["oblique slice"]
    image = Image(smooth_image_array(grid.shape), grid)
    same = resample(image, grid, interpolation="bspline")
    np.testing.assert_allclose(same.array, image.array, atol=1e-4)


def test_nearest_keeps_the_type_and_the_values():
    labels = some_labels(GRIDS["oblique"])
    out = resample(labels, GRIDS["oblique"].with_spacing(1.7), interpolation="nearest")
    assert out.array.dtype == np.uint8
    assert set(np.unique(out.array)) <= {0, 1, 3}


def test_normalised_intensities_span_zero_to_one_whatever_the_outliers():
    array = np.random.default_rng(0).normal(100, 10, (64, 64))
    array[0, 0], array[1, 1] = 1e6, np.nan
    scaled = normalise_intensity(array)
    low, high = np.percentile(array[np.isfinite(array)], [0.5, 99.5])
    expected = np.clip((array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(scaled[2:], expected[2:], atol=1e-4)
    assert scaled[0, 0] == 1
    assert scaled[1, 1] == 0
    with pytest.raises(ImageError, match="constant"):
        normalise_intensity(np.zeros((4, 4)))


def test_shrinking_an_image_averages_instead_of_picking():
    checkers = np.indices((64, 64)).sum(axis=0) % 2
    image = Image(checkers.astype(np.float32), Grid.centred((64, 64, 1), (1, 1, 1)))
    small = normalised_study_image(image, Grid.centred((12, 12, 1), (4, 4, 1)), np.eye(4))
    assert np.abs(small - 0.5).max() < 0.05


def test_a_study_image_is_zero_beside_the_image():
    image = Image(a_picture((20, 20)).astype(np.float32) + 1000, Grid.centred((20, 20, 1), (1, 1, 1)))
    seen = normalised_study_image(image, Grid.centred((40, 40, 1), (1, 1, 1)), np.eye(4))
    assert (seen[:9] == 0).all()
    assert seen.dtype == np.float32
    assert seen[12:28, 12:28].std() > 0.2
