"""Evaluation at the end of a run, and `flaxtl evaluate`.

At the end of a run each phase is evaluated once on the test split. A temperature is fitted on the validation images;
nothing is fitted on test images.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flaxtl import fileio
from flaxtl.console import MAX_ROWS, make_table, message, progress_bar, truncate_rows
from flaxtl.data import manifest
from flaxtl.data.augment.tta import TtaTransform
from flaxtl.data.class_names import explain_missing
from flaxtl.data.manifest import Example, Manifest
from flaxtl.data.record_files import image_exists
from flaxtl.data.sources import base
from flaxtl.data.sources.image_folder import DatasetIndex
from flaxtl.errors import UserError, join_names
from flaxtl.evaluation import calibration, classification
from flaxtl.evaluation.predictions import Predictions, write_predictions
from flaxtl.evaluation.predictor import TrainedRun, load_run
from flaxtl.evaluation.tta import (
    PlainMetrics,
    TtaGain,
    TtaViews,
    average_views,
    compare_evaluations,
    describe_gain,
    make_tta,
)
from flaxtl.models.classifier import FlatParams, cast_for_compute
from flaxtl.parallel import processes
from flaxtl.train import eval_steps, run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import decode_examples
from flaxtl.train.eval_loop import Evaluation, evaluate
from flaxtl.train.phases import Phase
from flaxtl.train.rounding import rounded_accuracy, rounded_interval, rounded_percent
from flaxtl.train.run_records import Count, Fraction, Record, SplitMetrics, TemperatureFit, load_json
from flaxtl.train.trainer import TrainResult, clean_loader


class EvaluationResult(Record, frozen=True, kw_only=True):
    """The JSON object of `flaxtl evaluate`.

    Attributes:
      workdir: run directory.
      data: data source.
      split: name of the split; 'all' for other images that are evaluated as a whole.
      phase: the last finished phase; its parameters were evaluated.
      seen_in_training: number of images that the run was trained on.
      loss: mean cross-entropy (nats).
      accuracy: fraction of correct predictions.
      balanced_accuracy: mean recall of the classes that have images.
      n: number of images.
      tta: test-time augmentation that the metrics were computed with, if any.
      without: metrics without it.
      gain: its effect.
      errors: number of misclassified images.
      classes: class names.
      confusion_matrix: number of images by true class (row) and predicted class (column).
    """

    workdir: str
    data: str
    split: str
    phase: str
    seen_in_training: Count
    loss: float
    accuracy: Fraction
    balanced_accuracy: Fraction
    n: Count
    tta: TtaViews | None = None
    without: PlainMetrics | None = None
    gain: TtaGain | None = None
    errors: Count
    classes: list[str]
    confusion_matrix: list[list[Count]]

    @classmethod
    def read(cls, file: Path) -> "EvaluationResult":
        """Read the output of `flaxtl evaluate --json=FILE`; raises UserError if it is anything else."""
        return cls.from_json(load_json(file), file)


def evaluate_run(result: TrainResult, console: Console) -> FlatParams:
    """Evaluate a trained run, write predictions.csv and the temperature, and mark the run as complete.

    A report that was written earlier is removed.

    Returns:
      The parameters after the last phase.
    """
    setup = result.setup
    evaluations, params = _evaluate_phases(result, console)
    examples = [example for split in evaluations for example in setup.manifest.of_split(split)]
    predictions = Predictions(
        paths=tuple(example.path for example in examples),
        splits=tuple(example.split for example in examples),
        labels=setup.manifest.labels(examples),
        probabilities=np.concatenate([evaluation.probabilities for evaluation in evaluations.values()]),
        classes=setup.manifest.classes,
        log_softmax=np.concatenate([evaluation.log_softmax for evaluation in evaluations.values()]),
    )
    if processes.is_main_process():
        write_predictions(setup.workdir / "predictions.csv", predictions)
        # A page of the run in training would pass for the final one if the run is killed before that is written.
        run_dir.report_path(setup.workdir).unlink(missing_ok=True)
        run_dir.update_summary(
            setup.workdir, calibration=_fit_temperature(predictions.of_split("validation"), console), complete=True
        )
    return params


def _evaluate_phases(result: TrainResult, console: Console) -> tuple[dict[str, Evaluation], FlatParams]:
    """Evaluate each phase on the test split, if there is one, and the last phase on the validation split, too.

    An earlier phase is left out if its checkpoint is deleted or damaged.

    Returns:
      The last phase's evaluations by split, in the manifest's order, and its parameters.
    """
    setup, data = result
    evaluations: dict[str, Evaluation] = {}
    with Checkpoints(setup.workdir) as checkpoints:
        for number, phase in enumerate(setup.phases, start=1):
            is_last = number == len(setup.phases)
            splits = [split for split in (("validation", "test") if is_last else ("test",)) if split in data]
            if not splits:
                continue
            try:
                params = checkpoints.restore_phase(number, setup.abstract_params())
            except UserError:
                if is_last:
                    raise
                message(console, f"{phase.name}: no test accuracy, because its checkpoint cannot be read")
                continue
            for split in splits:
                evaluations[split] = _evaluate_split(result, phase, params, split, console)
            if "test" in evaluations:
                metrics = evaluations["test"].metrics
                run_dir.update_phase_summary(setup.workdir, phase.name, test=SplitMetrics(**metrics._asdict()))
                if not is_last:  # the summary at the end has the accuracy of the last phase
                    accuracy = rounded_accuracy(metrics.accuracy, metrics.n)
                    message(console, f"{phase.name}: test accuracy {accuracy} on {metrics.n:,} images")
    return {split: evaluations[split] for split in setup.manifest.splits if split in evaluations}, params


def _evaluate_split(result: TrainResult, phase: Phase, params: FlatParams, split: str, console: Console) -> Evaluation:
    """Evaluate a phase's parameters on one split, from cached features if the phase has a cut layer."""
    setup, data = result
    loader = clean_loader(data, split, phase.cut_layer, params, partial(progress_bar, console))
    step = eval_steps.make_eval_step(setup.model_info.model, setup.mesh, phase.cut_layer, loader.sharding(setup.mesh))
    # In the dtypes of the phase's own validation, so that the same program serves both.
    frozen = phase.param_groups.partition(cast_for_compute(params, setup.model_info.model)).frozen
    return evaluate(step, params | frozen, loader, setup.config.batch_size)


def _fit_temperature(validation: Predictions, console: Console) -> TemperatureFit:
    """Fit the temperature on validation predictions."""
    log_probs, labels = validation.log_probabilities, validation.labels
    temperature = calibration.fit_temperature(log_probs, labels)
    if temperature is None:
        return TemperatureFit(None, len(labels))
    interval = calibration.temperature_interval(log_probs, labels, temperature)
    fit = TemperatureFit(temperature, len(labels), interval)
    message(console, calibration.fit_message(fit))
    return fit


def evaluate_workdir(
    workdir: Path, source: str | None, split: str, console: Console, tta_method: str | None = None
) -> EvaluationResult:
    """Evaluate a run on a split of its own images or of another data source.

    Args:
      workdir: run directory.
      source: data source; None: the run's own images. If these are not where they were, and `source` has all of
        the split, they are evaluated.
      split: name of the split; a source that is a plain folder of classes is taken as a whole.
      console: for progress and warnings.
      tta_method: the value of --tta, to average predictions over views of each image.

    Raises:
      UserError: among others, the source has classes that the run does not have.
    """
    make_views = None if tta_method is None else make_tta(tta_method)
    run = load_run(workdir)
    views = make_views(run.setup) if make_views else None
    classes = run.setup.manifest.classes
    examples, evaluated_split = _collect_examples(
        run.setup.manifest, source, split, console, loader=run.setup.config.data.loader
    )
    labels = run.setup.manifest.labels(examples)
    evaluation, tta_fields = _evaluate_examples(run, examples, views, console)
    train_digests = {example.sha256 for example in run.setup.manifest.of_split("train")}
    num_trained_on = sum(example.sha256 in train_digests for example in examples)
    if num_trained_on and split != "train":
        message(console, f"{num_trained_on} of {len(examples)} images were trained on: the accuracy is optimistic.")
    if views and split == "test":
        message(
            console,
            "Choose test-time augmentation with --split=validation: choosing on test images makes results look better "
            "than they are.",
        )
    matrix = classification.confusion_matrix(labels, evaluation.probabilities.argmax(1), len(classes))
    return EvaluationResult(
        workdir=str(workdir),
        data=source or run.setup.config.data.source,
        split=evaluated_split,
        phase=run.phase,
        seen_in_training=num_trained_on,
        **evaluation.metrics._asdict(),
        **tta_fields,
        errors=classification.num_errors(matrix),
        classes=list(classes),
        confusion_matrix=matrix.tolist(),
    )


def metrics_table(result: EvaluationResult) -> Table:
    """Return the metrics of a run, with the 95 % Wilson interval of the accuracy, and the recall of each class."""
    correct, n = result.n - result.errors, result.n
    rows = [
        ("accuracy", f"{rounded_percent(correct, n)} (95 % interval {rounded_interval(correct, n)})"),
        ("balanced accuracy", rounded_accuracy(result.balanced_accuracy, n)),
        ("loss", f"{result.loss:.3f}"),
        ("misclassified", f"{result.errors:,} of {result.n:,}"),
    ]
    recalls = [
        (f"recall of {name}", f"{rounded_percent(row[index], sum(row))} ({row[index]:,} of {sum(row):,})")
        for index, (name, row) in enumerate(zip(result.classes, result.confusion_matrix, strict=True))
        if sum(row)
    ]
    images = result.data if result.split == "all" else f"{result.split} images"
    return make_table(
        f"{result.workdir}, phase {result.phase}: {images}",
        ("metric", "value"),
        truncate_rows([*rows, *recalls], " classes, all in --json=FILE"),
    )


def brief_result(result: dict[str, Any]) -> dict[str, Any]:
    """Shorten the JSON of an EvaluationResult for a terminal: above MAX_ROWS classes, drop class names and matrix."""
    if len(result["classes"]) <= MAX_ROWS:
        return result
    return {key: value for key, value in result.items() if key not in ("classes", "confusion_matrix")}


def _collect_examples(
    run_manifest: Manifest, source: str | None, split: str, console: Console, *, loader: str = "decoded"
) -> tuple[tuple[Example, ...], str]:
    """Return the examples to evaluate, and the name of their split: 'all' for a source without splits."""
    if source is None:
        if split not in run_manifest.splits:
            others = join_names([f"--split={name}" for name in reversed(run_manifest.splits)], "or")
            raise UserError(f"The run has no {split} images. Evaluate those of another split: {others}")
        examples = run_manifest.of_split(split)
        if missing := [example.path for example in examples if not image_exists(Path(example.path))]:
            raise UserError(
                f"{len(missing):,} of the {len(examples):,} {split} images of the run do not exist, such as "
                f"{missing[0]}. If they were moved, give their source: --data=folder:PATH or --data=tfds:NAME."
            )
        return examples, split
    index = base.open_source(source, fileio.cache_dir("data"), loader=loader)
    for text in index.messages:
        message(console, text)
    if not index.has_splits and (moved := _moved_examples(run_manifest, index, split)):
        own = run_manifest.of_split(split)
        num_corrected = sum(new.label != old.label for new, old in zip(moved, own, strict=True))
        corrected = f", {num_corrected:,} with another label" if num_corrected else ""
        message(console, f"{source} has all {len(moved):,} {split} images of the run: evaluating these{corrected}.")
        return moved, split
    source_manifest = manifest.collect_examples(index, split)
    unknown_classes = sorted(set(source_manifest.classes) - set(run_manifest.classes))
    if unknown_classes:
        raise UserError(
            f"{source} has classes that the run was not trained on: {join_names(unknown_classes)}"
            f"{explain_missing(unknown_classes, run_manifest.classes)}. "
            f"Its classes are {join_names(run_manifest.classes)}."
        )
    if not index.has_splits:
        message(console, f"{source} has no splits: evaluating all of its images.")
        return source_manifest.examples, "all"
    return source_manifest.examples, split


def _moved_examples(run_manifest: Manifest, index: DatasetIndex, split: str) -> tuple[Example, ...]:
    """Return a split of the run with its images in `index`; empty unless all have been moved there.

    An image that is now in another class of the run has that label; a folder that no class is named after was renamed.
    """
    own = run_manifest.of_split(split) if split in run_manifest.splits else ()
    if not own or any(image_exists(Path(example.path)) for example in own):
        return ()
    moved, missing = manifest.relocate(Manifest(run_manifest.classes, own), index)
    if missing:
        return ()
    labels = {str(image.path): image.label for image in index.images if image.label in run_manifest.classes}
    return tuple(replace(example, label=labels.get(example.path, example.label)) for example in moved.examples)


def _evaluate_examples(
    run: TrainedRun, examples: Sequence[Example], views: TtaTransform | None, console: Console
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate the run on `examples`; with `views` also return the fields of the result that describe their effect."""
    setup = run.setup
    loader = decode_examples(setup, examples, console).loader(setup.mesh)
    step = eval_steps.make_eval_step(setup.model_info.model, setup.mesh, None, loader.sharding(setup.mesh))
    with progress_bar(console, "Evaluating images", len(examples)) as advance:
        plain = evaluate(step, run.params, loader, setup.config.batch_size, advance)
    if views is None:
        return plain, {}
    if views.resize != setup.resize:
        del loader  # before the others are decoded: both may not fit into memory
        loader = decode_examples(replace(setup, resize=views.resize), examples, console).loader(setup.mesh)
    labels = setup.manifest.labels(examples)
    averaged = average_views(run, views, plain, labels, loader, console)
    gain = compare_evaluations(labels, plain, averaged)
    message(console, describe_gain(plain.metrics, averaged.metrics, gain))
    return averaged, {
        "tta": TtaViews(views.name, views.num_views),
        "without": PlainMetrics(plain.metrics.accuracy, plain.metrics.loss),
        "gain": gain,
    }
