"""Hostile names of classes and files, all the way from doctor through train to the report."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from loads.check import Row, ended
from loads.command import config, flaxtl
from loads.images import soft

CLASSES = (
    "<script>document.title=0<",
    '"><img src=x onerror=document.title=1>',
    "--> <svg onload=document.title=1>",
    "<",  # with a file of the right name the path says </title>
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
"""Folders of classes; no system of files can hold a slash or a zero byte in them."""

FILES = (
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
EACH = len(FILES)


def run(folder: Path) -> Iterator[Row]:
    """The whole round trip; then whether every name came back as it was."""
    images, cache, workdir = folder / "source <i>&", folder / "cache", folder / "run '\"\n<b>"
    paint(images)
    source, page = f"folder:{images}", folder / "doctor.html"
    made = config(folder / "config.py", source, fractions={"train": 0.5, "validation": 0.25, "test": 0.25})
    yield ended(
        flaxtl("doctor", "doctor", f"--data={source}", f"--html={page}", f"--json={folder}/d.json", cache=cache)
    )
    yield ended(flaxtl("train", "train", f"--config={made}", f"--workdir={workdir}", cache=cache))
    yield ended(flaxtl("train again: complete", "train", f"--config={made}", f"--workdir={workdir}", cache=cache))
    yield ended(flaxtl("evaluate", "evaluate", f"--workdir={workdir}", cache=cache))
    yield ended(flaxtl("evaluate --data", "evaluate", f"--workdir={workdir}", f"--data={source}", cache=cache))
    files = [f"--{kind}={folder}/answers.{kind}" for kind in ("csv", "json", "npz")]
    predict = ("predict", f"--workdir={workdir}", f"--input={images}", *files, "--tap=block1_pool")
    yield ended(flaxtl("predict", *predict, cache=cache), lines=400)  # names of 255 bytes fill many lines
    yield ended(flaxtl("report", "report", f"--workdir={workdir}", cache=cache))
    fractions = ("--fractions=0.5,0.25,0.25", f"--output={folder}/out")
    yield ended(
        flaxtl(
            "split refuses a class that is hidden", "split", f"--source=csv:{_hidden(folder)}", *fractions, cache=cache
        ),
        codes=(2,),
    )
    yield ended(flaxtl("split", "split", f"--source={source}", *fractions, cache=cache))
    yield ended(
        flaxtl("split --kfold", "split", f"--source={source}", "--kfold=2", f"--output={folder}/folds", cache=cache)
    )
    yield ended(flaxtl("doctor of what was split", "doctor", f"--data=folder:{folder}/out", cache=cache))
    yield ended(flaxtl("doctor of its list", "doctor", f"--data=csv:{folder}/out/manifest.csv", cache=cache))
    yield ended(flaxtl("doctor of a fold", "doctor", f"--data=csv:{folder}/folds/fold-1.csv", cache=cache))
    yield _same(images, folder / "out")


def paint(folder: Path) -> None:
    """Images of hostile names in folders of hostile names."""
    for place, name in enumerate(CLASSES):
        inside = folder / name
        inside.mkdir(parents=True)
        for number, file in enumerate(FILES):
            soft(place * EACH + number).save(inside / "made.png")
            (inside / "made.png").rename(inside / file)


def _hidden(folder: Path) -> Path:
    """A list whose class is called '..'."""
    file = folder / "list.csv"
    soft(10_000).save(folder / "a.png")
    soft(10_001).save(folder / "b.png")
    file.write_text("path,label\na.png,..\nb.png,b\n")
    return file


def _same(source: Path, output: Path) -> Row:
    """Every file of the source lies in one split under its own name."""
    before = sorted(os.path.relpath(path, source) for path in source.rglob("*") if path.is_file())
    splits = [path for path in output.glob("*") if path.is_dir()]
    after = sorted(os.path.relpath(path, split) for split in splits for path in split.rglob("*") if path.is_file())
    return Row("names after the round trip", 0.0, math.nan, f"{len(after)} of {len(before)}", before == after)
