"""The part of the review that looks: how the views compare, brightness, contours, lines, change of volume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SegGuidedMMRegGui import TransformNodes, Views
from SegGuidedMMRegGui.Background import Background
from SegGuidedMMRegGui.ChangeLegend import ChangeLegend
from SegGuidedMMRegGui.Comparison import MODES
from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.JobRunner import Job
from SegGuidedMMRegGui.NodeTags import PREFIX, BridgeError
from SegGuidedMMRegGui.ReviewViews import Brightness, ReviewViews, Shown
from SegGuidedMMRegGui.SceneBridge import PairNodes
from SegGuidedMMRegGui.Steps import in_turns
from SegGuidedMMRegGui.Widgets import connect
from SegGuidedMMRegGui.Workplace import Workplace
from SegGuidedMMRegLib.images import read_image
from SegGuidedMMRegLib.sampling import Image

_LOOKS: tuple[TransformNodes.Look, ...] = ("off", "grid", "arrows")
_AMOUNTS = {
    "blend": ("opacity", 0.01, _("{value:.0f} %"), 100.0, (0, 100)),
    "flicker": ("flickers_per_s", 0.1, _("{value:.1f} / s"), 1.0, (5, 100)),
    "checkerboard": ("square_mm", 0.5, _("{value:.1f} mm"), 1.0, (2, 200)),
    "reveal": ("radius_mm", 0.5, _("{value:.1f} mm"), 1.0, (2, 200)),
}
"""Of each way to compare: what the slider sets, in which steps, how that is said, and how far it goes."""
_CHOICES = {
    "reviewMode": ("modeBox", "currentIndex"),
    "reviewOrientation": ("orientationBox", "currentIndex"),
    "reviewLines": ("lookBox", "currentIndex"),
    "reviewSpacing": ("spacingBox", "value"),
    "reviewContours": ("contoursCheck", "checked"),
    "reviewUnwarped": ("unwarpedCheck", "checked"),
}
"""Parameter of the scene: the widget that shows it, and which property of it."""
_NUMBERS = {
    "reviewOpacity": "opacity",
    "reviewFlicker": "flickers_per_s",
    "reviewSquare": "square_mm",
    "reviewRadius": "radius_mm",
}


class LookPart:
    """Its widgets are those of the review's panel.

    Args:
        workplace: what the steps share.
        ui: the widgets.
        say: shows a message.
    """

    def __init__(self, workplace: Workplace, ui: Any, say: Callable[[str], None]) -> None:
        self._workplace, self._ui, self._say = workplace, ui, say
        self.views = ReviewViews(workplace.scene)
        self._legend = ChangeLegend(ui.legendLabel)
        self._brightness = {"fixed": Brightness(), "moving": Brightness()}
        self._is_ours = False
        self._job: Job | None = None
        self._reading: Background | None = None
        self._place = Path()
        connect(ui.modeBox, "currentIndexChanged(int)", self.onMode)
        connect(ui.amountSlider, "valueChanged(int)", self.onAmount)
        connect(ui.orientationBox, "currentIndexChanged(int)", self.onOrientation)
        for layer in self._brightness:
            for what in ("Brightness", "Contrast"):
                slot = self.onFixedBrightness if layer == "fixed" else self.onMovingBrightness
                connect(getattr(ui, f"{layer}{what}Slider"), "valueChanged(int)", slot)
        connect(ui.plainButton, "clicked(bool)", self.onPlain)
        for box in (ui.contoursCheck, ui.unwarpedCheck):
            connect(box, "toggled(bool)", self.onChecks)
        connect(ui.lookBox, "currentIndexChanged(int)", self.onLook)
        connect(ui.spacingBox, "valueChanged(double)", self.onLook)
        connect(ui.changeCheck, "toggled(bool)", self.onChange)
        connect(ui.changeSlider, "valueChanged(int)", self.onChangeOpacity)

    # -- the pair ---------------------------------------------------------------------------------------
    def show(self, pair: PairNodes | None) -> None:
        """Look at a pair; None gives the user's layout back."""
        self._forget_change()
        if pair is None or pair.forward is None:
            self.views.hide()
            return
        shown = Shown.of(pair)
        self._take_choices()
        try:
            self.views.show(shown)
        except BridgeError as error:
            self._say(str(error))
            return
        for layer, node in (("fixed", shown.fixed), ("moving", shown.warped)):
            self._brightness[layer].of(self._workplace.scene, node)
        self._put_sliders_back()
        self.onChange()

    def close(self) -> None:
        """The module is closed."""
        self.show(None)
        self._legend.close()

    def choices_changed(self) -> None:
        """Take up what the scene says."""
        parameters = self._workplace.parameters
        if parameters is None:
            return
        for parameter, name in _NUMBERS.items():
            setattr(self.views.comparison, name, getattr(parameters, parameter))
        values = {parameter: getattr(parameters, parameter) for parameter in _CHOICES}
        self._is_ours = True
        for parameter, (widget, name) in _CHOICES.items():
            setattr(getattr(self._ui, widget), name, values[parameter])
        self._is_ours = False
        self._take_choices()

    def _keep_choices(self) -> None:
        parameters = self._workplace.parameters
        if parameters is None:
            return
        for parameter, (widget, name) in _CHOICES.items():
            setattr(parameters, parameter, getattr(getattr(self._ui, widget), name))
        for parameter, name in _NUMBERS.items():
            setattr(parameters, parameter, float(getattr(self.views.comparison, name)))

    def _take_choices(self) -> None:
        ui, views = self._ui, self.views
        views.comparison.mode = MODES[ui.modeBox.currentIndex]
        views.shows_contours, views.shows_unwarped = ui.contoursCheck.checked, ui.unwarpedCheck.checked
        views.look, views.spacing_mm = _LOOKS[ui.lookBox.currentIndex], ui.spacingBox.value
        views.orientation = ("", *Views.ORIENTATIONS)[ui.orientationBox.currentIndex]
        self._show_amount()

    # -- comparing --------------------------------------------------------------------------------------
    def onMode(self) -> None:
        if not self._is_ours:
            self._take_choices()
            self._keep_choices()
            self.views.comparison.update()

    def _show_amount(self) -> None:
        """The slider says what it sets in this way of comparing."""
        name, step, _text, _factor, (low, high) = _AMOUNTS[self.views.comparison.mode]
        slider, was_ours = self._ui.amountSlider, self._is_ours
        self._is_ours = True
        slider.setRange(low, high)
        slider.value = round(getattr(self.views.comparison, name) / step)
        self._is_ours = was_ours
        self._say_amount()

    def _say_amount(self) -> None:
        name, _step, text, factor, _range = _AMOUNTS[self.views.comparison.mode]
        self._ui.amountLabel.text = text.format(value=getattr(self.views.comparison, name) * factor)

    def onAmount(self, value: int) -> None:
        if self._is_ours:
            return
        name, step, *_rest = _AMOUNTS[self.views.comparison.mode]
        setattr(self.views.comparison, name, value * step)
        self._say_amount()
        self._keep_choices()
        self.views.comparison.update()

    def onOrientation(self) -> None:
        self._changed(self.views.fit)

    def onChecks(self) -> None:
        self._changed(self.views.update, self.views.fit)

    def onLook(self) -> None:
        self._changed(self.views.update)

    def _changed(self, *then: Callable[[], None]) -> None:
        if self._is_ours:
            return
        self._take_choices()
        self._keep_choices()
        for step in then:
            step()

    # -- brightness -------------------------------------------------------------------------------------
    def onFixedBrightness(self) -> None:
        self._set_brightness("fixed")

    def onMovingBrightness(self) -> None:
        self._set_brightness("moving")

    def _set_brightness(self, layer: str) -> None:
        if not self._is_ours:
            sliders = [getattr(self._ui, f"{layer}{what}Slider") for what in ("Brightness", "Contrast")]
            self._brightness[layer].set(*(slider.value / 100 for slider in sliders))

    def onPlain(self) -> None:
        self._put_sliders_back()
        for brightness in self._brightness.values():
            brightness.set(0.0, 0.0)

    def _put_sliders_back(self) -> None:
        self._is_ours = True
        for layer in self._brightness:
            for what in ("Brightness", "Contrast"):
                getattr(self._ui, f"{layer}{what}Slider").value = 0
        self._is_ours = False

    # -- change of volume -------------------------------------------------------------------------------
    def onChange(self) -> None:
        """Show the map, or take it away; a job makes it."""
        pair, bridge = self._workplace.pair, self._workplace.bridge
        self._forget_change()
        if not self._ui.changeCheck.checked:
            self.views.show_change(None)
            return
        if pair is None or pair.forward is None or bridge is None or not self.views.is_shown:
            return
        self._place = bridge.temporary_folder("change-")
        path = self._place / "change.nrrd"
        arguments = ("jacobian", str(pair.folder / "forward.h5"), str(path))

        def finished(end: JobEnd) -> None:
            if self._job is not job:
                return
            self._job = None
            if end.is_done:
                done = lambda image: self._show_change(pair, image)  # noqa: E731
                self._reading = Background(lambda: read_image(path), done, self._say)
            elif not end.cancelled:
                self._say(end.message)

        job: Job | None = None
        try:
            title = _("Change of volume of {pair}").format(pair=pair.folder.name)
            job = self._workplace.runner.start(title, arguments, JobListener(finished=finished))
        except RuntimeError as error:
            self._say(str(error))
        self._job = job

    def _show_change(self, pair: PairNodes, image: Image) -> None:
        bridge, reading = self._workplace.bridge, self._reading
        shutil.rmtree(self._place, ignore_errors=True)
        if bridge is None:
            return

        def go_on(step: Callable[[], None]) -> None:
            if reading is not self._reading:
                return
            if pair is self._workplace.pair and self.views.is_shown and bridge is self._workplace.bridge:
                step()
            else:
                self._reading = None

        in_turns(bridge.showing_volume_change_map(image, pair), go_on, self._show_map)

    def _show_map(self, node: Any) -> None:
        self._reading = None
        self._ui.foldsLabel.text = _("{count} voxels fold.").format(count=node.GetAttribute(f"{PREFIX}Folds"))
        self._legend.show(node)
        self.views.show_change(node, self._ui.changeSlider.value / 100)

    def onChangeOpacity(self, value: int) -> None:
        self.views.set_change_opacity(value / 100)

    def _forget_change(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
        if self._reading is not None:
            self._reading.forget()
            self._reading = None
        self._ui.foldsLabel.text = ""
        self._legend.clear()
