"""What a compiled program contains, from the text of its HLO."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {
    "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1,
}  # fmt: skip

COLLECTIVES = frozenset({"all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"})

PASSES_ON = frozenset({
    "parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "copy-done",
    "optimization-barrier",
})  # fmt: skip
"""Instructions whose results are arrays that exist already."""

KERNELS = frozenset({"fusion", "custom-call", "copy", "convolution", "dot"})
"""Instructions outside fusions that a GPU runs as kernels of their own."""

CLOCK_HZ = 1.5e9
"""Cycles of a TPU v5e in a second."""

INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


class Program(NamedTuple):
    """Counts of a compiled program.

    Attributes:
      aliases: outputs that reuse the memory of a donated input.
      collectives: opcode -> number.
      collective_bytes: bytes that the collectives return.
      copies: bytes of each copy of more than 1 MiB.
      sizes: numbers of elements of the arrays that are written: results outside fusions.
      rounded: shapes that are converted to bfloat16, as '3,3,64,64'.
      products: dtype of the result -> number of convolutions and matrix products.
      kernels: instructions of the largest computation outside fusions, the body of the loop over steps.
      milliseconds: the TPU compiler's estimate for that computation; 0 if it gives none.
    """

    aliases: int
    collectives: Counter[str]
    collective_bytes: int
    copies: list[int]
    sizes: frozenset[int]
    rounded: frozenset[str]
    products: Counter[str]
    kernels: int
    milliseconds: float


def study(hlo: str) -> Program:
    """Count what `compiled.as_text()` contains."""
    collectives: Counter[str] = Counter()
    products: Counter[str] = Counter()
    copies, moved, rounded = [], 0, set()
    for _, result, opcode, rest in instructions(hlo):
        base = opcode.removesuffix("-start")
        if base in COLLECTIVES:
            collectives[base] += 1
            moved += num_bytes(re.sub(r"^\(\(.*?\), ", "", result))  # ((operands), results) of "-start"
        elif base == "copy" and (size := num_bytes(result.split("]")[0] + "]")) > 2**20:  # not the source of "-start"
            copies.append(size)
        elif opcode in ("convolution", "dot") or (opcode == "custom-call" and _is_convolution(rest)):
            products[result.strip("(").split("[")[0]] += 1
        elif opcode == "convert" and result.startswith("bf16["):
            rounded.add(result[5:].split("]")[0])
    bodies = list(_step_bodies(hlo))
    return Program(
        aliases=hlo.split("\n", 1)[0].count("-alias"),
        collectives=collectives,
        collective_bytes=moved,
        copies=copies,
        sizes=frozenset(size for body in bodies for size in _written_sizes(body)),
        rounded=frozenset(rounded),
        products=products,
        kernels=max((_count_kernels(body) for body in bodies), default=0),
        milliseconds=max((_cycles(body) for body in bodies), default=0) / CLOCK_HZ * 1000,
    )


def instructions(hlo: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, result type, opcode and the rest of the line of every instruction."""
    for line in hlo.splitlines():
        if match := INSTRUCTION.match(line):
            name, result, opcode, rest = match.groups()
            yield name, result, opcode, rest


def num_bytes(types: str) -> int:
    """Return the bytes of the arrays in the text of a type, such as 'bf16[32,7,7,512]' or a tuple of them."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types)
    return sum(ITEM_BYTES[dtype] * _num_elements(sizes) for dtype, sizes in arrays if dtype in ITEM_BYTES)


def _is_convolution(call: str) -> bool:
    """Whether a GPU's custom call is a convolution."""
    return 'custom_call_target="__cudnn$conv' in call


def _step_bodies(hlo: str) -> Iterator[list[str]]:
    """Yield the lines of every computation that is not part of a fusion."""
    name, body = "", []
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name, body = line, []
        elif line.startswith("}"):
            if "fused" not in name:
                yield body
        else:
            body.append(line)


def _written_sizes(body: list[str]) -> Iterator[int]:
    for _, result, opcode, rest in instructions("\n".join(body)):
        # A TPU may prefetch a small argument into its vector memory before the program starts.
        if opcode not in PASSES_ON and "cross_program_prefetch" not in rest:
            yield from (_num_elements(sizes) for sizes in re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", result))


def _num_elements(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(",") if size)


def _count_kernels(body: list[str]) -> int:
    return sum(opcode in KERNELS for _, _, opcode, _ in instructions("\n".join(body)))


def _cycles(body: list[str]) -> int:
    return sum(int(match[1]) for line in body if (match := re.search(r'"estimated_cycles":"(\d+)"', line)))
