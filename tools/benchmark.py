"""Speed beside that of other tools, in one run on one machine: `python tools/benchmark.py data --source=folder:PATH`.

Prints a table and, with --json=FILE, writes the same figures with the hardware and the versions they were measured on.
Every figure is a median; the ways to be compared take turns, so that a slow moment of the machine meets them all.
"""

import argparse
import json
from pathlib import Path

from benchmarks import data, measure


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    data.define(kinds.add_parser("data", help=data.__doc__.splitlines()[0]))
    for kind in kinds.choices.values():
        kind.add_argument("--repeats", type=int, default=5, help="repetitions, of which the median counts")
        kind.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = options.run(options) | {"machine": measure.machine(), "versions": measure.versions()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
