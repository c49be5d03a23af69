"""Pictures of the module with a real study: `python Testing/Python/make_screenshots.py STUDY OUT`.

Opens the module without the desktop (slicer_harness), 480 pixels wide, and goes through the six steps with a
copy of STUDY, which must be trained and registered: a case is opened, a pair is registered, one reviewed, an
export planned. OUT gets a picture of each panel in a light and in a dark palette (study-light.png,
study-dark.png …) and the linked views of the review (views-*.png). The copy lies in the folder for temporary
files, under STUDY's name, and is removed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer_harness
from slice_windows import SliceWindow, side_by_side
from slicer_harness import layouts
from slicer_harness.dicom_database import DicomDatabase
from slicer_module import FOLDER, slicer

import qt

WIDTH, _MARGIN, _VIEW, _SCROLL_BAR = 480, 10, 300, 20
_SETTLED_S, _LAYOUT_S, _PATIENCE_S = 1.0, 0.3, 300.0
_DARK = {
    "Window": "#323232",
    "Base": "#242424",
    "AlternateBase": "#2d2d2d",
    "Button": "#3c3c3c",
    "ToolTipBase": "#3c3c3c",
    "Highlight": "#3d6fa5",
}
_LIGHT_TEXT = ("WindowText", "Text", "ButtonText", "ToolTipText", "HighlightedText", "BrightText")


# -- how it looks -------------------------------------------------------------------------------------------
def palette(is_dark: bool) -> Any:
    """Slicer's own light palette, or one like its dark one."""
    style = qt.QApplication.style()
    made = style.standardPalette()
    if not is_dark:
        return made
    for role, colour in _DARK.items():
        made.setColor(getattr(qt.QPalette, role), qt.QColor(colour))
    for role in _LIGHT_TEXT:
        made.setColor(getattr(qt.QPalette, role), qt.QColor("#e8e8e8"))
        made.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor("#808080"))
    made.setColor(qt.QPalette.PlaceholderText, qt.QColor("#909090"))
    return made


def save(rgb: np.ndarray, path: Path, colours: int = 256) -> None:
    """Write a picture in so many colours at most, chosen for it."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    height, width, _ = rgb.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(rgb).reshape(-1, 3), deep=1))
    index = vtk.vtkImageQuantizeRGBToIndex()
    index.SetNumberOfColors(colours)
    index.SetInputData(image)
    index.Update()
    table, chosen = index.GetLookupTable(), []
    for n in range(table.GetNumberOfTableValues()):
        chosen.append(qt.QColor.fromRgbF(*table.GetTableValue(n)[:3]).rgb())
    pixels = vtk_to_numpy(index.GetOutput().GetPointData().GetScalars()).astype(np.uint8)
    indexed = qt.QImage(pixels.tobytes(), width, height, width, qt.QImage.Format_Indexed8)
    indexed.setColorTable(chosen)
    if not indexed.save(str(path), "PNG", 0):
        raise OSError(f"{path} could not be written.")
    print(path)


def grabbed(pixmap: Any) -> np.ndarray:
    """(height, width, RGB) of a QPixmap."""
    image = pixmap.toImage().convertToFormat(qt.QImage.Format_RGB32)
    size = (image.height(), image.bytesPerLine() // 4, 4)
    return np.frombuffer(image.constBits(), np.uint8).reshape(size)[:, : image.width(), 2::-1].copy()


class Window:
    """The module's panel in a scroll area, as Slicer shows it, as high as its contents want to be."""

    def __init__(self, widget: Any) -> None:
        self._widget, self._whole = widget, widget.widget
        self._area = qt.QScrollArea()
        self._area.setWidgetResizable(True)
        self._area.setVerticalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self._area.setFrameShape(qt.QFrame.NoFrame)
        self._area.setWidget(self._whole)
        self._area.resize(WIDTH, 200)
        self._area.show()

    def take(self, section: Any, path: Path, part: Any = None) -> None:
        """Save `path`-light.png and `path`-dark.png: of a part, else from the top to the last section."""
        _make_room(section)
        self._area.setFocus()
        for theme in ("light", "dark"):
            qt.QApplication.setPalette(palette(theme == "dark"))
            self._lay_out()
            height = self._widget.ui.exportButton.geometry.bottom() + _MARGIN
            picture = part.grab() if part else self._whole.grab(qt.QRect(0, 0, WIDTH, height))
            save(grabbed(picture), path.with_name(f"{path.name}-{theme}.png"))

    def _lay_out(self) -> None:
        """Until the panel is as high as its contents are now."""
        until = time.monotonic() + _LAYOUT_S
        while time.monotonic() < until:
            qt.QApplication.processEvents()
            self._area.resize(WIDTH, self._whole.heightForWidth(WIDTH))


def _make_room(section: Any) -> None:
    """Tables show five of their rows, where the panel allows it: in Slicer they would fill a higher panel."""
    for table in section.findChildren(qt.QTableWidget):
        wanted = table.horizontalHeader().sizeHint.height() + _SCROLL_BAR
        wanted += sum(table.rowHeight(row) for row in range(min(table.rowCount, 5)))
        table.setMinimumHeight(max(table.minimumHeight, min(wanted, table.maximumHeight)))


# -- what is done -------------------------------------------------------------------------------------------
class Tour:
    """The six steps with one study, each as a user takes it."""

    def __init__(self, widget: Any, study: Path) -> None:
        self.widget, self._study = widget, study

    def wait(self, reached: Callable[[], Any]) -> None:
        slicer_harness.process_until(reached, _PATIENCE_S)

    def settle(self) -> None:
        """Until no job has run for a moment: panels ask for what they show, one thing after the other."""
        runner, last = self.widget.logic.runner, [time.monotonic()]

        def is_quiet() -> bool:
            if runner.running():
                last[0] = time.monotonic()
            return time.monotonic() - last[0] > _SETTLED_S

        self.wait(is_quiet)

    def setup(self) -> None:
        self.widget.ui.setupButton.collapsed = False
        self.widget.ui.studyButton.collapsed = True

    def study(self) -> None:
        self.widget.ui.setupButton.collapsed = True
        self.widget.panels["study"].open(str(self._study))

    def structures(self) -> Any:
        """The structures of the study, where they are changed."""
        ui = self.widget.panels["study"]._ui
        ui.structuresButton.collapsed = False
        return ui.structuresButton

    def dicom(self) -> Any:
        """The form for a new study, with two patients of a DICOM database listed and chosen."""
        panel = self.widget.panels["study"]
        slicer.dicomDatabase, ui, dicom = _database(), panel._ui, panel.form.dicom._ui
        ui.structuresButton.collapsed, ui.importButton.collapsed = True, False
        ui.sourceEdit.text, ui.targetEdit.text = "mr", "ct"
        dicom.listButton.click()
        self.settle()
        for kind, button in (("t1", dicom.sourceButton), ("ct", dicom.targetButton)):
            dicom.findEdit.text = kind
            dicom.seriesTable.selectAll()
            button.click()
        dicom.findEdit.text = ""
        dicom.seriesTable.clearSelection()
        return ui.importButton

    def annotate(self) -> None:
        """The case that helps most is asked for, which opens it."""
        panel = self.widget.panels["annotate"]
        panel._ui.suggestButton.click()
        self.wait(lambda: panel.desk.case is not None and not panel.desk.is_busy)

    def train(self) -> None:
        """The curves of the last network are looked at."""
        self.settle()
        self.widget.panels["train"]._ui.stagesTable.setCurrentCell(4, 0)

    def prealign(self) -> None:
        """The images of each modality before and after they were aligned roughly."""
        self.widget.panels["train"]._ui.stagesTable.setCurrentCell(0, 0)

    def register(self) -> None:
        """The first test image of each modality."""
        panel, study = self.widget.panels["register"], self.widget.workplace.study
        for box, modality in (("movingCaseBox", study["source"]), ("fixedCaseBox", study["target"])):
            case = next(c for c in study["cases"] if c["modality"] == modality and c["role"] == "test")
            _choose(getattr(panel._ui, box), f"{modality}/{case['name']}")
        panel._ui.startButton.click()
        self.wait(lambda: panel._ui.resultLabel.text or panel._ui.messageLabel.text)

    def review(self) -> None:
        """The first pair of two images of the same side of the body is looked at and accepted."""
        panel, study = self.widget.panels["review"], self.widget.workplace.study
        self.wait(lambda: panel._list.count and not panel._list._timer.active)
        mirrored = {case["name"] for case in study["cases"] if case["mirrored"]}
        row = next(n for n, pair in enumerate(panel._list.pairs) if not mirrored & set(pair.split("--")))
        panel._ui.pairsTable.setCurrentCell(row, 0)
        self.wait(lambda: panel.workplace.pair is not None and panel._name() == panel._list.pairs[row])
        panel._ui.reviewerEdit.text, panel._ui.commentEdit.text = "A. Reader", "joint line fits"
        panel._ui.acceptButton.click()

    def correct(self) -> Any:
        """The structures of the moving image are edited beside the pair."""
        panel = self.widget.panels["review"]
        panel._ui.correctSection.collapsed = False
        panel._ui.editMovingButton.click()
        self.wait(lambda: panel._correct._draw.side is not None)
        return panel._ui.correctSection

    def export(self) -> None:
        """A folder is chosen; what will be written there is shown."""
        panel = self.widget.panels["export"]
        self.wait(lambda: panel._table.pairs)
        panel._ui.folderPath.currentPath = str(Path(tempfile.gettempdir()) / "for_the_clinic")
        self.wait(lambda: panel._current_plan() is not None)

    def views(self, out: Path) -> None:
        """The linked views of the pair that is reviewed, compared in four ways."""
        from SegGuidedMMRegGui.ReviewViews import FIXED, MOVING, OVERLAY

        ui, look = self.widget.panels["review"]._ui, self.widget.panels["review"]._look
        windows = [SliceWindow(slicer, view.name, _VIEW) for view in (FIXED, MOVING, OVERLAY)]
        look.views.fit()

        def row(name: str) -> None:
            self.settle()
            save(side_by_side([window.picture() for window in windows]), out / f"views-{name}.png", 64)

        row("contours")
        ui.modeBox.currentIndex = 2
        row("checkerboard")
        ui.modeBox.currentIndex = 0
        ui.contoursCheck.checked = False
        ui.lookBox.currentIndex = 1
        ui.changeCheck.checked = True
        self.wait(lambda: ui.foldsLabel.text)
        row("deformation")
        print(ui.foldsLabel.text)


def _database() -> DicomDatabase:
    made = DicomDatabase()
    for patient, number in (("P-014", 1), ("P-027", 2)):
        for kind, description in (("MR", "T1 sag TSE"), ("MR", "T2 sag STIR"), ("CT", "Spine bone 1.0")):
            uid = f"1.2.{number}.{description}"
            made.add(None, patient=patient, uid=uid, description=description, kind=kind)
    return made


def _choose(box: Any, text: str) -> None:
    index = next(n for n in range(box.count) if box.itemText(n).startswith(text))
    box.currentIndex = index
    box.activated.emit(index)


def main(study: str, out: str) -> None:
    if not (Path(study) / "study.yaml").is_file():
        sys.exit(f"{study}: holds no study (study.yaml is missing).")
    copy = Path(tempfile.gettempdir()) / Path(study).resolve().name
    if copy.exists():
        sys.exit(f"{copy} is in the way: the copy of the study would lie there. Move it away.")
    Path(out).mkdir(parents=True, exist_ok=True)
    qt.QApplication.setStyle("Fusion")
    layouts.start(slicer)
    widget = slicer_harness.open_module(FOLDER, "SegGuidedMMReg")
    try:
        shutil.copytree(study, copy)
        window = Window(widget)
        _go(Tour(widget, copy), window, Path(out))
        if slicer_harness.slot_errors:
            raise slicer_harness.slot_errors[0]
    finally:
        widget.cleanup()
        shutil.rmtree(copy, ignore_errors=True)


_MORE = {"study": ("structures", "dicom"), "train": ("prealign",), "review": ("correct",)}


def _go(tour: Tour, window: Window, out: Path) -> None:
    ui = tour.widget.ui
    for step in ("setup", *tour.widget.panels):
        section = getattr(ui, f"{step}Button")
        section.collapsed = False
        for name in (step, *_MORE.get(step, ())):
            part = getattr(tour, name)()
            tour.settle()
            window.take(section, out / name, part)
            if name == "review":
                tour.views(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
