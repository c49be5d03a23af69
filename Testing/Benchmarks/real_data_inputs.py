"""Inputs of three studies on real images: files and a list for `segmmreg new STUDY --list`.

Knee: radiographs of two looks. `smooth` is the source with 5 labelled knees, `sharp` the target. Labelled
knees that do not train are tested, each after a random similarity: turned by up to ±15°, scaled by ±15 %,
shifted by ±10 % of the picture. Left knees are flagged mirrored. Pixels count as 1 mm; the files do not say.

Spine: sagittal T2 SPACE slices (0.75 mm). Half of the subjects are the source, 5 of them labelled; the other
half is the target under a simulated contrast (`simulate_contrast`).

Prostate: MR with 8 labelled subjects as source, ultrasound of the same subjects as target. A subject has one
role in both. Spacing is what the headers say (0.4 mm), not the true size of these dummy volumes.

Target labels are written for test cases only, so nothing but the evaluation can use them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Name = Literal["knee", "spine", "prostate"]
Contrast = Literal["monotone", "nonmonotone"]

_LABELLED = {"knee": 5, "spine": 5, "prostate": 8}
"""Subjects whose source labels train."""
_TESTED_SPINES = 5
_TESTED_PROSTATES = 7
_ALWAYS_TESTED = ("s025", "s026")
_SPINE_SPACING_MM = 0.75
_CURVES: dict[Contrast, tuple[tuple[float, float], ...]] = {
    "monotone": ((0, 0), (0.1, 0.35), (0.3, 0.65), (0.7, 0.88), (1, 1)),
    "nonmonotone": ((0, 0), (0.1, 0.4), (0.3, 0.85), (0.5, 0.6), (0.75, 0.25), (1, 0.5)),
}
"""Old and new intensity. Discs lie near 0.1, marrow near 0.3, fluid near 0.7 before."""


@dataclass(frozen=True)
class DataSet:
    """How a study of these images is made.

    Attributes:
        source, target: names of the modalities.
        structures: as `segmmreg new --structures` wants them.
        paired: register each subject's source image to its own target image, not across subjects.
    """

    source: str
    target: str
    structures: tuple[str, ...]
    paired: bool = False


DATA_SETS: dict[Name, DataSet] = {
    "knee": DataSet("smooth", "sharp", ("1=femur", "2=tibia")),
    "spine": DataSet("t2", "simulated", ("1=L1", "2=L2", "3=L3", "4=L4", "5=L5")),
    "prostate": DataSet("mr", "us", ("1=gland",), paired=True),
}


@dataclass(frozen=True)
class Row:
    """A line of the list; paths are relative to it."""

    image: str
    modality: str
    case: str
    subject: str
    role: str
    mirrored: str = "no"
    label: str = ""
    label_use: str = ""
    landmarks: str = ""


@dataclass(frozen=True)
class Drawn:
    """The lot of a case: its role, and what its labels are for ("" leaves them out)."""

    role: str
    label_use: str = ""


_TRAINING, _UNLABELLED, _TESTED = Drawn("train", "training"), Drawn("train"), Drawn("test", "evaluation")


def prepare(
    name: Name,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    unlabelled: int = 40,
    contrast: Contrast = "nonmonotone",
) -> Path:
    """Write images, labels, landmarks and `list.csv`.

    Args:
        name: which data.
        data: the folder with all of them.
        out: where to write; files of the same names are replaced.
        seed: of every draw.
        unlabelled: knees without labels, of each look.
        contrast: of the target spines.

    Returns:
        The list.

    Raises:
        FileNotFoundError: if the images are not there.
    """
    folders = {"knee": "knee_xray", "spine": "spine_mr_t2space", "prostate": "prostate_mr_us_3d"}
    folder = data / folders[name]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the images are not there; --data names the folder that holds it.")
    if name == "knee":
        rows = _knees(folder, out, seed, unlabelled)
    elif name == "spine":
        rows = _spines(folder, out, seed, contrast)
    else:
        rows = _prostates(folder, out, seed)
    path = out / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f.name for f in fields(Row)])
        writer.writerows([[getattr(row, f.name) for f in fields(Row)] for row in rows])
    return path


# -- knees ----------------------------------------------------------------------------------------------
def _knees(folder: Path, out: Path, seed: int, unlabelled: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for look in ("smooth", "sharp"):
        labelled = _shuffled((folder / look / "labelled" / "images").glob("*.png"), rng)
        training = labelled[: _LABELLED["knee"]] if look == "smooth" else []
        others = _shuffled((folder / look / "unlabelled" / "images").glob("*.png"), rng)[:unlabelled]
        for path in labelled:
            rows.append(_knee(path, look, _TRAINING if path in training else _TESTED, out, seed))
        rows += [_knee(path, look, _UNLABELLED, out, seed) for path in others]
    return rows


def _knee(path: Path, look: str, drawn: Drawn, out: Path, seed: int) -> Row:
    image, labels = sitk.ReadImage(str(path)), None
    if drawn.label_use:
        labels = sitk.ReadImage(str(path.parent.parent / "labels" / path.name))
        labels.CopyInformation(image)
    if drawn.role == "test":
        move = random_similarity(image, np.random.default_rng([seed, int(path.stem[:-1])]))
        image = sitk.Resample(image, image, move, sitk.sitkLinear, 0.0)
        labels = labels and sitk.Resample(labels, labels, move, sitk.sitkNearestNeighbor, 0.0)
    mirrored = "yes" if path.stem.endswith("L") else "no"
    return _row(
        out,
        path.stem,
        look,
        subject=path.stem[:-1],
        drawn=drawn,
        image=image,
        labels=labels,
        mirrored=mirrored,
    )


def random_similarity(image: sitk.Image, rng: np.random.Generator) -> sitk.Similarity2DTransform:
    """A turn of up to ±15°, scaling by ±15 % and shift by ±10 % of the size, about the image's centre."""
    move = sitk.Similarity2DTransform()
    size = np.array(image.GetSize()) * np.array(image.GetSpacing())
    move.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    move.SetAngle(float(np.deg2rad(rng.uniform(-15, 15))))
    move.SetScale(float(rng.uniform(0.85, 1.15)))
    move.SetTranslation([float(v) for v in rng.uniform(-0.1, 0.1, 2) * size])
    return move


# -- spines ---------------------------------------------------------------------------------------------
def _spines(folder: Path, out: Path, seed: int, contrast: Contrast) -> list[Row]:
    paths = sorted((folder / "images").glob("*.png"))
    subjects = _shuffled({_spine_subject(p) for p in paths}, np.random.default_rng(seed))
    half = len(subjects) // 2
    sides = {"t2": subjects[:half], "simulated": subjects[half:]}
    lots: dict[str, tuple[str, Drawn]] = {}
    for modality, members in sides.items():
        training = _LABELLED["spine"] if modality == "t2" else 0
        for n, subject in enumerate(members):
            tested = training <= n < training + _TESTED_SPINES
            drawn = _TRAINING if n < training else _TESTED if tested else _UNLABELLED
            lots[subject] = (modality, drawn)
    rows = []
    for n, path in enumerate(paths):
        modality, drawn = lots[_spine_subject(path)]
        image = sitk.ReadImage(str(path))
        image.SetSpacing([_SPINE_SPACING_MM] * 2)
        labels = sitk.ReadImage(str(folder / "labels" / path.name)) if drawn.label_use else None
        if labels is not None:
            labels.CopyInformation(image)
        if modality == "simulated":
            image = _with_array(
                image, simulate_contrast(_array(image), contrast, np.random.default_rng([seed, n]))
            )
        rows.append(
            _row(
                out,
                path.stem,
                modality,
                subject=_spine_subject(path),
                drawn=drawn,
                image=image,
                labels=labels,
            )
        )
    return rows


def _spine_subject(path: Path) -> str:
    return path.stem.split("_")[1]


def simulate_contrast(
    array: NDArray[np.uint8], contrast: Contrast, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Another modality out of a slice: intensities through a curve, a bias field, and noise.

    The curve goes through the points of the contrast, rounded off by a Gaussian of 0.03 of the range.
    `monotone` brightens dark tissue and keeps the order of tissues; `nonmonotone` makes marrow brightest and
    fluid as dark as discs, so that no histogram matching undoes it. The image is then multiplied by
    exp(0.3 b), where b is a sum of cosines of at most one period over the picture with variance 1 (a coil's
    sensitivity), and Gaussian noise of 0.03 of the range is added.

    Args:
        array: [rows, columns], 0 to 255.
        contrast: which curve.
        rng: of bias and noise.
    """
    steps = np.linspace(-0.2, 1.2, 1401)
    old, new = np.array(_CURVES[contrast]).T
    kernel = np.exp(-0.5 * (np.arange(-120, 121) * 0.001 / 0.03) ** 2)
    curve = np.convolve(np.interp(steps, old, new), kernel / kernel.sum(), mode="same")
    changed = np.interp(array / 255.0, steps, curve)
    y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in array.shape), indexing="ij")
    bias = np.zeros(array.shape)
    for i, j in ((0, 1), (1, 0), (1, 1), (1, -1), (2, 0), (0, 2)):
        bias += rng.normal() * np.cos(np.pi * (i * y + j * x) + rng.uniform(0, 2 * np.pi))
    bias = (bias - np.mean(bias)) / np.std(bias)
    changed = changed * np.exp(0.3 * bias) + rng.normal(scale=0.03, size=array.shape)
    return np.clip(changed * 200.0, 0, 255).round().astype(np.uint8)


# -- prostates ------------------------------------------------------------------------------------------
def _prostates(folder: Path, out: Path, seed: int) -> list[Row]:
    found = {p.name.split("_")[1].split(".")[0] for p in (folder / "mr" / "images").glob("*.nii.gz")}
    drawn = _shuffled(found - set(_ALWAYS_TESTED), np.random.default_rng(seed))
    tested = {*_ALWAYS_TESTED, *drawn[: _TESTED_PROSTATES - len(_ALWAYS_TESTED)]}
    training = [s for s in drawn if s not in tested][: _LABELLED["prostate"]]
    rows = []
    for modality in ("mr", "us"):
        for subject in sorted(found):
            name = f"{modality}_{subject}"
            file = f"{name}.nii.gz"
            lot = _TESTED if subject in tested else _UNLABELLED
            if subject in training and modality == "mr":
                lot = _TRAINING
            image = sitk.ReadImage(str(folder / modality / "images" / file))
            labels = sitk.ReadImage(str(folder / modality / "labels" / file)) if lot.label_use else None
            points = ""
            if lot is _TESTED:
                marks = sitk.ReadImage(str(folder / modality / "landmarks" / file))
                points = _write_centroids(marks, out, f"landmarks/{name}.csv")
            rows.append(
                _row(
                    out,
                    name,
                    modality,
                    subject=subject,
                    drawn=lot,
                    image=image,
                    labels=labels,
                    landmarks=points,
                )
            )
    return rows


def _write_centroids(marks: sitk.Image, out: Path, relative: str) -> str:
    """Centroids of the landmark values as points lm1, lm2 (LPS mm); "" if there are none."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(marks)
    lines = [f"lm{v},{','.join(f'{c:.4f}' for c in shape.GetCentroid(v))},LPS" for v in shape.GetLabels()]
    if not lines:
        return ""
    (out / relative).parent.mkdir(parents=True, exist_ok=True)
    (out / relative).write_text("\n".join(["name,x,y,z,coordinate_system", *lines, ""]), encoding="utf-8")
    return relative


# -- common ---------------------------------------------------------------------------------------------
def _shuffled(items: object, rng: np.random.Generator) -> list:  # type: ignore[type-arg]
    ordered: Sequence = sorted(items)  # type: ignore[call-overload,type-arg]
    return [ordered[n] for n in rng.permutation(len(ordered))]


def _array(image: sitk.Image) -> NDArray[np.uint8]:
    return sitk.GetArrayFromImage(image)


def _with_array(image: sitk.Image, array: NDArray[np.uint8]) -> sitk.Image:
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    return changed


def _row(
    out: Path,
    name: str,
    modality: str,
    *,
    subject: str,
    drawn: Drawn,
    image: sitk.Image,
    labels: sitk.Image | None,
    mirrored: str = "no",
    landmarks: str = "",
) -> Row:
    """Write image and labels, and say so."""
    files = {"images": image} if labels is None else {"images": image, "labels": labels}
    for kind, content in files.items():
        (out / kind / modality).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(content, str(out / kind / modality / f"{name}.nrrd"), useCompression=True)
    return Row(
        image=f"images/{modality}/{name}.nrrd",
        modality=modality,
        case=name,
        subject=subject,
        role=drawn.role,
        mirrored=mirrored,
        label="" if labels is None else f"labels/{modality}/{name}.nrrd",
        label_use=drawn.label_use,
        landmarks=landmarks,
    )
