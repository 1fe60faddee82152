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
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from flaxtl.cli.parser import DEFAULT_TOP, make_parser
from flaxtl.console import make_console
from flaxtl.errors import UserError, unknown
from flaxtl.train.signals import StopRequested, exit_code

if TYPE_CHECKING:
    from flaxtl.evaluation.predictor import Predictor, TrainedRun


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    0 on success; 2 for a user's mistake, told in one sentence; 130 after Ctrl-C and 143 after SIGTERM, when what was
    done is kept; 1 for a fault of flaxtl's own, and where a run of a sweep failed or doctor found what stops a run.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for library in ("absl", "asyncio", "matplotlib"):  # tracebacks of errors that orbax raises too, font caches, ...
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sys.excepthook = _hook
    warnings.filterwarnings("ignore", module="PIL")  # large images and damaged metadata: neither stops a run
    try:
        options, rest = make_parser().parse_known_args(arguments)
        options.overrides = _overrides(rest, allowed="config" in options)
        options.command_line = shlex.join(["flaxtl", *arguments])
        _commands()[options.command](options)
    except UserError as error:
        _fail(str(error), 2, arguments)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, StopRequested) as stopped:
        number = stopped.number if isinstance(stopped, StopRequested) else signal.SIGINT
        _fail(f"stopped{_goes_on(arguments)}", exit_code(number), arguments)
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
    make_console(stderr=True).print(f"flaxtl: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    if "flaxtl.parallel.processes" in sys.modules:  # else no other process can be waiting
        sys.modules["flaxtl.parallel.processes"].end(code)
    sys.exit(code)


def _goes_on(arguments: Sequence[str]) -> str:
    """What becomes of a command that was stopped, if anything was kept of it."""
    (command,) = arguments[:1] or ("",)
    return f"; the same flaxtl {command} goes on from where it was" if command in ("train", "sweep") else ""


def _overrides(rest: Sequence[str], allowed: bool) -> list[str]:
    for argument, following in pairwise([*rest, ""]):
        if allowed and argument.startswith("--config.") and "=" not in argument and following[:1] not in ("", "-"):
            raise UserError(f"{argument} {following} needs an equals sign: {argument}={following}")
        if not allowed or not argument.startswith("--config."):
            raise UserError(f"the command does not know {argument!r}; see flaxtl --help, or COMMAND --help")
    return list(rest)


def _commands() -> dict[str, Callable[[argparse.Namespace], None]]:
    """What runs, by its name. Commands import their rooms when they run, so that each starts quickly."""
    return {
        "train": train,
        "lr": lr,
        "sweep": sweep,
        "evaluate": evaluate,
        "predict": predict,
        "report": report,
        "models": models,
        "summary": summary,
        "split": split,
        "doctor": doctor,
        "convert": convert,
        "export": export,
    }


def train(options: argparse.Namespace) -> None:
    """Train, judge, report."""
    from flaxtl.api import train_and_report
    from flaxtl.config import load_config
    from flaxtl.parallel import processes

    config = load_config(options.config, options.overrides)
    processes.initialize(options.coordinator, options.processes, options.process, from_cluster=options.distributed)
    train_and_report(config, options.workdir, make_console(), options.command_line)


def lr(options: argparse.Namespace) -> None:
    """The suggestions, and the line that takes the first of them."""
    from flaxtl.config import load_config
    from flaxtl.train.lr_range_test import LrRange
    from flaxtl.tuning import lr_finder

    config = load_config(options.config, options.overrides)
    rates = LrRange(options.lowest, options.highest, options.steps)
    found, page = lr_finder.find_learning_rate(config, options.workdir, options.phase, rates, make_console())
    if found.proposed is not None:
        make_console().print(lr_finder.suggestions_table(found))
        make_console().print(f"proposed: {found.options}", highlight=False, markup=False, soft_wrap=True)
    if found.remark:
        make_console().print(found.remark, highlight=False, markup=False, soft_wrap=True)
    make_console().print(f"curve: {page}", highlight=False, markup=False, soft_wrap=True)


def sweep(options: argparse.Namespace) -> None:
    """Train what is missing, and the table; exit code 1 where something failed."""
    from flaxtl.tuning import sweep, sweep_grid

    base = sweep.SweepConfig(options.config, options.overrides)
    plan = sweep_grid.make_plan(*base, options.grid, options.seeds, options.kfold)
    if options.collect:
        well = sweep.collect_sweep(base, plan, options.workdir, make_console())
    else:
        well = sweep.run_sweep(base, plan, options.workdir, options.points, make_console())
    if not well:
        sys.exit(1)


def evaluate(options: argparse.Namespace) -> None:
    """One JSON object, the last line of the output."""
    from flaxtl.evaluation.evaluate import brief_result, evaluate_workdir

    found = evaluate_workdir(options.workdir, options.data, options.split, make_console(stderr=True), options.tta)
    shown = brief_result(found) if sys.stdout.isatty() else found
    print(json.dumps(shown))
    if shown.keys() < found.keys():
        _say("left out here: the classes and their confusion matrix, which --json=FILE holds")
    if options.json:
        _write(options.json, json.dumps(found) + "\n")


def predict(options: argparse.Namespace) -> None:
    """A table, and files where they are asked for."""
    from flaxtl.evaluation import predictions
    from flaxtl.evaluation import predictor as predict
    from flaxtl.evaluation.predictor import load_temperature

    if bool(options.tap) != bool(options.npz):
        raise UserError("--tap=LAYER and --npz=FILE go together: the layer to write, and where to")
    if options.top is not None and options.top < 1:
        raise UserError(f"--top={options.top} shows nothing; give 1 or more")
    if options.weights and not options.model:
        raise UserError("--weights=FILE goes with --model=NAME; a run has its own")
    if options.calibrated and options.model:
        raise UserError("--calibrated goes with --workdir=DIR; a published network has no temperature")
    paths, top = predict.find_images(options.input), options.top or DEFAULT_TOP
    predictor = _published(options) if options.model else _trained(options.workdir).predictor()
    temperature = load_temperature(options.workdir) if options.calibrated else None
    found = predictor.predict(paths, options.tap)
    if temperature is not None:
        found = found.at_temperature(temperature)
    make_console().print(predictions.predictions_table(found, top))
    predictions.write_outputs(found, top, csv_file=options.csv, json_file=options.json, npz_file=options.npz)
    if found.unreadable:
        raise UserError("some images were left out: " + "; ".join(found.unreadable))


def _trained(workdir: Path) -> "TrainedRun":
    from flaxtl.evaluation.predictor import load_run

    run = load_run(workdir)
    if run.phase != run.setup.phases[-1].name:
        _say(f"the run is not finished: this is its network after its phase {run.phase}")
    return run


def _published(options: argparse.Namespace) -> "Predictor":
    from flaxtl.evaluation.predictor import load_pretrained

    classify = any((options.top, options.csv, options.json, not options.tap))
    opened = load_pretrained(options.model, options.weights or "imagenet", options.tap, classify, _say)
    make_console().print(f"weights: {opened.source}", highlight=False, markup=False, soft_wrap=True)
    return opened.predictor


def _say(sentence: str) -> None:
    make_console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)


def report(options: argparse.Namespace) -> None:
    """The page, and where it is; of several runs a table of their accuracies too."""
    from flaxtl.evaluation import gradcam
    from flaxtl.evaluation.predictor import load_run, load_setup
    from flaxtl.report import comparison, report
    from flaxtl.report.report import augmented_samples

    first, *others = options.workdir
    if others and options.gradcam:
        raise UserError("--gradcam=LAYER is for the report of one run; give one --workdir, or leave it out")
    if others:
        page, found = comparison.write_comparison(options.workdir, options.output)
        make_console().print(comparison.comparison_table(found))
    elif options.output:
        raise UserError("--output=FILE.html is where runs are compared; give another --workdir, or leave it out")
    else:
        setup = load_setup(first)
        gradcam.update_heatmaps(first, lambda: load_run(first), _say, options.gradcam)
        page = report.write_report(first, augmented=augmented_samples(setup))
    make_console().print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)


def models(options: argparse.Namespace) -> None:
    """The catalog as a table or as JSON."""
    from flaxtl.report import tables

    if options.json:
        print(json.dumps(tables.model_records(), indent=1))
    else:
        make_console().print(tables.models_table(), tables.WEIGHTS_LEGEND, sep="\n", highlight=False)


def summary(options: argparse.Namespace) -> None:
    """A layer table, and totals."""
    from flaxtl.config import load_config
    from flaxtl.report import tables

    if options.model is not None:
        if options.overrides:
            raise unknown("option", options.overrides[0], ("--config",))
        make_console().print(*tables.pretrained_summary(options.model), sep="\n")
    else:
        make_console().print(*tables.config_summary(load_config(options.config, options.overrides)), sep="\n")


def split(options: argparse.Namespace) -> None:
    """A table of what went where."""
    from flaxtl.report import tables

    screen, alike = make_console(stderr=True), options.near_duplicates
    if options.kfold is not None:
        if options.fractions or options.link:
            screen.print("--kfold lists equal parts in place: --fractions and --link are not used", markup=False)
        made = tables.split_into_folds(options.source, options.output, options.kfold, options.seed, alike, screen)
    elif options.fractions is not None:
        made = tables.split_into_folders(
            options.source, options.output, options.fractions, options.seed, alike, options.link, screen
        )
    else:
        raise UserError("nothing says how to split; give --fractions=0.5,0.2,0.3, or --kfold=5 for a cross-validation")
    make_console().print(made)
    make_console().print(f"written: {options.output}", highlight=False, markup=False, soft_wrap=True)


def doctor(options: argparse.Namespace) -> None:
    """Tables, and files where they are asked for; exit code 1 where something would stop a run."""
    from flaxtl.report import doctor_report

    screen = make_console()
    found = doctor_report.diagnose_source(options.data, options.near_duplicates, make_console(stderr=True))
    screen.print(*doctor_report.doctor_tables(found), sep="\n")
    if options.json:
        _write(options.json, json.dumps(found.as_json(options.data), indent=1) + "\n")
    if options.html:
        from flaxtl.report import doctor_report

        doctor_report.write_doctor_report(found, options.data, options.html)
    if found.num_blocking:
        sys.exit(1)


def convert(options: argparse.Namespace) -> None:
    """What went where, and the new file."""
    from flaxtl.pretrained.backbone import convert_weights_file

    make_console().print(
        convert_weights_file(options.model, Path(options.weights), options.output, timm=options.layout == "timm")
    )


def export(options: argparse.Namespace) -> None:
    """Where the folder is, and how far its network is from the run's."""
    from flaxtl.export import exporter

    output = options.output or options.workdir / "export" / options.format
    check = exporter.export_run(_trained(options.workdir), output, options.format)
    make_console().print(
        f"Export verified on {check.num_images} images (max. difference {check.max_difference:.2g})\nwritten: {output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); choose another file") from error
