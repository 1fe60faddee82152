"""Loads through the real commands: `python tools/load.py classes|rows|giant|names|readonly|all`.

A thousand classes, a hundred thousand images, giant ones, hostile names, sources that nobody may write to. Everything
is made in a temporary folder (in --folder=DIR, if given) and removed. Prints one table of wall time and peak memory;
exit code 1 where something took too much, crashed, wrote where it must not, or filled the screen.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from loads import classes, giant, names, readonly, rows
from loads.check import Row, line, table

LOADS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "classes": classes.run,
    "rows": rows.run,
    "giant": giant.run,
    "names": names.run,
    "readonly": readonly.run,
}


def main() -> None:
    """Run one load or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("load", choices=(*LOADS, "all"))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the load is made; about 2 GB for all")
    options = parser.parse_args()
    found = []
    for name in LOADS if options.load == "all" else (options.load,):
        with tempfile.TemporaryDirectory(prefix=f"flaxtl-{name}-", dir=options.folder) as folder:
            for row in LOADS[name](Path(folder)):
                print(line(row), file=sys.stderr, flush=True)
                found.append(row)
    print(table(found))
    sys.exit(not all(row.fine for row in found))


if __name__ == "__main__":
    main()
