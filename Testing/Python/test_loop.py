"""The training loop: same seed, same weights; a run that was cut off ends like one that was not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from SegGuidedMMRegLib.config import TrainingConfig
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.training.checkpoints import Checkpoints
from SegGuidedMMRegLib.training.journal import TrainingError
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit, one_cycle

CPU = TrainingConfig(device="cpu", checkpoint_seconds=1e-6, checkpoint_share=1)


class Line(TrainableStage):
    """Fits y = 2x + 1 from random points, with dropout, a frozen network and a state of its own."""

    def __init__(self, stop_at: int | None = None, spoil_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.networks = {
            "network": nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1)),
            "frozen": nn.Linear(1, 1).requires_grad_(False),
        }
        self.optimizers = {"network": torch.optim.Adam(self.networks["network"].parameters(), lr=0.05)}
        self.ema_decay = 0.9
        self.schedule = one_cycle
        self.seen = torch.zeros(1)
        self.stop_at, self.spoil_at = stop_at, spoil_at

    def training_step(self, run: Run) -> dict[str, Tensor]:
        if run.step == self.stop_at:
            raise KeyboardInterrupt
        assert run.networks["network"].training
        assert not run.networks["frozen"].training
        x = torch.rand((16, 1), generator=run.generator) + self.seen
        loss = (run.networks["network"](x) - 2 * x - 1).square().mean()
        self.seen = self.seen * 0.9 + x.mean() * 0.01
        run.update(loss)
        return {"loss": loss * float("nan") if run.step == self.spoil_at else loss}

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


class Validated(Line):
    """As `Line`, with scores that are best in the middle."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.validations = 10
        self.scores = iter([0.1, 0.2, 0.9, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])

    def validate(self, _network: nn.Module) -> float | None:
        return next(self.scores)


def run(stage: TrainableStage, folder: Path, steps: int = 40, reporter: Reporter | None = None) -> Path:
    config = CPU
    return fit(
        stage, name="line", steps=steps, folder=folder, config=config, reporter=reporter or Reporter()
    ).weights


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    one, two = run(Line(), tmp_path / "1"), run(Line(), tmp_path / "2")
    other = CPU.model_copy(update={"seed": 1})
    three = fit(
        Line(), name="line", steps=40, folder=tmp_path / "3", config=other, reporter=Reporter()
    ).weights
    assert same(one, two)
    assert not same(one, three)


@pytest.mark.parametrize("kind", [Line, Validated])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(tmp_path: Path, kind: type[Line]) -> None:
    whole = run(kind(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(kind(stop_at=23), tmp_path / "cut")
    resumed = kind()
    if isinstance(resumed, Validated):
        for _ in range(5):  # validations before the cut
            next(resumed.scores)
    reporter = RecordingReporter()
    after = run(resumed, tmp_path / "cut", reporter=reporter)
    assert same(whole, after)
    assert any("continued after step 23" in event.data.get("message", "") for event in reporter.events)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert steps[-1] == 40


def test_the_best_weights_by_validation_are_kept(tmp_path: Path) -> None:
    result = fit(Validated(), name="line", steps=40, folder=tmp_path, config=CPU, reporter=Reporter())
    assert (result.step, result.score) == (12, 0.9)


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path) -> None:
    first = run(Line(), tmp_path)
    before = load_file(first)
    again = Line(stop_at=0)
    run(again, tmp_path)
    assert torch.equal(again.networks["network"].state_dict()["0.weight"], before["0.weight"])


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Line(stop_at=10), tmp_path / "cut")
    changed = Line()
    changed.settings = {"batch_size": 3}
    reporter = RecordingReporter()
    run(changed, tmp_path / "cut", reporter=reporter)
    assert any("starts afresh" in event.data.get("message", "") for event in reporter.events)


def test_a_damaged_checkpoint_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    reporter = RecordingReporter()
    run(Line(), tmp_path, reporter=reporter)
    assert any("not readable" in event.data.get("message", "") for event in reporter.events)


def test_a_loss_that_is_not_finite_names_step_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss became nan by step 8\. Lower the learning rate"):
        run(Line(spoil_at=7), tmp_path)


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    stage = Line()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(stage, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_reported_seldom_and_ends_complete(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    run(Line(), tmp_path, reporter=reporter)
    steps = [event.data["step"] for event in reporter.events if event.kind == "progress"]
    assert steps[-1] == 40
    assert len(steps) < 10


def test_checkpoints_take_two_per_cent_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured; what one costs is known only when it is written, so one may be too much."""
    costs: list[float] = []
    write = Checkpoints.write

    def measured(self: Checkpoints, record: dict) -> None:
        start = time.monotonic()
        write(self, record)
        costs.append(time.monotonic() - start)

    class Slow(Line):
        def training_step(self, run: Run) -> dict[str, Tensor]:
            time.sleep(0.01)
            return super().training_step(run)

    monkeypatch.setattr(Checkpoints, "write", measured)
    config = TrainingConfig(device="cpu", checkpoint_seconds=1e-6)
    start = time.monotonic()
    fit(Slow(), name="line", steps=200, folder=tmp_path, config=config, reporter=Reporter())
    seconds = time.monotonic() - start
    rolling = costs[:-1]  # the last one only says that the run is finished
    assert len(rolling) > 1
    assert sum(rolling) <= 0.02 * seconds + max(rolling)
    assert [p.name for p in tmp_path.glob("*.pt")] == ["checkpoint.pt"]


def test_one_cycle_rises_to_one_and_falls_to_zero() -> None:
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(0.3) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(0.0)
