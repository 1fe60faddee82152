"""Damage to a file, as a pure function of its bytes and a random generator."""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

MOST = 6  # damages to one file

NUMBERS = [
    edge.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for edge in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
]
"""What readers get wrong: nothing, the largest and the smallest number of each width."""

VALUES: list[Any] = [
    None, True, False, "", " ", "x" * 5000, "\x00", "\ud800", "../../x", "é\u202e<b>", [], {}, [[]], [None], {"": {}},
    0, -1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
"""What may stand in JSON where something else is expected."""

WORDS = [
    "", "0", "-1", "2147483648", "1e999", "nan", "None", "'", '"', '""', ",", "\n", "\r", "\x00", "\ufeff", "\udcff",
    "{", "]", "((", "/dev/zero", "../..", "9" * 400, "é", "True", "[]", "{}", "x" * 5000, "[" * 2000,
]  # fmt: skip
"""What may stand in any text where a word is."""


def damaged(content: bytes, random: Random, *, text: bool) -> bytes:
    """One to MOST damages, few more often than many; `text` adds those that keep a text's form."""
    ways = [*_ANY, *(_TEXT * 2 if text else ())]
    for _ in range(1 + min(int(random.expovariate(1)), MOST - 1)):
        content = random.choice(ways)(content, random)
    return content


def _place(content: bytes, random: Random) -> int:
    return random.randrange(len(content) + 1)


def _run(content: bytes, random: Random) -> slice:
    start = _place(content, random)
    return slice(start, start + min(int(random.expovariate(1 / 16)) + 1, 4096))


def _flip_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randint(1, 8) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _replace(content: bytes, random: Random) -> bytes:
    run = _run(content, random)
    return content[: run.start] + random.randbytes(len(content[run])) + content[run.stop :]


def _number(content: bytes, random: Random) -> bytes:
    number, start = random.choice(NUMBERS), _place(content, random)
    return content[:start] + number + content[start + len(number) :]


def _insert(content: bytes, random: Random) -> bytes:
    run = _run(content, random)
    return content[: run.start] + random.randbytes(run.stop - run.start) + content[run.start :]


def _delete(content: bytes, random: Random) -> bytes:
    run = _run(content, random)
    return content[: run.start] + content[run.stop :]


def _duplicate(content: bytes, random: Random) -> bytes:
    run, start = _run(content, random), _place(content, random)
    return content[:start] + content[run] * random.randint(1, 3) + content[start:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: _place(content, random)]


def _word(content: bytes, random: Random) -> bytes:
    """A number, a quoted text or a word becomes another."""
    found = list(re.finditer(rb'"[^"\n]*"|\'[^\'\n]*\'|[-+.\w]+', content))
    if not found:
        return content
    place = random.choice(found)
    word = random.choice(WORDS).encode(errors="surrogatepass")
    return content[: place.start()] + word + content[place.end() :]


def _line(content: bytes, random: Random) -> bytes:
    """A line goes away, comes twice, or comes elsewhere."""
    lines = content.splitlines(keepends=True)
    if lines:
        line = lines.pop(random.randrange(len(lines)))
        for _ in range(random.randrange(3)):
            lines.insert(random.randint(0, len(lines)), line)
    return b"".join(lines)


def _json(content: bytes, random: Random) -> bytes:
    """A value of a JSON text, or of one of its lines, goes away, becomes another kind or changes places."""
    try:
        return _encoded(_changed(json.loads(content), random))
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    try:
        lines[number] = _encoded(_changed(json.loads(lines[number]), random))
    except (ValueError, RecursionError):
        return content
    return b"\n".join(lines)


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def _changed(value: Any, random: Random) -> Any:
    """`value` with a change to one of the places in it, those near the top as likely as all below."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, act = random.choice(keys), random.random()
    if act < 0.1:
        del value[key]
    elif act < 0.2:
        value[key] = value[random.choice(keys)]
    elif act < 0.25 and isinstance(value, dict):
        value[random.choice(["", "x", "\ud800", "lr", "path"])] = value.pop(key)
    else:
        value[key] = _changed(value[key], random)
    return value


_ANY: list[Callable[[bytes, Random], bytes]] = [
    _flip_bits, _flip_bits, _replace, _number, _number, _insert, _delete, _duplicate, _truncate,
]  # fmt: skip
_TEXT: list[Callable[[bytes, Random], bytes]] = [_word, _word, _line, _json, _json, _json]
