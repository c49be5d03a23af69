"""What the pages about the module say of it is so: messages are in the code, buttons and pictures exist."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("slicer.md", "slicer-tutorial.md", "slicer-troubleshooting.md")
_PICTURE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")


def strings() -> list[str]:
    """All texts in the code of library and module; what is filled in is …"""
    found = []
    for folder in ("SegGuidedMMReg", "SegGuidedMMRegLib"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"\{[^{}]*\}", "…", node.value))
                elif isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    found.append("".join(map(str, parts)))
    return found


def labels() -> set[str]:
    """All texts that the panels' files hold."""
    files = (ROOT / "SegGuidedMMReg/Resources/UI").glob("*.ui")
    return {text.text for path in files for text in ET.parse(path).iter("string") if text.text}


def messages() -> list[str]:
    rows = re.findall(r"^\| `([^`]+)`", (DOCS / "slicer-troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    return [row for row in rows if row.strip("…: ")]


def test_each_message_that_is_explained_is_one_of_the_code():
    code = strings()
    assert len(messages()) > 50
    unknown = []
    for message in messages():
        parts = [part.strip() for part in message.split("…") if part.strip(" .:;,()")]
        if not any(all(part in text for part in parts) for text in code):
            unknown.append(message)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_each_picture_and_page_that_is_linked_is_there(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (DOCS / link.split("#")[0]).exists()] == []


def test_the_tutorial_shows_all_panels_and_names_where_the_images_come_from():
    text = (DOCS / "slicer-tutorial.md").read_text(encoding="utf-8")
    shown = {Path(link).name for link in _PICTURE.findall(text)}
    steps = ("setup", "study", "annotate", "train", "register", "review", "export")
    assert {f"{step}-light.png" for step in steps} <= shown
    assert {"views-contours.png", "views-checkerboard.png", "views-deformation.png"} <= shown
    assert "56rmx5bjcr" in text
    assert "CC BY 4.0" in text


def test_each_button_and_field_that_the_tutorial_names_is_in_a_panel():
    """Words in *italics* there are what the user reads on the screen."""
    text = (DOCS / "slicer-tutorial.md").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("**", "")
    known = {re.sub(r"\s+\(?Ctrl.*", "", label, flags=re.DOTALL).rstrip(":") for label in labels()}
    known |= set(strings())
    ours = [word for word in re.findall(r"(?<!\w)\*(?! )([^*\n]+)\*(?!\w)", text) if word not in _SLICERS]
    assert len(ours) > 30
    assert sorted({word for word in ours if word not in known}) == []


_SLICERS = {
    "Edit → Application Settings → Modules",
    "Additional module paths",
    "Add",
    "PyTorch",
    "Registration",
    "Masking",
    "Transform",
    "Transforms",
    "Data",
    "Code",
    "Description",
    "Transform hierarchy",
    "Harden transform",
    "Python Console",
    "View → Extensions Manager",
    "View → Python Console",
    "File → Add Data",
    "Segment Editor",
    "Multimodal Image Registration Guided by Few Segmentations from One Modality",
}
"""What Slicer itself shows."""
