"""The harness has the manners measured in Slicer's desktop, so that a module cannot lean on others."""

from __future__ import annotations

import enum
import gc
import os
import weakref
from pathlib import Path

import pytest
import slicer_harness

slicer = slicer_harness.start()

from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

import ctk
import qt


@pytest.fixture
def no_slot_errors():
    slicer_harness.slot_errors.clear()
    yield slicer_harness.slot_errors
    slicer_harness.slot_errors.clear()


def test_properties_are_attributes_and_cannot_be_called():
    button = qt.QPushButton("go")
    assert (button.text, button.enabled) == ("go", True)
    button.enabled = False
    button.setText("stop")
    assert (button.text, button.enabled) == ("stop", False)
    for value in (button.text, button.width, qt.QSpinBox().value):
        with pytest.raises(TypeError):
            value()


def test_what_is_no_property_is_a_method():
    box = qt.QCheckBox()
    assert box.isChecked() is False
    assert qt.QTableWidgetItem("a").text() == "a"
    assert box.layout() is None


def test_name_is_the_object_name():
    button = qt.QPushButton()
    button.name = "go"
    assert button.objectName == button.name == "go"


def test_an_unknown_attribute_can_be_neither_read_nor_set():
    button = qt.QPushButton()
    with pytest.raises(AttributeError):
        _ = button.colour
    with pytest.raises(AttributeError, match="not allowed"):
        button.colour = "red"


def test_a_property_that_can_only_be_read_cannot_be_set():
    with pytest.raises(AttributeError, match="read only"):
        qt.QComboBox().count = 3


def test_a_timer_rings_once_by_its_method_alone():
    """PythonQt has no property `singleShot`: that is the name of a function (PythonQtClassInfo.cpp)."""
    timer = qt.QTimer()
    with pytest.raises(AttributeError, match="singleShot"):
        timer.singleShot = True
    timer.setSingleShot(True)
    assert timer.isSingleShot()
    assert callable(timer.singleShot)


def test_slicer_holds_for_good_what_is_called_a_moment_later():
    """Its own `QTimer.singleShot` makes a timer that nobody deletes (Base/Python/slicerqt.py)."""
    rang = []

    class Slot:
        def __call__(self):
            rang.append(self)

    slot = Slot()
    reference = weakref.ref(slot)
    qt.QTimer.singleShot(0, slot)
    slicer_harness.process_until(lambda: rang)
    rang.clear()
    del slot
    gc.collect()
    assert reference() is not None


def test_no_property_takes_none():
    """PythonQt makes the text "None" of it, or raises."""
    with pytest.raises(AttributeError, match="None"):
        qt.QPushButton().text = None


def test_python_subclasses_keep_attributes_and_override_virtuals():
    class Wide(qt.QLabel):
        def __init__(self):
            super().__init__()
            self.mine = 3

        def sizeHint(self):
            return qt.QSize(300, 20)

    label = Wide()
    assert label.mine == 3
    assert label.sizeHint().width() == 300
    label.adjustSize()
    assert isinstance(label, qt.QLabel)
    assert not isinstance(label, qt.QWidget)


def test_keyword_arguments_are_refused():
    with pytest.raises(ValueError, match="keyword"):
        qt.QPushButton(text="a")
    with pytest.raises(ValueError, match="keyword"):
        qt.QSettings().value("a", type=int)
    with pytest.raises(ValueError, match="keyword"):
        qt.QTableWidgetItem(text="a")


def test_connecting_to_an_unknown_signal_returns_false():
    button = qt.QPushButton()
    assert button.connect("clicked(bool)", print) is True
    assert button.connect("pressedHard(bool)", print) is False


def test_a_slot_may_take_fewer_arguments_and_can_be_disconnected(no_slot_errors):
    got, button = [], qt.QPushButton()

    class Listener:
        def onClicked(self):
            got.append("method")

    listener = Listener()
    assert button.connect("clicked(bool)", listener.onClicked)
    button.clicked.connect(lambda: got.append("function"))
    button.click()
    assert got == ["method", "function"]
    assert button.disconnect("clicked(bool)", listener.onClicked)
    button.click()
    assert got == ["method", "function", "function"]
    assert not no_slot_errors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_slot_raises_is_noted(no_slot_errors, capfd):
    def slot():
        raise RuntimeError("no")

    button = qt.QPushButton()
    button.connect("clicked()", slot)
    button.click()
    assert [str(error) for error in no_slot_errors] == ["no"]


def test_lists_come_back_as_tuples():
    parent = qt.QWidget()
    child = qt.QLabel("a", parent)
    assert parent.children() == (child,)
    dialog = qt.QFileDialog()
    assert isinstance(dialog.nameFilters(), tuple)


def test_classes_do_not_inherit_but_know_what_they_are():
    button = qt.QPushButton()
    assert not isinstance(button, qt.QWidget)
    assert isinstance(button, qt.QPushButton)
    assert type(button) is qt.QPushButton
    assert button.inherits("QWidget")
    assert button.className() == "QPushButton"


def test_many_calls_do_no_harm():
    label = qt.QLabel()
    for _ in range(100_000):
        label.update()


def test_enums_are_integers():
    assert qt.Qt.AlignLeft == qt.Qt.AlignmentFlag.AlignLeft == 1
    assert isinstance(qt.Qt.AlignLeft | qt.Qt.AlignTop, int)
    assert qt.QProcess().state() == 0


def test_a_node_selector_wants_types_then_a_scene_then_a_node_of_these_types():
    selector = slicer.qMRMLNodeComboBox()
    with pytest.raises(ValueError, match="tuple"):
        selector.nodeTypes = "vtkMRMLScalarVolumeNode"
    with pytest.raises(ValueError, match="nodeTypes"):
        selector.setMRMLScene(slicer.mrmlScene)
    selector.nodeTypes = ("vtkMRMLScalarVolumeNode",)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    with pytest.raises(ValueError, match="before setMRMLScene"):
        selector.setCurrentNode(volume)
    selector.setMRMLScene(slicer.mrmlScene)
    with pytest.raises(ValueError, match="is not one of"):
        selector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode"))
    selector.setCurrentNode(volume)
    assert selector.currentNode() is volume
    assert selector.currentNodeID == volume.GetID()
    told = []
    assert selector.connect("currentNodeIDChanged(QString)", told.append)
    volume.SetName("another name")
    volume.Modified()
    assert told == [volume.GetID()]
    selector.setCurrentNode(None)
    volume.SetName("a third name")
    assert told == [volume.GetID(), ""]
    slicer.mrmlScene.Clear(0)


def test_a_folding_button_hides_what_is_in_it():
    folding = ctk.ctkCollapsibleButton()
    label = qt.QLabel("a", folding)
    folding.collapsed = True
    assert label.isHidden()
    folding.collapsed = False
    assert not label.isHidden()


UI = """<ui version="4.0"><class>Panel</class>
<widget class="qMRMLWidget" name="Panel"><layout class="QVBoxLayout">
 <item><widget class="{cls}" name="{name}">{more}</widget></item>
 <item><widget class="QLineEdit" name="title">
   <property name="SlicerParameterName" stdset="0"><string>title</string></property></widget></item>
</layout></widget>
<customwidgets>
 <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
 <customwidget><class>{declared}</class><extends>QWidget</extends><header>h</header></customwidget>
</customwidgets>
<connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
 <receiver>{receiver}</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
GOOD = {
    "cls": "qMRMLNodeComboBox",
    "name": "node",
    "declared": "qMRMLNodeComboBox",
    "receiver": "node",
    "more": '<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist>'
    "</property>",
}


def loaded(tmp_path: Path, **changes: str):
    path = tmp_path / "Panel.ui"
    path.write_text(UI.format(**{**GOOD, **changes}), encoding="utf-8")
    return slicer.util.loadUI(str(path))


def test_a_ui_file_is_loaded_and_the_scene_reaches_its_selectors(tmp_path):
    widget = loaded(tmp_path)
    ui = slicer.util.childWidgetVariables(widget)
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.node.mrmlScene() is slicer.mrmlScene
    assert ui.node.nodeTypes == ("vtkMRMLScalarVolumeNode",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls": "qMRMLNodeChooser"}, "unknown classes qMRMLNodeChooser"),
        ({"name": "title"}, "several widgets are named title"),
        ({"receiver": "nodes"}, "unknown widget"),
        ({"declared": "ctkPathLineEdit"}, "not declared"),
    ],
)
def test_what_a_loader_would_drop_silently_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, **changes)


class Kind(enum.Enum):
    FLAT = 2
    SOLID = 3


@parameterNodeWrapper
class Parameters:
    title: str = "knees"
    folds: bool
    kind: Kind
    place: Path
    volume: slicer.vtkMRMLScalarVolumeNode


class HarnessLogic(ScriptedLoadableModuleLogic):
    pass


def test_parameters_are_kept_in_the_scene_with_their_types():
    parameters = Parameters(HarnessLogic().getParameterNode())
    assert (parameters.title, parameters.folds, parameters.kind) == ("knees", False, Kind.FLAT)
    parameters.kind, parameters.place = Kind.SOLID, Path("a/b")
    parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    again = Parameters(HarnessLogic().getParameterNode())
    assert (again.kind, again.place, again.volume) == (Kind.SOLID, Path("a/b"), parameters.volume)
    for name, wrong, error in (
        ("folds", 1, TypeError),
        ("title", None, ValueError),
        ("volume", 3, TypeError),
    ):
        with pytest.raises(error):
            setattr(parameters, name, wrong)
    slicer.mrmlScene.Clear(0)


@pytest.mark.skipif("SEGMMREG_SLICER_PYTHON" in os.environ, reason="Slicer's own lets it pass, silently")
def test_a_misspelt_parameter_is_refused():
    with pytest.raises(AttributeError):
        Parameters(HarnessLogic().getParameterNode()).titel = "knees"
    slicer.mrmlScene.Clear(0)


def test_a_widget_with_the_name_of_a_parameter_follows_it_both_ways(tmp_path):
    parameters = Parameters(HarnessLogic().getParameterNode())
    ui = slicer.util.childWidgetVariables(loaded(tmp_path))
    tag = parameters.connectGui(ui)
    assert ui.title.text == "knees"
    ui.title.text = "hips"
    assert parameters.title == "hips"
    parameters.title = "hands"
    assert ui.title.text == "hands"
    parameters.disconnectGui(tag)
    ui.title.text = "feet"
    assert parameters.title == "hands"
    slicer.mrmlScene.Clear(0)


def test_a_path_line_does_not_tell_of_an_empty_path_but_that_its_input_is_not_valid():
    edit, paths, valid = ctk.ctkPathLineEdit(), [], []
    assert edit.connect("currentPathChanged(QString)", paths.append)
    assert edit.connect("validInputChanged(bool)", valid.append)
    for path in ("/a", "/b", ""):
        edit.currentPath = path
    assert (paths, valid) == (["/a", "/b"], [True, False])


def test_what_is_to_be_deleted_later_is_deleted():
    button = qt.QPushButton()
    button.deleteLater()
    slicer.app.processEvents()
    with pytest.raises(RuntimeError, match="deleted"):
        _ = button.text


def test_what_only_pyside_knows_is_refused():
    for thing, name in (
        (qt.QTimer(), "remainingTimeAsDuration"),
        (qt.QComboBox(), "setLabelDrawingMode"),
        (qt.QColor(1, 2, 3), "toTuple"),
    ):
        with pytest.raises(AttributeError, match="in PythonQt"):
            getattr(thing, name)


def test_signals_that_were_not_looked_up_are_refused():
    with pytest.raises(AssertionError, match="real_signals"):
        qt.QComboBox().connect("textActivated(QString)", print)


def test_what_is_hidden_in_a_folded_section_stays_hidden_and_what_is_shown_waits():
    section = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(section)
    plain, hidden, late = qt.QLabel("a"), qt.QLabel("b"), qt.QLabel("c")
    for label in (plain, hidden, late):
        layout.addWidget(label)
    section.show()
    hidden.visible = late.visible = False
    section.collapsed = True
    late.visible = True
    assert [label.isVisible() for label in (plain, hidden, late)] == [False, False, False]
    section.collapsed = False
    assert [label.isVisible() for label in (plain, hidden, late)] == [True, False, True]
