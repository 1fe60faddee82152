"""Measure speed next to Keras and PyTorch, in one run on one machine: `python tools/benchmark.py KIND`.

    data     images per second from file to batch
    forward  images per second of a forward pass
    train    images per second of training steps
    job      a whole `flaxtl train`, from start-up to report
    growth   its time against the number of images, classes or devices

Prints a table; --json=FILE also writes the figures with the hardware and versions. Figures are medians. Implementations
take turns, so that a slow moment of the machine affects all of them.
"""

import argparse
import json
from pathlib import Path

from benchmarks import data, forward, growth, job, measure, train

from flaxtl.errors import UserError

KINDS = {"data": data, "forward": forward, "train": train, "job": job, "growth": growth}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for name, module in KINDS.items():
        kind = kinds.add_parser(name, help=module.__doc__.splitlines()[0])
        module.define(kind)
        kind.add_argument("--repeats", type=int, help="number of repetitions (default: %(default)s)")
        kind.add_argument("--json", type=Path, metavar="FILE")
    options, rest = parser.parse_known_args()
    options.overrides = [argument for argument in rest if "config" in options and argument.startswith("--config.")]
    if unknown := [argument for argument in rest if argument not in options.overrides]:
        parser.error(f"unknown option: {' '.join(unknown)}")
    try:
        figures = options.run(options)
    except UserError as error:
        parser.error(str(error))
    figures |= {"machine": measure.machine(), "versions": measure.versions()}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
