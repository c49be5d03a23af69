"""What people decided about registered pairs: kept in the study, never lost, never taken for another result.

`registrations/reviews.jsonl` gets a line a decision, so two people can review at the same time and nothing
is ever overwritten. `registrations/reviews.csv` says the same of each pair's last decision, for Excel. A
decision belongs to the result that was seen: a digest of its `report.json` says which.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from SegGuidedMMRegLib.documents import DocumentError, parse_json, spreadsheet_text
from SegGuidedMMRegLib.files import append_line, atomic_path, read_json_lines

Verdict = Literal["accepted", "rejected", "doubtful"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
REPORT, LOG, TABLE = "report.json", "reviews.jsonl", "reviews.csv"


@dataclass(frozen=True)
class Decision:
    """What somebody decided about a result.

    Attributes:
        pair: name of its folder in `registrations/`.
        result: digest of the result that was seen.
        verdict: accepted, rejected or doubtful; "" takes an earlier one back.
        comment: in the reviewer's words.
        reviewer: name, "" if unknown.
        date: ISO 8601, with the offset of the time zone.
    """

    pair: str
    result: str
    verdict: str
    comment: str = ""
    reviewer: str = ""
    date: str = ""


@dataclass(frozen=True)
class Entry:
    """A registered pair of the study, as the list shows it.

    Attributes:
        pair: name of the folder.
        folder: of the pair.
        result: digest of its report.
        status: ok or failed; "" if the report cannot be read.
        dice: mean after registration, or None.
    """

    pair: str
    folder: Path
    result: str
    status: str
    dice: float | None


def result_of(folder: Path) -> str:
    """A digest of the result in the folder of a pair; "" if there is none."""
    try:
        return _digest((folder / REPORT).read_bytes())
    except OSError:
        return ""


def entries(registrations: Path) -> Iterator[Entry]:
    """The registered pairs, one at a time, in order of their names."""
    names = sorted(path.name for path in registrations.iterdir()) if registrations.is_dir() else []
    for name in names:
        if not name.startswith(".") and (found := read_entry(registrations / name)) is not None:
            yield found


def read_entry(folder: Path) -> Entry | None:
    """The pair in a folder; None if it holds no result."""
    try:
        content = (folder / REPORT).read_bytes()
    except OSError:
        return None
    try:
        report = parse_json(content.decode("utf-8-sig"), str(folder))
        status = str(report["status"])
        dice = ((report.get("mean") or {}).get("after") or {}).get("dice")
    except (DocumentError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        status, dice = "", None
    return Entry(
        folder.name, folder, _digest(content), status, dice if isinstance(dice, float | int) else None
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def user_name() -> str:
    """Who works here, as the system knows them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


class ReviewRecord:
    """The decisions of a study.

    Args:
        registrations: folder of the pairs.
    """

    def __init__(self, registrations: Path) -> None:
        self._folder = registrations
        self._of_pair: dict[str, list[Decision]] = {}
        self._read_size = -1
        self.read()

    def read(self) -> None:
        """Take up what was decided meanwhile, here or by somebody else."""
        path = self._folder / LOG
        size = path.stat().st_size if path.is_file() else 0
        if size == self._read_size:
            return
        self._read_size = size
        self._of_pair = {}
        for decision in map(_decision, read_json_lines(path) if size else ()):
            if decision is not None:
                self._of_pair.setdefault(decision.pair, []).append(decision)

    def of(self, pair: str, result: str) -> Decision | None:
        """The last decision about this result of the pair, or None."""
        found = [d for d in self._of_pair.get(pair, ()) if d.result == result]
        return found[-1] if found and found[-1].verdict else None

    def of_result(self, result: str) -> Decision | None:
        """The last decision about this result, of whichever pair; None without one."""
        found = [d for decisions in self._of_pair.values() for d in decisions if d.result == result]
        return found[-1] if result and found and found[-1].verdict else None

    def outdated(self, pair: str, result: str) -> Decision | None:
        """The last decision about another result of the pair, where there is none about this one."""
        found = [d for d in self._of_pair.get(pair, ()) if d.result != result and d.verdict]
        return found[-1] if found and self.of(pair, result) is None else None

    def decide(self, decision: Decision) -> None:
        """Keep a decision.

        Raises:
            ValueError: for a verdict that is none.
            OSError: saying why it could not be written.
        """
        if decision.verdict not in (*VERDICTS, ""):
            raise ValueError(f"{decision.verdict!r} is none of {', '.join(VERDICTS)}.")
        if not decision.date:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            decision = Decision(**{**asdict(decision), "date": now})
        append_line(self._folder / LOG, json.dumps(asdict(decision), ensure_ascii=False))
        self.read()

    def write_table(self, results: Mapping[str, str]) -> Path:
        """Write `reviews.csv`, a line a pair.

        Args:
            results: pair to digest of its present result; what is not in it is read.

        Raises:
            OSError: naming the file, if it cannot be written (Excel holds it, perhaps); no decision is lost.
        """
        path = self._folder / TABLE
        with atomic_path(path) as temporary:
            temporary.write_text(self._table(results), encoding="utf-8-sig", newline="")
        return path

    def _table(self, results: Mapping[str, str]) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("pair", "verdict", "of_present_result", "comment", "reviewer", "date", "result"))
        for pair, decisions in sorted(self._of_pair.items()):
            present = results.get(pair) or result_of(self._folder / pair)
            found = self.of(pair, present) or decisions[-1]
            texts = (pair, found.verdict, _yes(found.result == present), found.comment, found.reviewer)
            if found.verdict:
                writer.writerow([_cell(t) for t in (*texts, found.date, found.result)])
        return text.getvalue()


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _cell(text: str) -> str:
    return spreadsheet_text(" ".join(text.split()))


def _decision(record: Mapping[str, Any]) -> Decision | None:
    """A line of the file; None for one that another program damaged."""
    values = {field.name: record.get(field.name, "") for field in fields(Decision)}
    if not all(isinstance(value, str) for value in values.values()) or not values["pair"]:
        return None
    return Decision(**values) if values["verdict"] in (*VERDICTS, "") else None
