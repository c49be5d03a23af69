"""What is a request and what is not: one answer for whatever comes down the pipe, and never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SegGuidedMMRegLib.events import ErrorCode
from SegGuidedMMRegLib.worker.inbox import MOST_WAITING, Cancelled, Inbox, Lines, Reply
from SegGuidedMMRegLib.worker.requests import (
    MAX_LINE_BYTES,
    Cancel,
    Register,
    RequestError,
    Suggest,
    Work,
    parse_request,
)

SIDE = {"file": "a.nrrd", "modality": "dxa"}
PAIR = {"id": "1", "do": "register", "moving": {"case": "a"}, "fixed": SIDE, "out": "there"}


def line(**request: object) -> bytes:
    return json.dumps(request).encode()


def test_a_request_is_read_with_all_that_it_says() -> None:
    landmarks = {"landmarks": "p.csv"}
    request = parse_request(
        line(
            **{**PAIR, "moving": {"case": "a", **landmarks}, "fixed": {**SIDE, **landmarks, "spacing": [0.3]}}
        )
    )
    assert isinstance(request, Register)
    assert (request.moving.case, request.fixed.file, request.fixed.modality) == ("a", "a.nrrd", "dxa")
    assert request.fixed.spacing == (0.3,)
    assert request.fixed.landmarks == "p.csv"
    assert parse_request(line(id=7, do="suggest")).id == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "Not a line of JSON"),
        (b"\xff\xfe\x00", "Not a line of JSON"),
        (b"[1, 2]", "JSON object, not list"),
        (b"[" * 5000, "Not a line of JSON"),
        (b'{"id": "1", "do": "suggest", "count": NaN}', "Not a line of JSON"),
        (b" " * (MAX_LINE_BYTES + 1), "longer than"),
        (line(do="suggest"), "id: is missing"),
        (line(id=True, do="suggest"), "id: a text"),
        (line(id="", do="suggest"), "id: a text"),
        (line(id="1"), "'do' is missing; one of segment, register"),
        (line(id="1", do="segmant"), "did you mean 'segment'"),
        (line(id="1", do="suggest", cuont=3), "did you mean 'count'"),
        (line(id="1", do="suggest", count="3"), "count: Input should be a valid integer"),
        (line(id="1", do="suggest", count=0), "count:"),
        (
            line(**{**PAIR, "moving": {"case": "a", "lables": "x"}}),
            "moving.lables: entry 'lables' is unknown",
        ),
        (line(**{**PAIR, "moving": {}}), "moving: name either a case or a file"),
        (line(**{**PAIR, "moving": {"case": "a", "file": "b"}}), "moving: name either a case or a file"),
        (line(**{**PAIR, "moving": {"file": "b"}}), "moving: a file needs its modality"),
        (line(**{**PAIR, "moving": {"case": "a", "mirrored": True}}), "go with a file"),
        (line(**{**PAIR, "fixed": {**SIDE, "landmarks": "p.csv"}}), "landmarks come in pairs"),
        (line(**{**PAIR, "out": "a\0b"}), "out:"),
        (line(**{**PAIR, "formats": [".exe"]}), "formats.0:"),
        (line(**{**PAIR, "field_spacing": 0}), "field_spacing:"),
        (line(id="1", do="segment", images=[], out="x"), "images:"),
    ],
)
def test_what_is_no_request_is_refused_with_what_and_why(text: bytes, told: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_request(text)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_wrong_request_is_answered_under_its_id() -> None:
    with pytest.raises(RequestError) as refused:
        parse_request(line(id="mine", do="suggest", count=-1))
    assert refused.value.request == "mine"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from([*"xyz", "id", "do", "images", "moving", "fixed", "out", "count", "request", "case"])
kinds = st.sampled_from(["segment", "register", "propagate", "suggest", "cancel"])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.dictionaries(keys, json_values, max_size=6).map(lambda d: json.dumps(d).encode())
)
def test_no_line_does_harm(text: bytes) -> None:
    with pytest.raises(RequestError):
        raise_unless_valid(text)


@settings(max_examples=300, deadline=None)
@given(kinds, st.dictionaries(keys, json_values, max_size=6))
def test_no_request_of_a_known_kind_does_harm(kind: str, entries: dict) -> None:
    with pytest.raises(RequestError):
        raise_unless_valid(json.dumps({**entries, "id": "1", "do": kind}).encode())


def raise_unless_valid(text: bytes) -> None:
    """A request that happens to be right ends as one that is refused does."""
    parse_request(text)
    raise RequestError("was right")


# -- lines ----------------------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b.strip())), st.integers(1, 7))
def test_lines_are_found_however_they_are_cut(lines: list[bytes], size: int) -> None:
    stream, cutter = b"".join(one + b"\n" for one in lines), Lines()
    found = [one for at in range(0, len(stream), size) for one in cutter.completed_by(stream[at : at + size])]
    assert found == lines


def test_an_endless_line_takes_no_memory() -> None:
    cutter = Lines()
    for _ in range(40):
        assert cutter.completed_by(b"x" * (1 << 16)) == []
    (kept,) = cutter.completed_by(b"x\n")
    assert len(kept) == MAX_LINE_BYTES + 1
    assert cutter.completed_by(b"next\n") == [b"next"]


# -- the inbox ------------------------------------------------------------------------------------------
def taken(inbox: Inbox) -> tuple[Work | None, list[Reply]]:
    replies: list[Reply] = []
    return inbox.next(replies.append), replies


def test_requests_come_out_in_order() -> None:
    inbox = Inbox()
    for number in (1, 2, 3):
        inbox.receive(line(id=number, do="suggest"))
    assert [taken(inbox)[0].id for _ in range(3)] == [1, 2, 3]


def test_a_waiting_request_is_dropped_when_it_is_cancelled() -> None:
    inbox = Inbox()
    for number in (1, 2):
        inbox.receive(line(id=number, do="suggest"))
    inbox.receive(line(id="c", do="cancel", request=1))
    request, replies = taken(inbox)
    assert request == Suggest(id=2, do="suggest")
    assert [(r.request, r.code) for r in replies] == [(1, ErrorCode.INTERRUPTED), ("c", None)]
    inbox.check()


def test_the_request_at_hand_is_stopped_when_it_is_cancelled_and_the_next_is_not() -> None:
    inbox = Inbox()
    for number in (1, 2):
        inbox.receive(line(id=number, do="suggest"))
    taken(inbox)
    inbox.check()
    inbox.receive(line(id="c", do="cancel", request=1))
    with pytest.raises(Cancelled):
        inbox.check()
    assert taken(inbox)[0].id == 2
    inbox.check()


def test_what_cannot_be_cancelled_or_asked_twice_is_said() -> None:
    inbox = Inbox()
    inbox.receive(line(id="c", do="cancel", request="nobody"))
    inbox.receive(line(id=1, do="suggest"))
    inbox.receive(line(id=1, do="suggest"))
    request, replies = taken(inbox)
    assert request.id == 1
    assert [(r.request, r.code) for r in replies] == [("c", ErrorCode.USAGE), (None, ErrorCode.USAGE)]
    assert "No request 'nobody'" in replies[0].message
    assert "own id" in replies[1].message


def test_an_id_is_free_again_as_soon_as_it_is_answered() -> None:
    inbox = Inbox()
    inbox.receive(line(id=1, do="suggest"))
    taken(inbox)
    inbox.done()
    inbox.receive(line(id=1, do="suggest"))
    request, replies = taken(inbox)
    assert (request.id, replies) == (1, [])


def test_a_flood_is_refused_and_takes_no_memory() -> None:
    inbox = Inbox()
    for number in range(3 * MOST_WAITING):
        inbox.receive(line(id=number, do="suggest"))
    request, replies = taken(inbox)
    assert request.id == 0
    assert len(replies) == MOST_WAITING
    assert replies[-1].request == 3 * MOST_WAITING - 1


def test_a_closed_inbox_gives_nothing_more() -> None:
    inbox = Inbox()
    inbox.receive(line(id=1, do="suggest"))
    taken(inbox)
    inbox.receive(line(id=2, do="suggest"))
    inbox.close()
    with pytest.raises(Cancelled):
        inbox.check()
    assert taken(inbox) == (None, [])


def test_a_cancel_names_a_request() -> None:
    assert parse_request(line(id=2, do="cancel", request=1)) == Cancel(id=2, do="cancel", request=1)
