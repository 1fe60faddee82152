"""Load tests with the real commands: `python tools/load.py classes|rows|giant|names|readonly|all`.

A thousand classes, a hundred thousand images, giant images, hostile names, read-only sources. Everything is written to
a temporary folder (below --folder=DIR, if given) and deleted. Prints a table of seconds and peak memory; exit code 1 if
anything was too slow, too large, crashed, printed too much, or wrote where it must not.
"""

import argparse
import csv
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from load_commands import (
    GIANT_SIDE,
    LARGEST_SIDE,
    Commands,
    Row,
    draw_image,
    in_process,
    write_config,
    write_images,
    write_largest_images,
    write_too_large_images,
)

from flaxtl.data import duplicates, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.manifest import Example, Manifest
from flaxtl.data.sources import csv_file

NOBODY = 65534


def main() -> None:
    """Run one load or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("load", choices=(*LOADS, "all"))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="parent of the temporary folder; about 2 GB for all")
    options = parser.parse_args()
    rows = []
    for name in LOADS if options.load == "all" else (options.load,):
        with tempfile.TemporaryDirectory(prefix=f"flaxtl-{name}-", dir=options.folder) as folder:
            for row in LOADS[name](Path(folder)):
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
    print(f"{'':4}{'check':44}{'seconds':>9}{'MiB':>8}  note", *rows, sep="\n")
    sys.exit(not all(row.passed for row in rows))


def classes_load(folder: Path) -> Iterator[Row]:
    """Run every command on 1,000 classes of four tiny images, and check the size of the pages."""
    images = write_images(folder / "images", (f"class {number:04}" for number in range(1_000)), 4)
    workdir, page, source = folder / "run", folder / "doctor.html", f"folder:{images}"
    config, run = write_config(folder / "config.py", source), Commands(folder).run
    yield run("doctor, 1,000 classes", "doctor", f"--data={source}", f"--html={page}")
    yield _check_page_size(page)
    fractions = ("--fractions=0.5,0.25,0.25", f"--output={folder / 'split'}")
    yield run("split, 1,000 classes", "split", f"--source={source}", *fractions)
    folds = ("--kfold=4", f"--output={folder / 'folds'}")
    yield run("split --kfold=4, 1,000 classes", "split", f"--source={source}", *folds)
    yield run("train, 1,000 classes", "train", f"--config={config}", f"--workdir={workdir}")
    yield _check_page_size(workdir / "report" / "index.html")
    yield run("evaluate, 1,000 classes", "evaluate", f"--workdir={workdir}")
    predict = (f"--workdir={workdir}", f"--input={images}", f"--csv={folder / 'predictions.csv'}")
    yield run("predict, 4,000 images", "predict", *predict)
    yield run("report, 1,000 classes", "report", f"--workdir={workdir}")


def _check_page_size(page: Path) -> Row:
    """A page must open at once, also on a phone."""
    mebibytes = page.stat().st_size / 2**20 if page.exists() else math.inf
    return Row(f"size of {page.name}", 0.0, math.nan, f"{mebibytes:.2f} MiB", mebibytes <= 4)


ROWS, ROW_CLASSES = 100_000, 100
MAX_FUNCTION_SECONDS = 20.0  # a quadratic algorithm takes minutes
MAX_COMMAND_SECONDS = 180.0


def rows_load(folder: Path) -> Iterator[Row]:
    """Call the functions that see all rows, then run the commands, on 100,000 images."""
    yield from in_process(_all_functions, folder)
    names = [f"class {number:03}" for number in range(ROW_CLASSES)]
    images = in_process(write_images, folder / "images", names, ROWS // ROW_CLASSES, 16)
    source, run = f"folder:{images}", Commands(folder).run
    for name, arguments in (
        ("doctor", ("doctor", f"--data={source}", f"--html={folder / 'doctor.html'}")),
        ("split --fractions", ("split", f"--source={source}", "--fractions=0.5,0.2,0.3", f"--output={folder / 'a'}")),
        ("split --kfold=5", ("split", f"--source={source}", "--kfold=5", f"--output={folder / 'b'}")),
        ("doctor of a list", ("doctor", f"--data=csv:{folder / 'b' / 'fold-1.csv'}")),
    ):
        row = run(f"{name}, {ROWS:,} files", *arguments)
        yield row if row.seconds < MAX_COMMAND_SECONDS else replace(row, note="too slow", passed=False)


def _all_functions(folder: Path) -> list[Row]:
    return list(row_functions(folder, ROWS))


def row_functions(folder: Path, n: int) -> Iterator[Row]:
    """Call every function that sees all rows at once, on n of them."""
    labels = [f"class {number % ROW_CLASSES:03}" for number in range(n)]
    fingerprints = _fingerprints(n)
    manifest = Manifest(tuple(sorted(set(labels))), tuple(_examples(labels, fingerprints)))
    file, table = folder / "manifest.csv", folder / "list.csv"
    yield _timed(f"write {n:,} rows", lambda: manifest.write(file))
    yield _timed(f"read {n:,} rows", lambda: Manifest.read(file))
    yield _timed("labels by split", lambda: [manifest.labels(manifest.of_split(split)) for split in manifest.splits])
    _write_list(table, labels)
    yield _timed("read a CSV list", lambda: csv_file.scan_csv(table))
    parts = {"train": 0.5, "validation": 0.2, "test": 0.3}
    yield _timed("split by fractions", lambda: splitting.stratified_split(labels, [], parts, 0, print))
    pairs = [[number, number + ROW_CLASSES] for number in range(0, n - ROW_CLASSES, 2 * ROW_CLASSES)]
    yield _timed("split, a group in every 200", lambda: splitting.stratified_split(labels, pairs, parts, 0, print))
    yield _timed("split into 5 folds", lambda: splitting.stratified_kfold(labels, [], 5, 0, print))
    many = [f"class {number % (n // 20):05}" for number in range(n)]
    yield _timed(f"split {n // 20:,} classes", lambda: splitting.stratified_split(many, [], parts, 0, print))
    for bits in (0, 4, 8):
        yield _timed(f"near-duplicates, {bits} bits", lambda b=bits: duplicates.duplicate_groups(fingerprints, b))
    frames = _fingerprints(n, mask=2**18 - 1)  # like frames of a video: 46 of 64 bits are equal
    yield _timed("near-duplicates, one long series", lambda: duplicates.duplicate_groups(frames, 4))


def _timed(name: str, function: Callable[[], object]) -> Row:
    """Measure processor time, which other processes change little."""
    start_time = time.process_time()
    function()
    seconds = time.process_time() - start_time
    passed = seconds < MAX_FUNCTION_SECONDS
    return Row(name, seconds, math.nan, "" if passed else "too slow", passed)


def _fingerprints(n: int, mask: int = 2**64 - 1) -> list[Fingerprint]:
    """Draw n random perceptual hashes; only the bits of `mask` differ."""
    hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64) & np.uint64(mask)
    return [Fingerprint(hashlib.sha256(str(number).encode()).hexdigest(), int(h)) for number, h in enumerate(hashes)]


def _examples(labels: list[str], fingerprints: list[Fingerprint]) -> Iterator[Example]:
    for number, (label, fingerprint) in enumerate(zip(labels, fingerprints, strict=True)):
        split = ("train", "validation", "test")[number % 3]
        yield Example(f"/images/{label}/{number:06}.png", label, split, fingerprint.sha256)


def _write_list(table: Path, labels: list[str]) -> None:
    files = table.parent / "listed"
    files.mkdir()
    with table.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label"))
        for number, label in enumerate(labels):
            (files / f"{number}.png").touch()
            rows.writerow((f"listed/{number}.png", label))


def giant_load(folder: Path) -> Iterator[Row]:
    """Run the commands on images that are too large, then on several of the largest allowed."""
    for size, write, codes in (
        (f"{GIANT_SIDE:,}\u00b2", write_too_large_images, (1, 2)),
        (f"{LARGEST_SIDE:,}\u00b2", write_largest_images, (0,)),
    ):
        images, workdir = folder / write.__name__, folder / f"run-{write.__name__}"
        in_process(write, images)
        source, run = f"folder:{images}", Commands(folder).run
        config = write_config(folder / "config.py", source)
        page = folder / "doctor.html"
        yield run(f"doctor, {size}", "doctor", f"--data={source}", f"--html={page}", codes=codes)
        yield run(f"train, {size}", "train", f"--config={config}", f"--workdir={workdir}", codes=codes)
        if 2 in codes:
            config = write_config(folder / "config.py", source, on_error="skip")
            yield run(f"train without them, {size}", "train", f"--config={config}", f"--workdir={workdir}")
        yield run(f"predict, {size}", "predict", f"--workdir={workdir}", f"--input={images}", codes=codes)
        yield run(f"report, {size}", "report", f"--workdir={workdir}")


HOSTILE_CLASSES = (
    "<script>document.title=0<",
    '"><img src=x onerror=document.title=1>',
    "--> <svg onload=document.title=1>",
    "<",  # with a matching file name the path contains </title>
    "{{ 7*7 }}{% raw %}",
    "=cmd|' C'!A0",
    "@SUM(1+1)*cmd",
    "[red]:cat:",
    "[",  # and here [/bold]
    "-rf",
    "path",
    "two\nlines",
    "carriage\rreturn",
    "\x1b[2J\x1b]0;title\x07",
    "caf\u00e9",
    "cafe\u0301",
    "\U0001f469\u200d\U0001f52c \U0001f33b",
    "\u202egpj.exe \u05d0\u05d1",
    "comma, \"quote\" 'single' $x_{ %s {0} \u00a0.",
    "n" * 255,
    "\u7261" * 85,  # 255 bytes
    "bytes\udcff\udc80",
    "spaces   inside",
)

HOSTILE_FILES = (
    "-x.png",
    "title><script>document.title=2<.png",
    "bold].png",
    "=1+1.png",
    "<b onclick=x>.png",
    "line\nbreak.png",
    "\x1b[31m.PNG",
    "f" * 251 + ".png",
    "\udcfe.png",
    "*?[a].png",
)


def names_load(folder: Path) -> Iterator[Row]:
    """Run all commands on hostile class and file names; the split must contain every name unchanged."""
    images, workdir = folder / "source <i>&", folder / "run '\"\n<b>"
    for number, (label, file) in enumerate(product(HOSTILE_CLASSES, HOSTILE_FILES)):
        (images / label).mkdir(parents=True, exist_ok=True)
        draw_image(number).save(folder / "image.png")
        (folder / "image.png").rename(images / label / file)
    source, run = f"folder:{images}", Commands(folder).run
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    train = ("train", f"--config={write_config(folder / 'config.py', source, fractions=fractions)}")
    yield run("doctor", "doctor", f"--data={source}", f"--html={folder}/doctor.html", f"--json={folder}/doctor.json")
    yield run("train", *train, f"--workdir={workdir}")
    yield run("train again: complete", *train, f"--workdir={workdir}")
    yield run("evaluate", "evaluate", f"--workdir={workdir}")
    yield run("evaluate --data", "evaluate", f"--workdir={workdir}", f"--data={source}")
    files = [f"--{kind}={folder}/predictions.{kind}" for kind in ("csv", "json", "npz")]
    predict = (f"--workdir={workdir}", f"--input={images}", *files, "--tap=block1_pool")
    yield run("predict", "predict", *predict, max_lines=400)  # names of 255 bytes fill many lines
    yield run("report", "report", f"--workdir={workdir}")
    split = ("split", f"--source={source}")
    hidden = ("split", f"--source=csv:{_write_hidden_class(folder)}")
    fractions = ("--fractions=0.5,0.25,0.25", f"--output={folder}/out")
    yield run("split refuses a hidden class", *hidden, *fractions, codes=(2,))
    yield run("split", *split, *fractions)
    yield run("split --kfold", *split, "--kfold=2", f"--output={folder}/folds")
    yield run("doctor of the split", "doctor", f"--data=folder:{folder}/out")
    yield run("doctor of its list", "doctor", f"--data=csv:{folder}/out/manifest.csv")
    yield run("doctor of a fold", "doctor", f"--data=csv:{folder}/folds/fold-1.csv")
    before = _relative_files(images)
    after = sorted(file for part in (folder / "out").glob("*/") for file in _relative_files(part))
    yield Row("names in the split", 0.0, math.nan, f"{len(after)} of {len(before)}", before == after)


def _write_hidden_class(folder: Path) -> Path:
    """Write a list with a class named '..'."""
    for number, name in enumerate("ab"):
        draw_image(10_000 + number).save(folder / f"{name}.png")
    file = folder / "list.csv"
    file.write_text("path,label\na.png,..\nb.png,b\n")
    return file


def _relative_files(folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())


def readonly_load(folder: Path) -> Iterator[Row]:
    """Run the commands on a read-only source, which must stay unchanged down to its change times.

    If this user is root, to whom permissions do not apply, run them again as nobody.
    """
    images = write_images(folder / "images", ("ants", "bees", "cats"), 10)
    yield from _readonly_commands(images, Commands(_mkdir(folder / "own")), "this user", forbid=os.geteuid() != 0)
    if os.geteuid() != 0:
        return
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    folder.chmod(0o755)
    if not shutil.which("setpriv") or not _can_run(prefix, folder):
        yield Row("as nobody", 0.0, math.nan, "skipped: no setpriv, or no access for nobody", True)
        return
    os.chown(_mkdir(folder / "nobody"), NOBODY, NOBODY)
    commands = Commands(folder / "nobody", prefix)
    yield from _readonly_commands(images, commands, "nobody", forbid=True)
    yield from _no_access(folder, commands)


def _mkdir(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _can_run(prefix: tuple[str, ...], folder: Path) -> bool:
    """Return whether that user can start this Python with flaxtl and list the folder."""
    program = "import os, sys, flaxtl.cli.main; os.listdir(sys.argv[1])"
    process = subprocess.run([*prefix, sys.executable, "-c", program, str(folder)], capture_output=True, cwd="/")
    return process.returncode == 0


def _readonly_commands(images: Path, commands: Commands, user: str, *, forbid: bool) -> Iterator[Row]:
    """With `forbid`, also write into the source, which must fail."""
    for path in (*images.rglob("*"), images):
        path.chmod(0o555 if path.is_dir() else 0o444)
    state, output, source = _state(images), commands.folder, f"folder:{images}"
    config = write_config(images.parent / "config.py", source)
    for command, *arguments in (
        ("doctor", f"--data={source}", f"--html={output}/doctor.html"),
        ("train", f"--config={config}", f"--workdir={output}/run"),
        ("evaluate", f"--workdir={output}/run", f"--data={source}"),
        ("predict", f"--workdir={output}/run", f"--input={images}"),
        ("split", f"--source={source}", "--fractions=0.5,0.2,0.3", f"--output={output}/split"),
    ):
        yield commands.run(f"{command} as {user}", command, *arguments)
    if forbid:
        for command, *arguments in (
            ("doctor", f"--data={source}", f"--html={images}/x"),
            ("train", f"--config={config}", f"--workdir={images}/x"),
        ):
            yield commands.run(f"{command} into the source as {user}", command, *arguments, codes=(2,))
    unchanged = _state(images) == state
    yield Row(f"source after that, as {user}", 0.0, math.nan, "unchanged" if unchanged else "changed", unchanged)


def _no_access(folder: Path, commands: Commands) -> Iterator[Row]:
    """Read a folder that can be listed but not entered, folders that cannot be listed, and an unreadable file."""
    for number, (mode, name) in enumerate(((0o444, "ants"), (0, "ants"), (0, "."), (0, "ants/000000.png"))):
        images = write_images(folder / f"no access {number}", ("ants", "bees"), 10)
        (images / name).chmod(mode)
        config = write_config(folder / "config.py", f"folder:{images}")
        title = f"{name} with mode {mode:03o}"
        yield commands.run(f"doctor: {title}", "doctor", f"--data=folder:{images}", codes=(1, 2))
        workdir = f"--workdir={commands.folder}/run{number}"
        yield commands.run(f"train: {title}", "train", f"--config={config}", workdir, codes=(1, 2))


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return every path with its mode, size and change times."""
    paths = sorted((folder, *folder.rglob("*")))
    return [(str(path), (s := path.lstat()).st_mode, s.st_size, s.st_mtime_ns + s.st_ctime_ns) for path in paths]


LOADS = {
    "classes": classes_load,
    "rows": rows_load,
    "giant": giant_load,
    "names": names_load,
    "readonly": readonly_load,
}

if __name__ == "__main__":
    main()
