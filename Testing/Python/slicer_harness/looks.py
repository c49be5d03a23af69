"""How the stand-ins look: as Slicer's widgets do in plain, so that pictures of panels are complete."""

from __future__ import annotations

from slicer_harness.pythonqt import QtCore, QtGui, QtWidgets, native

_MARGIN = 6


def heading_height(widget: QtWidgets.QWidget) -> int:
    """Of the button that folds a section, in pixels."""
    return native(widget, "fontMetrics")().height() + 2 * _MARGIN


def draw_heading(widget: QtWidgets.QWidget, text: str, is_folded: bool) -> None:
    """A flat button over the whole width with an arrow, as ctkCollapsibleButton."""
    painter, option = QtWidgets.QStylePainter(widget), QtWidgets.QStyleOptionButton()
    option.initFrom(widget)
    height = heading_height(widget)
    option.rect.setHeight(height)
    option.state |= QtWidgets.QStyle.State_Raised
    painter.drawControl(QtWidgets.QStyle.CE_PushButtonBevel, option)
    arrow = QtWidgets.QStyleOption()
    arrow.initFrom(widget)
    arrow.rect = QtCore.QRect((height - 12) // 2, (height - 12) // 2, 12, 12)
    painter.drawPrimitive(
        QtWidgets.QStyle.PE_IndicatorArrowDown if is_folded else QtWidgets.QStyle.PE_IndicatorArrowUp, arrow
    )
    option.rect.setLeft(height)
    painter.drawItemText(
        option.rect,
        QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter | QtCore.Qt.TextHideMnemonic,
        option.palette,
        bool(option.state & QtWidgets.QStyle.State_Enabled),
        text,
        QtGui.QPalette.ButtonText,
    )


def draw_combo(widget: QtWidgets.QWidget, text: str) -> None:
    """A combo box that shows this text, as qMRMLNodeComboBox."""
    painter, option = QtWidgets.QStylePainter(widget), QtWidgets.QStyleOptionComboBox()
    option.initFrom(widget)
    option.currentText = text
    painter.drawComplexControl(QtWidgets.QStyle.CC_ComboBox, option)
    painter.drawControl(QtWidgets.QStyle.CE_ComboBoxLabel, option)


def combo_height() -> int:
    """How high a combo box wants to be."""
    return native(QtWidgets.QComboBox(), "sizeHint")().height()
