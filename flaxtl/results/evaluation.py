"""`flaxtl evaluate`: a trained run on one split of its own pictures, or on others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flaxtl import cache
from flaxtl.data import manifest, sources
from flaxtl.data.manifest import Example, Manifest
from flaxtl.data.tta import Views
from flaxtl.errors import UserError, listed
from flaxtl.results import measures, tta
from flaxtl.results.trained import Trained, open_run
from flaxtl.terminal import SCREENFUL
from flaxtl.train import steps
from flaxtl.train.evaluate import Evaluation, evaluate
from flaxtl.train.inputs import decode_examples


def evaluate_run(
    workdir: Path, source: str | None, split: str, console: Console, augmented: str | None = None
) -> dict[str, Any]:
    """Accuracy, loss, balanced accuracy and confusion matrix of every picture of `split`, as JSON values.

    Without `source` the split is the run's own; with it, the folder of that name in the source, or the whole source
    where it is a plain folder of classes. Classes that the run does not know raise UserError.
    With `augmented`, what --tta asks for, all this is of answers averaged over several views of each picture; `tta`
    says of which, `without` what there is without them, and `gain` what they change.
    """
    views_of = None if augmented is None else tta.find(augmented)
    run = open_run(workdir)
    views = views_of(run.setup) if views_of else None
    classes = run.setup.manifest.classes
    examples = _examples(run.setup.manifest, source, split)
    labels = run.setup.manifest.labels(examples)
    found, gained = _answers(run, examples, views, console)
    trained_on = {example.sha256 for example in run.setup.manifest.of_split("train")}
    seen = sum(example.sha256 in trained_on for example in examples)
    if seen and split != "train":
        console.print(
            f"{seen} of the {len(examples)} pictures were trained on: the accuracy is flattered", markup=False
        )
    if views and split == "test":
        console.print(
            "whether to augment at test time is for --split=validation to tell: chosen by test pictures, it flatters",
            highlight=False,
            soft_wrap=True,
        )
    matrix = measures.confusion_matrix(labels, found.probabilities.argmax(1), len(classes))
    return {
        "workdir": str(workdir),
        "data": source or run.setup.config.data.source,
        "split": split,
        "phase": run.phase,
        "seen_in_training": seen,
        **found.measures._asdict(),
        **gained,
        "errors": measures.errors(matrix),
        "classes": list(classes),
        "confusion_matrix": matrix.tolist(),
    }


def brief(found: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_run` found, for a terminal: of more than SCREENFUL classes without their names and the matrix."""
    if len(found["classes"]) <= SCREENFUL:
        return found
    return {key: value for key, value in found.items() if key not in ("classes", "confusion_matrix")}


def _answers(
    run: Trained, examples: Sequence[Example], views: Views | None, console: Console
) -> tuple[Evaluation, dict[str, Any]]:
    """The answers on all pictures, averaged over `views`, and what that gains, as JSON values and on the console."""
    setup = run.setup
    data = decode_examples(setup, examples, console).feed(setup.mesh)
    step = steps.eval_step(setup.network.model, setup.mesh, None, data.sharding(setup.mesh))
    plain = evaluate(step, run.parameters, data, setup.config.batch)
    if views is None:
        return plain, {}
    if views.resize != setup.resize:
        del data  # first: there need not be room for both
        data = decode_examples(replace(setup, resize=views.resize), examples, console).feed(setup.mesh)
    labels = setup.manifest.labels(examples)
    averaged = tta.average(run, views, plain, labels, data, console)
    gain = tta.Gain.of(labels, plain, averaged)
    console.print(str(gain), highlight=False, markup=False, soft_wrap=True)
    return averaged, {"tta": {"name": views.name, "views": views.total}, **gain.as_json()}


def _examples(own: Manifest, source: str | None, split: str) -> tuple[Example, ...]:
    if source is None:
        return own.of_split(split)
    found = manifest.gather(sources.find(source, cache.directory("data")), split)
    strange = sorted(set(found.classes) - set(own.classes))
    if strange:
        raise UserError(
            f"{source} holds the class(es) {listed(strange)}, which the run does not know; "
            f"it knows {listed(own.classes)}"
        )
    return found.examples
