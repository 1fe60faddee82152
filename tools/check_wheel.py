"""Check a wheel: `python tools/check_wheel.py dist/flaxtl-VERSION-py3-none-any.whl`.

The wheel is installed in a new virtual environment. In an empty folder, without the checkout, its configs are listed
and copied, and it trains on generated flowers and on a folder of images.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"

GENERATE = """
from pathlib import Path
from flaxtl.data.sources import synthetic
synthetic.generate_dataset(Path("images"), per_class=6)
"""

SHORT = ("--config.phases=frozen", "--config.frozen.epochs=1", "--config.data.height=64", "--config.data.width=64")
"""One phase of one epoch on small images."""

COMMANDS = (
    ("flaxtl", "configs"),
    ("flaxtl", "configs", "--copy=folder"),
    ("flaxtl", "train", "--config=demo", "--workdir=runs/demo", *SHORT),
    ("python", "-c", GENERATE),
    ("flaxtl", "train", "--config=folder", "--config.data.source=folder:images", "--workdir=runs/folder",
     "--config.weights.path=builtin", *SHORT),
)  # fmt: skip

EXPECTED = ("folder.py", "runs/demo/report/index.html", "runs/folder/predictions.csv")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)


def main(wheel: Path) -> None:
    """Raise an error if a command fails or a file is missing."""
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as place:
        environment, folder = Path(place) / "environment", Path(place) / "empty"
        folder.mkdir()
        programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
        with timed("new environment"):
            venv.create(environment, with_pip=True)
            pip = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            subprocess.run([*pip, f"--constraint={CONSTRAINTS}", wheel.resolve()], check=True)
        for program, *arguments in COMMANDS:
            with timed(" ".join([program, *arguments]).partition("\n")[0]):
                command = [programs / program, *arguments]
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        missing = [name for name in EXPECTED if not (folder / name).is_file()]
        if missing:
            raise SystemExit(f"not written: {', '.join(missing)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    main(parser.parse_args().wheel)
