"""Registering two volumes of the scene: write what the child process needs, run it, show its result.

No window opens and nothing is asked: errors are exceptions. A user interface calls `prepare`, asks the worker
for `worker_request`, and calls `load`; a script calls `register`, which runs the command for it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from SegGuidedMMRegGui import PointNodes, SegmentationNodes, VolumeNodes
from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.PairFiles import PairResult, read_pair
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.Steps import Steps, at_once, beside, nothing
from SegGuidedMMRegGui.Unchanged import Unchanged
from SegGuidedMMRegGui.VolumeNodes import WorldImage
from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.images import read_image, write_image, write_labels
from SegGuidedMMRegLib.points import write_points
from SegGuidedMMRegLib.sampling import Image
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Case

_LONGEST_NAME = 60


class Runner(Protocol):
    """Runs `python -m SegGuidedMMRegLib ARGUMENTS --events` and waits for its end (`WaitingRunner`)."""

    def run(self, arguments: Sequence[str], listener: JobListener | None = None) -> JobEnd:
        """Run the command; `listener` hears what it tells."""
        ...


class RegistrationError(RuntimeError):
    """The child process ended without a result.

    Attributes:
        code: of docs/events.md; "" if the process told none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Side:
    """One of the two images of a registration.

    Attributes:
        node: a volume of the scene: a case of the study, or any other.
        segmentation: segmentation node to use instead of the predicted one.
        segments: name of structure → id or name of a segment; all that fit by name without it.
        points: point list; points of the same names on both sides shall meet.
        modality: name, for a volume that is no case of the study; without it a moving one is of the source
            and a fixed one of the target.
        mirrored: whether a volume that is no case of the study shows the other side of the body.
    """

    node: Any
    segmentation: Any = None
    segments: Mapping[str, str] | None = None
    points: Any = None
    modality: str | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Request:
    """A registration that is ready to run, by a command (`arguments`) or the warm worker (`worker_request`).

    Attributes:
        study: its folder.
        images: moving and fixed as the worker is told of them (docs/worker.md).
        folder: where the result will lie.
        is_in_study: whether that is the place of the pair in the study.
        subject: `moving--fixed`.
        fixed, moving: the volume nodes.
        moving_file: the moving image as it is registered.
        moving_state: of the moving node, when that was read.
        segmentations: the segmentation nodes to use instead of predictions.
        inputs: folder of what is written for the child process.
        writes: what writes it.
        notes: what the user should know, a sentence each.
    """

    study: Path
    images: Mapping[str, Mapping[str, Any]]
    folder: Path
    is_in_study: bool
    subject: str
    fixed: Any
    moving: Any
    moving_file: Path
    moving_state: str
    segmentations: Mapping[str, Any]
    inputs: Path
    writes: tuple[Callable[[], object], ...]
    notes: tuple[str, ...]

    def write(self) -> None:
        """Write the files for the child process; this may be done in any thread."""
        for write in self.writes:
            write()

    @property
    def predicted(self) -> tuple[str, ...]:
        """Of moving and fixed, those whose segmentation is predicted."""
        return tuple(name for name, image in self.images.items() if "labels" not in image)

    def prediction_request(self, name: str) -> dict[str, Any]:
        """What to ask the worker for, to have the segmentation of moving or fixed that it has predicted."""
        image = {k: v for k, v in self.images[name].items() if k != "landmarks"}
        return {"do": "segment", "images": [image], "out": str(self.inputs / f"{name}-predicted")}

    @property
    def worker_request(self) -> dict[str, Any]:
        """What to ask the worker for (`WorkerClient.ask`)."""
        return {"do": "register", **self.images, "out": str(self.folder)}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The same of `python -m SegGuidedMMRegLib`."""
        names = [str(image.get("case") or image["file"]) for image in self.images.values()]
        options = [word for name, image in self.images.items() for word in _options(name, image)]
        out = () if self.is_in_study else ("--out", str(self.folder))
        return ("register", str(self.study), *names, *options, *out)


class PairRegistration:
    """Registers volumes of the scene with the study of `bridge`.

    Args:
        bridge: to the scene.
        runner: starts the child process of `register`; `prepare` and `load` need none.
        between: called by `register` between its short steps in the scene, to let the windows live.
    """

    def __init__(
        self, bridge: SceneBridge, runner: Runner | None = None, between: Callable[[], object] = nothing
    ) -> None:
        self._bridge, self._runner, self._between = bridge, runner, between

    def register(
        self,
        fixed: Any,
        moving: Any,
        *,
        out: Path | None = None,
        listener: JobListener | None = None,
    ) -> PairNodes:
        """Register `moving` to `fixed` and show the result; returns when it is there.

        Args:
            fixed, moving: volume nodes, or a `Side` each, where more is known than the image.
            out: new folder for the result. Without it that of two cases goes into the study, any other into a
                temporary folder, which goes with the bridge; the nodes stay.
            listener: hears what the child process tells.

        Returns:
            the nodes. `status` is "failed" where the result is no good registration; `reasons` say why.

        Raises:
            BridgeError: naming the node that cannot be used, and the remedy.
            RegistrationError: if the child process ends without a result.
        """
        if self._runner is None:
            raise TypeError("A runner is needed to register.")
        request = at_once(self.describing(fixed, moving, out=out), self._between)
        request.write()
        end = self._runner.run(request.arguments, listener)
        if end.cancelled:
            raise RegistrationError("The registration was cancelled.", ErrorCode.INTERRUPTED.value)
        if end.message or end.exit_code not in (0, 1):
            raise RegistrationError(end.message or f"The registration ended with {end.exit_code}.", end.code)
        return at_once(self.showing(request, read_pair(request.folder)), self._between)

    def prepare(self, fixed: Any, moving: Any, *, out: Path | None = None) -> Request:
        """Write what the child process needs, and say how to start it (as `register`)."""
        request = self.describe(fixed, moving, out=out)
        request.write()
        return request

    def describe(self, fixed: Any, moving: Any, *, out: Path | None = None) -> Request:
        """The same, with nothing written yet (`Request.write`)."""
        return at_once(self.describing(fixed, moving, out=out))

    def describing(self, fixed: Any, moving: Any, *, out: Path | None = None) -> Steps[Request]:
        """`describe` in short steps. Points are read in the first one, all that is large later.

        What is removed or changed before the last step is refused: both sides shall be of one moment. Given
        up, it leaves nothing behind.
        """
        sides = {
            name: side if isinstance(side, Side) else Side(side)
            for name, side in (("moving", moving), ("fixed", fixed))
        }
        self._refuse(sides)
        points = {name: side.points and PointNodes.read_points(side.points) for name, side in sides.items()}
        guards = [guard for side in sides.values() for guard in _guards(side)]
        folder = self._bridge.temporary_folder("register-")
        inputs = folder / "inputs"
        try:
            state = yield from VolumeNodes.stating(sides["moving"].node)
            written = {}
            for name, side in sides.items():
                written[name] = yield from self._reading(side, inputs / name, name)
                _give_points(written[name], side, points[name], inputs / name)
            for guard in guards:
                guard.check()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        cases = written["moving"].case, written["fixed"].case
        if is_in_study := cases[0] is not None and cases[1] is not None and out is None:
            result = self._bridge.study.registration_folder(cases[0], cases[1])
        else:
            result = folder / "result" if out is None else Path(out)
        return Request(
            self._bridge.study.folder,
            {name: side.image for name, side in written.items()},
            result,
            is_in_study,
            f"{written['moving'].name}--{written['fixed'].name}",
            sides["fixed"].node,
            sides["moving"].node,
            written["moving"].path,
            state,
            {name: side.segmentation for name, side in sides.items() if side.segmentation is not None},
            inputs,
            tuple(write for side in written.values() for write in side.writes),
            tuple(note for side in written.values() for note in side.notes),
        )

    def _refuse(self, sides: Mapping[str, Side]) -> None:
        """What needs no reading to be seen."""
        if sides["moving"].node.GetID() == sides["fixed"].node.GetID():
            raise BridgeError(
                f"Moving and fixed are both {sides['fixed'].node.GetName()!r}. Choose two volumes."
            )
        if (sides["moving"].points is None) != (sides["fixed"].points is None):
            raise BridgeError("Landmarks come in pairs: choose a point list for both images, or for none.")
        for side in sides.values():
            for node in (side.node, side.segmentation, side.points):
                if node is not None and not self._bridge.scene.IsNodePresent(node):
                    raise BridgeError(f"{node.GetName()!r} was removed from the scene before it was read.")
            VolumeNodes.read_own_grid(side.node)
            if side.segmentation is not None:
                SegmentationNodes.refuse_others(side.segmentation)

    def load(self, request: Request) -> PairNodes:
        """Show the result of a registration that has run, and remove what was written for it.

        Volumes that were deleted meanwhile are left out. Of a moving one that was moved or edited, that is
        shown which was registered.

        Raises:
            BridgeError: if there is no result.
        """
        return at_once(self.showing(request, read_pair(request.folder)))

    def showing(
        self, request: Request, pair: PairResult, predictions: Mapping[str, Image] | None = None
    ) -> Steps[PairNodes]:
        """`load` of a result that is read already, in short steps.

        Args:
            request: what was asked for.
            pair: what came of it.
            predictions: labels of moving or fixed, where they were predicted and are wanted as segmentations.
        """
        scene, moving = self._bridge.scene, request.moving
        world = None
        if scene.IsNodePresent(moving) and (yield from self._is_changed(request)):
            world = WorldImage((yield from beside(lambda: read_image(request.moving_file))), resampled=True)
        nodes = yield from self._bridge.showing_pair(
            pair, subject=request.subject, fixed=request.fixed, moving=moving, world=world
        )
        found = {name: request.segmentations.get(name) for name in request.images}
        for name, labels in (predictions or {}).items():
            case = request.images[name].get("case")
            found[name] = yield from self._bridge.showing_prediction(
                labels, name, case=case, subject=request.subject
            )
        shutil.rmtree(request.inputs, ignore_errors=True)
        return replace(nodes, moving_labels=found["moving"], fixed_labels=found["fixed"])

    def _is_changed(self, request: Request) -> Steps[bool]:
        """Whether the moving volume is another than the one that was registered."""
        try:
            return (yield from VolumeNodes.stating(request.moving)) != request.moving_state
        except BridgeError:  # it is being changed right now
            return True

    def _reading(self, side: Side, place: Path, name: str) -> Steps[_Read]:
        """Read a side from the scene; its files shall lie in `place`; `name` is moving or fixed."""
        case, study = self._bridge.case_of(side.node), self._bridge.study
        if case is not None and (yield from VolumeNodes.comparing_with_shown(side.node)):
            grid: Grid = VolumeNodes.read_own_grid(side.node)
            read = _Read({"case": case.key}, study.folder / case.image, study.file_name(case), case)
        else:
            stem = _file_name(side.node.GetName()) or name
            path = place / f"{stem}.nrrd"
            world = yield from VolumeNodes.reading_volume(side.node)
            grid = world.image.grid
            otherwise = study.source if name == "moving" else study.target
            read = _Read({"file": str(path), **_about(side, case, otherwise)}, path, stem, None)
            read.writes.append(partial(write_image, world.image, path))
            if world.resampled:
                read.notes.append(
                    f"{side.node.GetName()}: its parent transform bends it, so it was resampled; the result "
                    "holds for the volume as it is shown."
                )
        if side.segmentation is not None:
            path = place / "labels.seg.nrrd"
            found = yield from SegmentationNodes.reading_segments(
                side.segmentation, study.structures, grid, chosen=side.segments
            )
            if set(found.empty) | set(found.missing) == {s.name for s in study.structures}:
                raise BridgeError(f"Nothing is drawn in {side.segmentation.GetName()!r} over this image.")
            read.notes.extend(f"{side.segmentation.GetName()}: {text}" for text in found.problems())
            read.image["labels"] = str(path)
            read.writes.append(partial(write_labels, found.labels, study.structures, path))
        return read


def _guards(side: Side) -> list[Unchanged]:
    guards = [Unchanged(side.node, VolumeNodes.stamp_of)]
    if side.segmentation is not None:
        guards.append(Unchanged(side.segmentation, SegmentationNodes.stamp_of_node))
    return guards


def _give_points(read: _Read, side: Side, points: PointNodes.PointsRead | None, place: Path) -> None:
    if points is None:
        return
    path = place / "points.mrk.json"
    if points.unplaced:
        left_out = ", ".join(points.unplaced)
        read.notes.append(f"{side.points.GetName()}: without position, left out: {left_out}.")
    read.image["landmarks"] = str(path)
    read.writes.append(partial(write_points, points.points, path))


def _file_name(text: str) -> str:
    """A name for files that says what the node's does."""
    plain = re.sub(r"[^\w.-]+", "_", text)
    return re.sub(r"-{2,}", "-", plain)[:_LONGEST_NAME].strip("._-")


@dataclass(frozen=True)
class _Read:
    image: dict[str, Any]
    path: Path
    name: str
    case: Case | None
    notes: list[str] = field(default_factory=list)
    writes: list[Callable[[], object]] = field(default_factory=list)


def _about(side: Side, case: Case | None, otherwise: str) -> dict[str, Any]:
    """What a volume shows; a changed copy of a case shows what the case does."""
    modality = side.modality or (otherwise if case is None else case.modality)
    mirrored = side.mirrored or (case is not None and case.mirrored)
    return {"modality": modality, "mirrored": True} if mirrored else {"modality": modality}


def _options(name: str, image: Mapping[str, Any]) -> list[str]:
    """What is known of an image, as options of the command; `name` is moving or fixed."""
    options = [f"--{name}-mirrored"] if image.get("mirrored") else []
    for what in ("modality", "labels", "landmarks"):
        if what in image:
            options += [f"--{name}-{what}", str(image[what])]
    return options
