"""Load tests with the real commands: `python tools/load.py classes|rows|giant|names|growth|all`.

A thousand classes, a hundred thousand images, giant images, hostile names; processor time against the number of images.
--scale=0.1 makes sets of images smaller. Everything is written to a temporary folder (below --folder=DIR, if given) and
deleted. Prints a table; exit code 1 if anything was too slow, too large, crashed, printed too much, or wrote where it
must not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fresh_process import call, run_command
from PIL import ExifTags, Image

from flaxtl.data import duplicates, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.image_file import MAX_PIXELS

MAX_MIB, MAX_LINES, MAX_SECONDS = 2048, 120, 180.0
"""Limits of a command: peak memory, lines on the console, processor time."""

MAX_FUNCTION_SECONDS = 20.0  # a quadratic algorithm takes minutes
MAX_PAGE_MIB = 4.0  # a page must open at once, also on a phone

CLASSES, ROWS, ROW_CLASSES = 1_000, 100_000, 100
GROWTH = (1_000, 3_000, 10_000)
GIANT_SIDE, LARGEST_SIDE, SPARSE_BYTES = 20_000, int(MAX_PIXELS**0.5), 3 * 2**30

TINY = (
    "data.height=32", "data.width=32", "model.output_layer=block1_pool", "weights.path=random", "head.units=(16,)",
    "phases=('frozen',)", "frozen.epochs=1",
)  # fmt: skip
"""Settings of a run of one epoch on one block of VGG16."""


class Row(NamedTuple):
    """One check: processor seconds, peak MiB (0: not measured), what was seen, and whether it passed."""

    name: str
    seconds: float
    mebibytes: float
    note: str
    passed: bool

    def __str__(self) -> str:
        """Return one line of the table."""
        memory = f"{self.mebibytes:.0f}" if self.mebibytes else ""
        return f"{'ok' if self.passed else 'BAD':4}{self.name:44}{self.seconds:9.1f}{memory:>8}  {self.note}"


def main() -> None:
    """Run one load or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=(*LOADS, "all"))
    parser.add_argument("--scale", type=float, default=1.0, help="of classes, rows and growth (default: %(default)g)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="parent of the temporary folder; about 2 GB for all")
    options = parser.parse_args()
    print(f"{'':4}{'check':44}{'CPU s':>9}{'MiB':>8}  note")
    rows = []
    for name in LOADS if options.load == "all" else (options.load,):
        with tempfile.TemporaryDirectory(prefix=f"flaxtl-{name}-", dir=options.folder) as folder:
            for row in LOADS[name](Path(folder), options.scale):
                print(row, flush=True)
                rows.append(row)
    sys.exit(not all(row.passed for row in rows))


def run_flaxtl(
    folder: Path, name: str, *arguments: str, codes: Collection[int] = (0,), max_lines: int = MAX_LINES
) -> Row:
    """Run `flaxtl ARGUMENTS` in a folder; it must end with one of `codes`, within all limits."""
    output = folder / "output.txt"
    environment = {"JAX_PLATFORMS": "cpu", "FLAXTL_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "flaxtl", *arguments]
    code, _, seconds, mebibytes = run_command(command, output=output, environment=environment, folder=folder)
    lines = output.read_text(errors="replace").strip().splitlines()
    text, last = "\n".join(lines), lines[-1] if lines else ""
    failures = {
        f"exit code {code}": code not in codes,
        "internal error": "internal error" in text,
        "traceback": "Traceback (most recent call last)" in text,
        "Python warning": "Warning:" in text,
        f"{len(lines):,} lines on the console": len(lines) > max_lines,
        f"more than {MAX_MIB:,} MiB": mebibytes > MAX_MIB,
        "too slow": seconds > MAX_SECONDS,
    }
    failed = [failure for failure, happened in failures.items() if happened]
    note = f"{', '.join(failed)}: {last[:200]}" if failed else last[:150] if code else f"{len(lines)} lines"
    return Row(name, seconds, mebibytes, note, not failed)


def train_arguments(source: str, *settings: str) -> tuple[str, ...]:
    """Return the arguments of a tiny `flaxtl train`, except --workdir."""
    changed = (f"data.source={source}", *TINY, *settings)
    return ("train", "--config=folder", *(f"--config.{setting}" for setting in changed))


def draw_image(seed: int, side: int = 32) -> Image.Image:
    """Draw smooth color patches; the perceptual hashes of different seeds are far apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def write_images(folder: Path, classes: Iterable[str], per_class: int, side: int = 32) -> Path:
    """Write FOLDER/CLASS/NUMBER.png and return `folder`."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(index * per_class, (index + 1) * per_class):
            draw_image(number, side).save(folder / name / f"{number:06}.png", compress_level=1)
    return folder


def classes_load(folder: Path, scale: float) -> Iterator[Row]:
    """Run every command on many classes of four tiny images, and check the size of the pages."""
    images = write_images(folder / "images", (f"class {number:04}" for number in range(int(CLASSES * scale))), 4)
    run, source, workdir = partial(run_flaxtl, folder), f"folder:{images}", f"--workdir={folder / 'run'}"
    yield run("doctor", "doctor", f"--data={source}", f"--html={folder / 'doctor.html'}")
    fractions = ("--fractions=0.5,0.25,0.25", f"--output={folder / 'split'}")
    yield run("split", "split", f"--source={source}", *fractions)
    yield run("split --kfold=4", "split", f"--source={source}", "--kfold=4", f"--output={folder / 'folds'}")
    yield run("train", *train_arguments(source), workdir)
    yield run("evaluate", "evaluate", workdir)
    yield run("predict", "predict", workdir, f"--input={images}", f"--csv={folder / 'predictions.csv'}")
    yield run("report", "report", workdir)
    for page in (folder / "doctor.html", folder / "run" / "report" / "index.html"):
        mebibytes = page.stat().st_size / 2**20
        yield Row(f"size of {page.name}", 0.0, 0.0, f"{mebibytes:.2f} MiB", mebibytes <= MAX_PAGE_MIB)


def rows_load(folder: Path, scale: float) -> Iterator[Row]:
    """Call the functions that see all rows, then run the commands, on many images."""
    n = int(ROWS * scale)
    yield from row_functions(n)
    names = [f"class {number:03}" for number in range(ROW_CLASSES)]
    images = write_images(folder / "images", names, n // ROW_CLASSES, 16)
    run, source = partial(run_flaxtl, folder), f"folder:{images}"
    yield run("doctor", "doctor", f"--data={source}", f"--html={folder / 'doctor.html'}")
    yield run("split", "split", f"--source={source}", "--fractions=0.5,0.2,0.3", f"--output={folder / 'split'}")
    yield run("split --kfold=5", "split", f"--source={source}", "--kfold=5", f"--output={folder / 'folds'}")
    yield run("doctor of a list", "doctor", f"--data=csv:{folder / 'folds' / 'fold-1.csv'}")


def row_functions(n: int) -> Iterator[Row]:
    """Call the functions that compare rows with one another, on n rows that are hard for them."""
    labels = [f"class {number % ROW_CLASSES:03}" for number in range(n)]
    many = [f"class {number % (n // 20):05}" for number in range(n)]
    pairs = [[number, number + ROW_CLASSES] for number in range(0, n - ROW_CLASSES, 2 * ROW_CLASSES)]
    hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)
    apart = [Fingerprint(f"{number}", int(value)) for number, value in enumerate(hashes)]
    frames = [Fingerprint(f"{number}", int(value) % 2**18) for number, value in enumerate(hashes)]
    split = partial(splitting.stratified_split, fractions={"train": 0.5, "test": 0.5}, seed=0, warn=print)
    for name, function in (
        ("split, a group in every 200", lambda: split(labels, pairs)),
        (f"split of {n // 20:,} classes", lambda: split(many, [])),
        ("near-duplicates, 8 of 64 bits", lambda: duplicates.duplicate_groups(apart, 8)),
        ("near-duplicates, one long series", lambda: duplicates.duplicate_groups(frames, 4)),  # as of a video
    ):
        start_time = time.process_time()
        function()
        seconds = time.process_time() - start_time
        passed = seconds < MAX_FUNCTION_SECONDS
        yield Row(name, seconds, 0.0, "" if passed else "too slow", passed)


def growth_load(folder: Path, scale: float) -> Iterator[Row]:
    """Train on more and more images; processor time must not grow faster than their number."""
    previous: Row | None = None
    for before, n in pairwise((0, *(int(size * scale) for size in GROWTH))):
        images = write_images(folder / f"{n}", "abcde", n // 5)
        train = (*train_arguments(f"folder:{images}"), f"--workdir={folder}/run-{n}")
        row = run_flaxtl(folder, f"train, {n:,} images", *train)
        slow = previous is not None and row.seconds > 1.2 * previous.seconds * n / before
        yield row._replace(note="faster than linearly", passed=False) if slow else row
        previous = row


def giant_load(folder: Path, scale: float) -> Iterator[Row]:
    """Run the commands on images that are too large, then on several of the largest allowed."""
    for size, write, codes in (
        (f"{GIANT_SIDE:,}\u00b2", write_too_large_images, (1, 2)),
        (f"{LARGEST_SIDE:,}\u00b2", write_largest_images, (0,)),
    ):
        images, workdir = folder / write.__name__, f"--workdir={folder}/run-{write.__name__}"
        call(f"load:{write.__name__}", str(images))  # its memory is not counted for the commands
        run, source = partial(run_flaxtl, folder, codes=codes), f"folder:{images}"
        yield run(f"doctor, {size}", "doctor", f"--data={source}", f"--html={folder / 'doctor.html'}")
        yield run(f"train, {size}", *train_arguments(source), workdir)
        if 2 in codes:
            skip = (*train_arguments(source, "data.on_error=skip"), workdir)
            yield run_flaxtl(folder, f"train without them, {size}", *skip)
        yield run(f"predict, {size}", "predict", workdir, f"--input={images}")
        yield run_flaxtl(folder, f"report, {size}", "report", workdir)


def write_too_large_images(images: str) -> None:
    """Write small images, and some that are too large to be decoded or read."""
    Image.MAX_IMAGE_PIXELS = None
    folder = write_images(Path(images), ("a", "b"), 10)
    Image.new("1", (GIANT_SIDE, GIANT_SIDE)).save(folder / "a" / "bomb.png")  # a few kilobytes
    Image.new("RGB", (GIANT_SIDE, GIANT_SIDE), "green").save(folder / "a" / "giant.jpg")
    Image.new("L", (GIANT_SIDE, GIANT_SIDE), 77).save(folder / "b" / "giant.png", compress_level=1)
    with (folder / "b" / "sparse.jpg").open("wb") as file:
        file.truncate(SPARSE_BYTES)


def write_largest_images(images: str) -> None:
    """Write small images, and images of the largest size allowed in several formats, one with an EXIF rotation."""
    folder = write_images(Path(images), ("a", "b"), 10)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    fast = {"compress_level": 1}
    formats = (
        ("RGB", "jpg", {}), ("RGB", "jpg", {"progressive": True}), ("CMYK", "jpg", {}), ("P", "gif", {}),
        ("RGBA", "png", fast), ("I;16", "png", fast), ("RGBA", "png", fast | {"exif": exif}),
    )  # fmt: skip
    for number, (mode, suffix, options) in enumerate(formats):
        image = Image.new(mode, (LARGEST_SIDE, LARGEST_SIDE), 40 * number)
        image.save(folder / "ab"[number % 2] / f"large{number}.{suffix}", **options)


HOSTILE_CLASSES = (
    "<script>document.title=0<", '"><img src=x onerror=document.title=1>', "--> <svg onload=document.title=1>",
    "<",  # with a matching file name the path contains </title>
    "{{ 7*7 }}{% raw %}", "=cmd|' C'!A0", "@SUM(1+1)*cmd",
    "[red]:cat:", "[",  # and here [/bold]
    "-rf", "path", "two\nlines", "carriage\rreturn", "\x1b[2J\x1b]0;title\x07", "spaces   inside",
    "caf\u00e9", "cafe\u0301", "\U0001f469\u200d\U0001f52c \U0001f33b", "\u202egpj.exe \u05d0\u05d1",
    "comma, \"quote\" 'single' $x_{ %s {0} \u00a0.",
    "n" * 255, "\u7261" * 85,  # 255 bytes
)  # fmt: skip

HOSTILE_FILES = (
    "-x.png", "title><script>document.title=2<.png", "bold].png", "=1+1.png", "<b onclick=x>.png", "line\nbreak.png",
    "\x1b[31m.PNG", "f" * 251 + ".png", "\udcfe.png", "*?[a].png",
)  # fmt: skip


def names_load(folder: Path, scale: float) -> Iterator[Row]:
    """Run all commands on hostile class and file names; the split must contain every name, the source stay as it is."""
    images, workdir = folder / "source <i>&", f"--workdir={folder}/run '\"\n<b>"
    for number, (label, file) in enumerate(product(HOSTILE_CLASSES, HOSTILE_FILES)):
        (images / label).mkdir(parents=True, exist_ok=True)
        draw_image(number).save(folder / "image.png")
        (folder / "image.png").rename(images / label / file)
    before, run, source = _state(images), partial(run_flaxtl, folder), f"folder:{images}"
    yield run("doctor", "doctor", f"--data={source}", f"--html={folder}/doctor.html", f"--json={folder}/doctor.json")
    yield run("train", *train_arguments(source), workdir)
    yield run("train again: complete", *train_arguments(source), workdir)
    yield run("evaluate", "evaluate", workdir)
    yield run("evaluate --data", "evaluate", workdir, f"--data={source}")
    files = [f"--{kind}={folder}/predictions.{kind}" for kind in ("csv", "json", "npz")]
    predict = (workdir, f"--input={images}", *files, "--tap=block1_pool")
    yield run("predict", "predict", *predict, max_lines=400)  # names of 255 bytes fill many lines
    yield run("report", "report", workdir)
    split = ("split", f"--source={source}")
    fractions = ("--fractions=0.5,0.25,0.25", f"--output={folder}/out")
    hidden = f"--source=csv:{_write_hidden_class(folder)}"
    yield run("split refuses a hidden class", "split", hidden, *fractions, codes=(2,))
    yield run("split", *split, *fractions)
    yield run("split --kfold", *split, "--kfold=2", f"--output={folder}/folds")
    yield run("doctor of the split", "doctor", f"--data=folder:{folder}/out")
    yield run("doctor of its list", "doctor", f"--data=csv:{folder}/out/manifest.csv")
    yield run("doctor of a fold", "doctor", f"--data=csv:{folder}/folds/fold-1.csv")
    yield Row("source after that", 0.0, 0.0, f"{len(before)} files and folders", _state(images) == before)
    names = sorted(str(path.relative_to(images)) for path in images.glob("*/*"))
    copied = sorted(str(path.relative_to(part)) for part in (folder / "out").glob("*/") for path in part.glob("*/*"))
    yield Row("names in the split", 0.0, 0.0, f"{len(copied)} of {len(names)}", names == copied)


def _write_hidden_class(folder: Path) -> Path:
    """Write a list with a class named '..'."""
    for number, name in enumerate("ab"):
        draw_image(10_000 + number).save(folder / f"{name}.png")
    file = folder / "list.csv"
    file.write_text("path,label\na.png,..\nb.png,b\n")
    return file


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return every path with its mode, size and change times."""
    paths = sorted((folder, *folder.rglob("*")))
    return [(str(path), (s := path.lstat()).st_mode, s.st_size, s.st_mtime_ns + s.st_ctime_ns) for path in paths]


LOADS = {"classes": classes_load, "rows": rows_load, "giant": giant_load, "names": names_load, "growth": growth_load}

if __name__ == "__main__":
    main()
