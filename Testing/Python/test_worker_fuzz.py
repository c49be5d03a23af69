"""A live worker that is told nonsense: one answer a line, each an event, and it goes on serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mutations import HOSTILE_TEXTS, damaged_bytes, damaged_records, json_bytes
from trained_study import SOURCE, TARGET, Finished, copy_of
from worker_client import Worker

from SegGuidedMMRegLib.study import Study

A_ROUND = 20
"""Lines between two requests that must succeed."""


def requests_of(study: Study) -> list[dict[str, Any]]:
    """One of each kind; without the folder of the study, so that the damage is the same wherever it lies."""
    moving, fixed = (study.cases_of(m, "test")[0] for m in (SOURCE, TARGET))
    image, other = {"case": moving.key}, {"case": fixed.key}
    file = {"file": f"study/{moving.image}", "modality": SOURCE, "spacing": [1.0]}
    return [
        {"do": "segment", "images": [file], "out": "out"},
        {"do": "register", "moving": {**file, "labels": "l.nrrd"}, "fixed": other, "out": "out"},
        {"do": "register", "moving": image, "fixed": other, "out": "out", "field_spacing": 3.0},
        {"do": "propagate", "image": image, "source": "nobody", "out": "out"},
        {"do": "suggest", "count": 3},
        {"do": "cancel", "request": 0},
    ]


def strange_lines(study: Study) -> list[bytes]:
    """Lines that are no requests, and requests with damaged bytes or strange entries."""
    lines = list(HOSTILE_TEXTS)
    for seed, request in enumerate(requests_of(study)):
        whole = {"id": "asked", **request}
        lines += [json_bytes(record) for record in damaged_records(whole, seed, 30)]
        lines += damaged_bytes(json_bytes(whole), seed, 30)
    lines = [line.replace(b"\n", b" ") for line in lines]
    return [line.replace(b'"asked"', b'"%d"' % n) for n, line in enumerate(lines) if line.strip()]


@pytest.mark.xdist_group("trained")
def test_whatever_comes_down_the_pipe_gets_one_answer_and_the_next_is_served(
    finished: Finished, tmp_path: Path
) -> None:
    study = copy_of(finished.study, tmp_path / "here" / "study")
    lines = strange_lines(study)
    ended: list[dict[str, Any]] = []
    with Worker(study.folder, cwd=tmp_path / "here") as running:
        for first in range(0, len(lines), A_ROUND):
            for line in lines[first : first + A_ROUND]:
                running.send_line(line)
            running.send(id="served", do="suggest")
            told = running.until(lambda e: e.get("request") == "served" and e["event"] in ("result", "error"))
            answers = [e for e in told if e["event"] in ("result", "error")]
            assert answers[-1]["event"] == "result"
            assert len(answers) == len(lines[first : first + A_ROUND]) + 1
            ended += answers[:-1]
        assert running.close() == 0
        said = running.process.stderr.read().decode()
    assert {e["code"] for e in ended if e["event"] == "error"} == {"usage", "input"}
    assert sum(e["event"] == "error" for e in ended) > len(lines) / 2
    assert "Traceback" not in said + str(ended)
