"""The estimate of memory: near what is measured, told before a stage starts, with what to lower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from trained_study import Listener, make_study, tiny_config

from SegGuidedMMRegLib import environment, memory, processes
from SegGuidedMMRegLib.config import Config, config_from_dict
from SegGuidedMMRegLib.environment import free_memory
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.images import Image
from SegGuidedMMRegLib.memory import StudySize, memory_need, memory_needs, peak_bytes
from SegGuidedMMRegLib.pipeline import STAGES, train
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.training import prealign

SIZE = StudySize((160, 128), 3, source=8, labelled=3, target=8, validation=2, largest_image=512**2)


@pytest.mark.skipif(sys.platform != "linux", reason="allocators differ")
@pytest.mark.parametrize(
    ("stage", "dimension"),
    [
        ("segmentation", "2"),
        ("segmentation", "3"),
        ("prealign", "2"),
        ("adaptation", "2"),
        ("registration", "2"),
    ],
)
def test_the_estimate_is_within_a_factor_of_two_of_what_a_process_takes(stage: str, dimension: str) -> None:
    script = Path(__file__).with_name("measured_memory.py")
    ended = subprocess.run(
        [sys.executable, str(script), stage, dimension],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    assert 0.5 < found["estimated"] / found["measured"] < 2, found


def test_prealignment_holds_an_image_a_core_and_the_rest_coarse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images a reference is made from."""
    study, held, most = make_study(tmp_path, config=tiny_config(hurried=True)), set(), 0
    read = Study.read_image

    def counted(self: Study, case: Any) -> Image:
        nonlocal most
        image = read(self, case)
        weakref.finalize(image.array, held.discard, case.key)
        held.add(case.key)
        most = max(most, len(held))
        return image

    monkeypatch.setattr(Study, "read_image", counted)
    config = study.config.prealign.model_copy(update={"method": "affine"})
    prealign.run(study, config, Reporter())
    assert 1 <= most <= (os.cpu_count() or 1) + 1
    assert len(study.cases) > most


def test_what_is_held_at_a_time_is_counted_and_what_is_freed_is_not() -> None:
    def step() -> None:
        first = torch.empty(1000, device="meta")
        second = first + 1  # 8000 bytes
        del first
        view = second.view(10, 100)
        third = view * 2  # 8000 again
        del second, view
        torch.zeros(500, dtype=torch.long, device="meta")  # with `third` 8000
        assert third.numel() == 1000

    assert peak_bytes(step) == 8000


def test_activations_of_a_layer_are_those_that_backward_needs() -> None:
    def step() -> None:
        layer = torch.nn.Linear(100, 100, bias=False, device="meta")  # 40 kB, gradient 40 kB
        x = torch.empty(1000, 100, device="meta")  # 400 kB
        y = layer(x)  # 400 kB
        z = y.sigmoid()  # 400 kB
        del y
        z.sum().backward()  # gradient of z is expanded, that of y 400 kB

    assert peak_bytes(step) == pytest.approx(1.24e6, rel=0.05)


def small(**sections: dict[str, Any]) -> Config:
    """Settings of small networks, `sections` of them changed."""
    record: dict[str, dict[str, Any]] = {
        "augmentation": {"samples": 4},
        "segmentation": {"channels": (8, 16), "strides": (2,), "residual_units": 1},
        "adaptation": {"generator_filters": 4, "generator_blocks": 1, "discriminator_filters": 4},
    }
    for name, values in sections.items():
        record[name] = {**record.get(name, {}), **values}
    return config_from_dict(record)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("segmentation", {"batch_size": 32}),
        ("adaptation", {"batch_size": 32}),
        ("registration", {"batch_size": 32}),
        ("augmentation", {"working_downsampling": 1}),
        ("adaptation", {"method": "cyclegan", "generator_filters": 16}),
    ],
)
def test_what_the_remedies_name_is_what_decides(stage: str, more: dict[str, Any]) -> None:
    usual = small(**({stage: {"method": "cyclegan"}} if "method" in more else {}))
    config = small(**{stage: more})
    itself = memory._PROCESS["cpu"]
    before, after = (memory_need(stage, c, SIZE, "cpu").bytes - itself for c in (usual, config))
    assert after > 1.2 * before
    if "batch_size" in more:
        one = small(**{stage: more}, training={"images_at_once": 1})
        assert memory_need(stage, one, SIZE, "cpu").bytes - itself < after


def test_every_stage_tells_its_need_before_it_starts(tmp_path: Path) -> None:
    study, heard = make_study(tmp_path, config=tiny_config(hurried=True)), Listener()
    assert set(memory_needs(study)) == set(STAGES)
    train(study, ["segmentation"], heard)
    told = [e.data["memory"] for e in heard.events if "memory" in e.data]
    assert [t["stage"] for t in told] == ["prealign", "augmentation", "segmentation"]
    assert all(t["device"] == "cpu" and 5e8 < t["bytes"] < 2e9 for t in told)
    assert "segmentation: needs about 0.7 GB of memory (this machine:" in " ".join(heard.messages)
    assert "WARNING" not in " ".join(heard.messages)
    order = [
        e.kind if e.kind == "started" else "memory"
        for e in heard.events
        if "memory" in e.data or (e.kind == "started" and e.data["stage"] == "segmentation")
    ]
    assert order == ["memory", "memory", "memory", "started"]


def test_too_little_memory_is_said_with_the_settings_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: int(0.1e9))
    settings = tiny_config(hurried=True, segmentation={"batch_size": 16})
    study, heard = make_study(tmp_path, config=settings), Listener()
    train(study, ["segmentation"], heard)
    told = next(m for m in heard.messages if m.startswith("WARNING: segmentation"))
    assert "0.1 GB free" in told
    assert "segmentation.batch_size (now 16)" in told


def test_fewer_images_at_once_are_advised_with_what_they_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: int(0.7e9))
    config = small(segmentation={"batch_size": 64})
    need = memory_need("segmentation", config, SIZE, "cpu")
    assert need.is_too_much
    told = memory.advice(need, config, SIZE, "Lower it.")
    assert told.startswith("--set training.images_at_once=1 needs about 0.")
    assert told.endswith("Lower it.")


def test_free_memory_is_that_of_the_machine_or_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = free_memory("cpu")
    if whole is None:
        pytest.skip("not known on this system")
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "now").write_text("1000000\n")
    monkeypatch.setattr(environment, "_CONTAINERS", ((str(tmp_path / "max"), str(tmp_path / "now")),))
    limited = free_memory("cpu")
    assert limited is not None
    assert 4e6 < limited < whole
    (tmp_path / "max").write_text("max\n")
    assert free_memory("cpu") == pytest.approx(whole, rel=0.2)


def test_of_several_processes_each_holds_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(segmentation={"batch_size": 32})
    itself = memory._PROCESS["cpu"]
    alone = memory_need("segmentation", config, SIZE, "cpu").bytes - itself
    monkeypatch.setattr(processes, "count", lambda: 4)
    assert memory_need("segmentation", config, SIZE, "cpu").bytes - itself < 0.7 * alone
