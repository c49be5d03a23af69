"""The classes that Slicer asks for: they wire the panels, the jobs and the scene together."""

import contextlib
import json
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

_GUI = "SegGuidedMMRegGui"


class SegGuidedMMReg(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Segmentation-Guided Registration (SegGuidedMMReg)")
        parent.categories = ["Registration"]
        parent.dependencies = ["Colors", "Markups", "Segmentations", "Terminologies", "Transforms", "Volumes"]
        parent.contributors = ["The SegGuidedMMReg developers"]
        parent.helpText = _(
            "From a few segmentations of one imaging modality: segmentations of two, and smooth, fold-free, "
            "invertible transforms between them, in 2D and 3D."
        )
        parent.acknowledgementText = _(
            "The method is that of Demir and Niethammer, Multimodal Image Registration Guided by Few "
            "Segmentations from One Modality (MIDL 2024)."
        )
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        scene = slicer.mrmlScene
        scene.AddObserver(scene.EndImportEvent, self.onSceneEndImport)

    def onSceneEndImport(self, scene, event):
        """A scene that was saved during a review shows its views, also if the module was never opened."""
        node = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if node is not None and not node.IsLayoutDescription(node.GetViewArrangement()):
            from SegGuidedMMRegGui.ReviewViews import review_layout

            review_layout(scene).register()


@parameterNodeWrapper
class SegGuidedMMRegParameterNode:
    """The user's choices, which are saved with the scene."""

    studyFolder: str = ""
    movingCase: str = ""
    movingVolume: slicer.vtkMRMLScalarVolumeNode
    movingModality: str = ""
    movingMirrored: bool = False
    movingSegmentation: slicer.vtkMRMLSegmentationNode
    movingSegments: str = ""
    movingPoints: slicer.vtkMRMLMarkupsFiducialNode
    fixedCase: str = ""
    fixedVolume: slicer.vtkMRMLScalarVolumeNode
    fixedModality: str = ""
    fixedMirrored: bool = False
    fixedSegmentation: slicer.vtkMRMLSegmentationNode
    fixedSegments: str = ""
    fixedPoints: slicer.vtkMRMLMarkupsFiducialNode
    pairsKind: str = ""
    pairsTemplate: str = ""
    pairsFile: str = ""
    reviewMode: int = 0
    reviewOrientation: int = 0
    reviewLines: int = 0
    reviewSpacing: float = 10.0
    reviewContours: bool = True
    reviewUnwarped: bool = False
    reviewOpacity: float = 0.5
    reviewFlicker: float = 2.0
    reviewSquare: float = 20.0
    reviewRadius: float = 20.0
    exportFolder: str = ""
    exportForward: bool = True
    exportInverse: bool = True
    exportH5: bool = True
    exportNrrd: bool = False
    exportNifti: bool = False
    exportSpacing: float = 0.0
    exportImage: bool = True
    exportLabels: bool = True
    exportVolumes: str = ".nrrd"
    exportReport: bool = False
    exportTable: bool = False
    exportOnlyAccepted: bool = False
    exportFailed: bool = False
    exportLeftOut: str = "[]"
    annotateCase: str = ""
    annotateModality: str = ""
    annotateToDo: bool = False


class SegGuidedMMRegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panels = {}

    def setup(self):
        from SegGuidedMMRegGui.AnnotatePanel import AnnotatePanel
        from SegGuidedMMRegGui.ExportPanel import ExportPanel
        from SegGuidedMMRegGui.JobStrip import JobStrip
        from SegGuidedMMRegGui.RegisterPanel import RegisterPanel
        from SegGuidedMMRegGui.ReviewPanel import ReviewPanel
        from SegGuidedMMRegGui.SetupPanel import SetupPanel
        from SegGuidedMMRegGui.StudyPanel import StudyPanel
        from SegGuidedMMRegGui.TrainPanel import TrainPanel
        from SegGuidedMMRegGui.Widgets import connect, load_ui

        super().setup()
        self.logic = SegGuidedMMRegLogic()
        self.widget, self.ui = load_ui("SegGuidedMMReg")
        self.layout.addWidget(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.strip = JobStrip()
        self.logic.runner.watchers.append(self.strip.watch)
        self.setupPanel = SetupPanel(self.logic.runner, self.onSetupChanged)
        workplace = self.workplace = self.logic.workplace
        self.panels = {
            "study": StudyPanel(workplace),
            "annotate": AnnotatePanel(workplace),
            "train": TrainPanel(workplace),
            "register": RegisterPanel(workplace),
            "review": ReviewPanel(workplace),
            "export": ExportPanel(workplace),
        }
        self._place(self.strip, self.ui.stripFrame)
        self._place(self.setupPanel, self.ui.setupButton)
        for name, panel in self.panels.items():
            self._place(panel, self._section(name))
            connect(self._section(name), "contentsCollapsed(bool)", self._onFolded(name))
            workplace.watchers.append(panel.study_changed)
        workplace.watchers.append(self.onStudyChanged)
        for name in self.panels:
            self._section(name).collapsed = name != "study"
        workplace.steps, workplace.go_to = tuple(self.panels), self.goTo
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.initializeParameterNode()
        self.setupPanel.refresh()
        self.ui.setupButton.collapsed = self.setupPanel.is_ready

    def _section(self, name):
        """Where a step lies: the heading that folds it."""
        return getattr(self.ui, f"{name}Button")

    def _onFolded(self, name):
        return lambda is_folded: self.onFolded(name, is_folded)

    def onFolded(self, name, is_folded):
        """One step at a time: a step that is unfolded folds the others."""
        if name not in self.panels:
            return
        if is_folded:
            self.panels[name].left()
            return
        for other in self.panels:
            if other != name:
                self._section(other).collapsed = True
        self.panels[name].opened()

    def goTo(self, name):
        """Unfold a step."""
        if name in self.panels:
            self._section(name).collapsed = False

    def _unfolded(self):
        return [panel for name, panel in self.panels.items() if not self._section(name).collapsed]

    def _place(self, panel, place):
        layout = place.layout()
        layout.addWidget(panel.widget)

    def enter(self):
        self.initializeParameterNode()
        for panel in self._unfolded():
            panel.opened()

    def exit(self):
        """The choices stay: a study that is still being opened is one of them."""
        for panel in self._unfolded():
            panel.left()

    def cleanup(self):
        """Whatever goes wrong with a panel, the others save what they hold, and all jobs end.

        Slicer calls it again at its end for a module that was reloaded, when the widgets are gone.
        """
        panels, self.panels = self.panels, {}
        self.removeObservers()
        with contextlib.ExitStack() as parts:
            if self.logic is not None:
                parts.callback(self.logic.cleanup)
            for panel in reversed(panels.values()):
                parts.callback(panel.cleanup)

    def initializeParameterNode(self):
        """Take the choices of the scene: another scene, another study."""
        workplace = self.workplace
        workplace.parameters = SegGuidedMMRegParameterNode(self.logic.getParameterNode())
        for panel in self.panels.values():
            panel.choices_changed()
        wanted = workplace.parameters.studyFolder
        if not wanted:
            workplace.close()
        elif wanted != workplace.folder:
            workplace.open(wanted, self.panels["study"].failed)

    def onSceneStartClose(self, caller, event):
        """Nothing that is not saved may be lost, of steps that are folded neither."""
        for panel in self.panels.values():
            panel.left()
        self.workplace.scene_closed()

    def onSceneEndClose(self, caller, event):
        if self.parent.isVisible():
            self.enter()

    def onSceneEndImport(self, caller, event):
        """A scene was loaded: its choices, and its transforms as the library reads them."""
        from SegGuidedMMRegGui.TransformNodes import make_linear

        make_linear(slicer.mrmlScene)
        if self.parent.isVisible():
            self.enter()

    def onStudyChanged(self):
        workplace = self.workplace
        self.strip.show_study(workplace.study["name"] if workplace.study else "")
        if workplace.parameters is not None:
            workplace.parameters.studyFolder = workplace.folder
        if workplace.study is not None:
            self.logic.find_training(workplace.folder, workplace.study["name"])

    def onSetupChanged(self):
        self.strip.show_device(self.setupPanel.device)

    def onReload(self):
        """Reload the package of the panels too, not only this file."""
        for name in [n for n in sys.modules if n == _GUI or n.startswith(f"{_GUI}.")]:
            del sys.modules[name]
        super().onReload()


class SegGuidedMMRegLogic(ScriptedLoadableModuleLogic):
    """What the module can do, without a widget."""

    def __init__(self, parent=None):
        from SegGuidedMMRegGui.JobRunner import JobRunner
        from SegGuidedMMRegGui.Workplace import Workplace

        ScriptedLoadableModuleLogic.__init__(self)
        self.runner = JobRunner()
        self.workplace = Workplace(slicer.mrmlScene, self.runner)

    def find_training(self, folder, name):
        """Follow the training that was started here earlier and still runs, if there is one.

        Returns:
            The job, or None.
        """
        from SegGuidedMMRegGui.DetachedJob import DetachedJob
        from SegGuidedMMRegGui.JobEvents import JobListener

        running = self.runner.running()
        followed = [job for job in running if isinstance(job, DetachedJob) and job.kind == "train"]
        if any(str(job.study) == folder for job in followed):
            return next(job for job in followed if str(job.study) == folder)
        job = DetachedJob.find(Path(folder), "train", JobListener())
        if job is not None:
            self.runner.adopt(_("Training {name}").format(name=name), job)
        return job

    def open_study(self, folder):
        """A trained study for scripts: shows its cases, registers volumes of the scene (`ScriptedStudy`).

        Raises:
            StudyError: if there is no study in the folder, or it cannot be read; saying why.
        """
        from SegGuidedMMRegGui.Scripting import ScriptedStudy
        from SegGuidedMMRegGui.WaitingRunner import WaitingRunner

        return ScriptedStudy(folder, slicer.mrmlScene, WaitingRunner(runner=self.runner))

    def register(self, fixed, moving, study, out=None):
        """Register the volume `moving` to `fixed` with the trained study in the folder `study`.

        Nothing is asked and no window opens; docs/slicer-scripting.md has examples.

        Args:
            fixed, moving: volume nodes, or a `Side` each, where more is known than the image.
            study: folder of the study.
            out: folder for the files, where they shall be kept; those of two cases go into the study.

        Returns:
            The nodes (`PairNodes`): forward, inverse, shown, contours, with status and reasons.

        Raises:
            StudyError, BridgeError, RegistrationError: saying what is wrong, and the remedy.
        """
        with self.open_study(study) as opened:
            return opened.register(fixed, moving, out=out)

    def cleanup(self):
        """End the jobs that end with Slicer."""
        self.workplace.cleanup()
        self.runner.cleanup()


class SegGuidedMMRegTest(ScriptedLoadableModuleTest):
    """Runs in Slicer: Reload and Test, or ctest."""

    def runTest(self):
        self.setUp()
        self.test_a_job_of_the_library_answers()
        self.setUp()
        self.test_a_small_study_from_drawn_images_to_a_registration()

    def setUp(self):
        slicer.mrmlScene.Clear()

    def test_a_job_of_the_library_answers(self):
        import time

        from SegGuidedMMRegGui.JobEvents import JobListener

        logic, results, ends = SegGuidedMMRegLogic(), [], []
        listener = JobListener(result=results.append, finished=ends.append)
        logic.runner.start("info", ("info",), listener)
        until = time.monotonic() + 120
        while not ends and time.monotonic() < until:
            slicer.app.processEvents()
        logic.cleanup()
        self.assertTrue(ends, "The job did not end.")
        self.assertIn(ends[0].exit_code, (0, 1), ends[0].message)
        self.assertEqual(results[0]["facts"][0]["name"], "SegGuidedMMReg")
        self.delayDisplay("Test passed")

    def test_a_small_study_from_drawn_images_to_a_registration(self):
        """Knees are drawn, five labelled, all stages trained; a pair comes closer and nothing folds."""
        import tempfile

        from SegGuidedMMRegGui.PairRegistration import Side
        from SegGuidedMMRegGui.WaitingRunner import WaitingRunner

        logic = SegGuidedMMRegLogic()
        with tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath) as folder:
            end = WaitingRunner(runner=logic.runner).run(("demo", folder, "--small"))
            self.assertTrue(end.is_done, end.message)
            with logic.open_study(Path(folder) / "study") as opened:
                study, bridge = opened.study, opened.bridge
                sides, points = [], []
                for modality in (study.target, study.source):
                    case = next(c for c in study.cases if c.modality == modality and c.landmarks)
                    sides.append(Side(bridge.show_case(case), segmentation=bridge.show_labels(case)))
                    points.append(bridge.show_landmarks(case))
                nodes = opened.register(*sides)
        logic.cleanup()
        self.assertEqual(nodes.status, "ok", nodes.reasons)
        report = json.loads(nodes.forward.GetAttribute("SegGuidedMMReg.Report"))
        self.assertEqual(report["folds"]["total"], 0)
        self.assertGreater(report["mean"]["after"]["dice"], report["mean"]["before"]["dice"])
        apart = [self._mean_distance(*points, through) for through in (None, nodes.forward)]
        self.assertLess(apart[1], apart[0])
        self.delayDisplay("Test passed")

    @staticmethod
    def _mean_distance(fixed, moving, transform):
        """Between points of the same names, mm, those of `fixed` carried by the transform node, if any."""
        import math

        import vtk

        way = vtk.vtkGeneralTransform()
        if transform is not None:
            transform.GetTransformFromWorld(way)
        places = {moving.GetNthControlPointLabel(n): n for n in range(moving.GetNumberOfControlPoints())}
        apart = []
        for n in range(fixed.GetNumberOfControlPoints()):
            other = places.get(fixed.GetNthControlPointLabel(n))
            if other is not None:
                point = way.TransformPoint(fixed.GetNthControlPointPositionWorld(n))
                apart.append(math.dist(point, moving.GetNthControlPointPositionWorld(other)))
        return sum(apart) / len(apart)
