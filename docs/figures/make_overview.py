"""Draw `overview.jpg` of the README: one registered pair of a demo study.

python docs/figures/make_overview.py DEMO docs/figures/overview.jpg
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from SegGuidedMMRegLib.pair_report_file import pair_reports
from SegGuidedMMRegLib.report.figures import pair_strips
from SegGuidedMMRegLib.study import Study


def main(demo: Path, out: Path) -> None:
    """Lay the pictures of the pair with the median Dice side by side, each under its caption."""
    study = Study.open(demo / "study")
    home = study.folder / "registrations"
    ranked = sorted(pair_reports(home), key=lambda report: report["mean"]["after"]["dice"])
    median = ranked[len(ranked) // 2]
    pictures = pair_strips(study, median, home / median["pair"], home)[0].pictures
    figure = Figure(figsize=(2.2 * len(pictures), 2.5), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    for n, picture in enumerate(pictures):
        axes = figure.add_subplot(1, len(pictures), n + 1)
        jpeg = base64.b64decode(picture.source.partition(",")[2])
        axes.imshow(np.asarray(imread(io.BytesIO(jpeg), format="jpeg")))
        axes.set_title(picture.caption, fontsize=10)
        axes.set_axis_off()
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.88, wspace=0.03)
    figure.savefig(out, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
