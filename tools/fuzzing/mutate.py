"""Damage a file: a pure function of its bytes and a random generator."""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

MAX_MUTATIONS = 6

NUMBERS = [
    edge.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for edge in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
]
"""0, 1 and the limits of signed and unsigned integers of each width, in both byte orders."""

VALUES: list[Any] = [
    None, True, False, "", " ", "x" * 5000, "\x00", "\ud800", "../../x", "é\u202e<b>", [], {}, [[]], [None], {"": {}},
    0, -1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
"""Replacements for JSON values."""

WORDS = [
    "", "0", "-1", "2147483648", "1e999", "nan", "None", "'", '"', '""', ",", "\n", "\r", "\x00", "\ufeff", "\udcff",
    "{", "]", "((", "/dev/zero", "../..", "9" * 400, "é", "True", "[]", "{}", "x" * 5000, "[" * 2000,
]  # fmt: skip
"""Replacements for words of any text."""


def mutate(content: bytes, random: Random, *, text: bool) -> bytes:
    """Apply 1 to MAX_MUTATIONS mutations, few more often than many; `text` adds those that respect a text's syntax."""
    mutations = [*_BINARY, *(_TEXT * 2 if text else ())]
    for _ in range(1 + min(int(random.expovariate(1)), MAX_MUTATIONS - 1)):
        content = random.choice(mutations)(content, random)
    return content


def _position(content: bytes, random: Random) -> int:
    return random.randrange(len(content) + 1)


def _span(content: bytes, random: Random) -> slice:
    start = _position(content, random)
    return slice(start, start + min(int(random.expovariate(1 / 16)) + 1, 4096))


def _flip_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randint(1, 8) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _replace(content: bytes, random: Random) -> bytes:
    span = _span(content, random)
    return content[: span.start] + random.randbytes(len(content[span])) + content[span.stop :]


def _number(content: bytes, random: Random) -> bytes:
    number, start = random.choice(NUMBERS), _position(content, random)
    return content[:start] + number + content[start + len(number) :]


def _insert(content: bytes, random: Random) -> bytes:
    span = _span(content, random)
    return content[: span.start] + random.randbytes(span.stop - span.start) + content[span.start :]


def _delete(content: bytes, random: Random) -> bytes:
    span = _span(content, random)
    return content[: span.start] + content[span.stop :]


def _duplicate(content: bytes, random: Random) -> bytes:
    span, start = _span(content, random), _position(content, random)
    return content[:start] + content[span] * random.randint(1, 3) + content[start:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: _position(content, random)]


def _word(content: bytes, random: Random) -> bytes:
    """Replace a number, a quoted string or a word."""
    words = list(re.finditer(rb'"[^"\n]*"|\'[^\'\n]*\'|[-+.\w]+', content))
    if not words:
        return content
    match = random.choice(words)
    word = random.choice(WORDS).encode(errors="surrogatepass")
    return content[: match.start()] + word + content[match.end() :]


def _line(content: bytes, random: Random) -> bytes:
    """Delete, move or duplicate a line."""
    lines = content.splitlines(keepends=True)
    if lines:
        line = lines.pop(random.randrange(len(lines)))
        for _ in range(random.randrange(3)):
            lines.insert(random.randint(0, len(lines)), line)
    return b"".join(lines)


def _json(content: bytes, random: Random) -> bytes:
    """Change a value of a JSON document, or of one of its lines (JSONL)."""
    try:
        return _encode(_change_value(json.loads(content), random))
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    try:
        lines[number] = _encode(_change_value(json.loads(lines[number]), random))
    except (ValueError, RecursionError):
        return content
    return b"\n".join(lines)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def _change_value(value: Any, random: Random) -> Any:
    """Delete, copy, rename or replace one value at any depth; each level is equally likely."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, action = random.choice(keys), random.random()
    if action < 0.1:
        del value[key]
    elif action < 0.2:
        value[key] = value[random.choice(keys)]
    elif action < 0.25 and isinstance(value, dict):
        value[random.choice(["", "x", "\ud800", "lr", "path"])] = value.pop(key)
    else:
        value[key] = _change_value(value[key], random)
    return value


_BINARY: list[Callable[[bytes, Random], bytes]] = [
    _flip_bits, _flip_bits, _replace, _number, _number, _insert, _delete, _duplicate, _truncate,
]  # fmt: skip
_TEXT: list[Callable[[bytes, Random], bytes]] = [_word, _word, _line, _json, _json, _json]
