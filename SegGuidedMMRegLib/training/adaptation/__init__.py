"""From the source network to one for the target modality, without target labels (paper, 3.3).

`adapt` runs the method that the settings name, judges every network on the way without labels, and ships
the last one in which no structure has vanished.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from SegGuidedMMRegLib.config import Config
from SegGuidedMMRegLib.events import Reporter
from SegGuidedMMRegLib.files import write_text_atomically
from SegGuidedMMRegLib.networks.segmentation import describe_network, load_segmentation_network
from SegGuidedMMRegLib.networks.weights import save_weights
from SegGuidedMMRegLib.training.adaptation.collapse import UsualSizes
from SegGuidedMMRegLib.training.adaptation.cyclegan import CycleGan
from SegGuidedMMRegLib.training.adaptation.self_training import SelfTraining
from SegGuidedMMRegLib.training.adaptation.task import (
    AdaptationMethod,
    AdaptationTask,
    Snapshot,
    source_samples,
)
from SegGuidedMMRegLib.training.augmentation.samples import AugmentedSamples
from SegGuidedMMRegLib.training.data import StudyTensors
from SegGuidedMMRegLib.training.devices import by_first, device_of
from SegGuidedMMRegLib.training.loop import WEIGHTS_FILE

RECORD_FILE = "adaptation.json"


class NoAdaptation:
    """The source network as it is."""

    def snapshots(self, _task: AdaptationTask) -> list[Snapshot]:
        """None."""
        return []


METHODS: dict[str, AdaptationMethod] = {
    "self_training": SelfTraining(),
    "cyclegan": CycleGan(),
    "none": NoAdaptation(),
}


@dataclass(frozen=True)
class AdaptationResult:
    """What adaptation ended with.

    Attributes:
        weights: file of the kept network, beside it its description and `adaptation.json`.
        kept: phase that it comes from: `source`, `randomised`, `teacher`, `cyclegan` or `second_try`.
        collapsed: names of the structures that are missing from its predictions on target images; empty if
            all is well.
        remedy: what was done about networks that lost a structure or got worse, a sentence; empty if there
            was none.
    """

    weights: Path
    kept: str
    collapsed: tuple[str, ...]
    remedy: str


def adapt(
    tensors: StudyTensors,
    augmented: AugmentedSamples | None,
    config: Config,
    *,
    source_folder: Path,
    folder: Path,
    reporter: Reporter,
) -> AdaptationResult:
    """Adapt the network in `source_folder` to the target images, and write it into `folder`.

    Each phase is resumed if it was cut off, and not repeated if it had ended.

    Args:
        tensors: the study, on any device.
        augmented: registration-augmented samples, or None.
        config: `adaptation`, `segmentation` and `training` are used.
        source_folder: stage folder of the source network.
        folder: of this stage; `load_segmentation_network` reads the result from it.
        reporter: hears about progress, about every collapse and what was done about it.

    Raises:
        ValueError: if there are no target images, no source network, or a structure that no label shows.
    """
    if not len(tensors.target_images):
        raise ValueError("Adaptation needs unlabelled training images of the target modality; add some.")
    folder.mkdir(parents=True, exist_ok=True)
    device = device_of(config.training)
    tensors = tensors.to(device)
    network = load_segmentation_network(source_folder).to(device)
    task = AdaptationTask(
        source_network=network,
        samples=source_samples(tensors, augmented, network, config),
        target_images=tensors.target_images,
        usual=UsualSizes.of(tensors.labelled_labels, len(tensors.structures)),
        spacing=tensors.grid.axis_spacing,
        config=config,
        folder=folder,
        reporter=reporter,
    )
    snapshots, kept = _train_and_choose(task)
    return by_first(lambda: _deliver(task, tensors, snapshots, kept))


def choose(snapshots: list[Snapshot]) -> Snapshot:
    """The last network in which no structure has collapsed, and which is no worse where that is asked.

    If a structure has collapsed in all, the one where least has vanished; of equal ones the later.
    """
    sound: Snapshot | None = None
    for snapshot in snapshots:
        if snapshot.quality.collapsed:
            continue
        if sound and snapshot.must_not_worsen and not snapshot.quality.is_no_worse_than(sound.quality):
            continue
        sound = snapshot
    return sound or min(reversed(snapshots), key=lambda snapshot: sum(snapshot.quality.vanished))


def _train_and_choose(task: AdaptationTask) -> tuple[list[Snapshot], Snapshot]:
    method = METHODS[task.config.adaptation.method]
    trained = method.snapshots(task)
    if trained and all(snapshot.quality.collapsed for snapshot in trained):
        task.reporter.log(
            "Adaptation lost a structure; it is tried once more, with milder changes of contrast."
        )
        trained += SelfTraining(second_try=True).snapshots(task)
    snapshots = [task.judged("source", task.source_network), *trained]
    return snapshots, choose(snapshots)


def _deliver(
    task: AdaptationTask, tensors: StudyTensors, snapshots: list[Snapshot], kept: Snapshot
) -> AdaptationResult:
    save_weights(kept.network, task.folder / WEIGHTS_FILE)
    describe_network(
        task.folder,
        tensors.grid.dimension,
        list(tensors.structures),
        task.config.segmentation,
        fragment_limits=task.source_network.fragment_limits,
        uncertainty=1 - kept.quality.agreement,
    )
    collapsed = tuple(tensors.structures[index] for index in kept.quality.collapsed)
    remedy = " ".join(_explain(s, kept, tensors.structures) for s in snapshots[1:] if _needs_words(s, kept))
    settings = task.config.adaptation
    record = {
        "method": settings.method,
        "source_labels": settings.source_labels,
        "source_samples": len(task.samples.images),
        "target_images": len(task.target_images),
        "kept": kept.name,
        "collapsed": list(collapsed),
        "remedy": remedy,
        "snapshots": {snapshot.name: snapshot.quality.as_record() for snapshot in snapshots},
    }
    write_text_atomically(task.folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    if remedy:
        task.reporter.log(f"Adaptation: {remedy}")
    if collapsed:
        task.reporter.log(
            f"WARNING: {', '.join(collapsed)} missing from target predictions in every network "
            "that was tried. Label more source images that show it, or look at the target images."
        )
    task.reporter.result("adaptation", kept=kept.name, collapsed=list(collapsed), remedy=remedy)
    return AdaptationResult(task.folder / WEIGHTS_FILE, kept.name, collapsed, remedy)


def _needs_words(snapshot: Snapshot, kept: Snapshot) -> bool:
    return bool(snapshot.quality.collapsed) or (snapshot.must_not_worsen and snapshot is not kept)


def _explain(snapshot: Snapshot, kept: Snapshot, structures: tuple[str, ...]) -> str:
    """Why `snapshot` was not taken, or what is wrong with it."""
    lost = ", ".join(structures[index] for index in snapshot.quality.collapsed)
    why = f"lost {lost}" if lost else "was worse without labels (sizes or agreement)"
    done = "kept all the same, as all lost one" if snapshot is kept else f"'{kept.name}' was kept"
    return f"'{snapshot.name}' {why}; {done}."
