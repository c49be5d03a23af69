"""What a training has told so far: where it is, its curves, its pictures. Plain data, no widget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from SegGuidedMMRegGui.JobEvents import Data, JobListener

MOST_POINTS = 400
_WARNING = "WARNING"

Points = list[tuple[float, float]]


@dataclass
class Curves:
    """Metrics over the steps of training, by run and metric; each of a bounded number of points."""

    points: dict[tuple[str, str], Points] = field(default_factory=dict)

    @staticmethod
    def of_status(told: Iterable[Data]) -> Curves:
        """As `segmmreg status --training` tells them of the stages."""
        points = {
            (curve["run"], curve["metric"]): list(zip(curve["steps"], curve["values"], strict=True))
            for stage in told
            for curve in stage["curves"]
        }
        return Curves(points)

    def continued_by(self, later: Curves) -> Curves:
        """These up to where the later ones begin, then those."""
        points = dict(self.points)
        for key, more in later.points.items():
            points[key] = [point for point in points.get(key, []) if point[0] < more[0][0]] + more
        return Curves(points)

    def without_stage(self, stage: str) -> Curves:
        """Those of the other stages."""
        return Curves({key: points for key, points in self.points.items() if not belongs_to(key[0], stage)})

    def add(self, run: str, step: int, metrics: Data) -> None:
        """Add a step; a run that was set back goes on from there."""
        for metric, value in metrics.items():
            if not isinstance(value, int | float):
                continue
            points = self.points.setdefault((run, metric), [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, value))
            if len(points) > MOST_POINTS:
                del points[1:-1:2]

    def of_stage(self, stage: str) -> dict[tuple[str, str], Points]:
        """Those of a stage, in the order in which they began."""
        return {key: points for key, points in self.points.items() if belongs_to(key[0], stage)}


def belongs_to(run: str, stage: str) -> bool:
    """Whether a run, as events name it, is of a stage: `adaptation/teacher` of `adaptation`."""
    return run == stage or run.startswith((f"{stage}/", f"{stage} "))


class TrainingTold:
    """What a training job has told.

    Args:
        stages: names of all stages, in order.

    Attributes:
        stage: that is at work; "" if that is not known.
        run: what it does just now, as the events name it.
        step, of, seconds_left: of that run.
        begun: stages that were at work.
        done: stages that came to their end.
        curves: of this training alone.
        pictures: of the stages that are done, by stage.
        warnings: lines that ask for attention.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = tuple(stages)
        self.stage, self.run = "", ""
        self.step, self.of = 0, 0
        self.seconds_left: float | None = None
        self.begun: list[str] = []
        self.done: list[str] = []
        self.curves = Curves()
        self.pictures: dict[str, list[Data]] = {}
        self.warnings: list[str] = []

    def listener(self) -> JobListener:
        """To be told by the job."""
        return JobListener(started=self._started, progress=self._progress, result=self._result, log=self._log)

    @property
    def share(self) -> float:
        """Of the run that is done, 0 to 1."""
        return min(self.step / self.of, 1.0) if self.of else 0.0

    def _started(self, data: Data) -> None:
        if "stage" in data:
            self._go_to(str(data["stage"]))
            self.step, self.of, self.seconds_left = 0, data.get("of") or 0, None

    def _progress(self, data: Data) -> None:
        self._go_to(str(data["stage"]))
        self.step, self.of, self.seconds_left = data["step"], data["of"], data.get("seconds_left")
        self.curves.add(self.run, self.step, data.get("metrics") or {})

    def _result(self, data: Data) -> None:
        stage = data.get("stage")
        if stage not in self._stages:
            return
        if stage not in self.done:
            self.done.append(stage)
        if self.stage == stage:
            self.stage = ""
        if "pictures" in data:
            self.pictures[stage] = data["pictures"]

    def _log(self, line: str) -> None:
        if line.startswith(_WARNING) and line not in self.warnings:
            self.warnings.append(line)

    def _go_to(self, run: str) -> None:
        self.run = run
        self.stage = next((stage for stage in self._stages if belongs_to(run, stage)), self.stage)
        if self.stage and self.stage not in self.begun:
            self.begun.append(self.stage)
