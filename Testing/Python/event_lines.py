"""Events as another program reads them: lines of JSON, each of which the schema must accept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import fastjsonschema

SCHEMA: dict[str, Any] = json.loads(
    (files("SegGuidedMMRegLib") / "events.schema.json").read_text(encoding="utf-8")
)
check = fastjsonschema.compile(SCHEMA)
"""Raises JsonSchemaValueException for what is no event."""


def checked(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events of these lines, each of them checked."""
    events = []
    for line in lines:
        event = json.loads(line, parse_constant=_refuse)
        check(event)
        events.append(event)
    return events


def of_one_command(lines: Iterable[str], command: str) -> list[dict[str, Any]]:
    """The same of all that a command says: its first and last line, stages that begin before they go on."""
    events = checked(lines)
    first, last = events[0], events[-1]
    assert (first["event"], first["command"]) == ("started", command)
    assert last["event"] in ("result", "error")
    assert [e for e in events if "command" in e or e["event"] == "error"] == [first, last]
    begun: set[str] = set()
    for event in events[1:-1]:
        if event["event"] == "started":
            begun.add(event["stage"])
        if event["event"] == "progress":
            assert event["stage"] in begun, f"{event['stage']} goes on before it has begun"
            assert event["step"] <= event["of"]
    return events


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON.")
