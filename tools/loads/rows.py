"""A hundred thousand images: the rooms' own functions one by one, then the commands on that many files."""

import csv
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flaxtl.data import duplicates, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.manifest import Example, Manifest
from flaxtl.data.sources import csv_file
from loads.check import Row, ended
from loads.command import apart, flaxtl
from loads.images import paint

ROWS, CLASSES = 100_000, 100
SLOWEST = 20.0  # seconds for any one function; what is quadratic takes minutes
SLOWEST_COMMAND = 180.0


def run(folder: Path) -> Iterator[Row]:
    """Functions, then commands."""
    yield from apart(_all_functions, folder)
    names = [f"class {number:03}" for number in range(CLASSES)]
    images = apart(paint, folder / "images", names, ROWS // CLASSES, 16)
    cache, source = folder / "cache", f"folder:{images}"
    for what, arguments in (
        ("doctor", ("doctor", f"--data={source}", f"--html={folder / 'doctor.html'}")),
        ("split --fractions", ("split", f"--source={source}", "--fractions=0.5,0.2,0.3", f"--output={folder / 'a'}")),
        ("split --kfold=5", ("split", f"--source={source}", "--kfold=5", f"--output={folder / 'b'}")),
        ("doctor of a list", ("doctor", f"--data=csv:{folder / 'b' / 'fold-1.csv'}")),
    ):
        row = ended(flaxtl(f"{what}, {ROWS:,} files", *arguments, cache=cache))
        yield row if row.seconds < SLOWEST_COMMAND else Row(row.what, row.seconds, row.mebibytes, "too slow", False)


def _all_functions(folder: Path) -> list[Row]:
    return list(functions(folder, ROWS))


def functions(folder: Path, n: int) -> Iterator[Row]:
    """Every function that sees all rows at once, on n of them."""
    labels = [f"class {number % CLASSES:03}" for number in range(n)]
    prints = _prints(n)
    manifest = Manifest(tuple(sorted(set(labels))), tuple(_examples(labels, prints)))
    file, table = folder / "manifest.csv", folder / "list.csv"
    yield _timed(f"write {n:,} rows", lambda: manifest.write(file))
    yield _timed(f"read {n:,} rows", lambda: Manifest.read(file))
    yield _timed("counts by class and split", lambda: [manifest.labels(manifest.of_split(s)) for s in manifest.splits])
    _list(table, folder, labels)
    yield _timed("read a CSV list", lambda: csv_file.scan_csv(table))
    parts = {"train": 0.5, "validation": 0.2, "test": 0.3}
    yield _timed("split by fractions", lambda: splitting.stratified_split(labels, [], parts, 0, print))
    pairs = [[number, number + CLASSES] for number in range(0, n - CLASSES, 2 * CLASSES)]
    yield _timed("split, a group in every 200", lambda: splitting.stratified_split(labels, pairs, parts, 0, print))
    yield _timed("split into 5 folds", lambda: splitting.stratified_kfold(labels, [], 5, 0, print))
    many = [f"class {number % (n // 20):05}" for number in range(n)]
    yield _timed(f"split {n // 20:,} classes", lambda: splitting.stratified_split(many, [], parts, 0, print))
    for bits in (0, 4, 8):
        yield _timed(f"near-duplicates, {bits} bits", lambda bits=bits: duplicates.duplicate_groups(prints, bits))
    series = _prints(n, alike=True)
    yield _timed(
        "near-duplicates, one long series",
        lambda: duplicates.duplicate_groups(series, 4),
    )


def _timed(what: str, work: Callable[[], object]) -> Row:
    started = time.process_time()  # other processes of the machine do not count
    work()
    seconds = time.process_time() - started
    return Row(what, seconds, math.nan, "" if seconds < SLOWEST else "too slow", seconds < SLOWEST)


def _prints(n: int, *, alike: bool = False) -> list[Fingerprint]:
    """Of n files: no two hashes near each other, or all within a few bits, as the frames of a film are."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    if alike:
        hashes &= np.uint64(2**18 - 1)  # 46 of 64 bits are the same in all
    return [Fingerprint(hashlib.sha256(str(number).encode()).hexdigest(), int(h)) for number, h in enumerate(hashes)]


def _examples(labels: list[str], prints: list[Fingerprint]) -> Iterator[Example]:
    for number, (label, own) in enumerate(zip(labels, prints, strict=True)):
        split = ("train", "validation", "test")[number % 3]
        yield Example(f"/images/{label}/{number:06}.png", label, split, own.sha256)


def _list(table: Path, folder: Path, labels: list[str]) -> None:
    (folder / "listed").mkdir()
    with table.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label"))
        for number, label in enumerate(labels):
            (folder / "listed" / f"{number}.png").touch()
            rows.writerow((f"listed/{number}.png", label))
