"""The commands of `flaxtl`, one function each.

A command imports what it needs when it runs, so that `flaxtl --help` and the quick commands start fast.
"""

import argparse
import ast
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flaxtl.cli.parser import DEFAULT_TOP
from flaxtl.console import make_console, make_table, message, progress_bar
from flaxtl.errors import UserError, unknown
from flaxtl.fileio import atomic_write_text

if TYPE_CHECKING:
    from flaxtl.evaluation.predictor import Predictor, TrainedRun


def train(options: argparse.Namespace) -> None:
    """Train or resume a run, evaluate it and write its report."""
    from flaxtl.api import evaluate_and_report, training_session
    from flaxtl.cli.run_choice import choose_workdir, load_train_config
    from flaxtl.parallel import processes
    from flaxtl.train import trainer

    config = load_train_config(options)
    if options.distributed or options.coordinator is not None:
        processes.fork_supervisor(options.process, options.processes)
    processes.initialize(options.coordinator, options.processes, options.process, detect_cluster=options.distributed)
    workdir = options.workdir
    if workdir is None:
        workdir, reason = choose_workdir(config, options.config)
        message(make_console(), f"Run directory: {workdir} ({reason}; --workdir=DIR chooses another)")
    with training_session(config, workdir) as (console, stop_signal):
        result = trainer.train(config, workdir, console, options.command_line, stop_signal)
        evaluate_and_report(result, workdir, console)


def lr_find(options: argparse.Namespace) -> None:
    """Run a learning-rate range test; print the suggested rates and the options that set the first of them."""
    from flaxtl.config import load_config
    from flaxtl.train.lr_range_test import LrRange
    from flaxtl.tuning.lr_finder import find_learning_rate, suggestions_table

    console, config = make_console(), load_config(options.config, options.overrides)
    lr_range = LrRange(options.min_lr, options.max_lr, options.steps)
    result, page = find_learning_rate(config, options.workdir, options.phase, lr_range, console)
    if result.suggested_lr is not None:
        console.print(suggestions_table(result))
        message(console, f"suggested: {result.overrides}")
    if result.warning:
        message(console, result.warning)
    message(console, f"curve: {page}")


def sweep(options: argparse.Namespace) -> None:
    """Train the missing runs of a sweep and write its results; exit with code 1 if a run has failed."""
    from flaxtl.tuning.sweep import SweepConfig, collect_sweep, run_sweep
    from flaxtl.tuning.sweep_grid import make_plan

    base = SweepConfig(options.config, options.overrides)
    plan = make_plan(*base, options.grid, options.seeds, options.kfold)
    if options.collect and options.shard:
        raise UserError(f"--collect trains nothing and reads all runs. Leave out --shard={options.shard}.")
    if options.collect:
        succeeded = collect_sweep(base, plan, options.workdir, make_console())
    else:
        succeeded = run_sweep(base, plan, options.workdir, options.shard, make_console())
    if not succeeded:
        sys.exit(1)


def evaluate(options: argparse.Namespace) -> None:
    """Print the metrics of a run: a table on stderr, and one JSON object, the last line of stdout."""
    from flaxtl.evaluation.evaluate import brief_result, evaluate_workdir, metrics_table

    _check_output_files(options)
    source = _source(options.data) if options.data else None
    result = evaluate_workdir(options.workdir, source, options.split, make_console(stderr=True), options.tta)
    make_console(stderr=True).print(metrics_table(result))  # stdout holds only JSON, for jq and scripts
    metrics = result.to_json()
    shown = brief_result(metrics) if sys.stdout.isatty() else metrics
    print(json.dumps(shown))
    if shown.keys() < metrics.keys():
        _notify("Classes and confusion matrix are not shown; --json=FILE writes them.")
    if options.json:
        _write(options.json, json.dumps(metrics) + "\n")


def predict(options: argparse.Namespace) -> None:
    """Print a table of predictions and write the requested files."""
    from flaxtl.data.file_listing import describe_skipped, find_images
    from flaxtl.evaluation.predictions import predictions_table, write_outputs
    from flaxtl.evaluation.predictor import calibrate

    _check_predict_options(options)
    listing, top = find_images(options.input), options.top or DEFAULT_TOP
    _check_output_files(options, listing.images)
    if listing.skipped:
        _notify(describe_skipped(listing.skipped))
    predictor = _pretrained_predictor(options) if options.model else _load_run(options.workdir).predictor()
    predictions = predictor.predict(listing.images, options.tap)
    if options.workdir and not options.raw:
        try:
            predictions = calibrate(predictions, options.workdir)
        except UserError as error:
            if options.calibrated:
                raise UserError(f"{error} Leave out --calibrated.") from error
            _notify(str(error))
    make_console().print(predictions_table(predictions, top, options.csv or options.json))
    write_outputs(predictions, top, csv_file=options.csv, json_file=options.json, npz_file=options.npz)
    if predictions.unreadable:
        skipped = f"Skipped {len(predictions.unreadable):,} of {len(listing.images):,} images."
        raise UserError(" ".join((skipped, *predictions.unreadable)))


def report(options: argparse.Namespace) -> None:
    """Write the report of one run, or a comparison of several."""
    from flaxtl.data.record_files import image_exists
    from flaxtl.evaluation.gradcam import update_heatmaps
    from flaxtl.evaluation.moved_images import relocate_run
    from flaxtl.evaluation.predictor import load_run, load_setup
    from flaxtl.report.comparison import comparison_table, write_comparison
    from flaxtl.report.report import augmented_samples, write_report

    workdir, *others = options.workdir
    if others and options.gradcam:
        raise UserError("--gradcam=LAYER applies to the report of one run. Give one --workdir, or omit --gradcam.")
    if options.output and not others:
        raise UserError("--output=FILE.html applies to a comparison. Give a second --workdir, or omit --output.")
    if options.data and others:
        raise UserError("--data=SOURCE applies to the report of one run. Give one --workdir, or omit --data.")
    if others:
        page, comparison = write_comparison(options.workdir, options.output)
        make_console().print(comparison_table(comparison))
    else:
        if options.data:
            relocate_run(workdir, _source(options.data), _notify)
        setup = load_setup(workdir)
        update_heatmaps(workdir, lambda: load_run(workdir), _notify, options.gradcam)
        page = write_report(workdir, augmented=augmented_samples(setup))
        num_missing = sum(not image_exists(Path(example.path)) for example in setup.manifest.examples)
        if num_missing:
            _notify(
                f"{num_missing:,} of the {len(setup.manifest.examples):,} images of the run do not exist; those of an "
                "earlier report are kept. If the images were moved, give their source: --data=folder:PATH or "
                "--data=tfds:NAME."
            )
    message(make_console(), f"report: {page}")


def configs(options: argparse.Namespace) -> None:
    """Print the configs that come with flaxtl, or copy one into the working directory."""
    from flaxtl.config import bundled_configs

    files = bundled_configs()
    if options.copy is None:
        rows = [(name, _first_docstring_line(file)) for name, file in files.items()]
        make_console().print(make_table("Configs", ("config", "description"), rows))
        return
    if options.copy not in files:
        raise unknown("config", options.copy, files)
    copy = Path(f"{options.copy}.py")
    try:
        with copy.open("x", encoding="utf-8") as file:
            file.write(files[options.copy].read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{copy} exists and is kept. Rename it, or run the command in another folder.") from None
    message(make_console(), f"written: {copy}. Change it, then run flaxtl train --config={copy} --workdir=DIR")


def devices(options: argparse.Namespace) -> None:
    """Print what jax sees of this machine and how fast it is, as tables or as JSON."""
    from flaxtl.parallel import device_speed
    from flaxtl.parallel.devices import check_backend
    from flaxtl.report.device_report import ESTIMATE_NOTE, device_json, device_tables

    check_backend()
    groups, speed = device_speed.list_devices(), device_speed.measure_speed()
    hint = device_speed.unused_gpu_hint(groups[0].platform)
    if options.json:
        print(json.dumps(device_json(groups, speed, hint), indent=1))
        return
    make_console().print(*device_tables(groups, speed), sep="\n")
    message(make_console(), ESTIMATE_NOTE)
    if hint:
        message(make_console(), hint)


def models(options: argparse.Namespace) -> None:
    """Print the available models as a table or as JSON."""
    from flaxtl.report import tables

    if options.json:
        print(json.dumps(tables.model_records(), indent=1))
    else:
        make_console().print(tables.models_table(), tables.WEIGHTS_LEGEND, sep="\n", highlight=False)


def summary(options: argparse.Namespace) -> None:
    """Print the layers of a pretrained model, or of the model that a config describes, and parameter counts."""
    from flaxtl.config import load_config
    from flaxtl.report.tables import config_summary, pretrained_summary

    if options.model is None:
        parts = config_summary(load_config(options.config, options.overrides))
    elif options.overrides:
        raise UserError(f"{options.overrides[0]!r} overrides a config. Give --config=FILE instead of --model.")
    else:
        parts = pretrained_summary(options.model)
    make_console().print(*parts, sep="\n")


def split(options: argparse.Namespace) -> None:
    """Split images into folders or folds, and print the number of images per class and split."""
    from flaxtl import fileio
    from flaxtl.data import split_writer
    from flaxtl.data.sources.base import open_source
    from flaxtl.report.tables import split_table

    k, output, seed, console = options.kfold, options.output, options.seed, make_console(stderr=True)
    if k is None and options.fractions is None:
        raise UserError("Give --fractions=0.5,0.2,0.3 for folders, or --kfold=5 for cross-validation.")
    if k is not None and (options.fractions or options.link):
        _notify("--fractions and --link have no effect: --kfold writes lists of K equal folds and no images.")
    fractions = split_writer.parse_fractions(options.fractions) if k is None else {}
    index = open_source(_source(options.source), fileio.cache_dir("data"))
    steps = 2 if k is None else 1  # an image is read, and then copied into its folder
    with progress_bar(console, "Splitting images", len(index.images)) as advance:
        shared = {
            "near_duplicates": options.near_duplicates,
            "notify": partial(message, console),
            "on_progress": lambda done: advance(done % steps == 0),
        }
        if k is None:
            splits = [split for split, part in fractions.items() if part > 0]
            counts = split_writer.write_folders(index, output, fractions, seed, link=options.link, **shared)
        else:
            splits = [f"fold {number}" for number in range(1, k + 1)]
            counts = split_writer.write_folds(index, output, k, seed, **shared)
    make_console().print(split_table(splits, counts))
    message(make_console(), f"written: {output}")


def doctor(options: argparse.Namespace) -> None:
    """Check a dataset, print the findings and write the requested files; exit with code 1 if one blocks training."""
    from flaxtl.report.doctor_report import diagnose_source, doctor_tables, render_doctor_report

    sources = [source for source in (options.images, options.data) if source is not None]
    if len(sources) != 1:
        raise UserError("Give the images to check once, as a path or --data=SOURCE: flaxtl doctor photos/")
    source = _source(sources[0])
    diagnosis = diagnose_source(source, options.near_duplicates, make_console(stderr=True))
    make_console().print(*doctor_tables(diagnosis, sources[0]), sep="\n")
    if options.json:
        _write(options.json, json.dumps(diagnosis.as_json(source), indent=1) + "\n")
    if options.html:
        _write(options.html, render_doctor_report(diagnosis, source))
    if diagnosis.num_blocking:
        sys.exit(1)


def convert(options: argparse.Namespace) -> None:
    """Convert a weight file and print where each tensor went."""
    from flaxtl.models import registry
    from flaxtl.pretrained.backbone import convert_weights_file
    from flaxtl.pretrained.download import find_file

    console = make_console()
    registry.get_spec(options.model)  # a misspelt model is found before a download
    console.print(
        convert_weights_file(
            options.model,
            find_file(options.weights, partial(message, console)).path,
            options.output,
            timm=options.layout == "timm",
            skip_layers=options.skip_layers,
        )
    )


def export(options: argparse.Namespace) -> None:
    """Export a trained run and print how far its predictions are from those of the run."""
    from flaxtl.evaluation.moved_images import relocate_loaded
    from flaxtl.evaluation.run_files import read_run
    from flaxtl.export.exporter import export_run
    from flaxtl.report.model_card import render_model_card

    output = options.output or options.workdir / "export" / options.format
    run = _load_run(options.workdir)
    if options.data:
        run = relocate_loaded(run, _source(options.data), _notify)
    check = export_run(run, output, options.format, render_model_card(read_run(options.workdir)))
    console = make_console()
    kind = "synthetic images, as those of the run do not exist" if check.synthetic else "images"
    message(console, f"Export verified on {check.num_images} {kind} (max. difference {check.max_difference:.2g})")
    message(console, f"written: {output}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train,
    "lr-find": lr_find,
    "sweep": sweep,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "configs": configs,
    "devices": devices,
    "models": models,
    "summary": summary,
    "split": split,
    "doctor": doctor,
    "convert": convert,
    "export": export,
}
"""Name of a command -> its function."""


def _check_predict_options(options: argparse.Namespace) -> None:
    if bool(options.tap) != bool(options.npz):
        raise UserError("--tap=LAYER and --npz=FILE must be given together.")
    if options.top is not None and options.top < 1:
        raise UserError(f"--top={options.top} would show no classes. Give 1 or more.")
    if options.weights and not options.model:
        raise UserError("--weights=FILE applies only to --model=NAME; a run has its own weights.")
    if options.skip_layers and not options.weights:
        raise UserError("--skip-layers=REGEX applies only to --weights=FILE.")
    if options.calibrated and options.raw:
        raise UserError("--calibrated and --raw contradict each other. Leave out one of them.")
    if options.calibrated and options.model:
        raise UserError("--calibrated applies only to --workdir=DIR; a pretrained model has no temperature.")


def _check_output_files(options: argparse.Namespace, images: Sequence[Path] = ()) -> None:
    """Raise UserError if an output file is one of the images, one that the run has written, or that of two options."""
    from flaxtl.train.run_dir import OUTPUT_FILES

    files = {(options.workdir / name).resolve(): "a file of the run" for name in OUTPUT_FILES if options.workdir}
    files |= {path.resolve(): "one of the images" for path in images}
    for option in ("csv", "json", "npz"):
        if (file := getattr(options, option, None)) is not None:
            if what := files.get(file.resolve()):
                raise UserError(f"--{option}={file} is {what}. Choose another file.")
            files[file.resolve()] = f"the file of --{option}, too"


def _pretrained_predictor(options: argparse.Namespace) -> "Predictor":
    from flaxtl.evaluation.predictor import load_pretrained

    classify = any((options.top, options.csv, options.json, not options.tap))
    weights = options.weights or "imagenet"
    predictor, source = load_pretrained(
        options.model, weights, options.tap, classify, _notify, skip_layers=options.skip_layers
    )
    message(make_console(), f"weights: {source}")
    return predictor


def _load_run(workdir: Path) -> "TrainedRun":
    from flaxtl.evaluation.predictor import load_run

    run = load_run(workdir)
    if run.phase != run.setup.phases[-1].name:
        _notify(f"The run is not finished; using the model after phase {run.phase}.")
    return run


def _source(text: str) -> str:
    """Return a data source; a path that exists is written with its scheme."""
    from flaxtl.data.sources.base import with_scheme

    return with_scheme(text)


def _first_docstring_line(file: Path) -> str:
    """Return the first line of the docstring of a Python file."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _notify(text: str) -> None:
    message(make_console(stderr=True), text)


def _write(file: Path, text: str) -> None:
    try:
        atomic_write_text(file, text)
    except OSError as error:
        raise UserError(f"Cannot write {file}: {error.strerror}. Choose another file.") from error
