"""`segmmreg label`: hand segmentations of cases that are in a study already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter


@dataclass(frozen=True)
class Label(Command):
    """Use the segmentations that were drawn for cases of a study, replace them, or set them aside.

    Each is checked as at import: it lies where its image lies, and holds structures of the study alone.

    Example: segmmreg label knees dxa_007 --file corrected.seg.nrrd
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    cases: Annotated[Positional[tuple[str, ...]], arg(metavar="CASE")]
    """Cases whose segmentation lies in the folder `labels` of the study, or is put there by --file."""
    file: Path | None = None
    """A label map or .seg.nrrd that replaces the segmentation of the one case."""
    use: Literal["training", "evaluation", "none"] | None = None
    """What they are for; none sets them aside, and their files stay. Without it: as before; new ones are for
    training, but those of the target modality and of test cases for evaluation."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.importing.labelling import label_cases

        study, cases = label_cases(self.study, self.cases, use=self.use, file=self.file)
        for case in cases:
            use = f"labels for {case.label_use}" if case.label_use else "labels set aside"
            reporter.log(f"{case.key}: {use}")
        counts = [sum(c.label_use == use for c in study.cases) for use in ("training", "evaluation")]
        reporter.log(f"{counts[0]} images have labels for training, {counts[1]} for evaluation.")
        told = [{"case": c.key, "label": c.label, "label_use": c.label_use} for c in cases]
        return Done({"study": self.study, "cases": told})
