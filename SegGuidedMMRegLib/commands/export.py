"""`segmmreg export`: registered pairs for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done
from SegGuidedMMRegLib.commands.register import transform_suffix

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter
    from SegGuidedMMRegLib.export import Pair, Plan, Wanted


@dataclass(frozen=True)
class Export(Command):
    """Write registered pairs for other programs: transforms, warped images and labels, a report, a table.

    Pairs that are marked failed are left out. No file is replaced without --overwrite; --plan says what would
    be written, and writes nothing.

    Examples: segmmreg export knees --out for_slicer --formats .nrrd --spacing 2;
    segmmreg export knees case1--case7 --out hand_over --outputs transforms report table --directions forward;
    segmmreg export knees --out for_slicer --plan
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    pairs: Annotated[Positional[tuple[str, ...]], arg(metavar="PAIRS")] = ()
    """Folders in registrations/, such as case1--case7, or paths of folders of other pairs; all without it."""
    pairs_from: Path | None = None
    """Text file with a pair a line, instead of PAIRS."""
    out: Path | None = None
    """Folder to write to; a subfolder a pair."""
    outputs: tuple[Literal["transforms", "image", "labels", "report", "table"], ...] = (
        "transforms",
        "image",
        "labels",
    )
    """Of each pair transforms, image, labels (the moving ones, warped); of all report (a page) and table."""
    formats: tuple[str, ...] = (".h5",)
    """Of the transforms: .h5, .tfm, .nrrd, .nii.gz, .mha."""
    directions: tuple[Literal["forward", "inverse"], ...] = ("forward", "inverse")
    """Of the transforms: forward warps the moving image, inverse the fixed one."""
    spacing: float | None = None
    """Spacing of the written fields in mm; as they are without it."""
    volumes: Literal[".nrrd", ".nii.gz", ".mha", "none"] = ".nrrd"
    """Format of the resampled images and labels; none leaves them out."""
    failed: bool = False
    """Also pairs that failed: not for use, but to be looked at."""
    plan: bool = False
    """Only say what would be written, and which files exist; without --out, which pairs there are."""
    overwrite: bool = False
    """Replace files that exist."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.export import find_pairs, plan_export, write_export
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        wanted = self._wanted()
        registrations = study.folder / "registrations"
        pairs = find_pairs(registrations, self._chosen())
        if self.plan and self.out is None:
            return _told(pairs, reporter)
        if self.out is None:
            raise ValueError("Give --out FOLDER to export to.")
        if not pairs:
            raise ValueError(
                f"{registrations}: there are no registered pairs; `segmmreg register` makes them."
            )
        plan = plan_export(pairs, self.out, wanted)
        for pair in plan.left_out:
            reporter.log(f"left out: {pair.name} failed: {pair.problem}")
        for sentence in plan.missing:
            reporter.log(f"note: {sentence}")
        if self.plan:
            return _planned(plan, reporter)
        replaced = sum(file.exists for file in plan.files)
        write_export(study, plan, reporter, overwrite=self.overwrite)
        found = {
            "out": plan.out,
            "folders": [plan.out / pair.name for pair in plan.pairs],
            "files": len(plan.files),
            "replaced": replaced,
            "left_out": [pair.name for pair in plan.left_out],
            "missing": plan.missing,
        }
        return Done(found)

    def _wanted(self) -> Wanted:
        from SegGuidedMMRegLib.export import Wanted

        kept = tuple(o for o in self.outputs if self.volumes != "none" or o not in ("image", "labels"))
        formats = tuple(dict.fromkeys(transform_suffix(f) for f in self.formats))
        directions = tuple(dict.fromkeys(self.directions))
        volumes = ".nrrd" if self.volumes == "none" else self.volumes
        return Wanted(kept, directions, formats, self.spacing, volumes, self.failed)

    def _chosen(self) -> tuple[str, ...]:
        if self.pairs_from is None:
            return self.pairs
        if self.pairs:
            raise ValueError("PAIRS and --pairs-from both say which pairs; give one of them.")
        lines = self.pairs_from.read_text(encoding="utf-8").splitlines()
        chosen = tuple(line.strip() for line in lines if line.strip())
        if not chosen:
            raise ValueError(f"{self.pairs_from}: names no pair. Write one a line.")
        return chosen


def _told(pairs: list[Pair], reporter: Reporter) -> Done:
    for pair in pairs:
        reporter.log(f"{pair.name}: {pair.status}{f', {pair.problem}' if pair.problem else ''}")
    return Done({"pairs": [_record(pair) for pair in pairs]})


def _planned(plan: Plan, reporter: Reporter) -> Done:
    files: list[dict[str, Any]] = []
    for file in plan.files:
        record = {"path": file.path, "pair": file.pair, "what": file.what, "bytes": file.bytes}
        files.append({**record, "exists": file.exists})
        size = "" if file.bytes is None else f", at most {file.bytes / 1e6:.2f} MB"
        reporter.log(f"{'exists' if file.exists else 'new'}: {file.path}{size}")
    return Done(
        {
            "out": plan.out,
            "pairs": [_record(pair) for pair in plan.pairs],
            "left_out": [_record(pair) for pair in plan.left_out],
            "missing": plan.missing,
            "files": files,
            "bytes": plan.bytes,
            "free_bytes": plan.free_bytes,
        }
    )


def _record(pair: Pair) -> dict[str, Any]:
    report = pair.report or {}
    after = (report.get("mean") or {}).get("after") or {}
    return {
        "pair": pair.name,
        "folder": pair.folder,
        "moving": report.get("moving", ""),
        "fixed": report.get("fixed", ""),
        "status": pair.status,
        "problem": pair.problem,
        "dice": after.get("dice"),
        "result": pair.result,
    }
