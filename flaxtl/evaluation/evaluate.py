"""The end of a run: every phase on the test split, looked at once, and the answers on validation and test images.

A temperature is fitted on the answers on validation images: on test images nothing is ever fitted.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flaxtl import fileio
from flaxtl.console import MAX_ROWS, progress_bar
from flaxtl.data import manifest
from flaxtl.data.augment.tta import TtaTransform
from flaxtl.data.loaders import Loader
from flaxtl.data.manifest import Example, Manifest
from flaxtl.data.sources import base
from flaxtl.errors import UserError, join_names
from flaxtl.evaluation import calibration, classification, tta
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.evaluation.predictions import Predictions
from flaxtl.evaluation.predictor import TrainedRun, load_run
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import processes
from flaxtl.train import run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import decode_examples, remove_intermediate_files
from flaxtl.train.eval_loop import Evaluation, evaluate
from flaxtl.train.feature_cache import SplitData
from flaxtl.train.phases import Phase
from flaxtl.train.setup import RunSetup
from flaxtl.train.trainer import TrainResult


def evaluate_run(outcome: TrainResult, console: Console) -> FlatParams:
    """Measure every phase on the test split, write the last one's answers and their temperature, and end the run.

    Returns the parameters after the last phase.
    """
    setup = outcome.setup
    final, parameters = _measure(outcome, console)
    examples = [example for split in final for example in setup.manifest.of_split(split)]
    predictions = Predictions(
        paths=tuple(example.path for example in examples),
        splits=tuple(example.split for example in examples),
        labels=setup.manifest.labels(examples),
        probabilities=np.concatenate([evaluation.probabilities for evaluation in final.values()]),
        classes=setup.manifest.classes,
    )
    if processes.is_main_process():
        predictions_file.write_predictions(setup.workdir / "predictions.csv", predictions)
        run_dir.update_summary(
            setup.workdir, calibration=_calibration(predictions.of_split("validation"), console), complete=True
        )
        remove_intermediate_files(setup)
    return parameters


def _calibration(validation: Predictions, console: Console) -> dict[str, float | int | None]:
    """The temperature of the answers on validation images, None where there is none, and how many images."""
    temperature, n = calibration.fit_temperature(validation.probabilities, validation.labels), len(validation.paths)
    if temperature:
        console.print(f"calibration: temperature {temperature:.3f}, fitted on {n} validation images", markup=False)
    return {"temperature": temperature, "n": n}


def _measure(outcome: TrainResult, console: Console) -> tuple[dict[str, Evaluation], FlatParams]:
    """Every phase on the test split, if there is one.

    Returns the last phase's answers on validation and test, and its parameters.
    """
    setup, inputs = outcome
    final: dict[str, Evaluation] = {}
    with Checkpoints(setup.workdir) as checkpoints:
        for done, phase in enumerate(setup.phases, start=1):
            parameters = checkpoints.restore_phase(done, setup.abstract_params())
            splits = ["validation", "test"] if phase is setup.phases[-1] else ["test"]
            for split in (split for split in splits if split in inputs):
                final[split] = _evaluate_split(setup, phase, parameters, inputs[split], console)
            if "test" in final:
                measures = final["test"].metrics
                run_dir.update_phase_summary(setup.workdir, phase.name, test=measures._asdict())
                console.print(
                    f"{phase.name}: test accuracy {measures.accuracy:.2%} on {measures.n} images", markup=False
                )
    return {split: final[split] for split in setup.manifest.splits if split in final}, parameters


def _evaluate_split(
    setup: RunSetup, phase: Phase, parameters: FlatParams, inputs: SplitData, console: Console
) -> Evaluation:
    """The phase's parameters on one split, from the frozen prefix where there is one."""
    data = _feed(phase, parameters, inputs, console)
    step = train_step.make_eval_step(setup.model_info.model, setup.mesh, phase.cut_layer, data.sharding(setup.mesh))
    return evaluate(step, parameters, data, setup.config.batch_size)


def _feed(phase: Phase, parameters: FlatParams, inputs: SplitData, console: Console) -> Loader:
    if phase.cut_layer is None:
        return inputs.image_loader()
    return inputs.feature_loader(phase.cut_layer, parameters, partial(progress_bar, console))


def evaluate_workdir(
    workdir: Path, source: str | None, split: str, console: Console, augmented: str | None = None
) -> dict[str, Any]:
    """Accuracy, loss, balanced accuracy and confusion matrix of every image of `split`, as JSON values.

    Without `source` the split is the run's own; with it, the folder of that name in the source, or the whole source
    where it is a plain folder of classes. Classes that the run does not know raise UserError.
    With `augmented`, what --tta asks for, all this is of answers averaged over several views of each image; `tta`
    says of which, `without` what there is without them, and `gain` what they change.
    """
    views_of = None if augmented is None else tta.make_tta(augmented)
    run = load_run(workdir)
    views = views_of(run.setup) if views_of else None
    classes = run.setup.manifest.classes
    examples = _examples(run.setup.manifest, source, split)
    labels = run.setup.manifest.labels(examples)
    found, gained = _predictions(run, examples, views, console)
    trained_on = {example.sha256 for example in run.setup.manifest.of_split("train")}
    seen = sum(example.sha256 in trained_on for example in examples)
    if seen and split != "train":
        console.print(f"{seen} of the {len(examples)} images were trained on: the accuracy is flattered", markup=False)
    if views and split == "test":
        console.print(
            "whether to augment at test time is for --split=validation to tell: chosen by test images, it flatters",
            highlight=False,
            soft_wrap=True,
        )
    matrix = classification.confusion_matrix(labels, found.probabilities.argmax(1), len(classes))
    return {
        "workdir": str(workdir),
        "data": source or run.setup.config.data.source,
        "split": split,
        "phase": run.phase,
        "seen_in_training": seen,
        **found.metrics._asdict(),
        **gained,
        "errors": classification.num_errors(matrix),
        "classes": list(classes),
        "confusion_matrix": matrix.tolist(),
    }


def brief_result(found: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_run` found, for a terminal: of more than SCREENFUL classes without their names and the matrix."""
    if len(found["classes"]) <= MAX_ROWS:
        return found
    return {key: value for key, value in found.items() if key not in ("classes", "confusion_matrix")}


def _predictions(
    run: TrainedRun, examples: Sequence[Example], views: TtaTransform | None, console: Console
) -> tuple[Evaluation, dict[str, Any]]:
    """The answers on all images, averaged over `views`, and what that gains, as JSON values and on the console."""
    setup = run.setup
    data = decode_examples(setup, examples, console).loader(setup.mesh)
    step = train_step.make_eval_step(setup.model_info.model, setup.mesh, None, data.sharding(setup.mesh))
    plain = evaluate(step, run.params, data, setup.config.batch_size)
    if views is None:
        return plain, {}
    if views.resize != setup.resize:
        del data  # first: there need not be room for both
        data = decode_examples(replace(setup, resize=views.resize), examples, console).loader(setup.mesh)
    labels = setup.manifest.labels(examples)
    averaged = tta.average_views(run, views, plain, labels, data, console)
    gain = tta.TtaGain.create(labels, plain, averaged)
    console.print(str(gain), highlight=False, markup=False, soft_wrap=True)
    return averaged, {"tta": {"name": views.name, "views": views.num_views}, **gain.to_json()}


def _examples(own: Manifest, source: str | None, split: str) -> tuple[Example, ...]:
    if source is None:
        return own.of_split(split)
    found = manifest.collect_examples(base.open_source(source, fileio.cache_dir("data")), split)
    strange = sorted(set(found.classes) - set(own.classes))
    if strange:
        raise UserError(
            f"{source} holds the class(es) {join_names(strange)}, which the run does not know; "
            f"it knows {join_names(own.classes)}"
        )
    return found.examples
