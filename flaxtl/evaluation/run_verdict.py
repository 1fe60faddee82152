"""The verdict on a finished run: its result, what is wrong with it, and the one command to try next."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaxtl.data.augment.config import AugmentConfig
from flaxtl.evaluation import verdicts
from flaxtl.evaluation.run_files import RunRecord

MAX_FOLDS = 5


@dataclass(frozen=True)
class RunVerdict:
    """What a teacher would say about a run; every text is one or two sentences.

    Attributes:
      result: the accuracy with its interval.
      findings: what limits it, the most important first: guessing, too few steps, overfitting, too few epochs or
        images, weakest class, most frequent error.
      advice: what to try next.
      command: the command line that does so, or the setting to change if the run was started from Python.
    """

    result: str
    findings: tuple[str, ...]
    advice: str
    command: str


def run_verdict(run: RunRecord) -> RunVerdict | None:
    """Return the verdict on an evaluated run; None if it has no predictions yet."""
    predictions = run.eval_predictions
    if predictions is None or not len(predictions):
        return None
    correct, n = int(predictions.correct.sum()), len(predictions)
    matrix, classes = predictions.confusion_matrix, predictions.classes
    guessing = verdicts.describe_guessing(run.eval_split, matrix, classes)
    training = _training_findings(run)
    chance = verdicts.describe_possible_guessing(run.eval_split, matrix, classes)
    few = verdicts.describe_few_images(run.eval_split, correct, n)
    weakest = verdicts.describe_weakest_class(matrix, classes)
    pair = verdicts.describe_confused_pair(matrix, classes)
    advice, command = _next_step(run, guessing, training, few)
    return RunVerdict(
        result=verdicts.describe_accuracy(run.eval_split, correct, n),
        findings=tuple(text for text in (guessing, *training.values(), chance, few, weakest, pair) if text),
        advice=advice,
        command=command,
    )


def _training_findings(run: RunRecord) -> dict[str, str]:
    """Return what the metrics of the last phase show, each with its sentence.

    The keys are 'untrained', 'overfitting', 'rising' and 'falling'. A phase that stopped early is neither untrained nor
    falling: more epochs would not be trained.
    """
    name, phase = next(reversed(run.summary.phases.items()), (None, None))
    if name is None or phase is None:
        return {}
    losses = [epoch.validation_loss for epoch in run.epochs if epoch.phase == name]
    keeps_best = run.config[name].patience > 0
    all_epochs = phase.epochs == run.config[name].epochs
    untrained = _describe_untrained(run, name) if all_epochs else ""
    overfitting = verdicts.describe_overfitting(name, run.train_metrics(name), phase.validation)
    findings = {
        "untrained": untrained,
        "overfitting": "" if untrained else overfitting,  # the gap of a model that hardly trained is chance
        "rising": "" if keeps_best else verdicts.describe_rising_loss(name, losses),
        "falling": verdicts.describe_falling_loss(name, losses) if all_epochs else "",
    }
    return {kind: text for kind, text in findings.items() if text}


def _describe_untrained(run: RunRecord, phase: str) -> str:
    """Return that the run has hardly trained; '' if it has, or if mixed labels keep the loss of the phase high."""
    augmentation, summary = run.config.augmentation, run.summary.phases[phase]
    if summary.augment and (augmentation.mixup or augmentation.cutmix):
        return ""
    num_steps = sum(done.steps for done in run.summary.phases.values())
    return verdicts.describe_untrained(num_steps, summary.train.loss, _guessing_loss(run))


def _guessing_loss(run: RunRecord) -> float:
    """Return the training loss of predicting the frequencies of the classes for every image (nats); 0 if unknown.

    It is the entropy of the training labels. Sampling or weights that balance the classes make all equally frequent.
    """
    counts = Counter(example.label for example in run.manifest.examples if example.split == "train")
    if run.config.data.sampling == "balanced" or run.config.class_weights != "none":
        return math.log(max(1, len(counts)))
    return -sum(count / counts.total() * math.log(count / counts.total()) for count in counts.values())


def _next_step(run: RunRecord, guessing: str, training: Mapping[str, str], few: str) -> tuple[str, str]:
    """Return the most promising next step as (advice, command)."""
    config, name = run.config, next(reversed(run.summary.phases), run.config.phases[-1])
    if "untrained" in training:
        return "Train longer.", _train_command(run, _enough_steps(config, _first_full_phase(run)))
    if "falling" in training:
        return "Train longer.", _train_command(run, _twice_as_long(config, name))
    if guessing:
        in_place = config.data.loader == "tfdata" and config.data.source.startswith("tfds:")
        note = " This first writes them to the cache." if in_place else ""
        command = shlex.join(["flaxtl", "doctor", f"--data={config.data.source}"])
        return f"Check the images and their labels.{note}", command
    if "rising" in training:
        return "Keep the weights of the best epoch.", _train_command(run, {f"{name}.patience": 5})
    if "overfitting" in training and not config[name].augment:
        advice = f"Augment the training images.{_describe_augmentation_work(run, name)}"
        return advice, _train_command(run, _augmentation(config, name))
    can_mix = config.batch_size > 1 and not config.augmentation.mixup
    if "overfitting" in training and can_mix and _arguments(run):
        advice = "Add training images, or find out whether mixup helps."
        return advice, _sweep_command(run, "--grid=config.augmentation.mixup=0.0,0.2")
    if few and (folds := _num_folds(run)) > 1 and _arguments(run):
        return "Measure the accuracy on all images, by cross-validation.", _sweep_command(run, f"--kfold={folds}")
    return "Classify new images.", f"flaxtl predict --workdir={shlex.quote(str(run.workdir))} --input PATH"


def _describe_augmentation_work(run: RunRecord, phase: str) -> str:
    """Return what augmentation costs a phase that reads cached features of its frozen layers; '' if it has none."""
    lowest = next((layer for layer in run.layers if layer.params), None)
    if lowest is None or phase in lowest.trained_in or run.config.feature_cache.views:
        return ""
    num_cached = sum(example.split in ("train", "validation") for example in run.manifest.examples)
    summary = run.summary.phases[phase]
    num_trained = summary.epochs * summary.train.n
    return f" Each step then runs the frozen layers, too: on {num_trained:,} images in all instead of {num_cached:,}."


def _first_full_phase(run: RunRecord) -> str:
    """Return the first phase that trained all its epochs: it trains the new head, mostly on cached features."""
    return next(name for name, phase in run.summary.phases.items() if phase.epochs == run.config[name].epochs)


def _enough_steps(config: Any, phase: str) -> dict[str, Any]:
    """Return the settings that give a phase MIN_STEPS steps; twice as many epochs if `steps_per_epoch` is set."""
    if config[phase].steps_per_epoch:
        return _twice_as_long(config, phase)
    return {f"{phase}.min_steps": verdicts.MIN_STEPS}


def _twice_as_long(config: Any, phase: str) -> dict[str, Any]:
    """Return the settings that double the steps of a phase: with `min_steps`, more epochs may only get shorter."""
    keys = ("epochs",) if config[phase].steps_per_epoch else ("epochs", "min_steps")
    return {f"{phase}.{key}": 2 * config[phase][key] for key in keys if config[phase][key]}


def _num_folds(run: RunRecord) -> int:
    """Return 5, or the number of images of the smallest class: each fold needs one. Test images are in no fold.

    Without manifest.csv it is 0.
    """
    sizes = Counter(example.label for example in run.manifest.examples if example.split != "test")
    return min(MAX_FOLDS, min(sizes.values(), default=0))


def _augmentation(config: Any, phase: str) -> dict[str, Any]:
    """Return the settings that augment a phase; flips and zoom, if the config has no augmentation yet."""
    augmentation = AugmentConfig(**config.augmentation.to_dict())
    is_set = augmentation.is_active or augmentation.uses_mixing
    defaults = {} if is_set else {"augmentation.horizontal_flip": True, "augmentation.zoom": 0.2}
    return {f"{phase}.augment": True, **defaults}


def _train_command(run: RunRecord, settings: Mapping[str, Any]) -> str:
    """Return the command of the run with other settings and a new run directory."""
    arguments = _arguments(run)
    if not arguments:
        return "; ".join(f"config.{key} = {value!r}" for key, value in settings.items())
    changed = {f"--config.{key}": str(value).lower() for key, value in settings.items()}
    arguments = [argument for argument in arguments if argument.partition("=")[0] not in changed]
    options = [f"{option}={value}" for option, value in changed.items()]
    return shlex.join(["flaxtl", "train", *arguments, *options, f"--workdir={_free_name(run.workdir, 2)}"])


def _sweep_command(run: RunRecord, option: str) -> str:
    """Return the command of a sweep of the settings of the run, except that of a `--grid`: it may be given once."""
    swept = "--" + option.removeprefix("--grid=").partition("=")[0]
    arguments = [arg for arg in _arguments(run) if arg.startswith("--config") and arg.partition("=")[0] != swept]
    if not any(argument.startswith("--config=") for argument in arguments):
        arguments.insert(0, "--config=folder")
    source = run.config.data.source
    if source != "synthetic" and not any(argument.startswith("--config.data.source=") for argument in arguments):
        arguments.append(f"--config.data.source={source}")
    workdir = _free_name(run.workdir.with_name(f"{run.workdir.name}-sweep"), 1)
    return shlex.join(["flaxtl", "sweep", *arguments, option, f"--workdir={workdir}"])


def _arguments(run: RunRecord) -> list[str]:
    """Return the arguments of the run's `flaxtl train`, except --workdir; [] if it was started from Python."""
    arguments: list[str] = []
    for argument in shlex.split(run.summary.command)[2:]:
        if arguments and arguments[-1] in ("--config", "--data", "--workdir"):
            arguments[-1] += f"={argument}"
        else:
            arguments.append(argument)
    return [argument for argument in arguments if not argument.startswith("--workdir=")]


def _free_name(workdir: Path, number: int) -> Path:
    """Return the first of WORKDIR (number 1), WORKDIR-2, WORKDIR-3 ... from `number` on that does not exist."""
    path = workdir if number == 1 else workdir.with_name(f"{workdir.name}-{number}")
    return _free_name(workdir, number + 1) if path.exists() else path
