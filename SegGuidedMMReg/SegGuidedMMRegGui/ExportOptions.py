"""What is written of each pair: the check boxes, as options of `segmmreg export`, kept with the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

import ctk
from SegGuidedMMRegGui import Widgets

_TICKS = {
    "exportForward": "forwardBox",
    "exportInverse": "inverseBox",
    "exportH5": "h5Box",
    "exportNrrd": "nrrdBox",
    "exportNifti": "niftiBox",
    "exportImage": "imageBox",
    "exportLabels": "labelsBox",
    "exportReport": "reportBox",
    "exportTable": "tableBox",
    "exportOnlyAccepted": "acceptedBox",
    "exportFailed": "failedBox",
}
"""Fields of the parameter node, and their check boxes."""
_OTHERS = {
    "exportFolder": ("folderPath", "currentPath"),
    "exportSpacing": ("spacingBox", "value"),
    "exportVolumes": ("volumesBox", "currentText"),
}
_FILTERS = ("acceptedBox", "failedBox")
_FORMATS = {".h5": "h5Box", ".nrrd": "nrrdBox", ".nii.gz": "niftiBox"}
_DIRECTIONS = {"forward": "forwardBox", "inverse": "inverseBox"}
_OUTPUTS = {"image": "imageBox", "labels": "labelsBox", "report": "reportBox", "table": "tableBox"}


class ExportOptions:
    """The options of the panel; `ui` holds its widgets by name."""

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        ui.folderPath.filters = ctk.ctkPathLineEdit.Dirs

    def connect(self, changed: Callable[[], None]) -> None:
        """Call `changed` when another file, format or folder is wanted (not of the filters of pairs)."""
        ui = self._ui
        Widgets.connect_path(ui.folderPath, changed)
        Widgets.connect(ui.spacingBox, "valueChanged(double)", changed)
        Widgets.connect(ui.volumesBox, "currentIndexChanged(int)", changed)
        for name in _TICKS.values():
            if name not in _FILTERS:
                Widgets.connect(getattr(ui, name), "toggled(bool)", changed)

    def load(self, parameters: Any) -> None:
        """Take the choices of the parameter node."""
        for field, name in _TICKS.items():
            getattr(self._ui, name).checked = getattr(parameters, field)
        for field, (name, value) in _OTHERS.items():
            setattr(getattr(self._ui, name), value, getattr(parameters, field))

    def keep(self, parameters: Any) -> None:
        """Put the choices into the parameter node."""
        for field, name in _TICKS.items():
            setattr(parameters, field, bool(getattr(self._ui, name).checked))
        for field, (name, value) in _OTHERS.items():
            setattr(parameters, field, getattr(getattr(self._ui, name), value))

    def words(self) -> list[str]:
        """The options of `segmmreg export`, without the pairs."""
        ui, directions = self._ui, self._ticked(_DIRECTIONS)
        outputs = [*(["transforms"] if directions else []), *self._ticked(_OUTPUTS)]
        words = ["--outputs", *outputs]
        if directions:
            words += ["--directions", *directions, "--formats", *self._ticked(_FORMATS)]
        if directions and ui.spacingBox.value > 0:
            words += ["--spacing", f"{ui.spacingBox.value:g}"]
        words += ["--volumes", ui.volumesBox.currentText]
        return [*words, *(["--failed"] if ui.failedBox.checked else []), "--out", ui.folderPath.currentPath]

    def needs(self) -> list[str]:
        """What is missing before anything can be written."""
        needs, directions = [], self._ticked(_DIRECTIONS)
        if not directions and not self._ticked(_OUTPUTS):
            needs.append(_("something to write: transforms, image, labels, report or table"))
        if directions and not self._ticked(_FORMATS):
            needs.append(_("a format of the transforms"))
        return needs if self._ui.folderPath.currentPath else [*needs, _("a folder to write to")]

    def show_use(self) -> None:
        """Only what says something can be chosen."""
        ui, has_transforms = self._ui, bool(self._ticked(_DIRECTIONS))
        for name in (*_FORMATS.values(), "spacingBox"):
            getattr(ui, name).enabled = has_transforms
        ui.volumesBox.enabled = ui.imageBox.checked or ui.labelsBox.checked

    def _ticked(self, boxes: dict[str, str]) -> list[str]:
        return [word for word, name in boxes.items() if getattr(self._ui, name).checked]
