"""Sweeps on the command line over a folder of images, with a fake for the runs."""

import json
import sys
from pathlib import Path

from flaxtl.cli import main
from helpers import tiny_run

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.batch_size = 4
    c.data = dict(height=32, width=32, fractions=dict(train=0.5, validation=0.25, test=0.25))
    c.weights = dict(path="random")
    c.model = dict(name="vgg16", output_layer="block1_pool")
    c.head = dict(pooling="global_average", units=(8,), dropout=0.4)
    c.param_groups = (("head", "head/.*"), ("base", "backbone/.*"))
    c.phases = ("frozen",)
    c.frozen = dict(epochs=3, lr=dict(head=1e-2, base=0.0))
    return c
"""
FAKE_TRAIN = (sys.executable, str(Path(__file__).with_name("fake_train.py")))


class Sweeps:
    """Sweeps over a folder of images and a config of one short phase."""

    def __init__(self, folder, capsys):
        self.folder, self.workdir, self._capsys = folder, folder / "sweep", capsys
        tiny_run.images(folder / "images")
        (folder / "config.py").write_text(CONFIG)

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
