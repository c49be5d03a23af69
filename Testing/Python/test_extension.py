"""What Slicer's Extensions Index and its build ask of the extension."""

from __future__ import annotations

import json
import re
import struct

import cmake_lists
import pytest

ROOT = cmake_lists.ROOT


@pytest.mark.parametrize("building", cmake_lists.BUILDINGS)
def test_every_file_is_installed(building):
    expected, listed = cmake_lists.should_hold(building), cmake_lists.hold(building)
    remedy = "run `python Testing/Python/cmake_lists.py`"
    for name, files in expected.items():
        assert files, name
        assert sorted(listed[name]) == files, f"{building}/CMakeLists.txt, {name}: {remedy}"


def metadata() -> dict[str, str]:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'set\(EXTENSION_(\w+) "([^"]+)"\)', text))


def test_the_metadata_are_complete():
    told = metadata()
    assert set(told) == {"HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
    assert told["DEPENDS"] == "PyTorch"
    for name in ("HOMEPAGE", "ICONURL", "SCREENSHOTURLS"):
        assert told[name].startswith("https://")


def test_the_project_has_the_languages_that_slicers_own_cmake_files_compile_with():
    """Without them CMAKE_SIZEOF_VOID_P is empty, and `find_package(Slicer)` refuses the extension as 32 bit
    (CMake/SlicerConfig.cmake.in); the checks of flags in ITKPlatformSpecificChecks.cmake cannot compile."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"^project\(\w+\)$", text, re.MULTILINE)
    assert text.index("project(") < text.index("find_package(Slicer")


def test_icon_and_screenshots_are_where_the_metadata_say():
    told = metadata()
    for name in ("ICONURL", "SCREENSHOTURLS"):
        for url in told[name].split():
            path = url.split("/main/", 1)[1]
            assert (ROOT / path).is_file(), path


def test_each_panel_has_a_small_picture_in_light_and_dark_that_is_not_installed():
    folder = ROOT / "SegGuidedMMReg/Resources/Screenshots"
    steps = ("setup", "study", "annotate", "train", "register", "review", "export")
    parts = ("structures", "dicom", "prealign", "correct")
    wanted = {f"{name}-{theme}.png" for name in (*steps, *parts) for theme in ("light", "dark")}
    pictures = list(folder.glob("*.png"))
    assert wanted <= {path.name for path in pictures}
    assert max(path.stat().st_size for path in pictures) < 150_000
    listed = cmake_lists.hold("SegGuidedMMReg")[cmake_lists.RESOURCES]
    assert not [name for name in listed if "Screenshots" in name]


def test_the_icon_is_128_pixels_wide_and_high():
    data = (ROOT / "SegGuidedMMReg/Resources/Icons/SegGuidedMMReg.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (128, 128)


def test_the_catalogue_entry_agrees_with_the_project():
    project = re.search(r"project\((\w+)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    entry = json.loads((ROOT / f"{project[1]}.json").read_text(encoding="utf-8"))
    assert entry["category"] == "Registration"
    assert entry["build_dependencies"] == metadata()["DEPENDS"].split()
    assert entry["scm_url"] == metadata()["HOMEPAGE"] + ".git"
    assert (ROOT / "LICENSE").is_file()


def test_no_file_holds_the_marks_of_an_unfinished_merge() -> None:
    marks = re.compile(rb"^(<{7} |>{7} )", re.MULTILINE)
    folders = (ROOT / name for name in ("docs", "SegGuidedMMReg", "SegGuidedMMRegLib", "Testing"))
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [
        path for path in files if path.suffix in (".py", ".md", ".txt", ".toml", ".json", ".ui", ".html")
    ]
    assert ROOT / "README.md" in texts
    assert [str(path) for path in texts if marks.search(path.read_bytes())] == []


def test_the_tests_of_a_file_go_to_one_process(request):
    """Where pytest and xdist do not understand each other, nothing is grouped, and nobody is told."""
    is_grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.rpartition("@")[2] == "test_extension" or not is_grouped
