"""Sources that nobody may write to: every command leaves them as they were, down to the times of change."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from loads.check import Row, ended
from loads.command import config, flaxtl
from loads.images import paint

NOBODY = 65534


def run(folder: Path) -> Iterator[Row]:
    """The commands as this user, then as nobody where this is root, for whom permissions do not count."""
    images = paint(folder / "images", ("ants", "bees", "cats"), 10)
    yield from _commands(folder, folder / "own", images, ())
    before = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    folder.chmod(0o755)
    if os.geteuid() == 0 and shutil.which("setpriv") and _reaches(before, folder):
        yield from _commands(folder, folder / "nobody", images, before)
        yield from _forbidden(folder, before)
    elif os.geteuid() == 0:
        yield Row("as nobody", 0.0, math.nan, "left out: no setpriv, or nobody may not enter this place", True)


def _reaches(before: tuple[str, ...], folder: Path) -> bool:
    """Whether that user can start this Python with flaxtl and see the folder: their parents may be closed to it."""
    program = "import os, sys, flaxtl.cli.main; os.listdir(sys.argv[1])"
    done = subprocess.run([*before, sys.executable, "-c", program, str(folder)], capture_output=True, cwd="/")
    return done.returncode == 0


def _commands(folder: Path, own: Path, images: Path, before: tuple[str, ...]) -> Iterator[Row]:
    who = own.name
    own.mkdir()
    if before:
        os.chown(own, NOBODY, NOBODY)
    for path in (*images.rglob("*"), images):
        path.chmod(0o555 if path.is_dir() else 0o444)
    state, cache, source = _state(images), own / "cache", f"folder:{images}"
    made = config(folder / "config.py", source)
    for command, *arguments in (
        ("doctor", f"--data={source}", f"--html={own}/doctor.html"),
        ("train", f"--config={made}", f"--workdir={own}/run"),
        ("evaluate", f"--workdir={own}/run", f"--data={source}"),
        ("predict", f"--workdir={own}/run", f"--input={images}"),
        ("split", f"--source={source}", "--fractions=0.5,0.2,0.3", f"--output={own}/split"),
    ):
        yield ended(flaxtl(f"{command} as {who}", command, *arguments, cache=cache, before=before))
    outputs = (
        ("doctor", f"--data={source}", f"--html={images}/x"),
        ("train", f"--config={made}", f"--workdir={images}/x"),
    )
    for command, *arguments in outputs if before or os.geteuid() else ():
        done = flaxtl(f"{command} into the source as {who}", command, *arguments, cache=cache, before=before)
        yield ended(done, codes=(2,), found=done.last[:150])
    same = _state(images) == state
    yield Row(f"the source after that, as {who}", 0.0, math.nan, "as it was" if same else "changed", same)


def _forbidden(folder: Path, before: tuple[str, ...]) -> Iterator[Row]:
    """A folder that may be listed and not entered, one that may not be listed, a file that may not be read."""
    for number, (mode, place) in enumerate(
        ((0o444, "ants"), (0o000, "ants"), (0o000, "."), (0o000, "ants/000000.png"))
    ):
        images = paint(folder / f"forbidden {number}", ("ants", "bees"), 10)
        (images / place).chmod(mode)
        cache, made = folder / "nobody" / "cache", config(folder / "config.py", f"folder:{images}")
        for command, argument in (("doctor", f"--data=folder:{images}"), ("train", f"--config={made}")):
            workdir = () if command == "doctor" else (f"--workdir={folder}/nobody/run{number}",)
            done = flaxtl(
                f"{command}: {place} with mode {mode:03o}", command, argument, *workdir, cache=cache, before=before
            )
            yield ended(done, codes=(1, 2), found=done.last[:150])


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    """Every path with its mode, size and times of change."""
    found = sorted((folder, *folder.rglob("*")))
    return [(str(path), (s := path.lstat()).st_mode, s.st_size, s.st_mtime_ns + s.st_ctime_ns) for path in found]
