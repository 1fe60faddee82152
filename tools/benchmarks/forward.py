"""Images per second of a forward pass: flaxtl, Keras on TensorFlow and on JAX, PyTorch."""

import argparse
from typing import Any

from benchmarks import compare
from benchmarks.subject import Subject


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py forward`."""
    compare.define(parser)
    parser.add_argument("--top", action="store_true", help="use the ImageNet classifier instead of the course's head")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    from benchmarks import with_flaxtl

    settings = compare.settings_of(options) | {"top": options.top}
    flops = with_flaxtl.forward_flops(settings)
    return compare.run("forward", options, [Subject("flaxtl", "with_flaxtl")], settings, lambda subject: flops)
