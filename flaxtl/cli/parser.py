"""The command line: commands, options and their help texts."""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn

from flaxtl import __version__
from flaxtl.cli.spelling import check_options
from flaxtl.errors import UserError, unknown
from flaxtl.fileio import output_path, user_path

DEFAULT_TOP = 5
"""Classes that `flaxtl predict` shows for each image."""

DEFAULT_CONFIG = "folder"
"""Config of `flaxtl train`."""

EPILOG = """\
Train on your own images, one folder per class: flaxtl train photos/
SOURCE is a folder, an archive or a CSV file (also written folder:PATH, archive:FILE, csv:FILE), hf:ORG/NAME,
tfds:NAME or synthetic.
On TPU, float32 multiplies in bfloat16, and on NVIDIA GPUs in TF32; --config.precision=highest keeps float32.
Exit codes: 0 done; 1 a run of a sweep failed, doctor found an error, or an internal error; 2 invalid input;
69 another process of a distributed run has died; 130 Ctrl-C, 143 SIGTERM or a closed terminal: progress is saved."""


PLAIN_WORDS = {"invalid int value": "not a whole number", "invalid float value": "not a number"}
"""What argparse says of a value of the wrong type -> what a user without Python understands."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError; argparse would print the usage and exit."""
        for python_words, words in PLAIN_WORDS.items():
            message = message.replace(python_words, words)
        raise UserError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; an empty one prints the help and exits with code 0, as --help does.

    Returns:
      The options of the command, with `command` (its name), `overrides` (the --config.key=value arguments) and
      `command_line` (the whole line, as in a shell).
    """
    _check_spelling(arguments)
    # argparse takes an unknown option with a space in its value, such as the path of a folder, for an argument.
    overrides = [argument for argument in arguments if re.match(r"--config\.[^=]+=", argument)]
    others = [argument for argument in arguments if argument not in overrides]
    options, rest = make_parser().parse_known_args(others if arguments else ["--help"])
    overrides += rest
    _check_overrides(overrides, options)
    options.overrides = overrides
    options.command_line = shlex.join(["flaxtl", *arguments])
    return options


def _check_spelling(arguments: Sequence[str]) -> None:
    """Raise UserError for a command or an option that does not exist, before argparse misses a required one."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is None:
        return
    if command not in _COMMANDS:
        raise unknown("command", command, _COMMANDS)
    parser = Parser()
    _COMMANDS[command][1](parser)
    known = [*re.findall(r"--[\w-]+", parser.format_usage()), "--debug", "--help"]
    check_options(command, arguments[arguments.index(command) + 1 :], known, DEFAULT_CONFIG)


def _check_overrides(rest: Sequence[str], options: argparse.Namespace) -> None:
    """Raise UserError unless all remaining arguments are --config.key=value and the command accepts them."""
    allowed = "config" in options
    for argument, following in pairwise([*rest, ""]):
        if not allowed or not argument.startswith("--config."):
            if allowed and "images" not in options and user_path(argument).is_dir():
                setting = shlex.quote(f"--config.data.source=folder:{argument}")
                raise UserError(f"flaxtl {options.command} takes images as {setting}")
            raise UserError(f"Unknown argument {argument!r}. See flaxtl {options.command} --help.")
        if "=" not in argument and following[:1] not in ("", "-"):
            correct = shlex.quote(f"{argument}={following}")
            raise UserError(f"{argument} {following} needs an equals sign: {correct}")


def make_parser() -> Parser:
    """Return the parser of all commands; it sets `command` to the name of the command."""
    parser = Parser(
        prog="flaxtl",
        description="Transfer learning for image classification in JAX and Flax.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flaxtl {__version__}")
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add_options) in _COMMANDS.items():
        description = f"{summary[:1].upper()}{summary[1:]}."
        add_options(
            subparsers.add_parser(name, help=summary, description=description, parents=[shared], allow_abbrev=False)
        )
    return parser


def _add_config_option(parser: argparse._ActionsContainer, *, required: bool = True, default: str = "") -> None:
    more = f" (default: {default})" if default else ""
    parser.add_argument(
        "--config",
        required=required and not default,
        metavar="NAME|FILE[:VARIANT]",
        help="config: a Python file, or the name of a config that comes with flaxtl (demo, folder, ...); override "
        f"settings with --config.KEY=VALUE{more}",
    )


def _add_train_options(parser: Parser) -> None:
    parser.add_argument("images", nargs="?", metavar="SOURCE", help="images to train on, such as the folder photos/")
    parser.add_argument("--data", metavar="SOURCE", help="SOURCE, given as an option")
    _add_config_option(parser, default=DEFAULT_CONFIG)
    parser.add_argument(
        "--workdir",
        type=user_path,
        metavar="DIR",
        help="run directory (default: runs/NAME-DATE, or the unfinished run of the same config there)",
    )
    distributed = parser.add_argument_group(
        "distributed training", "start the same command in every process, with a --workdir that all of them share"
    )
    distributed.add_argument(
        "--distributed",
        action="store_true",
        help="detect processes from the cluster environment (Slurm, TPU pod, GKE, Open MPI)",
    )
    distributed.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    distributed.add_argument("--processes", type=int, metavar="N", help="number of processes")
    distributed.add_argument("--process", type=int, metavar="I", help="index of this process, starting at 0")


def _add_lr_find_options(parser: Parser) -> None:
    _add_config_option(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        type=user_path,
        metavar="DIR",
        help="run directory (created if missing); results go to DIR/learning_rate",
    )
    parser.add_argument("--phase", metavar="NAME", help="phase to test (default: first)")
    parser.add_argument(
        "--min-lr", type=float, default=1e-7, metavar="LR", help="first learning rate (default: %(default)g)"
    )
    parser.add_argument(
        "--max-lr", type=float, default=1.0, metavar="LR", help="last learning rate (default: %(default)g)"
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="number of steps (default: %(default)s)")


def _add_sweep_options(parser: Parser) -> None:
    _add_config_option(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        type=user_path,
        metavar="DIR",
        help="directory of the sweep; each run gets its own in it",
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="config.KEY=VALUES",
        help="values of a setting, separated by commas; commas inside brackets do not separate: "
        "config.head.units=64,(128,64). Repeat the option for the product of several grids",
    )
    parser.add_argument(
        "--seeds", metavar="SEEDS", help="train every combination with each seed, such as 0,1,2, and report the mean"
    )
    parser.add_argument("--kfold", type=int, metavar="K", help="train every combination on K cross-validation folds")
    parser.add_argument(
        "--shard", metavar="I/N", help="train only every N-th run, from the I-th on, as one job of a Slurm array"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing; write the results of the finished runs")


def _add_evaluate_options(parser: Parser) -> None:
    _add_run_option(parser)
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="evaluate on other images, or on the run's own that were moved (default: the run's own)",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("train", "validation", "test"),
        help="split of the run's images (default: %(default)s)",
    )
    parser.add_argument(
        "--tta",
        metavar="flip|crops|N",
        help="test-time augmentation: average the probabilities of an image and its mirror image, of ten crops, or of "
        "N random views with the run's augmentation. Choose it on --split=validation",
    )
    parser.add_argument("--json", type=output_path, metavar="FILE", help="also write the JSON object to FILE")


def _add_predict_options(parser: Parser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    _add_run_option(model, required=False)
    model.add_argument(
        "--model",
        metavar="NAME",
        help="pretrained model with the 1,000 ImageNet classes; images are resized (bicubic, shorter side) to 8/7 of "
        "its input size and center-cropped",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for --model: a file or hf:ORG/REPO[/FILE][@REVISION] (default: cached weights, downloaded if "
        "missing)",
    )
    _add_skip_layers_option(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="image files, folders or glob patterns"
    )
    parser.add_argument("--top", type=int, metavar="N", help=f"classes to show for each image (default: {DEFAULT_TOP})")
    parser.add_argument(
        "--calibrated", action="store_true", help="fail if --workdir has no temperature to calibrate probabilities with"
    )
    parser.add_argument("--raw", action="store_true", help="probabilities as the network gives them, uncalibrated")
    parser.add_argument("--csv", type=output_path, metavar="FILE", help="write one row per image")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the top classes of every image")
    parser.add_argument(
        "--tap",
        action="append",
        default=[],
        metavar="LAYER",
        help="write the output of LAYER to --npz; repeat the option for several layers. If only layers of the backbone "
        "of --model are tapped, and --top, --csv and --json are not given, weights without the top layers are enough",
    )
    parser.add_argument("--npz", type=output_path, metavar="FILE", help="file for --tap: 'path' and an array per layer")


def _add_report_options(parser: Parser) -> None:
    parser.add_argument(
        "--workdir",
        required=True,
        type=user_path,
        action="append",
        metavar="DIR",
        help="run directory; repeat the option to compare runs",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE.html",
        help="file for the comparison (default: DIR/report/comparison.html)",
    )
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="where the images of the run are now, if they were moved; they are found by their SHA-256",
    )
    parser.add_argument(
        "--gradcam", metavar="LAYER", help="layer for the heat maps (default: last base layer with spatial output)"
    )


def _add_configs_options(parser: Parser) -> None:
    parser.add_argument("--copy", metavar="NAME", help="write the config as NAME.py into the working directory")


def _add_devices_options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_models_options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_summary_options(parser: Parser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="NAME", help="pretrained model")
    _add_config_option(model, required=False)


def _add_split_options(parser: Parser) -> None:
    parser.add_argument("--source", required=True, metavar="SOURCE", help="images to split")
    parser.add_argument("--output", required=True, type=user_path, metavar="DIR", help="new or empty directory")
    parser.add_argument(
        "--fractions",
        metavar="FRACTIONS",
        help="fractions of train, validation and test, such as 0.5,0.2,0.3; or of named splits: "
        "train=0.6,validation=0.2,extra=0.2",
    )
    parser.add_argument("--kfold", type=int, metavar="K", help="write the lists of K cross-validation folds instead")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="create hard links instead of copies")
    _add_near_duplicates_option(parser, "keep near-duplicates in the same split")


def _add_doctor_options(parser: Parser) -> None:
    parser.add_argument("images", nargs="?", metavar="SOURCE", help="images to check, such as the folder photos/")
    parser.add_argument("--data", metavar="SOURCE", help="SOURCE, given as an option")
    _add_near_duplicates_option(parser, "report near-duplicates")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write all findings as JSON")
    parser.add_argument("--html", type=output_path, metavar="FILE", help="write an HTML report with thumbnails")


def _add_convert_options(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="architecture of the weights")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="weight file: Keras (.h5, .keras), ONNX or safetensors; or hf:ORG/REPO[/FILE][@REVISION]",
    )
    _add_skip_layers_option(parser)
    parser.add_argument("--output", required=True, type=user_path, metavar="FILE.safetensors", help="file to write")
    parser.add_argument(
        "--layout", choices=("timm",), help="layout of a safetensors file: timm (parameter names and axes of PyTorch)"
    )


def _add_skip_layers_option(parser: Parser) -> None:
    parser.add_argument(
        "--skip-layers",
        default="",
        metavar="REGEX",
        help="layers of the weight file to leave out, such as another head: a regular expression for their names",
    )


def _add_export_options(parser: Parser) -> None:
    _add_run_option(parser)
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="where the images of the run are now, if they were moved; without any, the export is verified on "
        "synthetic images",
    )
    parser.add_argument(
        "--output", type=user_path, metavar="DIR", help="new or empty directory (default: WORKDIR/export/FORMAT)"
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "stablehlo", "onnx"),
        help="safetensors: the weights only; stablehlo: a program that JAX runs on CPU, CUDA and TPU; onnx: a model "
        "for onnxruntime and others (pip install 'flaxtl[onnx]')",
    )


def _add_run_option(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    parser.add_argument(
        "--workdir",
        required=required,
        type=user_path,
        metavar="DIR",
        help="run directory of a trained model",
    )


def _add_near_duplicates_option(parser: Parser, purpose: str) -> None:
    parser.add_argument(
        "--near-duplicates",
        type=int,
        default=4,
        metavar="BITS",
        help=f"{purpose}: images whose 64-bit perceptual hashes differ in at most BITS bits; -1: identical files only "
        "(default: %(default)s)",
    )


_COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "train": ("train a model and write the report; run the same command again to resume", _add_train_options),
    "lr-find": ("run a learning-rate range test and suggest a learning rate", _add_lr_find_options),
    "sweep": ("train all combinations of settings and compare them on the validation images", _add_sweep_options),
    "evaluate": ("compute the metrics of a trained run on one split", _add_evaluate_options),
    "predict": ("classify images with a trained run or with a pretrained ImageNet model", _add_predict_options),
    "report": ("write the report of a run again, or compare several runs", _add_report_options),
    "configs": ("list the configs that come with flaxtl, or copy one to change it", _add_configs_options),
    "devices": ("show what jax sees of this machine, and measure its speed (about 10 seconds)", _add_devices_options),
    "models": ("list the models, with parameters, input size, accuracy and weights", _add_models_options),
    "summary": ("show the layers of a model, their parameters, and the phases that train them", _add_summary_options),
    "split": ("split images into train, validation and test folders, or into folds", _add_split_options),
    "doctor": ("check a dataset: errors that stop training (exit code 1), and warnings", _add_doctor_options),
    "convert": ("check a weight file and convert it to safetensors", _add_convert_options),
    "export": ("export a trained model and verify it on images of the run", _add_export_options),
}
"""Name of a command -> its summary, and the function that adds its options."""
