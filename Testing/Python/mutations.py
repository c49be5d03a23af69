"""Damaged copies of valid files, drawn from a seeded generator: what the fuzz tests feed to the readers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

HOSTILE_TEXTS = (
    b"",
    b"\0" * 64,
    b"\xff\xfe\x00\x01 no text",
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"- " * 100_000,
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"a: !!python/name:os.system\n",
    b"format: 1\nformat: 1\n",
    b"NaN",
    b"1" * 5_000,
    b"1:" * 3_000 + b"1",
    b"x,y,z,name\n" + b"1," * 10_000,
    b'name,x,y,z\n"' + b"a" * 200_000,
    b"null",
    b"3",
    b'"text"',
    b"[]",
    b"{}",
)
"""What a reader of text must survive, whatever it expects."""

_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**17,
    10**400,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x" * 3000,
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "<script>alert(1)</script>",
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [1, "a", None],
)


def damaged_bytes(valid: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies with bits flipped, cut short, something put in, a part doubled, or numbers blown up."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(valid)
        for _ in range(int(rng.integers(1, 4))):
            _damage(data, rng)
        yield bytes(data)


def _damage(data: bytearray, rng: np.random.Generator) -> None:
    # Mostly near the beginning, where the headers are.
    size = len(data) if rng.random() < 0.4 else min(len(data), 600)
    if size == 0:
        return
    at = int(rng.integers(0, size))
    kind = int(rng.integers(0, 6))
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
    elif kind == 3:
        data[at:at] = data[at : at + int(rng.integers(1, 200))]
    elif kind == 4:
        data[at : at + int(rng.integers(1, 9))] = b"\xff" * int(rng.integers(1, 9))
    else:
        digits = [n for n, byte in enumerate(data[:2000]) if 48 <= byte <= 57]
        if digits:
            at = digits[int(rng.integers(0, len(digits)))]
            data[at : at + 1] = b"9" * int(rng.integers(2, 14))


def damaged_records(valid: Any, seed: int, count: int) -> Iterator[Any]:
    """Copies of plain values (mappings, lists, numbers, texts) in which one or two entries are others."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        record = copy.deepcopy(valid)
        for _ in range(int(rng.integers(1, 3))):
            places = list(_places(record))
            if not places:
                break
            parent, key = places[int(rng.integers(0, len(places)))]
            choice = rng.random()
            if choice < 0.2:
                del parent[key]
            elif choice < 0.3 and isinstance(parent, dict):
                parent[f"{key}s"] = parent.pop(key)
            elif choice < 0.4 and isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            else:
                parent[key] = copy.deepcopy(_STRANGE[int(rng.integers(0, len(_STRANGE)))])
        yield record


def _places(record: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a record with each of its keys."""
    entries = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in list(entries):
        yield record, key
        if isinstance(value, dict | list):
            yield from _places(value)


def json_bytes(record: Any) -> bytes:
    """JSON, with NaN and Infinity as Python and JavaScript programs write them."""
    return json.dumps(record).encode()
