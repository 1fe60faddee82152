"""The one door: `flaxtl <command>`. Parses, calls a room, prints."""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from flaxtl import __version__
from flaxtl.errors import UserError, unknown
from flaxtl.terminal import console
from flaxtl.train.interruption import Stopped, exit_code

if TYPE_CHECKING:
    from flaxtl.results.predict import Predictor
    from flaxtl.results.trained import Trained

TOP = 5
"""Classes that `flaxtl predict` shows of each picture, as in ImageNet's top-5."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    0 on success; 2 for a user's mistake, told in one sentence; 130 after Ctrl-C and 143 after SIGTERM, when what was
    done is kept; 1 for a fault of flaxtl's own, and where a run of a sweep failed or doctor found what stops a run.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for library in ("absl", "asyncio", "matplotlib"):  # tracebacks of errors that orbax raises too, font caches, ...
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sys.excepthook = _hook
    warnings.filterwarnings("ignore", module="PIL")  # large pictures and damaged metadata: neither stops a run
    try:
        options, rest = parser().parse_known_args(arguments)
        options.overrides = _overrides(rest, allowed="config" in options)
        options.command_line = shlex.join(["flaxtl", *arguments])
        options.run(options)
    except UserError as error:
        _fail(str(error), 2, arguments)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, Stopped) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        command = "sweep" if arguments[:1] == ["sweep"] else "train"
        _fail(f"stopped; the same flaxtl {command} goes on from where it was", exit_code(number), arguments)
    except MemoryError:
        _fail("this machine has too little memory; lower batch, or set data.pipeline=stream", 2, arguments)
    except OSError as error:
        _fail(f"cannot read or write {error.filename or 'a file'} ({error.strerror or error})", 2, arguments)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _fail("the device has too little memory; lower batch, or raise accumulate", 2, arguments)
        _fail(f"a fault in flaxtl itself ({type(error).__name__}: {error}); --debug shows where", 1, arguments)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own, but for what TensorStore's threads say after a write that failed and was told."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def _fail(sentence: str, code: int, arguments: Sequence[str]) -> NoReturn:
    if "--debug" in arguments:
        traceback.print_exc()
    console(errors=True).print(f"flaxtl: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    if "flaxtl.train.hosts" in sys.modules:  # else no other process can be waiting
        sys.modules["flaxtl.train.hosts"].end(code)
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message}; see {self.prog} --help")


def _overrides(rest: Sequence[str], allowed: bool) -> list[str]:
    for argument, following in pairwise([*rest, ""]):
        if allowed and argument.startswith("--config.") and "=" not in argument and following[:1] not in ("", "-"):
            raise UserError(f"{argument} {following} needs an equals sign: {argument}={following}")
        if not allowed or not argument.startswith("--config."):
            raise UserError(f"the command does not know {argument!r}; see flaxtl --help, or COMMAND --help")
    return list(rest)


def parser() -> Parser:
    """The command line. Commands import their rooms when they run, so that each starts quickly."""
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    top = Parser(prog="flaxtl", description=__doc__.splitlines()[0], allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"flaxtl {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> Parser:
        made = commands.add_parser(name, help=text, description=text, parents=[shared], allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    recipe_help = "recipe, FILE or FILE:VARIANT; change settings by --config.key=value"
    one = command("train", train, "train a recipe's phases, or go on with them, and write the report")
    one.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=recipe_help)
    one.add_argument("--workdir", required=True, type=Path, help="run directory; the same one resumes")
    many = one.add_argument_group("many processes", "start the same command in each, with a --workdir that all share")
    many.add_argument(
        "--distributed", action="store_true", help="find the others by the environment: Slurm, TPU pod, GKE, Open MPI"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    many.add_argument("--processes", type=int, metavar="N", help="how many there are")
    many.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")

    one = command("sweep", sweep, "train a recipe at all points of a grid, and compare them on the validation pictures")
    one.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=recipe_help)
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

    one = command("evaluate", evaluate, "measure a trained run on one split")
    one.add_argument("--workdir", required=True, type=Path)
    one.add_argument("--data", metavar="SOURCE", help="other pictures than the run's own")
    one.add_argument("--split", default="test", choices=("train", "validation", "test"))
    one.add_argument("--json", type=Path, metavar="FILE", help="write the JSON object there too")

    one = command("predict", predict, "classify picture files with a trained run, or with a published network")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a trained run, with its own picture size and resize policy")
    which.add_argument(
        "--model",
        metavar="NAME",
        help="a published network with its 1,000 ImageNet classes, at its own picture size: shorter side to 8/7 of it, "
        "bicubic, centre crop",
    )
    one.add_argument("--weights", metavar="FILE", help="for --model; left out: from a cache, else downloaded")
    one.add_argument("--input", required=True, nargs="+", metavar="PATH", help="files, folders or globs")
    one.add_argument(
        "--calibrated",
        action="store_true",
        help="for --workdir: probabilities at the temperature that was fitted on the run's validation pictures",
    )
    one.add_argument("--top", type=int, metavar="N", help=f"how many classes to show, {TOP} unless given")
    one.add_argument("--csv", type=Path, metavar="FILE", help="a row a picture")
    one.add_argument("--json", type=Path, metavar="FILE", help="the classes that are shown, picture by picture")
    one.add_argument(
        "--tap",
        action="append",
        default=[],
        metavar="LAYER",
        help="write that layer's output to --npz; where all --tap lie in the base of --model and neither --top, --csv "
        "nor --json is given, nothing is classified and weights without the top are enough",
    )
    one.add_argument("--npz", type=Path, metavar="FILE", help="'path' and an array named after each --tap")

    one = command("report", report, "write DIR/report/index.html")
    one.add_argument("--workdir", required=True, type=Path)

    one = command("models", models, "the catalog of networks")
    one.add_argument("--json", action="store_true", help="as JSON")

    one = command("summary", summary, "a network's layers: shapes, parameters, groups and what learns")
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="a published network")
    which.add_argument("--config", metavar="FILE[:VARIANT]", help=recipe_help)

    one = command("split", split, "deal pictures out to train, validation and test folders, or to folds")
    one.add_argument("--source", required=True, metavar="SOURCE")
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
        help="pictures whose perceptual hashes differ by so many of 64 bits stay together; -1: equal files only",
    )

    one = command("doctor", doctor, "examine pictures: what would stop a run (exit code 1), and what may spoil it")
    one.add_argument("--data", required=True, metavar="SOURCE")
    one.add_argument(
        "--near-duplicates",
        type=int,
        default=4,
        metavar="BITS",
        help="perceptual hashes that differ in at most so many of 64 bits are the same picture; -1: equal bytes only",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write every finding there")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with thumbnails there")

    one = command("convert", convert, "check a weight file and write it as safetensors")
    one.add_argument("--model", required=True, metavar="NAME")
    one.add_argument("--weights", required=True, metavar="FILE")
    one.add_argument("--output", required=True, type=Path, metavar="FILE.safetensors")
    one.add_argument("--layout", choices=("timm",), help="a safetensors file with PyTorch's names and axes")

    one = command("export", export, "write a trained network for use elsewhere, tried on the run's own pictures")
    one.add_argument("--workdir", required=True, type=Path, help="a trained run")
    one.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder, or an empty one")
    one.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "stablehlo", "onnx"),
        help="safetensors: the parameters alone; stablehlo: a program for CPU, CUDA and TPU, which jax runs; onnx: for "
        "onnxruntime and others (pip install 'flaxtl[onnx]')",
    )
    return top


def train(options: argparse.Namespace) -> None:
    """Train, judge, report."""
    from flaxtl import recipe
    from flaxtl.results.run import run
    from flaxtl.train import hosts

    config = recipe.load(options.config, options.overrides)
    hosts.join(options.coordinator, options.processes, options.process, from_cluster=options.distributed)
    run(config, options.workdir, console(), options.command_line)


def sweep(options: argparse.Namespace) -> None:
    """Train what is missing, and the table; exit code 1 where something failed."""
    from flaxtl.results import sweep as room
    from flaxtl.results import sweep_grid

    base = room.Recipe(options.config, options.overrides)
    plan = sweep_grid.plan(*base, options.grid, options.seeds, options.kfold)
    if options.collect:
        well = room.collect(base, plan, options.workdir, console())
    else:
        well = room.sweep(base, plan, options.workdir, options.points, console())
    if not well:
        sys.exit(1)


def evaluate(options: argparse.Namespace) -> None:
    """One JSON object, the last line of the output."""
    from flaxtl.results.evaluation import brief, evaluate_run

    found = evaluate_run(options.workdir, options.data, options.split, console(errors=True))
    shown = brief(found) if sys.stdout.isatty() else found
    print(json.dumps(shown))
    if shown.keys() < found.keys():
        _say("left out here: the classes and their confusion matrix, which --json=FILE holds")
    if options.json:
        _write(options.json, json.dumps(found) + "\n")


def predict(options: argparse.Namespace) -> None:
    """A table, and files where they are asked for."""
    from flaxtl.results import answers
    from flaxtl.results import predict as room
    from flaxtl.results.trained import temperature_of

    if bool(options.tap) != bool(options.npz):
        raise UserError("--tap=LAYER and --npz=FILE go together: the layer to write, and where to")
    if options.top is not None and options.top < 1:
        raise UserError(f"--top={options.top} shows nothing; give 1 or more")
    if options.weights and not options.model:
        raise UserError("--weights=FILE goes with --model=NAME; a run has its own")
    if options.calibrated and options.model:
        raise UserError("--calibrated goes with --workdir=DIR; a published network has no temperature")
    paths, top = room.find_pictures(options.input), options.top or TOP
    predictor = _published(options) if options.model else room.of_run(_trained(options.workdir))
    temperature = temperature_of(options.workdir) if options.calibrated else None
    found = room.predict(predictor, paths, options.tap)
    if temperature is not None:
        found = found.at_temperature(temperature)
    console().print(answers.answer_table(found, top))
    answers.write(found, top, csv_file=options.csv, json_file=options.json, npz_file=options.npz)
    if found.unreadable:
        raise UserError("some pictures were left out: " + "; ".join(found.unreadable))


def _trained(workdir: Path) -> "Trained":
    from flaxtl.results.trained import open_run

    run = open_run(workdir)
    if run.phase != run.setup.phases[-1].name:
        _say(f"the run is not finished: this is its network after its phase {run.phase}")
    return run


def _published(options: argparse.Namespace) -> "Predictor":
    from flaxtl.results.published import open_network

    classify = any((options.top, options.csv, options.json, not options.tap))
    opened = open_network(options.model, options.weights or "imagenet", options.tap, classify, _say)
    console().print(f"weights: {opened.origin}", highlight=False, markup=False, soft_wrap=True)
    return opened.predictor


def _say(sentence: str) -> None:
    console(errors=True).print(sentence, highlight=False, markup=False, soft_wrap=True)


def report(options: argparse.Namespace) -> None:
    """The page, and where it is."""
    from flaxtl.results import report as room
    from flaxtl.results.samples import augmented_samples
    from flaxtl.results.trained import setup_of

    page = room.write(options.workdir, augmented=augmented_samples(setup_of(options.workdir)))
    console().print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)


def models(options: argparse.Namespace) -> None:
    """The catalog as a table or as JSON."""
    from flaxtl.results import catalog_table

    if options.json:
        print(json.dumps(catalog_table.rows(), indent=1))
    else:
        console().print(catalog_table.as_table(), catalog_table.AT_HAND, sep="\n", highlight=False)


def summary(options: argparse.Namespace) -> None:
    """A layer table, and totals."""
    from flaxtl import recipe
    from flaxtl.results import networks

    if options.model is not None:
        if options.overrides:
            raise unknown("option", options.overrides[0], ("--config",))
        console().print(*networks.published(options.model), sep="\n")
    else:
        console().print(*networks.of_recipe(recipe.load(options.config, options.overrides)), sep="\n")


def split(options: argparse.Namespace) -> None:
    """A table of what went where."""
    from flaxtl.results import split as room

    screen, alike = console(errors=True), options.near_duplicates
    if options.kfold is not None:
        if options.fractions or options.link:
            screen.print("--kfold lists equal parts in place: --fractions and --link are not used", markup=False)
        made = room.into_folds(options.source, options.output, options.kfold, options.seed, alike, screen)
    elif options.fractions is not None:
        made = room.into_folders(
            options.source, options.output, options.fractions, options.seed, alike, options.link, screen
        )
    else:
        raise UserError("nothing says how to split; give --fractions=0.5,0.2,0.3, or --kfold=5 for a cross-validation")
    console().print(made)
    console().print(f"written: {options.output}", highlight=False, markup=False, soft_wrap=True)


def doctor(options: argparse.Namespace) -> None:
    """Tables, and files where they are asked for; exit code 1 where something would stop a run."""
    from flaxtl.results import checkup

    screen = console()
    found = checkup.of_source(options.data, options.near_duplicates, console(errors=True))
    screen.print(*checkup.tables(found), sep="\n")
    if options.json:
        _write(options.json, json.dumps(found.as_json(options.data), indent=1) + "\n")
    if options.html:
        from flaxtl.results import doctor_page

        doctor_page.write(found, options.data, options.html)
    if found.stopping:
        sys.exit(1)


def convert(options: argparse.Namespace) -> None:
    """What went where, and the new file."""
    from flaxtl.train.convert import convert as room

    console().print(room(options.model, Path(options.weights), options.output, timm=options.layout == "timm"))


def export(options: argparse.Namespace) -> None:
    """Where the folder is, and how far its network is from the run's."""
    from flaxtl.results import export as room

    trial = room.export(_trained(options.workdir), options.output, options.format)
    console().print(
        f"on {trial.pictures} pictures of the run the largest difference of a probability from flaxtl predict is "
        f"{trial.largest_difference:.2g} (bound {trial.bound:g})\nwritten: {options.output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); choose another file") from error
