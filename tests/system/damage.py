"""What may have become of a file: cut, flipped, emptied, or, of JSON, other values in the places of its own."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, -0.5, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, -(2**63) - 1,
    10**30, "", "64", "x", "\x00", "é" * 50, "../../x", [], [[]], [1, "a", None], {}, {"0": 1}, {"": {}},
    [[[[[[[[1]]]]]]]], {"a": {"a": {"a": {}}}},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a value, its own included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with something odd in one place, or without what was there."""
    value = copy.deepcopy(value)
    *above, last = rng.choice([path for path in places(value) if path] or [(None,)])
    if last is None:
        return rng.choice(ODD)
    holder = value
    for key in above:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.2:
        del holder[last]
    elif kind < 0.3 and isinstance(holder, dict):
        holder[rng.choice(["x", "0", "", "type", last + "_"])] = holder.pop(last)
    else:
        holder[last] = copy.deepcopy(rng.choice(ODD))
    return value


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut short, flipped, zeroed, doubled, or replaced."""
    kind, at = rng.randrange(7), rng.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 20])):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 2:
        length = rng.randrange(1, 200)
        return content[:at] + b"\x00" * min(length, len(content) - at) + content[at + length :]
    if kind == 3:
        return content[:at] + content
    if kind == 4:
        return content[:at] + content[at + rng.randrange(1, 50) :]
    if kind == 5:
        return rng.choice([b"", b"\x00", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"a: [", b'"' * 3])
    return rng.randbytes(rng.randrange(1, 500))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file that became another one; of JSON more often one that is still JSON."""
    try:
        values = json.loads(content)
    except ValueError:
        return damaged_bytes(content, rng)
    return json.dumps(changed(values, rng)).encode() if rng.random() < 0.75 else damaged_bytes(content, rng)
