"""The settings of every stage, typed and checked, with three presets.

`paper` repeats appendix B of Demir and Niethammer (MIDL 2024) to the letter, `default` is what this project
recommends, `quick` is `default` cut down to minutes on a CPU. A YAML file names a preset and what differs
from it; unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from SegGuidedMMRegLib.documents import parse_yaml, read_yaml

PresetName = Literal["paper", "default", "quick"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrealignConfig(_Section):
    """Affine map of every image into study space, before anything is learned."""

    method: Literal["affine", "moments", "none"] = Field(
        "affine", description="affine: by similarity; moments: by place and size alone; none: by the headers"
    )
    working_size: int = Field(96, ge=16, description="longest side in voxels of the images that are aligned")
    max_rotation_degrees: float = Field(
        30.0, ge=0, le=180, description="largest in-plane turn that is searched"
    )


class AugmentationConfig(_Section):
    """Multiplying the labelled images by registering them to unlabelled ones (paper, Eq. 1, B.2)."""

    method: Literal["velocity", "gradicon", "elastic", "none"] = Field(
        "velocity",
        description="velocity: each pair registered by itself; gradicon: by a network that is trained for it "
        "(paper); elastic: random deformations; none: no samples",
    )
    samples: int = Field(150, ge=0, description="labelled samples to make; 0: one for every pair")
    working_downsampling: int = Field(
        2, ge=1, description="factor by which images are shrunk while registered"
    )
    iterations: int = Field(120, ge=1, description="optimisation steps a batch of pairs (velocity)")
    smoothness: float = Field(
        0.1, ge=0, description="weight of the regulariser (velocity: bending; gradicon: λ)"
    )
    lncc_sigma: float = Field(3.0, gt=0, description="σ of the LNCC window, in voxels (paper: 3)")
    min_similarity: float = Field(
        0.45, description="pairs whose LNCC stays below this share of a perfect match are dropped"
    )
    learning_rate: float = Field(0.1, gt=0, description="of the optimiser (gradicon in the paper: 5e-5)")
    steps_per_stage: int = Field(20_000, ge=1, description="training steps a stage (gradicon)")
    batch_size: int = Field(32, ge=1, description="pairs at once, where there is memory for them")
    elastic_control_points: int = Field(3, ge=2, description="control points an axis (elastic; paper: 3)")
    elastic_sigma: float = Field(
        3.0, gt=0, description="standard deviation of their displacement, voxels (paper: 3)"
    )


class SegmentationConfig(_Section):
    """The segmentation network of the source modality (paper, 3.2, B.2)."""

    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (16, 32, 64, 128, 256), max_length=12, description="of the network's levels, from fine to coarse"
    )
    strides: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        (2, 2, 2, 2), max_length=12, description="factor of size between the levels, one fewer than channels"
    )
    residual_units: int = Field(2, ge=0, le=64, description="convolutions a level that are added up")
    loss: Literal["dice_ce", "dice"] = Field(
        "dice_ce", description="dice: 1 - Dice; dice_ce: that plus the cross-entropy"
    )
    steps: int = Field(2000, ge=1, description="training steps of the network")
    batch_size: int = Field(8, ge=1, description="images a step; fewer need less memory")
    learning_rate: float = Field(2e-3, gt=0, description="of the optimiser, at its highest")
    schedule: Literal["one_cycle", "constant"] = Field(
        "one_cycle", description="one_cycle: the learning rate rises and falls; constant: it stays"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the averaged weights; 0 uses the last weights")
    spatial_augmentation: bool = Field(True, description="turn, scale and bend images at random in training")
    intensity_augmentation: bool = Field(
        True, description="change brightness, contrast, noise and sharpness at random in training"
    )
    augmented_share: float = Field(
        0.5, ge=0, le=1, description="share of a batch drawn from the augmented samples"
    )
    drop_fragments: bool = Field(
        True, description="predictions lose pieces far smaller than any that the labels show of a structure"
    )


class AdaptationConfig(_Section):
    """From the source network to one for the target, without target labels (paper, 3.3, Eq. 2, 3)."""

    method: Literal["self_training", "cyclegan", "none"] = Field(
        "self_training",
        description="self_training: contrast at random, then a mean teacher; cyclegan: images translated to "
        "the other modality (paper); none: the source network is used",
    )
    source_labels: Literal["labels", "labels_predictions", "labels_augmentation"] = Field(
        "labels_augmentation",
        description="source images that are learned from: labelled ones alone, with predicted ones, or with "
        "the augmented samples",
    )
    learning_rate: float = Field(2e-3, gt=0, description="of the optimisers, at its highest (cyclegan: 2e-4)")
    batch_size: int = Field(4, ge=1, description="images of each modality a step; fewer need less memory")
    # self-training
    randomised_steps: int = Field(1500, ge=0, description="steps on contrast-randomised source images")
    randomised_from: Literal["source", "fresh"] = Field("source", description="first weights of these steps")
    teacher_steps: int = Field(500, ge=0, description="steps with the mean teacher's labels on target images")
    teacher_decay: float = Field(
        0.99, ge=0, lt=1, description="of the teacher's averaged weights; nearer to 1, it follows later"
    )
    teacher_confidence: float = Field(
        0.8, ge=0, le=1, description="images whose mean confidence is lower are left out"
    )
    # cyclegan
    epochs: int = Field(400, ge=1, description="passes over the images (cyclegan)")
    generator_filters: int = Field(64, ge=1, description="channels of the translating networks (cyclegan)")
    generator_blocks: int = Field(
        9, ge=1, description="residual blocks of the translating networks (cyclegan)"
    )
    discriminator_filters: int = Field(64, ge=1, description="channels of the judging networks (cyclegan)")
    lambda_gan: float = Field(1.0, ge=0, description="weight of deceiving the judging networks (cyclegan)")
    lambda_cycle: float = Field(10.0, ge=0, description="weight of coming back to the same image (cyclegan)")
    lambda_semantic: float = Field(
        5.0, ge=0, description="weight of keeping the structures, Eq. 2 (cyclegan)"
    )
    # both
    vanished_share: float = Field(
        0.2, ge=0, le=1, description="a structure smaller than this share of its usual size has vanished"
    )
    collapsed_images: float = Field(
        0.3, ge=0, le=1, description="vanished from a larger share of the target images, it has collapsed"
    )


class RegistrationConfig(_Section):
    """The registration network on segmentations (paper, 3.4, Eq. 4) and the refinement of a pair."""

    steps: int = Field(1000, ge=0, description="training steps of the network; 0 leaves it out")
    batch_size: int = Field(8, ge=1, description="pairs a step; fewer need less memory")
    learning_rate: float = Field(5e-4, gt=0, description="of the optimiser, at its highest")
    schedule: Literal["one_cycle", "constant"] = Field(
        "one_cycle", description="one_cycle: the learning rate rises and falls; constant: it stays"
    )
    lambda_inverse_consistency: float = Field(
        1.5, ge=0, description="weight of forward and inverse map undoing each other (paper: λ)"
    )
    perturbed: bool = Field(True, description="move the segmentations of a pair at random in training")
    working_downsampling: int = Field(
        2, ge=1, description="factor by which segmentations are shrunk for the network"
    )
    refinement_steps: int = Field(
        80, ge=0, description="optimisation steps a pair at inference; 0 leaves it out"
    )
    affine: bool = Field(
        True, description="align the two segmentations affinely first, where that raises their Dice"
    )
    refinement_rate: float = Field(
        0.3, gt=0, description="step of the optimiser, nodes of the velocity field"
    )
    refinement_smoothness: float = Field(
        0.1, ge=0, description="weight of the velocity's squared gradient (mm a mm)"
    )
    cautious: bool = Field(
        True,
        description="go only part of the way from the pre-alignment where predictions are uncertain",
    )
    landmark_weight: float = Field(
        1.0, ge=0, description="weight of the mean squared distance of landmarks that are given with a pair"
    )


PAIR_SETTINGS = {
    "affine",
    "refinement_steps",
    "refinement_rate",
    "refinement_smoothness",
    "cautious",
    "landmark_weight",
}
"""Settings of `registration` that pairs are registered with; the network's training knows nothing of them."""


class TrainingConfig(_Section):
    """What all stages share."""

    seed: int = Field(0, description="of all that is random: the same seed gives the same networks")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="cuda: a GPU of NVIDIA; mps: one of Apple; auto: a GPU where there is one"
    )
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="devices of this machine to train on, a process each; auto: every CUDA device"
    )
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = Field(
        "auto", description="of numbers; mixed ones need less memory and time; auto: mixed on CUDA alone"
    )
    checkpoint_seconds: float = Field(60.0, gt=0, description="time between two checkpoints, at least")
    checkpoint_share: float = Field(
        0.02, gt=0, le=1, description="largest share of the time that checkpoints may take"
    )
    images_at_once: Annotated[int, Field(ge=1)] | Literal["all", "auto"] = Field(
        "all",
        description="images of a batch that a network sees at once; fewer need less memory and more time; "
        "auto: halved whenever memory runs out",
    )


class Config(_Section):
    """All settings of a study."""

    preset: PresetName = "default"
    training: TrainingConfig = TrainingConfig()
    prealign: PrealignConfig = PrealignConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    registration: RegistrationConfig = RegistrationConfig()


_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "quick": {
        "augmentation": {"samples": 40, "iterations": 80},
        "segmentation": {"steps": 400, "batch_size": 4},
        "adaptation": {"randomised_steps": 900, "teacher_steps": 100, "epochs": 10},
        "registration": {"steps": 100, "batch_size": 4, "refinement_steps": 50},
    },
    "paper": {
        "augmentation": {
            "method": "gradicon",
            "samples": 0,
            "steps_per_stage": 20_000,
            "batch_size": 32,
            "learning_rate": 5e-5,
            "smoothness": 1.5,
            "working_downsampling": 1,
            "min_similarity": -1.0,
        },
        "segmentation": {
            "channels": (4, 8, 16, 32, 64, 128),
            "strides": (1, 1, 1, 1, 1),
            "residual_units": 8,
            "loss": "dice",
            "schedule": "constant",
            "ema_decay": 0.0,
            "spatial_augmentation": False,
            "intensity_augmentation": False,
            "augmented_share": 1.0,
            "drop_fragments": False,
        },
        "adaptation": {"method": "cyclegan", "batch_size": 1, "learning_rate": 2e-4},
        "registration": {
            "steps": 5000,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "perturbed": False,
            "working_downsampling": 1,
            "affine": False,
            "refinement_steps": 0,
            "cautious": False,
        },
    },
}

_IN_3D: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"adaptation": {"randomised_steps": 600}},
    "quick": {
        "segmentation": {"channels": (8, 16, 32, 64, 128), "batch_size": 2},
        "adaptation": {"randomised_steps": 600, "teacher_steps": 200, "batch_size": 2},
        "registration": {"steps": 40, "batch_size": 2},
    },
}
"""What presets mean for volumes: a step of `quick` costs many times more, and long training on a handful of
recoloured volumes fits these volumes."""


def preset(name: PresetName) -> Config:
    """The settings called `name`."""
    return Config.model_validate({"preset": name, **_PRESETS[name]})


def fitted_to_dimension(config: Config, dimension: int) -> Config:
    """`config` with the settings of its preset that are other ones in 3D; those that were changed stay."""
    if dimension != 3 or config.preset not in _IN_3D:
        return config
    plain, sections = preset(config.preset), {}
    for section, overlay in _IN_3D[config.preset].items():
        mine, usual = getattr(config, section), getattr(plain, section)
        kept = {k: v for k, v in overlay.items() if getattr(mine, k) == getattr(usual, k)}
        sections[section] = mine.model_copy(update=kept)
    return config.model_copy(update=sections)


def load_config(path: Path) -> Config:
    """Read a YAML file: `preset:` (default `default`) and the settings that differ from it.

    Raises:
        ValueError: naming the file, the key and the nearest known key, for anything that does not fit.
    """
    record = read_yaml(path)
    if record is None:
        record = {}
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected settings by name, got {type(record).__name__}.")
    return config_from_dict(record, where=str(path))


def config_from_dict(record: dict[str, Any], where: str = "settings") -> Config:
    """Settings from plain values, laid over the preset that `record["preset"]` names (else `default`).

    Raises:
        ValueError: naming `where`, the key and the nearest known key.
    """
    name = record.get("preset", "default")
    if not isinstance(name, str) or name not in _PRESETS:
        raise ValueError(f"{where}: preset must be one of {', '.join(_PRESETS)}, got {name!r}.")
    merged: dict[str, Any] = {"preset": name}
    for section in {*_PRESETS[name], *record} - {"preset"}:
        given = record.get(section, {})
        if section in Config.model_fields and not isinstance(given, dict):
            raise ValueError(f"{where}: {section} must hold settings by name, got {given!r}.")
        base = _PRESETS[name].get(section, {})
        merged[section] = {**base, **given} if isinstance(given, dict) else given
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ValueError("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from None


def override(
    config: Config,
    preset_name: PresetName | None = None,
    path: Path | None = None,
    settings: Sequence[str] = (),
    where: str = "--set",
) -> Config:
    """`config`, or the preset or file named instead of it, with settings like `segmentation.steps=500`.

    `where` is what messages call the place that the settings come from.

    Raises:
        ValueError: if both preset and file are named, or naming the setting that does not fit.
    """
    if preset_name is not None and path is not None:
        raise ValueError("Give --preset or --config, not both: the file names its own preset.")
    if path is not None:
        config = load_config(path)
    elif preset_name is not None:
        config = preset(preset_name)
    record: dict[str, Any] = config.model_dump(mode="json")
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key) or section == "preset":
            raise ValueError(
                f"{where} {setting!r}: expected SECTION.SETTING=VALUE, like segmentation.steps=500."
            )
        record.setdefault(section, {})[key] = parse_yaml(text, f"{where} {setting!r}")
    return config_from_dict(record, where) if settings else config


def save_config(config: Config, path: Path) -> None:
    """Write every setting as YAML, so that the file is complete by itself."""
    from SegGuidedMMRegLib.files import write_text_atomically

    write_text_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _explain(problem: Any) -> str:
    kinds = ("constrained-", "literal[")  # pydantic's names for the kinds of value that a setting may have
    key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(kinds))
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']}, got {repr(problem['input'])[:200]}."
    *parents, last = problem["loc"]
    model: Any = Config
    for parent in parents:
        model = model.model_fields[parent].annotation
    near = difflib.get_close_matches(str(last), model.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(model.model_fields)}."
    return f"unknown setting {key!r}; {hint}"
