"""Which way the pictures take to the training step: lying in memory, or streamed from a file."""

from flaxtl import files

PIPELINES = ("resident", "stream")

SHARE = 0.5
"""Of the memory that the decoded pictures may fill; the rest is for the network, its activations and the optimizer."""


def choose(n_bytes: int, memory_bytes: int, memory: str) -> tuple[str, str]:
    """The pipeline for `n_bytes` of decoded pictures, and why: one sentence for the log.

    `memory` names where resident pictures would lie, in words that can end a sentence ("the device's memory"), and
    `memory_bytes` is all of it. They stay resident while they fill no more than SHARE of it.
    """
    size = f"the decoded pictures are {files.amount(n_bytes)}"
    limit = f"{SHARE:.0%} of the {files.amount(memory_bytes)} of {memory}"
    if n_bytes <= SHARE * memory_bytes:
        return "resident", f"{size}, within {limit}: they stay there"
    return "stream", f"{size}, more than {limit}: they are streamed from a file"
