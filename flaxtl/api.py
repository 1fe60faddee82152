"""Runs from Python: train a run, look at its results and use its model."""

# `flaxtl.report` is imported where it is used: its libraries take half a second, for which training need not wait.

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from flaxtl import config
from flaxtl.config import complete_config, prune_phases
from flaxtl.console import make_console, message, print_box
from flaxtl.data.decode import ImageSource, MemoryImage
from flaxtl.data.file_listing import SkippedFile, describe_skipped, find_images
from flaxtl.errors import UserError, memory_errors, unknown
from flaxtl.evaluation import gradcam, predictor, run_files
from flaxtl.evaluation.classification import CountArray
from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.evaluation.predictions import Predictions
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.export import exporter
from flaxtl.fileio import user_path
from flaxtl.models import classifier
from flaxtl.models.image_classifier import ImageClassifier
from flaxtl.parallel import devices, processes
from flaxtl.train import run_dir, trainer
from flaxtl.train.datasets import remove_intermediate_files
from flaxtl.train.run_records import SplitMetrics
from flaxtl.train.signals import StopRequested, StopSignal
from flaxtl.train.trainer import TrainResult

PredictInput: TypeAlias = str | Path | Image.Image | npt.NDArray[np.uint8] | jax.Array
"""An image file, a folder or a glob pattern; a PIL image; or uint8 RGB [height, width, 3]."""


def load_config(spec: str | Path, *overrides: str) -> ConfigDict:
    """Load a config; its settings can be changed, none can be added.

        config = flaxtl.load_config("folder", "data.source=folder:flowers", "model.name=resnet50")
        config.frozen.epochs = 5

    Args:
      spec: name or file of a config, with ':VARIANT' if it has variants; `flaxtl configs` lists the names.
      *overrides: settings to change, 'key=value', as after `--config.` on the command line.

    Raises:
      UserError: the config does not exist or is invalid, or a key is unknown.
    """
    if others := [override for override in overrides if not isinstance(override, str)]:
        raise UserError(f"Give each setting as a text of its own, such as 'seed=1', not {others[0]!r}.")
    return config.load_config(str(spec), [f"--config.{override}" for override in overrides])


def train(config: ConfigDict, workdir: str | Path) -> "RunResult":
    """Train or resume a run, evaluate it and write its report, as `flaxtl train` does.

        run = flaxtl.train(config, workdir="runs/flowers")

    Args:
      config: from `load_config`, or of the same form; settings that it leaves out have their defaults.
      workdir: the run directory; created if it does not exist, resumed if it holds a run with the same config.

    Raises:
      UserError: config or images are invalid, `workdir` holds another run, or the memory is not enough.
      KeyboardInterrupt: the kernel was interrupted; call again to resume.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"Give a config, such as flaxtl.load_config('folder', ...), not {config!r}.")
    config, workdir = complete_config(prune_phases(ConfigDict(config))), user_path(workdir)
    try:
        with memory_errors(), training_session(config, workdir) as (console, stop_signal):
            result = trainer.train(config, workdir, console, "flaxtl.train", stop_signal)
            evaluate_and_report(result, workdir, console)
    except StopRequested as stopped:
        raise KeyboardInterrupt from stopped
    return RunResult(workdir)


def load_run(workdir: str | Path) -> "RunResult":
    """Open a finished or running run directory.

    Raises:
      UserError: it does not exist.
    """
    return RunResult(workdir)


class RunResult:
    """The results of a run. A notebook shows its phases, curves and confusion matrix; elsewhere it is one line.

        run = flaxtl.load_run("runs/flowers")
        pandas.DataFrame(run.history)
        run.errors(true="daisy", predicted="tulips").paths

    Args:
      workdir: the run directory.
    """

    def __init__(self, workdir: str | Path) -> None:
        self.workdir = user_path(workdir)
        self.record = run_files.read_run(self.workdir)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per epoch, ready for `pandas.DataFrame`, with the keys of metrics.jsonl."""
        return [epoch.to_json() for epoch in self.record.epochs]

    @property
    def metrics(self) -> dict[str, SplitMetrics]:
        """Metrics by split after the last finished phase; 'test' is missing until the run is evaluated."""
        phases = list(self.record.summary.phases.values())
        if not phases:
            return {}
        splits = {"train": phases[-1].train, "validation": phases[-1].validation, "test": phases[-1].test}
        return {name: metrics for name, metrics in splits.items() if metrics is not None}

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the model's outputs."""
        return self.record.classes

    @property
    def predictions(self) -> Predictions | None:
        """Predictions on validation and test images; None before the run is evaluated."""
        return self.record.predictions

    @property
    def confusion_matrix(self) -> CountArray | None:
        """Images by true class (row) and predicted class (column), int64 [classes, classes].

        Of the test images, or of the validation images if the run has no test images; None before it is evaluated.
        """
        predictions = self.record.eval_predictions
        return None if predictions is None else predictions.confusion_matrix

    def errors(self, *, true: str | None = None, predicted: str | None = None) -> Predictions:
        """Return the misclassified images that `confusion_matrix` counts, largest loss first.

        Args:
          true: only images of this class.
          predicted: only images that were classified as this class.

        Raises:
          UserError: the run has not been evaluated, or has no such class.
        """
        predictions = self.record.eval_predictions
        if predictions is None:
            raise UserError(f"The run in {self.workdir} has not been evaluated yet. Train it to its end.")
        rows = predictions.error_rows
        for name, values in ((true, predictions.labels), (predicted, predictions.predicted)):
            if name is not None:
                rows = rows[values[rows] == _class_index(name, predictions.classes)]
        return predictions.take(rows)

    @property
    def report_path(self) -> Path:
        """Path of the HTML report, which exists once the run has ended."""
        return run_dir.report_path(self.workdir)

    def predict(self, inputs: PredictInput | Iterable[PredictInput], *, calibrated: bool = False) -> Predictions:
        """Classify images with the model after the last finished phase.

        Args:
          inputs: image files, folders, glob patterns, PIL images, or uint8 RGB arrays [height, width, 3] of NumPy or
            JAX; one of them, or a batch [n, height, width, 3]. PIL images of any mode are converted as files are:
            upright by their EXIF orientation, over white. Pillow keeps only the high bytes of 16-bit colors; give
            their files if the run has a `data.bit_depth`.
          calibrated: return probabilities at the run's temperature, as `flaxtl predict` does by default, instead of
            those of the network.

        Returns:
          One row for each image, named by `paths`: in the order of the inputs, and sorted within a folder. An image in
          memory is called 'image 0', by its place in the inputs. A file that is given twice has one row; an image that
          cannot be read has none, but is in `unreadable`, with a message.

        Raises:
          UserError: no image is found or can be read, an array has another dtype or shape, no phase has finished, or
            the run has no temperature.
        """
        images, skipped = _list_images(inputs)
        if skipped:
            message(make_console(), describe_skipped(skipped))
        with memory_errors():
            predictions = self._trained.predictor().predict(images)
        for reason in predictions.unreadable:
            message(make_console(), reason)
        return predictor.calibrate(predictions, self.workdir) if calibrated else predictions

    def model(self) -> tuple[ImageClassifier, dict[str, Any]]:
        """Return the model after the last finished phase, as a Flax module and its variables, for your own code.

            model, variables = run.model()
            images = flaxtl.load_images(paths, model.input_size, resize=run.record.config.data.resize)
            logits = model.apply(variables, images)    # float32 [n, classes]

        Returns:
          As of `flaxtl.create_model`: the module takes RGB images 0..255 and returns float32 logits [n, classes] in
          the order of `classes`. Their softmax equals the probabilities of `predict` if the images are resized as in
          the config of the run. The variables are a copy on jax's default device, so a step may donate them.

        Raises:
          UserError: no phase has finished.
        """
        setup = self._trained.setup
        variables = classifier.to_variables(classifier.unflatten_params(self._trained.params))
        model = ImageClassifier(setup.model_info.model, (setup.resize.height, setup.resize.width))
        return model, jax.device_put(jax.tree.map(np.array, variables))

    def export(self, form: str, path: str | Path) -> Path:
        """Export the model after the last finished phase, with its preprocessing, and verify it on images of the run.

        Args:
          form: 'safetensors', 'stablehlo' or 'onnx', as for `flaxtl export --format`.
          path: a new or empty folder; it receives the model, model.json, predict.py, a README, its requirements and the
            model card.

        Returns:
          The folder.

        Raises:
          UserError: an unknown format, a folder with files, or probabilities that differ from those of the run.
        """
        from flaxtl.report.model_card import render_model_card

        if form not in exporter.FORMATS:
            raise unknown("format", form, exporter.FORMATS)
        folder = user_path(path)
        exporter.export_run(self._trained, folder, form, render_model_card(self.record))
        return folder

    def __reduce__(self) -> tuple[type["RunResult"], tuple[Path]]:
        """Pickle the path of the run directory: the arrays of a loaded model, which are on devices, have no pickle."""
        return RunResult, (self.workdir,)

    @cached_property
    def _trained(self) -> TrainedRun:
        return predictor.load_run(self.workdir)

    def __repr__(self) -> str:
        """Return one line with the accuracy and the path of the report."""
        from flaxtl.report import run_summary, templating

        headline = run_summary.headline(self.record)
        if headline is None:
            return f"{self.workdir}: no phase has finished yet"
        accuracy = headline.rounded_accuracy
        images = f"{templating.format_count(headline.num_images)} images"
        where = self.report_path if self.report_path.is_file() else "no report yet"
        return f"{self.workdir}: {headline.split} accuracy {accuracy} ({images}); {where}"

    def _repr_html_(self) -> str:
        from flaxtl.report import report

        return report.render_notebook_summary(self.record, repr(self))


def _list_images(inputs: Any) -> tuple[list[ImageSource], list[SkippedFile]]:
    """Return the images of `RunResult.predict` in order, and the files in folders that are not images."""
    inputs = _to_numpy(inputs)
    if isinstance(inputs, np.ndarray):
        is_list = inputs.ndim in (1, 4)  # paths, or a batch of images
    else:
        is_list = isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes)
    images: dict[ImageSource, None] = {}
    skipped: dict[SkippedFile, None] = {}
    for number, item in enumerate(map(_to_numpy, inputs) if is_list else [inputs]):
        if isinstance(item, str | Path):
            listing = find_images([str(item)])
            images.update(dict.fromkeys(listing.images))
            skipped.update(dict.fromkeys(listing.skipped))
        else:
            images[MemoryImage(f"image {number}", item)] = None
    if not images:
        raise UserError("Give one or more image files, folders, glob patterns, PIL images or arrays to predict.")
    return list(images), list(skipped)


def _to_numpy(item: Any) -> Any:
    return np.asarray(item) if isinstance(item, jax.Array) else item


def _class_index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise unknown("class", name, classes)
    return classes.index(name)


@contextmanager
def training_session(config: Any, workdir: Path) -> Iterator[tuple[Console, StopSignal]]:
    """Prepare this process for training in `workdir`: compilation cache, determinism, lock, signals, lost processes.

    Every process of a distributed run enters it, after `processes.initialize`; only the main process writes and prints.

    Args:
      config: a complete config.
      workdir: the run directory.

    Yields:
      A console for messages, and the signal that requests a stop.

    Raises:
      UserError: another process uses `workdir`.
    """
    if config.deterministic:
        devices.make_deterministic()  # before check_backend, which may be the first to use a device
    devices.check_backend()
    devices.enable_compilation_cache()
    is_main = processes.is_main_process()
    console = make_console() if is_main else Console(quiet=True)
    with (
        processes.exit_on_peer_loss(),
        run_dir.run_dir_lock(workdir) if is_main else nullcontext(),
        StopSignal(processes.request_stop, signals=processes.stop_signals()).listening() as stop_signal,
    ):
        if config.deterministic and jax.default_backend() == "gpu":
            message(console, "deterministic=true: using deterministic kernels, some of which are slower.")
        yield console, stop_signal


def evaluate_and_report(result: TrainResult | None, workdir: Path, console: Console) -> None:
    """Evaluate a trained run, remove files that only resuming needs, and write the report.

    Args:
      result: None if the run was already complete; then only a report that is missing is written.
      workdir: the run directory.
      console: for messages and tables.
    """
    run = None
    if result is not None:
        message(console, "4/4 Evaluation and report", style="bold")
        run = TrainedRun(result.setup, evaluate_run(result, console), result.setup.phases[-1].name)
    elif processes.any_process(not run_dir.has_report(workdir)):
        message(console, "Its report is missing and is written now.")
        run = predictor.load_run(workdir)
    processes.shutdown()
    if run is not None and processes.is_main_process():
        _write_report(run, console)


def _write_report(run: TrainedRun, console: Console) -> None:
    from flaxtl.report import report, run_summary

    workdir = run.setup.workdir
    remove_intermediate_files(run.setup)  # here, where a run that is killed before arrives again
    gradcam.update_heatmaps(workdir, lambda: run, partial(message, console))
    path = report.write_report(workdir, augmented=report.augmented_samples(run.setup))
    print_box(console, run_summary.summary_lines(run_files.read_run(workdir), path))
