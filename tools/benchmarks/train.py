"""Images a second in a phase's training steps: ours, Keras' on TensorFlow and on JAX, PyTorch's."""

import argparse
from functools import cache
from typing import Any

from benchmarks import compare
from benchmarks.turns import Way

# cached: on the outputs of the frozen layers, as a phase without augmentation or one on cached views has them
OURS = (
    Way("flaxtl", "with_flaxtl", settings={"cached": False}),
    Way("flaxtl, cached", "with_flaxtl", settings={"cached": True}),
)


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py train`."""
    compare.define(parser)
    parser.add_argument(
        "--phase", choices=("head", "top"), default="head", help="what learns: the head; or the base's top block too"
    )
    parser.add_argument(
        "--augment", action="store_true", help="flaxtl augments in its step; the peers are given ready images"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures. Operations are counted for what a way has to compute."""
    from benchmarks import with_flaxtl

    settings = compare.settings_of(options) | {"top": False, "phase": options.phase, "augment": options.augment}

    @cache
    def flops(cached: bool) -> float:
        return with_flaxtl.train_flops(settings | {"cached": cached, "augment": False})

    return compare.run("train", options, OURS, settings, lambda way: flops(way.settings.get("cached", False)))
