"""`flaxtl evaluate`: a trained run on one split of its own pictures, or on others."""

from pathlib import Path
from typing import Any

from rich.console import Console

from flaxtl import cache
from flaxtl.data import manifest, sources
from flaxtl.data.manifest import Example, Manifest
from flaxtl.errors import UserError, listed
from flaxtl.results import measures
from flaxtl.results.trained import open_run
from flaxtl.terminal import SCREENFUL
from flaxtl.train import steps
from flaxtl.train.evaluate import evaluate
from flaxtl.train.inputs import decode_examples


def evaluate_run(workdir: Path, source: str | None, split: str, console: Console) -> dict[str, Any]:
    """Accuracy, loss, balanced accuracy and confusion matrix of every picture of `split`, as JSON values.

    Without `source` the split is the run's own; with it, the folder of that name in the source, or the whole source
    where it is a plain folder of classes. Classes that the run does not know raise UserError.
    """
    run = open_run(workdir)
    classes = run.setup.manifest.classes
    examples = _examples(run.setup.manifest, source, split)
    pictures = decode_examples(run.setup, examples, console)
    labels, data = pictures.labels, pictures.feed(run.setup.mesh)
    step = steps.eval_step(run.setup.network.model, run.setup.mesh, None, data.sharding(run.setup.mesh))
    found = evaluate(step, run.parameters, data, run.setup.config.batch)
    trained_on = {example.sha256 for example in run.setup.manifest.of_split("train")}
    seen = sum(example.sha256 in trained_on for example in examples)
    if seen and split != "train":
        console.print(
            f"{seen} of the {len(examples)} pictures were trained on: the accuracy is flattered", markup=False
        )
    matrix = measures.confusion_matrix(labels, found.probabilities.argmax(1), len(classes))
    return {
        "workdir": str(workdir),
        "data": source or run.setup.config.data.source,
        "split": split,
        "phase": run.phase,
        "seen_in_training": seen,
        **found.measures._asdict(),
        "errors": measures.errors(matrix),
        "classes": list(classes),
        "confusion_matrix": matrix.tolist(),
    }


def brief(found: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_run` found, for a terminal: of more than SCREENFUL classes without their names and the matrix."""
    if len(found["classes"]) <= SCREENFUL:
        return found
    return {key: value for key, value in found.items() if key not in ("classes", "confusion_matrix")}


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
