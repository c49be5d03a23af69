"""Registering two volumes of the scene: write what the child process needs, run it, show its result.

No window opens and nothing is asked: errors are exceptions. A user interface calls `prepare`, asks the worker
for `worker_request`, and calls `load`; a script calls `register`, which runs the command for it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from SegGuidedMMRegGui import VolumeNodes
from SegGuidedMMRegGui.JobEvents import JobEnd, JobListener
from SegGuidedMMRegGui.NodeTags import BridgeError
from SegGuidedMMRegGui.PairFiles import read_pair
from SegGuidedMMRegGui.SceneBridge import PairNodes, SceneBridge
from SegGuidedMMRegGui.VolumeNodes import WorldImage
from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.images import read_image
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
        moving_state: of the moving node, when that was written.
        inputs: folder of what was written for the child process.
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
    inputs: Path
    notes: tuple[str, ...]

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
    """

    def __init__(self, bridge: SceneBridge, runner: Runner | None = None) -> None:
        self._bridge, self._runner = bridge, runner

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
        request = self.prepare(fixed, moving, out=out)
        end = self._runner.run(request.arguments, listener)
        if end.cancelled:
            raise RegistrationError("The registration was cancelled.", ErrorCode.INTERRUPTED.value)
        if end.message or end.exit_code not in (0, 1):
            raise RegistrationError(end.message or f"The registration ended with {end.exit_code}.", end.code)
        return self.load(request)

    def prepare(self, fixed: Any, moving: Any, *, out: Path | None = None) -> Request:
        """Write what the child process needs, and say how to start it (as `register`)."""
        sides = {
            name: side if isinstance(side, Side) else Side(side)
            for name, side in (("moving", moving), ("fixed", fixed))
        }
        if sides["moving"].node.GetID() == sides["fixed"].node.GetID():
            raise BridgeError(
                f"Moving and fixed are both {sides['fixed'].node.GetName()!r}. Choose two volumes."
            )
        if (sides["moving"].points is None) != (sides["fixed"].points is None):
            raise BridgeError("Landmarks come in pairs: choose a point list for both images, or for none.")
        folder = self._bridge.temporary_folder("register-")
        inputs = folder / "inputs"
        written = {name: self._write(side, inputs / name, name) for name, side in sides.items()}
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
            VolumeNodes.state_of(sides["moving"].node),
            inputs,
            tuple(note for side in written.values() for note in side.notes),
        )

    def load(self, request: Request) -> PairNodes:
        """Show the result of a registration that has run, and remove what was written for it.

        Volumes that were deleted meanwhile are left out. Of a moving one that was moved or edited, that is
        shown which was registered.

        Raises:
            BridgeError: if there is no result.
        """
        pair, scene, moving = read_pair(request.folder), self._bridge.scene, request.moving
        world = None
        if scene.IsNodePresent(moving) and VolumeNodes.state_of(moving) != request.moving_state:
            world = WorldImage(read_image(request.moving_file), resampled=True)
        nodes = self._bridge.show_pair(
            pair, subject=request.subject, fixed=request.fixed, moving=moving, world=world
        )
        shutil.rmtree(request.inputs, ignore_errors=True)
        return nodes

    def _write(self, side: Side, place: Path, name: str) -> _Written:
        """Write a side's files into `place`; `name` is moving or fixed."""
        case, study = self._bridge.case_of(side.node), self._bridge.study
        notes: list[str] = []
        if case is not None and VolumeNodes.is_as_shown(side.node):
            grid: Grid = study.read_image(case).grid
            image: dict[str, Any] = {"case": case.key}
            written = _Written(image, study.folder / case.image, study.file_name(case), case, notes)
        else:
            stem = _file_name(side.node.GetName()) or name
            path = place / f"{stem}.nrrd"
            world = self._bridge.write_volume(side.node, path)
            if world.resampled:
                notes.append(
                    f"{side.node.GetName()}: its parent transform bends it, so it was resampled; the result "
                    "holds for the volume as it is shown."
                )
            grid = world.image.grid
            otherwise = study.source if name == "moving" else study.target
            image = {"file": str(path), **_about(side, case, otherwise)}
            written = _Written(image, path, stem, None, notes)
        if side.segmentation is not None:
            path = place / "labels.seg.nrrd"
            found = self._bridge.write_segments(side.segmentation, path, grid, chosen=side.segments)
            if set(found.empty) | set(found.missing) == {s.name for s in study.structures}:
                raise BridgeError(f"Nothing is drawn in {side.segmentation.GetName()!r} over this image.")
            notes += [f"{side.segmentation.GetName()}: {text}" for text in found.problems()]
            image["labels"] = str(path)
        if side.points is not None:
            path = place / "points.mrk.json"
            if unplaced := self._bridge.write_points(side.points, path):
                notes.append(f"{side.points.GetName()}: without position, left out: {', '.join(unplaced)}.")
            image["landmarks"] = str(path)
        return written


def _file_name(text: str) -> str:
    """A name for files that says what the node's does."""
    plain = re.sub(r"[^\w.-]+", "_", text)
    return re.sub(r"-{2,}", "-", plain)[:_LONGEST_NAME].strip("._-")


@dataclass(frozen=True)
class _Written:
    image: dict[str, Any]
    path: Path
    name: str
    case: Case | None
    notes: list[str]


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
