"""How much memory each stage of training needs, estimated before it starts.

A step of training is run once on tensors that have a shape but no content (torch's `meta` device), and what
it holds at a time is added up: activations, weights, gradients. To that come the optimiser's averages, the
study's images on the device, and what a process takes up by itself. docs/hardware.md has measurements.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from SegGuidedMMRegLib import processes
from SegGuidedMMRegLib.config import Config
from SegGuidedMMRegLib.deformation import corner_jacobians, lncc, soft_dice, warp
from SegGuidedMMRegLib.environment import free_memory
from SegGuidedMMRegLib.losses import dice_loss, segmentation_loss
from SegGuidedMMRegLib.networks.registration import (
    both_ways,
    build_registration_network,
    gradient_inverse_consistency,
)
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network
from SegGuidedMMRegLib.networks.translation import Discriminator, Generator
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.training.adaptation.cyclegan import (
    cycle_loss,
    deceit_loss,
    judgement_loss,
    semantic_terms,
    total_loss,
    translate,
)
from SegGuidedMMRegLib.training.augmentation import pairs_at_once
from SegGuidedMMRegLib.training.augmentation.resolution import shrunk_shape
from SegGuidedMMRegLib.training.augmentation.velocity import VelocityRegistration
from SegGuidedMMRegLib.training.batches import ImagesAtOnce, WholeBatch
from SegGuidedMMRegLib.training.devices import device_of
from SegGuidedMMRegLib.training.registration import registration_misfit, working_shape

GB = 1e9
_PROCESS = {"cpu": 0.65 * GB, "cuda": 0.6 * GB, "mps": 0.5 * GB}
"""Libraries, and on a GPU its context and the work space of convolutions; measured on a CPU alone."""

_PER_BYTE = {"cpu": 1.6, "cuda": 1.1, "mps": 1.1}
"""What an allocator takes for a byte that is asked for: the system's keeps much of what was freed between."""

_FLOAT, _INDEX = 4, 8
_IMAGE_COPIES = 5
"""32-bit copies of an image that pre-alignment holds while it reads and shrinks it."""


@dataclass(frozen=True)
class Need:
    """What a stage needs.

    Attributes:
        stage: its name.
        bytes: at the most at one time, on `device`; in 32 bit, so mixed precision needs less.
        device: cpu, cuda or mps.
        free: bytes that are free there or held by this process already; None where that is not known.
    """

    stage: str
    bytes: int
    device: str
    free: int | None

    @property
    def is_too_much(self) -> bool:
        """Whether there is less memory than that."""
        return self.free is not None and self.bytes > self.free

    def __str__(self) -> str:
        place = "GPU" if self.device in ("cuda", "mps") else "this machine"
        free = "free memory unknown" if self.free is None else f"{place}: {self.free / GB:.1f} GB free"
        return f"{self.stage}: needs about {self.bytes / GB:.1f} GB of memory ({free})"


@dataclass(frozen=True)
class StudySize:
    """What of a study decides how much memory it needs.

    Attributes:
        shape: of the study grid.
        structures: how many.
        source, labelled, target, validation: training images of the source, those of them with labels for
            training, training images of the target, validation images with labels.
        largest_image: voxels of the largest image as imported.
    """

    shape: tuple[int, ...]
    structures: int
    source: int
    labelled: int
    target: int
    validation: int
    largest_image: int = 0

    @staticmethod
    def of(study: Study) -> StudySize:
        """Of a study on disk; a few headers are read to learn how large its images are."""
        view = study.training_view()
        some = study.cases[:: max(1, len(study.cases) // 20)]
        largest = max((_voxels(study.folder / case.image) for case in some), default=0)
        return StudySize(
            study.require_grid().shape,
            len(study.structures),
            len(view.source_cases),
            len(view.labelled_cases),
            len(view.target_cases),
            len(view.validation_labelled_cases),
            largest,
        )

    @property
    def voxels(self) -> int:
        """Of the study grid."""
        return torch.Size(self.shape).numel()

    def samples(self, config: Config) -> int:
        """Augmented samples that the settings ask for, at the most."""
        if config.augmentation.method == "none":
            return 0
        pairs = self.labelled * max(self.source - self.labelled, self.labelled - 1)
        return min(config.augmentation.samples or pairs, pairs)

    def tensors(self) -> int:
        """Bytes of `StudyTensors`."""
        images = self.source + self.target + self.validation
        return self.voxels * (_FLOAT * images + _INDEX * (self.labelled + self.validation))


def _voxels(path: Path) -> int:
    """Of an image file, by its header; 0 if it cannot be read, which is told when the image is needed."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    return math.prod(reader.GetSize())


def memory_needs(study: Study) -> dict[str, Need]:
    """What each stage that the settings of `study` run needs, by name.

    Raises:
        StudyError: if the study has no grid.
        ValueError: for settings that do not fit together, or a device that is not there.
    """
    device = device_of(study.config.training).type
    size = StudySize.of(study)
    return {stage: memory_need(stage, study.config, size, device) for stage in _STAGES}


def memory_need(stage: str, config: Config, size: StudySize, device: str) -> Need:
    """What one stage needs on `device` (cpu, cuda, mps)."""
    where = "cpu" if stage == "prealign" else device
    found = _PER_BYTE[where] * _STAGES[stage](config, size) + _PROCESS[where]
    return Need(stage, round(found), where, free_memory(where))


def advice(need: Need, config: Config, size: StudySize, remedy: str) -> str:
    """What to say before a stage that needs more than there is: what fewer images at once would need."""
    if need.stage == "prealign" or config.training.images_at_once == 1:
        return remedy
    training = config.training.model_copy(update={"images_at_once": 1})
    less = memory_need(need.stage, config.model_copy(update={"training": training}), size, need.device)
    if less.bytes > 0.9 * need.bytes:
        return remedy
    return (
        f"--set training.images_at_once=1 needs about {less.bytes / GB:.1f} GB, takes longer and keeps the "
        f"batches. {remedy}"
    )


# -- what the stages hold -------------------------------------------------------------------------------


def _prealign(_config: Config, size: StudySize) -> float:
    return float((os.cpu_count() or 1) * size.largest_image * _FLOAT * _IMAGE_COPIES)


def _augmentation(config: Config, size: StudySize) -> float:
    settings = config.augmentation
    if settings.method == "none":
        return float(size.tensors())
    pairs = pairs_at_once(settings, size.voxels)
    if isinstance(config.training.images_at_once, int):
        pairs = min(pairs, config.training.images_at_once)
    dimension, working = len(size.shape), shrunk_shape(size.shape, settings.working_downsampling)

    def registered() -> None:
        images = _empty(pairs, 1, *size.shape)
        displacement = _empty(pairs, dimension, *size.shape)
        warp(images, displacement)
        corner_jacobians(displacement)

    def optimised() -> None:
        method = VelocityRegistration(1, 1, settings.smoothness, settings.lncc_sigma, settings.learning_rate)
        control = _empty(pairs, dimension, *(max(4, n // 4) for n in working)).requires_grad_()
        images = _empty(2, pairs, 1, *working)
        method.loss(control, images[0], images[1], working).backward()

    def network_trained() -> None:
        network = build_registration_network(dimension, 1, working, stages=2)
        whole, held = _in_training(network, config)
        moving, fixed = (_empty(settings.batch_size, 1, *working) for _ in range(2))
        there, back = both_ways(whole, moving, fixed)
        images = torch.cat([warp(moving, there), warp(fixed, back)])
        similarity = lncc(images, torch.cat([fixed, moving]), settings.lncc_sigma).mean()
        (gradient_inverse_consistency(there, back) - similarity).backward()
        del held

    ways = {"velocity": optimised, "gradicon": network_trained}
    steps = [registered, *([ways[settings.method]] if settings.method in ways else [])]
    kept = size.samples(config) * size.voxels * (_FLOAT + 1) * 2  # a list, then stacked
    return size.tensors() + kept + max(map(peak_bytes, steps))


def _segmentation(config: Config, size: StudySize) -> float:
    settings, samples = config.segmentation, size.samples(config)

    def step() -> None:
        network = build_segmentation_network(len(size.shape), size.structures, settings)
        whole, held = _in_training(network, config, averages=3 if settings.ema_decay else 2)
        images, labels = _batch(settings.batch_size, size)
        segmentation_loss(whole(images), labels, settings.loss).backward()
        del held

    pool = (size.labelled + samples) * size.voxels * (_FLOAT + (1 if samples else _INDEX))
    read = samples * size.voxels * (_FLOAT + 1)
    return size.tensors() + pool + read + peak_bytes(step)


def _adaptation(config: Config, size: StudySize) -> float:
    samples = size.samples(config) if config.adaptation.source_labels == "labels_augmentation" else 0
    pool = (size.labelled + samples) * size.voxels * (_FLOAT + _INDEX)
    read = size.samples(config) * size.voxels * (_FLOAT + 1)
    steps = {"self_training": _self_training_step, "cyclegan": _cyclegan_step}
    step = steps.get(config.adaptation.method)
    held, judged = size.tensors() + pool + read, peak_bytes(lambda: _judged(config, size))
    return held + (judged if step is None else max(judged, peak_bytes(lambda: step(config, size))))


@torch.no_grad()
def _judged(config: Config, size: StudySize) -> None:
    """Four target images at a time, twice (`collapse.assess`)."""
    network = build_segmentation_network(len(size.shape), size.structures, config.segmentation).to("meta")
    images, move = _empty(4, 1, *size.shape), _empty(4, len(size.shape), *size.shape)
    probabilities = network(images).softmax(1)
    soft_dice(warp(probabilities, move), network(warp(images, move)).softmax(1))


def _self_training_step(config: Config, size: StudySize) -> None:
    settings = config.segmentation
    network = build_segmentation_network(len(size.shape), size.structures, settings)
    whole, held = _in_training(network, config, averages=4)  # Adam's two, the teacher, the source network
    images, labels = _batch(config.adaptation.batch_size, size)
    loss = segmentation_loss(whole(images), labels, settings.loss)
    if config.adaptation.teacher_steps:
        with torch.no_grad():
            soft = whole(images).softmax(1)
        loss = loss + dice_loss(whole(images), soft)
    loss.backward()
    del held


def _cyclegan_step(config: Config, size: StudySize) -> None:
    settings, shape = config.adaptation, size.shape
    with torch.device("meta"):  # these are large, and filling them with first weights takes seconds
        generators = [
            Generator(len(shape), settings.generator_filters, settings.generator_blocks) for _ in range(2)
        ]
        judges = [Discriminator(shape, settings.discriminator_filters) for _ in range(2)]
        segmentation = [
            build_segmentation_network(len(shape), size.structures, config.segmentation) for _ in range(2)
        ]
    networks, held = _all_in_training([*generators, *judges, *segmentation], config)
    to_target, to_source, judge_target, judge_source, source_network, target_network = networks
    (source, labels), (target, _) = (_batch(settings.batch_size, size) for _ in range(2))
    cycles = translate(to_target, to_source, source, target)
    semantic = semantic_terms(source_network, target_network, cycles, labels)
    deceit = deceit_loss(judge_target(cycles.as_target)), deceit_loss(judge_source(cycles.as_source))
    total_loss(deceit, cycle_loss(cycles), semantic, settings).backward()
    judgement = judgement_loss(judge_target(target), judge_target(cycles.as_target.detach()))
    (judgement + judgement_loss(judge_source(source), judge_source(cycles.as_source.detach()))).backward()
    del held


def _registration(config: Config, size: StudySize) -> float:
    settings, classes = config.registration, 1 + size.structures
    shape = working_shape(size.shape, settings.working_downsampling)
    maps = 2 * (size.source + size.target) * classes * torch.Size(shape).numel() * _FLOAT  # apart and in one
    if settings.steps == 0:
        return float(size.tensors())

    def step() -> None:
        whole, held = _in_training(build_registration_network(len(shape), classes, shape), config)
        moving, fixed = (_empty(settings.batch_size, classes, *shape) for _ in range(2))
        forward, backward = both_ways(whole, moving, fixed)
        loss = registration_misfit(moving, fixed, forward, backward)
        (loss + gradient_inverse_consistency(forward, backward)).backward()
        del held

    return size.tensors() + maps + peak_bytes(step)


_STAGES: dict[str, Callable[[Config, StudySize], float]] = {
    "prealign": _prealign,
    "augmentation": _augmentation,
    "segmentation": _segmentation,
    "adaptation": _adaptation,
    "registration": _registration,
}


# -- a step without content -----------------------------------------------------------------------------


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that `step` holds at a time in tensors of the `meta` device."""
    with torch.random.fork_rng(devices=[]), _Held() as held:
        step()
    return held.most


class _Held(TorchDispatchMode):
    """Adds up the storage of the tensors that operations on the `meta` device make, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device.type != "meta" or key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._release(key, size))
        self._now += size
        self.most = max(self.most, self._now)

    def _release(self, key: int, size: int) -> None:
        del self._known[key]
        self._now -= size


def _in_training(network: nn.Module, config: Config, averages: int = 2) -> tuple[WholeBatch, list[Tensor]]:
    """`network` without content, given whole batches, and `averages` copies of its weights."""
    (whole,), held = _all_in_training([network], config, averages)
    return whole, held


def _all_in_training(
    networks: Iterable[nn.Module], config: Config, averages: int = 2
) -> tuple[list[WholeBatch], list[Tensor]]:
    at_once = ImagesAtOnce.of(config.training.images_at_once)
    empty = [network.to("meta") for network in networks]
    held = [torch.empty_like(w) for network in empty for w in network.parameters() for _ in range(averages)]
    return [_Share(network, at_once) for network in empty], held


class _Share(WholeBatch):
    """Holds what a network holds of a batch at a time: a part, of a process's share; and the whole output.

    The other parts are computed one after the other, so that one stands for all.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output, [N, ...]."""
        images = len(inputs[0])
        mine = -(-images // processes.count())
        part = min(mine, self.at_once.count or mine)
        found = self.share(*(x[:part] for x in inputs))
        return found if part == images else torch.cat([found] * -(-images // part))[:images]


def _batch(count: int, size: StudySize) -> tuple[Tensor, Tensor]:
    labels = torch.zeros(count, *size.shape, dtype=torch.long, device="meta")
    return _empty(count, 1, *size.shape), labels


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")
