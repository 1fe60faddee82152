"""Speed beside that of other tools, in one run on one machine: `python tools/benchmark.py KIND`.

    data     images a second from file to batch
    forward  images a second through a network
    train    images a second in a phase's training steps
    job      a whole `flaxtl train`, from start to report
    growth   its wall time against images, classes or devices

Prints a table and, with --json=FILE, writes the same figures with the hardware and the versions they were measured on.
Every figure is a median; the ways to be compared take turns, so that a slow moment of the machine meets them all.
"""

import argparse
import json
from pathlib import Path

from benchmarks import data, forward, growth, job, measure, train

from flaxtl.errors import UserError

KINDS = {"data": data, "forward": forward, "train": train, "job": job, "growth": growth}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for name, module in KINDS.items():
        kind = kinds.add_parser(name, help=module.__doc__.splitlines()[0])
        module.define(kind)
        kind.add_argument("--repeats", type=int, help="repetitions, of which the median counts")
        kind.add_argument("--json", type=Path, metavar="FILE")
    options, rest = parser.parse_known_args()
    options.overrides = [argument for argument in rest if "config" in options and argument.startswith("--config.")]
    if strange := [argument for argument in rest if argument not in options.overrides]:
        parser.error(f"unknown: {' '.join(strange)}")
    try:
        found = options.run(options)
    except UserError as error:
        parser.error(str(error))
    found |= {"machine": measure.machine(), "versions": measure.versions()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
