"""A folder of images and a config of two short phases, and `flaxtl` commands on them in separate processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import compiling, tiny_run

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
NETWORK = {
    "model": {"name": "mobilenet_025", "output_layer": "conv_pw_2_relu"},
    "param_groups": (("head", "head/.*"), ("block2", "backbone/conv_.w_2.*"), ("base", "backbone/.*")),
}
"""The first blocks of a network with batch norms."""


class Place:
    """`frozen` and `finetune` change the settings of the two phases."""

    def __init__(self, folder: Path, frozen: dict[str, Any], finetune: dict[str, Any]) -> None:
        self.folder = folder
        tiny_run.images(folder / "images")
        tiny_run.write_config(folder, **NETWORK, frozen=frozen, finetune=finetune)

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
