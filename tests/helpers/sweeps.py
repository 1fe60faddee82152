"""Sweeps on the command line over a folder of images, with a fake for the runs."""

import json
import sys
from pathlib import Path

from flaxtl.cli import main
from helpers import tiny_run

FAKE_TRAIN = (sys.executable, str(Path(__file__).with_name("fake_train.py")))


class Sweeps:
    """Sweeps over a folder of images and a config of one short phase."""

    def __init__(self, folder, capsys):
        self.folder, self.workdir, self._capsys = folder, folder / "sweep", capsys
        tiny_run.images(folder / "images")
        tiny_run.write_config(folder, phases=("frozen",), frozen={"epochs": 3})

    def arguments(self, *options):
        start = ["sweep", f"--config={self.folder / 'config.py'}", f"--workdir={self.workdir}"]
        return [*start, f"--config.data.source=folder:{self.folder / 'images'}", *options]

    def run(self, *options):
        """Return exit code, lines of stdout and lines of stderr."""
        code = 0
        try:
            main.main(self.arguments(*options))
        except SystemExit as ended:
            code = ended.code
        captured = self._capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    def commands(self):
        """Return (command, run, flags) of all calls of the fake since the last call of this method."""
        file = self.workdir / "runs" / "commands.txt"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return [(command, self.run_of(flags), flags) for command, *flags in lines]

    def run_of(self, flags):
        (workdir,) = [flag for flag in flags if flag.startswith("--workdir=")]
        return Path(workdir.removeprefix("--workdir=")).name

    def trained(self):
        return [run for command, run, _ in self.commands() if command == "train"]


def grid(*units):
    return f"--grid=config.head.units={','.join(map(str, units))}"
