"""What the commands take: every option, its help, and what is refused."""

import argparse
from pathlib import Path
from typing import NoReturn

from flaxtl import __version__
from flaxtl.errors import UserError

DEFAULT_TOP = 5
"""Classes that `flaxtl predict` shows of each image, as in ImageNet's top-5."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message}; see {self.prog} --help")


def make_parser() -> Parser:
    """The command line; what it parses has the name of the `command`."""
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    top = Parser(
        prog="flaxtl",
        description="Transfer learning: an ImageNet network, your images, a report.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"flaxtl {__version__}")
    added = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> Parser:
        made = added.add_parser(name, help=text, description=text, parents=[shared], allow_abbrev=False)
        made.set_defaults(command=name)
        return made

    config_help = "config, FILE or FILE:VARIANT; change settings by --config.key=value"
    one = command("train", "train a config's phases, or go on with them, and write the report")
    one.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=config_help)
    one.add_argument("--workdir", required=True, type=Path, help="run directory; the same one resumes")
    many = one.add_argument_group("many processes", "start the same command in each, with a --workdir that all share")
    many.add_argument(
        "--distributed", action="store_true", help="find the others by the environment: Slurm, TPU pod, GKE, Open MPI"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    many.add_argument("--processes", type=int, metavar="N", help="how many there are")
    many.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    one = command("lr", "raise the learning rate step by step, show the loss, and propose a rate")
    one.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=config_help)
    one.add_argument(
        "--workdir", required=True, type=Path, help="a run directory, or one to be; DIR/learning_rate takes the results"
    )
    one.add_argument("--phase", metavar="NAME", help="which one of the config, the first unless told")
    one.add_argument("--lowest", type=float, default=1e-7, metavar="RATE", help="of the first step, 1e-7 unless told")
    one.add_argument("--highest", type=float, default=1.0, metavar="RATE", help="of the last step, 1 unless told")
    one.add_argument("--steps", type=int, default=100, metavar="N", help="how many there are, 100 unless told")

    one = command("sweep", "train a config at all points of a grid, and compare them on the validation images")
    one.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=config_help)
    one.add_argument("--workdir", required=True, type=Path, help="the sweep's directory; the same one resumes")
    one.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="config.KEY=VALUES",
        help="values with commas between them, such as config.head.units=64,(128,64): commas within brackets do not "
        "count; several grids are multiplied",
    )
    one.add_argument("--seeds", metavar="NUMBERS", help="train each point with all of them: 0,1,2; mean and spread")
    one.add_argument("--kfold", type=int, metavar="K", help="train each point K times, by cross-validation")
    one.add_argument("--points", metavar="I/N", help="only the I-th of N shares of the runs, as of a Slurm array")
    one.add_argument("--collect", action="store_true", help="only write the table of what is there")

    one = command("evaluate", "measure a trained run on one split")
    one.add_argument("--workdir", required=True, type=Path, help="a trained run")
    one.add_argument("--data", metavar="SOURCE", help="other images than the run's own")
    one.add_argument("--split", default="test", choices=("train", "validation", "test"), help="of the run's own images")
    one.add_argument("--json", type=Path, metavar="FILE", help="write the JSON object there too")
    one.add_argument(
        "--tta",
        metavar="flip|crops|N",
        help="average the answers on several views of each image: with its mirror image, ten crops, or N with the "
        "config's own augmentation; whether it helps is for --split=validation to tell",
    )

    one = command("predict", "classify image files with a trained run, or with a published network")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a trained run, with its own image size and resize policy")
    which.add_argument(
        "--model",
        metavar="NAME",
        help="a published network with its 1,000 ImageNet classes, at its own image size: shorter side to 8/7 of it, "
        "bicubic, centre crop",
    )
    one.add_argument("--weights", metavar="FILE", help="for --model; left out: from a cache, else downloaded")
    one.add_argument("--input", required=True, nargs="+", metavar="PATH", help="files, folders or globs")
    one.add_argument(
        "--calibrated",
        action="store_true",
        help="for --workdir: probabilities at the temperature that was fitted on the run's validation images",
    )
    one.add_argument("--top", type=int, metavar="N", help=f"how many classes to show, {DEFAULT_TOP} unless given")
    one.add_argument("--csv", type=Path, metavar="FILE", help="a row an image")
    one.add_argument("--json", type=Path, metavar="FILE", help="the classes that are shown, image by image")
    one.add_argument(
        "--tap",
        action="append",
        default=[],
        metavar="LAYER",
        help="write that layer's output to --npz; where all --tap lie in the base of --model and neither --top, --csv "
        "nor --json is given, nothing is classified and weights without the top are enough",
    )
    one.add_argument("--npz", type=Path, metavar="FILE", help="'path' and an array named after each --tap")

    one = command("report", "write DIR/report/index.html; of several runs, a page that compares them")
    one.add_argument("--workdir", required=True, type=Path, action="append", help="again for every run to be compared")
    one.add_argument(
        "--output", type=Path, metavar="FILE.html", help="the comparison; DIR/report/comparison.html unless told"
    )

    one.add_argument(
        "--gradcam",
        metavar="LAYER",
        help="the layer of the heat maps; the last one of the base that has places if not told",
    )

    one = command("models", "the catalog of networks")
    one.add_argument("--json", action="store_true", help="as JSON")

    one = command("summary", "a network's layers: shapes, parameters, groups and what learns")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="a published network")
    which.add_argument("--config", metavar="FILE[:VARIANT]", help=config_help)

    one = command("split", "deal images out to train, validation and test folders, or to folds")
    one.add_argument("--source", required=True, metavar="SOURCE", help="the images to deal out")
    one.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder, or an empty one")
    one.add_argument(
        "--fractions",
        metavar="NUMBERS",
        help="parts of train, validation and test: 0.5,0.2,0.3; or of named splits: train=0.6,validation=0.2,extra=0.2",
    )
    one.add_argument("--kfold", type=int, metavar="K", help="write the lists of a cross-validation instead")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="the same one gives the same split")
    one.add_argument("--link", action="store_true", help="hard links in place of copies")
    one.add_argument(
        "--near-duplicates",
        type=int,
        default=4,
        metavar="BITS",
        help="images whose perceptual hashes differ by so many of 64 bits stay together; -1: equal files only",
    )

    one = command("doctor", "examine images: what would stop a run (exit code 1), and what may spoil it")
    one.add_argument("--data", required=True, metavar="SOURCE", help="the images to examine")
    one.add_argument(
        "--near-duplicates",
        type=int,
        default=4,
        metavar="BITS",
        help="perceptual hashes that differ in at most so many of 64 bits are the same image; -1: equal bytes only",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write every finding there")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with thumbnails there")

    one = command("convert", "check a weight file and write it as safetensors")
    one.add_argument("--model", required=True, metavar="NAME", help="the network that they are of")
    one.add_argument("--weights", required=True, metavar="FILE", help="of Keras, in HDF5 or .keras; ONNX; safetensors")
    one.add_argument("--output", required=True, type=Path, metavar="FILE.safetensors", help="the new file")
    one.add_argument("--layout", choices=("timm",), help="a safetensors file with PyTorch's names and axes")

    one = command("export", "write a trained network for use elsewhere, tried on the run's own images")
    one.add_argument("--workdir", required=True, type=Path, help="a trained run")
    one.add_argument(
        "--output", type=Path, metavar="DIR", help="a new folder, or an empty one; WORKDIR/export/FORMAT unless told"
    )
    one.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "stablehlo", "onnx"),
        help="safetensors: the parameters alone; stablehlo: a program for CPU, CUDA and TPU, which jax runs; onnx: for "
        "onnxruntime and others (pip install 'flaxtl[onnx]')",
    )
    return top
