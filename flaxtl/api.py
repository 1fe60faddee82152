"""The Python API: train a run and look at its results, or build a model for a custom training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from flaxtl import config
from flaxtl.config import prune_phases
from flaxtl.console import make_console, message
from flaxtl.data.file_listing import describe_skipped
from flaxtl.evaluation import gradcam, predictor, run_files
from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.evaluation.predictions import Predictions
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.fileio import user_path
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, flatten_params, unflatten_params
from flaxtl.models.head import Head
from flaxtl.models.image_classifier import ImageClassifier
from flaxtl.parallel import devices, processes
from flaxtl.pretrained import backbone
from flaxtl.report import report, run_summary, templating
from flaxtl.report.report import augmented_samples
from flaxtl.train import run_dir, trainer
from flaxtl.train.optimizers import make_optimizer
from flaxtl.train.param_groups import Rule, assign_groups
from flaxtl.train.run_records import SplitMetrics
from flaxtl.train.signals import StopRequested, StopSignal
from flaxtl.train.trainer import TrainResult

__all__ = [
    "RunResult",
    "create_model",
    "evaluate_and_report",
    "list_models",
    "load_config",
    "load_run",
    "make_optimizer",
    "param_groups",
    "train",
    "training_session",
]


def load_config(spec: str, *overrides: str) -> ConfigDict:
    """Load a config; its settings can be changed, none can be added.

    Args:
      spec: name or file of a config, with ':VARIANT' if it has variants.
      *overrides: settings to change, 'key=value'.

    Raises:
      UserError: the config does not exist or is invalid, or a key is unknown.
    """
    return config.load_config(spec, [f"--config.{override}" for override in overrides])


def train(config: ConfigDict, workdir: str | Path) -> "RunResult":
    """Train or resume a run, evaluate it and write its report, as `flaxtl train` does.

    Raises:
      UserError: config or images are invalid.
      KeyboardInterrupt: the kernel was interrupted; call again to resume.
    """
    config, workdir = prune_phases(config), user_path(workdir)
    try:
        with training_session(config, workdir) as (console, stop_signal):
            result = trainer.train(config, workdir, console, "flaxtl.train", stop_signal)
            evaluate_and_report(result, console)
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

    Args:
      workdir: the run directory.
    """

    def __init__(self, workdir: str | Path) -> None:
        self.workdir = user_path(workdir)
        self.record = run_files.read_run(self.workdir)

    @property
    def epochs(self) -> list[dict[str, Any]]:
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
    def predictions(self) -> Predictions | None:
        """Predictions on validation and test images; None before the run is evaluated."""
        return self.record.predictions

    @property
    def report_path(self) -> Path:
        """Path of the HTML report, which exists once the run has ended."""
        return self.workdir / "report" / "index.html"

    def predict(self, inputs: Sequence[str | Path]) -> Predictions:
        """Classify images.

        Args:
          inputs: image files, folders or glob patterns.
        """
        listing = predictor.find_images([str(path) for path in inputs])
        if listing.skipped:
            message(make_console(), describe_skipped(listing.skipped))
        return self._predictor.predict(listing.images)

    @cached_property
    def _predictor(self) -> predictor.Predictor:
        return predictor.load_run(self.workdir).predictor()

    def __repr__(self) -> str:
        """Return one line with the accuracy and the path of the report."""
        headline = run_summary.headline(self.record)
        if headline is None:
            return f"{self.workdir}: no phase has finished yet"
        accuracy = templating.format_percent(headline.accuracy)
        images = f"{templating.format_count(headline.num_images)} images"
        where = self.report_path if self.report_path.is_file() else "no report yet"
        return f"{self.workdir}: {headline.split} accuracy {accuracy} ({images}); {where}"

    def _repr_html_(self) -> str:
        return report.render_notebook_summary(self.record, repr(self))


def create_model(
    name: str,
    num_classes: int,
    weights: str = "imagenet",
    *,
    skip_layers: str = "",
    image_size: int | None = None,
    pooling: str = "global_average",
    units: Sequence[int] = (),
    dropout: float = 0.0,
    seed: int = 0,
    notify: Callable[[str], None] = print,
) -> tuple[ImageClassifier, dict[str, Any]]:
    """Create a model with a new head, for a custom training loop.

    Args:
      name: model name, see `list_models`.
      num_classes: number of classes of the head.
      weights: backbone weights: 'imagenet', 'builtin', 'random' or a weight file.
      skip_layers: layers of the weight file to leave out, such as another head: a regular expression for their names.
      image_size: height and width of the images; None: the model's own.
      pooling: pooling of the head: 'none', 'average_2x2', 'global_average' or 'global_max'.
      units: units of the head's hidden layers.
      dropout: dropout rate after each hidden layer.
      seed: seed of the random parameters.
      notify: called with messages about downloads.

    Returns:
      A Flax module (uint8 or float images [n, height, width, 3] with values 0..255 -> float32 logits [n, num_classes],
      preprocessing included) and its variables (`params`, `batch_stats`), float32.
    """
    spec = registry.get_spec(name)
    model = Classifier(spec, Head(num_classes, pooling, tuple(units), dropout))
    size, key = image_size or spec.input_size, jax.random.key(seed)
    if weights == "random":
        params = classifier.init_params(model, size, size, key, head_only=False)
    else:
        loaded, _ = backbone.load_backbone(model, weights, notify, option="weights", skip_layers=skip_layers)
        head = classifier.init_params(model, size, size, key, head_only=True)
        params = {"backbone": jax.tree.map(jax.numpy.asarray, loaded), **head}
    return ImageClassifier(model), classifier.to_variables(params)


def param_groups(params: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """Return the group of every parameter, as a pytree with the structure of `params`.

    Args:
      params: `variables["params"]` of a model of `create_model`.
      rules: (group, regular expression for 'section/layer/leaf'); the first match wins; see `model.default_groups`.
    """
    return unflatten_params(assign_groups(list(flatten_params(dict(params))), rules))


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match a pattern such as 'efficientnet*'."""
    return [name for name in registry.MODELS if fnmatchcase(name, pattern.lower())]


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
    devices.check_backend()
    devices.enable_compilation_cache()
    if config.deterministic:
        devices.make_deterministic()
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


def evaluate_and_report(result: TrainResult | None, console: Console) -> None:
    """Evaluate a trained run and write its report; None: the run was already complete."""
    params = evaluate_run(result, console) if result is not None else None
    processes.shutdown()
    if result is not None and params is not None and processes.is_main_process():
        run, workdir = TrainedRun(result.setup, params, result.setup.phases[-1].name), result.setup.workdir
        gradcam.update_heatmaps(workdir, lambda: run, partial(message, console))
        path = report.write_report(workdir, augmented=augmented_samples(result.setup))
        message(console, f"Report: {path}")
