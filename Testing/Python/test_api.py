"""What other programs import: the names, their types, and every Python example of the docs."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from trained_study import SOURCE, TARGET, copy_of, moved_by, values

import SegGuidedMMRegLib as library
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.samples import Sample

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def desk(finished, tmp_path, monkeypatch):
    """A folder as a reader of the docs would have it: a study, folders of images, a pair of new images."""
    copy_of(finished.study, tmp_path / "knees")
    for name, what, modality in (
        ("dxa", "images", SOURCE),
        ("dxa_labels", "labels", SOURCE),
        ("radiographs", "images", TARGET),
    ):
        shutil.copytree(finished.input / what / modality, tmp_path / name)
    for name, modality in (("new_dxa", SOURCE), ("new_radiograph", TARGET)):
        case = finished.study.cases_of(modality, "test")[0]
        for what, suffix in (("images", ".nrrd"), ("labels", ".seg.nrrd"), ("landmarks", ".csv")):
            shutil.copy(finished.file(what, modality, case.name), tmp_path / f"{name}{suffix}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.xdist_group("trained")
@pytest.mark.parametrize("page", ["api.md", "events.md"])
def test_the_examples_of_the_docs_run(page, desk, capsys) -> None:
    names: dict[str, object] = {"__name__": "example"}
    blocks = examples(page)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out
    if page == "api.md":
        assert names["result"].problems == ()  # type: ignore[attr-defined]
        same = names["labels"].array == names["labels_of_case"].array  # type: ignore[attr-defined]
        assert same.mean() > 0.99, "the file is the case"
        assert names["page"].is_file()  # type: ignore[attr-defined]


def test_the_examples_of_the_docs_have_the_types_that_they_seem_to_have(tmp_path) -> None:
    code = "\n".join(block for block in examples("api.md"))
    code += (
        "\nreveal_type(study)\nreveal_type(labels)\nreveal_type(result.forward)\nreveal_type(tally.failed)\n"
    )
    (tmp_path / "example.py").write_text(code)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", tmp_path / "example.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=DOCS.parent,
    )
    assert "error" not in checked.stdout, checked.stdout
    assert re.findall(r'type is "[\w.]*?(\w+)"', checked.stdout) == [
        "Study",
        "Image",
        "SpatialTransform",
        "int",
    ]


def test_all_names_are_there_and_have_one_home() -> None:
    assert sorted(library.__all__) == list(library.__all__)
    home_of = {name: home for home, names in library._HOMES.items() for name in names}
    assert {*home_of, "metrics"} == set(library.__all__)
    for name, home in home_of.items():
        module = importlib.import_module(f"SegGuidedMMRegLib.{home}")
        assert getattr(library, name) is getattr(module, name)
        assert getattr(library, name).__doc__, f"{name} does not say what it is"
    with pytest.raises(AttributeError, match="no attribute 'Registrat'"):
        library.Registrat  # noqa: B018
    assert set(library.__all__) <= set(dir(library))


def test_every_name_is_on_the_page() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in library.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_importing_is_light_and_floors_below_need_no_torch() -> None:
    code = (
        "import sys, SegGuidedMMRegLib\n"
        "assert not {'torch', 'numpy', 'SimpleITK', 'pydantic'} & set(sys.modules)\n"
        "for heavy in ('torch', 'monai', 'icon_registration', 'lightning'): sys.modules[heavy] = None\n"
        "from SegGuidedMMRegLib import Event, Image, Study, metrics, read_transform, study_from_folders\n"
        "sys.modules['pydantic'] = None\n"
        "import importlib; importlib.reload(sys.modules['SegGuidedMMRegLib.events'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_events_need_the_standard_library_alone() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom SegGuidedMMRegLib.events import Event\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(str(new - sys.stdlib_module_names - {'SegGuidedMMRegLib'}) if "
        "new - sys.stdlib_module_names - {'SegGuidedMMRegLib'} else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- images in memory -----------------------------------------------------------------------------------
def test_an_array_is_an_image_like_that_of_simpleitk() -> None:
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    theirs = sitk.GetImageFromArray(array)
    theirs.SetSpacing((0.5, 0.75, 2.0))
    theirs.SetOrigin((1.0, -2.0, 3.0))
    ours = Image.from_array(array, (0.5, 0.75, 2.0), (1.0, -2.0, 3.0))
    known = Image.from_sitk(theirs)
    assert ours.grid == known.grid
    assert np.array_equal(ours.array, known.array)
    flat = sitk.GetImageFromArray(array[0])
    flat.SetSpacing((0.5, 0.5))
    assert Image.from_array(array[0], 0.5).grid == Image.from_sitk(flat).grid
    with pytest.raises(ValueError, match="one an axis"):
        Image.from_array(array, (1.0, 1.0))
    with pytest.raises(ValueError, match="two or three axes"):
        Image.from_array(array[0, 0], 1.0)


@pytest.mark.xdist_group("trained")
def test_a_file_a_case_and_an_image_in_memory_are_the_same_image(finished) -> None:
    study = finished.study
    case = study.cases_of(TARGET, "test")[0]
    path = finished.file("images", TARGET, case.name)
    by_case, by_name = Sample.of(study, case), Sample.of(study, case.name)
    assert by_case.case == by_name.case == case
    assert Sample.of(study, by_case, SOURCE) is by_case
    in_memory, from_file = Sample.of(study, study.read_image(case), TARGET), Sample.of(study, path, TARGET)
    np.testing.assert_array_equal(in_memory.study_to_case, from_file.study_to_case)
    np.testing.assert_array_equal(in_memory.image.array, from_file.image.array)
    for image, words in ((path, str(path)), (in_memory.image, "image in memory")):
        with pytest.raises(ValueError, match=re.escape(words)):
            Sample.of(study, image)
    with pytest.raises(ValueError, match="mammogram"):
        Sample.of(study, path, "mammogram")
    with pytest.raises(ValueError, match="is empty"):
        Sample.of(study, Image(in_memory.image.array * 0, in_memory.image.grid), TARGET)


@pytest.mark.xdist_group("trained")
def test_given_segmentations_take_the_place_of_the_predicted_ones(finished, tmp_path) -> None:
    study, registrar = finished.study, library.Registrar(finished.study)
    moving, fixed = (study.cases_of(m, "test")[0] for m in (SOURCE, TARGET))
    files = [finished.file("labels", c.modality, c.name) for c in (moving, fixed)]
    given = registrar.register_images(moving, fixed, moving_labels=files[0], fixed_labels=files[1])
    predicted = registrar.register_images(moving, fixed)
    assert not [text for text in predicted.warnings if "uncertain" in text]
    doubted = library.Registrar(finished.study)
    doubted._uncertainty = 2.0
    one_given = doubted.register_images(moving, fixed, fixed_labels=files[1])
    assert not [text for text in one_given.warnings if "uncertain" in text]
    left = doubted.register_images(moving, fixed)
    assert [text for text in left.warnings if "only 0% of the way from the pre-alignment" in text]
    given.save(tmp_path, [".h5", ".nrrd"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("forward.h5", "forward.nrrd"),
        *("inverse.h5", "inverse.nrrd"),
    ]
    target = np.argwhere(values(finished.file("labels", TARGET, fixed.name)) == study.structures[0].value)
    points = given.forward.field.grid.voxels_to_points(target[::9, ::-1])
    as_written = moved_by(sitk.ReadTransform(str(tmp_path / "forward.h5")), points)
    np.testing.assert_allclose(given.forward.transform_points(points), as_written, atol=0.05)
    assert np.abs(predicted.forward.transform_points(points) - as_written).max() > 0.1
