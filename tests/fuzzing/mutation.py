"""Mutations of files: bytes flipped, cut and repeated, and values of JSON replaced by other ones."""

import copy
import json
import random
from typing import Any

_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, -(10**30), 1e308, "", "x", "../x", "/etc/passwd", "\x1b[31m", "\n",
    "\udc80", [], {}, [[]], [None], {"a": None}, ["x"] * 50, "9" * 5000,
)  # fmt: skip
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a changed file: one to three changes of its JSON values, or of its bytes."""
    value = _parsed(content) if rng.random() < 0.8 else None
    if value is None:
        return _bytes(content, rng)
    for _ in range(rng.randint(1, 3)):
        value = _value(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.03:
        depth = rng.choice((70, 2000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _value(value: Any, rng: random.Random) -> Any:
    """Return the value with one place changed: replaced, removed, doubled or exchanged with another."""
    changed = copy.deepcopy(value)
    places = list(_places(changed))
    if not places:
        return rng.choice(_STRANGE)
    parent, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.7:
        parent[key] = copy.deepcopy(rng.choice(_STRANGE))
    elif kind < 0.85:
        del parent[key]
    elif isinstance(parent, dict):
        parent[rng.choice(("x", "../x", "\x1b", str(key) * 2))] = parent[key]
    else:
        parent.append(parent[key])
    return changed


def _places(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 50)):
            yield value, key
            yield from _places(value[key])


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, min(len(data), rng.choice((64, 512, 1 << 30)))))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 4] = rng.choice(_NUMBERS).to_bytes(4, rng.choice(("little", "big")))
        elif kind == 2:
            del data[at : at + rng.choice((1, 4, 100))]
        elif kind == 3:
            data[at:at] = data[at : at + 16] * rng.choice((1, 50))
        elif kind == 4:
            del data[at:]
        else:
            data[at : at + 1] = bytes((rng.choice((0, 0x0A, 0x22, 0x5B, 0x7F, 0xFF)),))
    return bytes(data)
