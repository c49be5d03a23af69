"""Decisions about pairs: kept line by line, bound to the result that was seen, and readable in Excel."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slicer_module import slicer  # noqa: F401

from SegGuidedMMRegLib.files import WriteError
from SegGuidedMMRegLib.reviews import Decision, ReviewRecord, entries, read_entry, result_of


@pytest.fixture
def registrations(tmp_path) -> Path:
    folder = tmp_path / "registrations"
    for name, dice in (("a--b", 0.9), ("a--c", 0.8)):
        write(folder / name, dice)
    return folder


def write(folder: Path, dice: float, status: str = "ok") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report = {"status": status, "mean": {"after": {"dice": dice}}}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def table(registrations: Path) -> list[dict[str, str]]:
    with (registrations / "reviews.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_decision_is_kept_with_comment_name_and_date(registrations):
    result = result_of(registrations / "a--b")
    ReviewRecord(registrations).decide(Decision("a--b", result, "accepted", "fine, ±1 mm", "Ann"))
    found = ReviewRecord(registrations).of("a--b", result)
    assert (found.verdict, found.comment, found.reviewer) == ("accepted", "fine, ±1 mm", "Ann")
    assert found.date[:2] == "20"
    assert found.date[-6] in "+-"


def test_the_last_decision_counts_and_can_be_taken_back(registrations):
    record, result = ReviewRecord(registrations), result_of(registrations / "a--b")
    for verdict in ("accepted", "doubtful", "rejected"):
        record.decide(Decision("a--b", result, verdict))
        assert record.of("a--b", result).verdict == verdict
    record.decide(Decision("a--b", result, ""))
    assert record.of("a--b", result) is None
    assert len((registrations / "reviews.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="'maybe' is none of"):
        record.decide(Decision("a--b", result, "maybe"))


def test_a_decision_about_an_earlier_result_is_outdated_and_returns_with_it(registrations):
    record, folder = ReviewRecord(registrations), registrations / "a--b"
    first = result_of(folder)
    record.decide(Decision("a--b", first, "accepted"))
    write(folder, 0.95)
    second = result_of(folder)
    assert record.of("a--b", second) is None
    assert record.outdated("a--b", second).verdict == "accepted"
    record.write_table({"a--b": second})
    assert [(row["verdict"], row["of_present_result"]) for row in table(registrations)] == [
        ("accepted", "no")
    ]
    record.decide(Decision("a--b", second, "rejected"))
    assert record.outdated("a--b", second) is None
    write(folder, 0.9)
    assert record.of("a--b", result_of(folder)).verdict == "accepted"
    record.write_table({})
    assert [(row["verdict"], row["of_present_result"]) for row in table(registrations)] == [
        ("accepted", "yes")
    ]


def test_two_reviewers_at_the_same_time_lose_nothing(registrations):
    def review(n: int) -> None:
        ReviewRecord(registrations).decide(Decision("a--b", f"r{n}", "accepted", f"c{n}", f"p{n}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(review, range(60)))
    record = ReviewRecord(registrations)
    assert {record.of("a--b", f"r{n}").comment for n in range(60)} == {f"c{n}" for n in range(60)}


def test_somebody_elses_decision_is_seen_after_reading_again(registrations):
    mine, theirs = ReviewRecord(registrations), ReviewRecord(registrations)
    theirs.decide(Decision("a--c", "r", "doubtful"))
    assert mine.of("a--c", "r") is None
    mine.read()
    assert mine.of("a--c", "r").verdict == "doubtful"


def test_damaged_lines_are_left_out_and_the_next_decision_is_whole(registrations):
    result = result_of(registrations / "a--b")
    log = registrations / "reviews.jsonl"
    log.write_text('{"pair": 3}\n{"pair": "a--b", "verdict": "great"}\nnonsense\n{"pair": "a--b", "res')
    record = ReviewRecord(registrations)
    assert record.of("a--b", result) is None
    record.decide(Decision("a--b", result, "accepted"))
    assert ReviewRecord(registrations).of("a--b", result).verdict == "accepted"


def test_the_table_runs_no_formula_and_keeps_to_one_line_a_pair(registrations):
    record = ReviewRecord(registrations)
    record.decide(Decision("a--b", "r", "rejected", '=HYPERLINK("x")\nknee, "left"', "@me"))
    record.write_table({"a--b": "r"})
    (row,) = table(registrations)
    assert row["comment"] == '\'=HYPERLINK("x") knee, "left"'
    assert row["reviewer"] == "'@me"
    assert (registrations / "reviews.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_a_table_that_cannot_be_written_loses_no_decision(registrations):
    record = ReviewRecord(registrations)
    record.decide(Decision("a--b", "r", "accepted"))
    (registrations / "reviews.csv").mkdir()
    with pytest.raises((WriteError, OSError)):
        record.write_table({"a--b": "r"})
    assert ReviewRecord(registrations).of("a--b", "r").verdict == "accepted"


def test_pairs_are_listed_whatever_lies_beside_them(registrations):
    (registrations / ".unfinished").mkdir()
    (registrations / "summary.csv").write_text("pair\n")
    (registrations / "empty").mkdir()
    write(registrations / "b--c", 0.1, "failed")
    (registrations / "d--e").mkdir()
    (registrations / "d--e" / "report.json").write_text('{"status": ')
    found = list(entries(registrations))
    assert [(e.pair, e.status, e.dice) for e in found] == [
        ("a--b", "ok", 0.9),
        ("a--c", "ok", 0.8),
        ("b--c", "failed", 0.1),
        ("d--e", "", None),
    ]
    assert found[0].result == result_of(registrations / "a--b")
    assert read_entry(registrations / "empty") is None
    assert list(entries(registrations / "not there")) == []
