"""`segmmreg worker`, `suggest` and `propagate`: help while images are labelled and pairs reviewed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import Positional, arg

from SegGuidedMMRegLib.commands.base import Command, Done

if TYPE_CHECKING:
    from SegGuidedMMRegLib.events import Reporter


@dataclass(frozen=True)
class Worker(Command):
    """Serve another program: requests on the standard input, a line of JSON each, events on the output.

    Loads the networks once and goes on until its input is closed. docs/worker.md lists the requests.

    Example: segmmreg worker knees
    """

    always_events: ClassVar[bool] = True

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study; trained, for all but `propagate` and `suggest`."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.worker import serve

        serve(self.study, reporter, show_traceback=self.traceback)
        return Done()


@dataclass(frozen=True)
class Suggest(Command):
    """Say which images to label next: those that best stand for the ones no labelled image resembles yet.

    Needs pre-aligned images (`segmmreg train STUDY --stage prealign`), no training.

    Example: segmmreg suggest knees --count 3
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    count: int = 5
    """How many."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        if self.count < 1:
            raise ValueError(f"--count must be 1 or more, got {self.count}.")
        from SegGuidedMMRegLib.suggestion import suggest

        found = suggest(study, self.count, reporter)
        for rank, one in enumerate(found, start=1):
            reporter.log(f"{rank}. {one.case.name}: {one.reason}")
        return Done({"cases": [one.to_record() for one in found]})


@dataclass(frozen=True)
class Propagate(Command):
    """Draft the labels of a case from the labelled case that is most like it, to be corrected by hand.

    Needs pre-aligned images (`segmmreg train STUDY --stage prealign`); for a case of the target modality, a
    trained study. Only labels that training may see are used.

    Example: segmmreg propagate knees dxa_007 --out drafts
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    """Folder of the study."""
    case: Annotated[Positional[str], arg(metavar="CASE")]
    """The case to label."""
    out: Path
    """Folder for CASE.seg.nrrd."""
    source: str | None = None
    """Take the labels of this case instead of the most similar one."""

    def run(self, reporter: Reporter) -> Done:
        from SegGuidedMMRegLib.study import Study

        study = Study.open(self.study)
        from SegGuidedMMRegLib.images import write_labels
        from SegGuidedMMRegLib.propagation import propagate
        from SegGuidedMMRegLib.samples import Sample

        source = None if self.source is None else study.case(self.source)
        sample = Sample.of_case(study, study.case(self.case))
        found = propagate(study, sample, source=source, reporter=reporter)
        path = self.out / f"{sample.name}.seg.nrrd"
        write_labels(found.labels, study.structures, path)
        for warning in found.warnings:
            reporter.log(warning)
        return Done({"labels": path, "source": found.source.key, "similarity": found.similarity_after})
