"""A folder of images and a config of two short phases, and `flaxtl` commands on them in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import compiling, tiny_run

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.batch_size = 4
    c.data = dict(height=32, width=32, fractions=dict(train=0.5, validation=0.25, test=0.25))
    c.weights = dict(path="random")
    c.model = dict(name="mobilenet_025", output_layer="conv_pw_2_relu")
    c.head = dict(pooling="global_average", units=(8,), dropout=0.4)
    c.augmentation = dict(rotation=20.0, horizontal_flip=True)
    c.param_groups = (("head", "head/.*"), ("block2", "backbone/conv_.w_2.*"), ("base", "backbone/.*"))
    c.phases = ("frozen", "finetune")
    c.frozen = dict({frozen}, lr=dict(head=1e-2, block2=0.0, base=0.0))
    c.finetune = dict({finetune}, augment=True, lr=dict(head=1e-3, block2=1e-3, base=0.0))
    return c
"""


class Place:
    """`frozen` and `finetune` are the settings of the two phases other than their learning rates."""

    def __init__(self, folder: Path, frozen: str, finetune: str) -> None:
        self.folder = folder
        tiny_run.images(folder / "images")
        (folder / "config.py").write_text(CONFIG.format(frozen=frozen, finetune=finetune))

    def train(self, program: list[str], workdir: Path, *more: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
        """Start `flaxtl train` by a program that takes its command line; compiled programs are kept in the folder."""
        environment = os.environ | {
            **compiling.quick_variables(),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, *program, "train", f"--config={self.folder / 'config.py'}"]
        command += [f"--workdir={workdir}", f"--config.data.source=folder:{self.folder / 'images'}", *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
