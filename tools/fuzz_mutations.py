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


def _flip_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randint(1, 8) if content else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _splice(content: bytes, random: Random) -> bytes:
    """Replace a range, which may be empty, by random bytes, a copy of another range, an edge number, or nothing."""
    start, other = (random.randrange(len(content) + 1) for _ in range(2))
    length = min(int(random.expovariate(1 / 16)) + 1, 4096)
    copies = content[other : other + length] * random.randint(1, 3)
    piece = random.choice((random.randbytes(length), copies, random.choice(NUMBERS), b""))
    end = start + (random.choice((0, len(piece))) if piece else length)
    return content[:start] + piece + content[end:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _word(content: bytes, random: Random) -> bytes:
    """Replace a number, a quoted string or a word."""
    words = list(re.finditer(rb'"[^"\n]*"|\'[^\'\n]*\'|[-+.\w]+', content))
    if not words:
        return content
    match = random.choice(words)
    word = random.choice(WORDS).encode(errors="surrogatepass")
    return content[: match.start()] + word + content[match.end() :]


def _json(content: bytes, random: Random) -> bytes:
    """Change a value of a JSON document, or of one of its lines (JSONL)."""
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    for before, document, after in (([], content, []), (lines[:number], lines[number], lines[number + 1 :])):
        try:
            value = _change_value(json.loads(document), random)
        except (ValueError, RecursionError):
            continue
        changed = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
        return b"\n".join([*before, changed, *after])
    return content


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


_BINARY: list[Callable[[bytes, Random], bytes]] = [_flip_bits, _flip_bits, _splice, _splice, _splice, _truncate]
_TEXT: list[Callable[[bytes, Random], bytes]] = [_word, _word, _json, _json]
