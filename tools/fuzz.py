"""Damaged files for flaxtl's readers: `python tools/fuzz.py KIND... --files=2000 --seed=0`.

Each file is a valid one with a few bits, runs of bytes, numbers or words of it changed, and must be accepted or refused
in a sentence: no other exception, no more than 20 seconds or 2 GiB, no end of the process, nothing written outside its
folder, no pickle. File N of a seed is always the same: `--only=N` reads it again. Exit code 1 if there is any other
outcome; those files are kept in --keep=DIR, as KIND-SEED-N-NAME, beside what was said.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from fuzzing.nursery import GOOD, Nursery

KINDS = ("h5", "keras3", "safetensors", "onnx", "checkpoint", "config", "manifest", "images")
OUTCOMES = (*GOOD, "fault", "hang", "crash", "memory", "forbidden")


def main() -> None:
    """Feed the readers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=(*KINDS, "all"), metavar="KIND", help=", ".join((*KINDS, "all")))
    parser.add_argument("--files", type=int, default=2000, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="one file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where offending files are kept")
    parser.add_argument("--verbose", action="store_true", help="tell what was said of every file")
    options = parser.parse_args()
    numbers = range(options.files) if options.only is None else (options.only,)
    print(f"{'kind':12}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES) + f"{'seconds':>11}")
    bad = 0
    with Nursery(options.keep) as nursery:
        for kind in KINDS if "all" in options.kinds else options.kinds:
            started, found = time.monotonic(), Counter[str]()
            for number in numbers:
                answer = nursery.ask(kind, options.seed, number)
                found[answer.outcome] += 1
                if options.verbose or answer.outcome not in GOOD:
                    print(f"{kind} {number} ({answer.file}): {answer.outcome} {answer.told}", file=sys.stderr)
            bad += sum(count for outcome, count in found.items() if outcome not in GOOD)
            seconds = time.monotonic() - started
            print(f"{kind:12}" + "".join(f"{found[outcome]:11}" for outcome in OUTCOMES) + f"{seconds:11.1f}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
