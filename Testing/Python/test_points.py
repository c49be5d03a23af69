"""Point lists: CSV, Slicer's JSON and fcsv."""

from __future__ import annotations

import numpy as np
import pytest

from SegGuidedMMRegLib.points import PointList, PointsError, read_points, write_points

POINTS = PointList(
    ("notch", "tip, lateral", "ü"), np.array([[1.5, -2.0, 3.25], [0.1, 0.2, 0.3], [-40.0, 5.0, 6.0]])
)


@pytest.mark.parametrize("name", ["p.csv", "p.mrk.json", "p.fcsv"])
def test_points_come_back_with_their_names(tmp_path, name):
    write_points(POINTS, tmp_path / name)
    back = read_points(tmp_path / name)
    assert back.names == POINTS.names
    np.testing.assert_array_equal(back.points_lps_mm, POINTS.points_lps_mm)


@pytest.mark.parametrize("kind", ["Json", "Fiducial"])
def test_slicer_and_this_library_read_each_others_points(tmp_path, slicer_scene, kind):
    import slicer

    suffix = ".mrk.json" if kind == "Json" else ".fcsv"
    storage = getattr(slicer, f"vtkMRMLMarkups{kind}StorageNode")()
    slicer_scene.AddNode(storage)
    node = slicer_scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    write_points(POINTS, tmp_path / f"ours{suffix}")
    storage.SetFileName(str(tmp_path / f"ours{suffix}"))
    assert storage.ReadData(node) == 1
    assert [node.GetNthControlPointLabel(n) for n in range(3)] == list(POINTS.names)
    for n, (x, y, z) in enumerate(POINTS.points_lps_mm):
        np.testing.assert_allclose(node.GetNthControlPointPosition(n), (-x, -y, z), atol=1e-6)

    storage.SetFileName(str(tmp_path / f"theirs{suffix}"))
    assert storage.WriteData(node) == 1
    back = read_points(tmp_path / f"theirs{suffix}")
    assert back.names == POINTS.names
    np.testing.assert_allclose(back.points_lps_mm, POINTS.points_lps_mm, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "name,x,y,z,coordinate_system\na,1,2,3,RAS\n",
        "# coordinate system: RAS\nLabel,X,Y,Z\na,1,2,3\n",
        "\ufeffname;x;y;z;coordinate_system\na;1;2;3;ras\n",
    ],
)
def test_ras_points_of_a_table_become_lps(tmp_path, text):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv").points_lps_mm, [[-1, -2, 3]])


@pytest.mark.parametrize(
    ("system", "expected"), [("0", (-1, -2, 3)), ("RAS", (-1, -2, 3)), ("LPS", (1, 2, 3)), ("1", (1, 2, 3))]
)
def test_fcsv_says_its_coordinate_system(tmp_path, system, expected):
    text = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n# columns = id,x,y,z\n"
    (tmp_path / "p.fcsv").write_text(text + "1,1,2,3\n")
    np.testing.assert_array_equal(read_points(tmp_path / "p.fcsv").points_lps_mm, [expected])


def test_undefined_markups_are_left_out(tmp_path):
    (tmp_path / "p.mrk.json").write_text(
        '{"markups": [{"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": ['
        '{"label": "a", "position": [1, 2, 3]}, {"label": "b", "positionStatus": "undefined"}]}]}'
    )
    back = read_points(tmp_path / "p.mrk.json")
    assert back.names == ("a",)
    np.testing.assert_array_equal(back.points_lps_mm, [[-1, -2, 3]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "name,x,y\na,1,2\n", "columns name, x, y, z"),
        ("p.csv", "name,x,y,z\na,1,2,left\n", "'left' is no coordinate"),
        ("p.csv", "name,x,y,z,coordinate_system\na,1,2,3,IJK\n", "LPS or RAS"),
        ("p.mrk.json", "{}", "no markups"),
        ("p.txt", "", "end in one of"),
    ],
)
def test_what_is_wrong_with_a_points_file_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PointsError, match=message) as caught:
        read_points(tmp_path / name)
    assert name in str(caught.value)
