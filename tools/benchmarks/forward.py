"""Images a second through a network: ours, Keras' on TensorFlow and on JAX, PyTorch's."""

import argparse
from typing import Any

from benchmarks import compare
from benchmarks.turns import Way


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py forward`."""
    compare.define(parser)
    parser.add_argument("--top", action="store_true", help="with ImageNet's own top in place of the lecture's head")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    from benchmarks import with_flaxtl

    settings = compare.settings_of(options) | {"top": options.top}
    flops = with_flaxtl.forward_flops(settings)
    return compare.run("forward", options, [Way("flaxtl", "with_flaxtl")], settings, lambda way: flops)
