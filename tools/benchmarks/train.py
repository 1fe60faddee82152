"""Images per second of a phase's training steps: flaxtl, Keras on TensorFlow and on JAX, PyTorch."""

import argparse
from functools import cache
from typing import Any

from benchmarks import compare
from benchmarks.subject import Subject

SUBJECTS = (
    Subject("flaxtl", "with_flaxtl", settings={"cached": False}),
    Subject("flaxtl, cached", "with_flaxtl", settings={"cached": True}),
)
"""`cached`: the inputs are outputs of the frozen layers, as without augmentation or with cached views."""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py train`."""
    compare.define(parser)
    parser.add_argument(
        "--phase", choices=("head", "top"), default="head", help="train the head, or the base's top block too"
    )
    parser.add_argument("--augment", action="store_true", help="augment in flaxtl's step; the peers do not augment")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures. Operations are those that the subject has to compute."""
    from benchmarks import with_flaxtl

    settings = compare.settings_of(options) | {"top": False, "phase": options.phase, "augment": options.augment}

    @cache
    def count_flops(cached: bool) -> float:
        return with_flaxtl.train_flops(settings | {"cached": cached, "augment": False})

    return compare.run(
        "train", options, SUBJECTS, settings, lambda subject: count_flops(subject.settings.get("cached", False))
    )
