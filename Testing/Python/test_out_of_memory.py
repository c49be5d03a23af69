"""When memory runs out: exit code 3 and what to lower, or going on with less at once to the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.config import TrainingConfig, config_from_dict
from SegGuidedMMRegLib.events import RecordingReporter, Reporter
from SegGuidedMMRegLib.losses import segmentation_loss
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network
from SegGuidedMMRegLib.out_of_memory import OutOfMemoryError, is_out_of_memory, memory_remedy
from SegGuidedMMRegLib.training.adaptation.cyclegan import ImagePool
from SegGuidedMMRegLib.training.batches import ImagesAtOnce, WholeBatch, in_batches
from SegGuidedMMRegLib.training.loop import Run, TrainableStage, fit

BATCH = 6


def full() -> RuntimeError:
    """As torch says it on a CPU."""
    return RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB"
    )


class Small(nn.Module):
    """A segmentation network on a device that holds the activations of `room` images."""

    def __init__(self, room: int, settings: Any) -> None:
        super().__init__()
        self.body = build_segmentation_network(2, 2, settings)
        self.room = room

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room and torch.is_grad_enabled():
            raise full()
        logits: Tensor = self.body(x)
        return logits


class Training(TrainableStage):
    """Random images, a loss that counts overlap over the whole batch, a state that a failed step spoils.

    Not Adam: it takes steps of full length along gradients that are 0 but for rounding, as those of biases
    before a normalisation.
    """

    def __init__(self, room: int = BATCH, full_at: int = 0, stop_at: int | None = None) -> None:
        super().__init__()
        settings = config_from_dict(
            {"segmentation": {"channels": (4, 8), "strides": (2,), "residual_units": 1}}
        ).segmentation
        torch.manual_seed(0)
        self.network = Small(room, settings)
        self.networks = {"network": self.network}
        self.optimizers = {"network": torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)}
        self.ema_decay = 0.9
        self.memory_remedy = f"segmentation.batch_size (now {BATCH})"
        self.seen = torch.zeros(())
        self.room, self.full_at, self.stop_at = room, full_at, stop_at

    def training_step(self, run: Run) -> dict[str, Tensor]:
        if run.step == self.stop_at:
            raise KeyboardInterrupt
        self.network.room = self.room if run.step >= self.full_at else BATCH
        self.seen = self.seen * 0.9 + torch.rand((), generator=run.generator)
        images = torch.rand((BATCH, 1, 16, 16), generator=run.generator) + self.seen
        labels = (images[:, 0] > self.seen + 0.5).long()
        loss = segmentation_loss(run.networks["network"](images), labels)
        run.update(loss)
        return {"loss": loss}

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


def trained(
    folder: Path, stage: Training, at_once: Any = "all", reporter: Reporter | None = None
) -> dict[str, Tensor]:
    config = TrainingConfig(device="cpu", images_at_once=at_once, checkpoint_seconds=1e-6, checkpoint_share=1)
    reporter = reporter or Reporter()
    return load_file(
        fit(stage, name="segmentation", steps=8, folder=folder, config=config, reporter=reporter).weights
    )


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses with memory enough."""
    folder = tmp_path_factory.mktemp("usual")
    return trained(folder, Training()), curve(folder)


def test_fewer_images_at_once_train_the_same_network(tmp_path: Path, usual: Any) -> None:
    assert_close(trained(tmp_path, Training(room=2), at_once=2), usual[0])
    assert curve(tmp_path) == pytest.approx(usual[1], rel=1e-3)


@pytest.mark.parametrize("full_at", [0, 5])
def test_training_goes_on_with_half_as_many_images_and_ends_the_same(
    tmp_path: Path, usual: Any, full_at: int
) -> None:
    reporter = RecordingReporter()
    found = trained(tmp_path, Training(room=1, full_at=full_at), "auto", reporter)
    assert_close(found, usual[0])
    assert curve(tmp_path) == pytest.approx(usual[1], rel=1e-3)
    told = [e.data["message"] for e in reporter.events if e.kind == "log" and "memory ran out" in str(e.data)]
    assert [text.split("with ")[1].split(" images")[0] for text in told] == ["3", "1"]
    assert f"after step {full_at} of 8" in told[0]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["images_at_once"] == 1


def test_a_run_that_was_lowered_and_cut_off_goes_on_as_it_was(tmp_path: Path, usual: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Training(room=2, full_at=2, stop_at=5), "auto")
    reporter = RecordingReporter()
    assert_close(trained(tmp_path, Training(room=2), "auto", reporter), usual[0])
    told = " ".join(str(e.data) for e in reporter.events)
    assert "continued after step 5" in told
    assert "memory ran out" not in told


def test_without_it_memory_names_settings_and_steps_are_kept(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        trained(tmp_path, Training(room=2, full_at=3))
    assert "segmentation: memory ran out" in str(caught.value)
    assert "--auto-batch" in caught.value.remedy
    assert f"segmentation.batch_size (now {BATCH})" in caught.value.remedy
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_where_one_image_is_too_much_it_ends_and_no_longer_advises_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        trained(tmp_path, Training(room=0), "auto")
    assert "--auto-batch" not in caught.value.remedy
    assert "batch_size" in caught.value.remedy


def test_pairs_in_both_orders_stay_together_and_statistics_count_once() -> None:
    norm = nn.BatchNorm1d(3)
    parts: list[Tensor] = []

    class Listening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            parts.append(x[:, 0].detach().clone())
            found: Tensor = self.norm(x)
            return found

    pairs = torch.arange(4.0).repeat(2)[:, None].expand(8, 3).clone().requires_grad_()
    found = WholeBatch(Listening(), ImagesAtOnce(4))(pairs)
    assert [part.tolist() for part in parts] == [[0, 2, 0, 2], [1, 3, 1, 3]]
    found.sum().backward()
    assert norm.num_batches_tracked == 2
    expected = torch.where(pairs.detach() % 2 == 0, 1.0, 2.0)
    torch.testing.assert_close(found, (pairs - expected) / torch.sqrt(torch.tensor(1.0 + norm.eps)))


def test_batches_are_halved_until_they_fit_and_nothing_is_lost() -> None:
    tried: list[int] = []

    def work(batch: Any) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in batch]

    def done(setting: Any) -> Iterator[int]:
        at_once = ImagesAtOnce.of(setting)
        at_once.largest = 8
        for _, made in in_batches(range(9), at_once, work, name="augmentation", log=lambda _: None):
            yield from made

    assert list(done("auto")) == [10 * item for item in range(9)]
    assert tried == [8, 4, 2, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        list(done("all"))


def test_a_pool_of_images_that_a_failed_step_filled_is_emptied_again() -> None:
    from SegGuidedMMRegLib.training.adaptation.cyclegan import CycleGanStage

    stage = CycleGanStage.__new__(CycleGanStage)
    stage._pools = {"judge_source": ImagePool(), "judge_target": ImagePool()}
    stage._pools["judge_source"].images = torch.ones(1, 1, 2, 2)
    stage.load_state({})
    assert stage.state() == {}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("itk::ERROR: Failed to allocate memory for image."),
        full(),
    ],
)
def test_every_way_of_saying_it_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(OutOfMemoryError, match="segmenting") as caught,
        memory_remedy("segmenting", "Lower it."),
    ):
        raise error
    assert caught.value.remedy == "Lower it."


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="sizes differ"), memory_remedy("segmenting", "Lower it."):
        raise RuntimeError("sizes differ")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_command_ends_with_3_and_the_remedy_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from trained_study import make_study

    from SegGuidedMMRegLib.training import augmentation

    study = make_study(tmp_path)

    def fail(*_: Any) -> None:
        raise full()

    monkeypatch.setattr(augmentation, "_warped", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(study.folder), "--set", "training.device=cpu"])
    assert ended.value.code == 3
    told = capsys.readouterr().err
    assert "augmentation: memory ran out" in told
    assert "Lower augmentation.batch_size (now 32)" in told


_REAL = """
import resource, sys, torch
from pathlib import Path
from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.out_of_memory import memory_remedy
torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
from SegGuidedMMRegLib.commands.work import Evaluate
def run(self, reporter):
    with memory_remedy("segmentation", "Lower segmentation.batch_size (now 8)."):
        torch.nn.functional.conv2d(torch.rand(64, 1, 512, 512), torch.rand(64, 1, 3, 3))
Evaluate.run = run
sys.exit(cli.run(Evaluate(Path("x"))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_memory_that_really_runs_out_ends_with_3() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _REAL], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert "Lower segmentation.batch_size (now 8)." in ended.stderr
    assert "Traceback" not in ended.stderr
