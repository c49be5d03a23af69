"""A stage in a process of its own: `python measured_memory.py STAGE DIMENSION [IMAGES_AT_ONCE]`.

Prints what the stage needed and what `memory_need` says, in MB, without what a process takes up by itself.
The peak is that of the resident memory, as the system counts it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import SimpleITK as sitk
import torch

from SegGuidedMMRegLib.cases import Structure
from SegGuidedMMRegLib.config import Config, config_from_dict
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.importing import new_study
from SegGuidedMMRegLib.importing.sources import Candidate
from SegGuidedMMRegLib.memory import StudySize, memory_need
from SegGuidedMMRegLib.networks.segmentation import build_segmentation_network, describe_network
from SegGuidedMMRegLib.networks.weights import save_weights
from SegGuidedMMRegLib.space import Grid
from SegGuidedMMRegLib.study import Study
from SegGuidedMMRegLib.training import prealign
from SegGuidedMMRegLib.training.adaptation import adapt
from SegGuidedMMRegLib.training.augmentation import augment
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.registration import train_registration
from SegGuidedMMRegLib.training.segmentation import train_source

SHAPES = {2: (256, 256), 3: (64, 72, 80)}
IMPORTED = {2: (3000, 2400), 3: (256, 224, 200)}
"""Size of the images that are pre-aligned."""
IMAGES, LABELLED = 6, 2


def settings(dimension: int, at_once: str) -> Config:
    """Of preset `default`, and as few steps as will do."""
    batch = 8 if dimension == 2 else 2
    return config_from_dict(
        {
            "training": {"device": "cpu", "images_at_once": at_once if at_once == "all" else int(at_once)},
            "augmentation": {"samples": 8, "iterations": 3, "min_similarity": -9.0},
            "segmentation": {"steps": 2, "batch_size": batch},
            "adaptation": {"randomised_steps": 2, "teacher_steps": 2, "batch_size": batch // 2},
            "registration": {"steps": 2, "batch_size": batch},
        }
    )


def study(dimension: int) -> StudyTensors:
    """Bright boxes on noise."""
    shape = SHAPES[dimension]
    images = torch.rand(2 * IMAGES, 1, *shape)
    labels = torch.zeros(*shape, dtype=torch.long)
    for value in (1, 2, 3):
        labels[tuple(slice(n * value // 6, n * (value + 1) // 6) for n in shape)] = value
    images += 0.2 * labels
    empty = torch.empty(0, 1, *shape)
    return StudyTensors(
        grid=Grid.centred((*shape[::-1], 1)[:3], (1.0, 1.0, 1.0)),  # type: ignore[arg-type]
        structures=("a", "b", "c"),
        source_names=tuple(f"s{i}" for i in range(IMAGES)),
        source_images=images[:IMAGES].clamp(0, 1),
        source_labels={row: labels.clone() for row in range(LABELLED)},
        target_names=tuple(f"t{i}" for i in range(IMAGES)),
        target_images=images[IMAGES:].clamp(0, 1),
        validation_names=(),
        validation_images=empty,
        validation_labels=torch.empty(0, *shape).long(),
    )


def prealigned(dimension: int, folder: Path) -> Study:
    """A study of images as large as those of a clinic."""
    size = IMPORTED[dimension]
    candidates = []
    for modality in "st":
        for n in range(IMAGES):
            path = folder / f"{modality}{n}.nrrd"
            blob = sitk.GaussianSource(
                sitk.sitkUInt16, size, [s / 5 for s in size], [s / 2 + n for s in size]
            )
            sitk.WriteImage(blob, str(path))
            candidates.append(Candidate(image=path, modality=modality, name=path.stem))
    study, _ = new_study(
        folder / "study",
        candidates,
        name="large",
        source="s",
        target="t",
        structures=[Structure(1, "a", (9, 9, 9))],
        grid_size=SHAPES[dimension][::-1],
        config=config_from_dict({}),
    )
    return study


def run(stage: str, tensors: StudyTensors, config: Config, folder: Path) -> None:
    """The stage as the pipeline calls it."""
    for name in ("segmentation", "adaptation"):
        network = build_segmentation_network(tensors.grid.dimension, 3, config.segmentation)
        save_weights(network, folder / name / "weights.safetensors")
        describe_network(
            folder / name, tensors.grid.dimension, list("abc"), config.segmentation, fragment_limits=[0.2] * 3
        )
    source, target = folder / "segmentation", folder / "adaptation"
    if stage == "augmentation":
        augment(tensors, config, folder / stage, Reporter())
    elif stage == "segmentation":
        train_source(tensors, None, config, folder / "new", Reporter())
    elif stage == "adaptation":
        new = folder / "new"
        adapt(tensors, None, config, source_folder=source, folder=new, reporter=Reporter())
    else:
        train_registration(tensors, config, source, target, folder / "new", reporter=Reporter())


def peak() -> int:
    """Bytes. On Linux not from `getrusage`: what that says begins with the memory of who started this."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def main(stage: str, dimension: str, at_once: str = "all") -> None:
    """Measure one stage."""
    if stage == "prealign":
        with TemporaryDirectory() as folder:
            # Made in a process of its own, whose peak does not count.
            command = [sys.executable, __file__, "study", dimension, folder]
            subprocess.run(command, check=True)
            measure_prealign(Study.open(Path(folder) / "study"))
        return
    if stage == "study":
        prealigned(int(dimension), Path(at_once))
        return
    config = settings(int(dimension), at_once)
    if stage != "augmentation":
        config = config.model_copy(
            update={"augmentation": config.augmentation.model_copy(update={"method": "none"})}
        )
    size = StudySize(SHAPES[int(dimension)], 3, IMAGES, LABELLED, IMAGES, 0)
    said = memory_need(stage, config, size, "cpu").bytes - memory_need("prealign", config, size, "cpu").bytes
    torch.nn.functional.conv2d(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 3, 3))
    before = peak()
    with TemporaryDirectory() as folder:
        run(stage, study(int(dimension)), config, Path(folder))
    print(json.dumps({"measured": round((peak() - before) / 1e6), "estimated": round(said / 1e6)}))


def measure_prealign(made: Study) -> None:
    """The same of pre-alignment, which is not of the study grid but of the images as they came."""
    config, size = made.config, StudySize.of(made)
    nothing = memory_need("prealign", config, replace(size, largest_image=0), "cpu").bytes
    said = memory_need("prealign", config, size, "cpu").bytes - nothing
    before = peak()
    prealign.run(made, config.prealign, Reporter())
    print(json.dumps({"measured": round((peak() - before) / 1e6), "estimated": round(said / 1e6)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
