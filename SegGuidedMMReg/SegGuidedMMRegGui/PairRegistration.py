"""Registering two volumes of the scene: write what the child process needs, run it, show its result.

No window opens and nothing is asked: errors are exceptions. A user interface calls `prepare`, runs the child
its own way, and calls `load`; a script calls `register`, which does the three.
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
    """A registration that is ready to run.

    Attributes:
        arguments: of `python -m SegGuidedMMRegLib`.
        folder: where the result will lie.
        subject: `moving--fixed`.
        fixed, moving: the volume nodes.
        moving_file: the moving image as it is registered.
        moving_state: of the moving node, when that was written.
        inputs: folder of what was written for the child process.
        notes: what the user should know, a sentence each.
    """

    arguments: tuple[str, ...]
    folder: Path
    subject: str
    fixed: Any
    moving: Any
    moving_file: Path
    moving_state: str
    inputs: Path
    notes: tuple[str, ...]


class PairRegistration:
    """Registers volumes of the scene with the study of `bridge`; `runner` starts the child process."""

    def __init__(self, bridge: SceneBridge, runner: Runner) -> None:
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
        subject = f"{written['moving'].name}--{written['fixed'].name}"
        arguments = [text for side in written.values() for text in side.arguments]
        if cases[0] is not None and cases[1] is not None and out is None:
            result = self._bridge.study.registration_folder(cases[0], cases[1])
            subject = result.name
        else:
            result = folder / "result" if out is None else Path(out)
            arguments += ["--out", str(result)]
        texts = [written[name].text for name in ("moving", "fixed")]
        return Request(
            ("register", str(self._bridge.study.folder), *texts, *arguments),
            result,
            subject,
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
        case = self._bridge.case_of(side.node)
        notes: list[str] = []
        if case is not None and VolumeNodes.is_as_shown(side.node):
            grid: Grid = self._bridge.study.read_image(case).grid
            image = self._bridge.study.folder / case.image
            written = _Written(case.key, image, self._bridge.study.file_name(case), case, [], notes)
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
            options = _about(side, case, name)
            written = _Written(str(path), path, stem, None, options, notes)
        if side.segmentation is not None:
            path = place / "labels.seg.nrrd"
            found = self._bridge.write_segments(side.segmentation, path, grid, chosen=side.segments)
            if set(found.empty) | set(found.missing) == {s.name for s in self._bridge.study.structures}:
                raise BridgeError(f"Nothing is drawn in {side.segmentation.GetName()!r} over this image.")
            notes += [f"{side.segmentation.GetName()}: {text}" for text in found.problems()]
            written.arguments.extend([f"--{name}-labels", str(path)])
        if side.points is not None:
            path = place / "points.mrk.json"
            if unplaced := self._bridge.write_points(side.points, path):
                notes.append(f"{side.points.GetName()}: without position, left out: {', '.join(unplaced)}.")
            written.arguments.extend([f"--{name}-landmarks", str(path)])
        return written


def _file_name(text: str) -> str:
    """A name for files that says what the node's does."""
    plain = re.sub(r"[^\w.-]+", "_", text)
    return re.sub(r"-{2,}", "-", plain)[:_LONGEST_NAME].strip("._-")


@dataclass(frozen=True)
class _Written:
    text: str
    path: Path
    name: str
    case: Case | None
    arguments: list[str]
    notes: list[str]


def _about(side: Side, case: Case | None, name: str) -> list[str]:
    """Options that say what a volume shows; a changed copy of a case shows what the case does."""
    modality = side.modality or (case.modality if case is not None else None)
    options = [f"--{name}-modality", modality] if modality else []
    if side.mirrored or (case is not None and case.mirrored):
        options.append(f"--{name}-mirrored")
    return options
