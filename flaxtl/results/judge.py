"""The end of a run: every phase on the test split, looked at once, and the answers on validation and test pictures.

A temperature is fitted on the answers on validation pictures: on test pictures nothing is ever fitted.
"""

import numpy as np
from rich.console import Console

from flaxtl.results import calibration, predictions_file
from flaxtl.results.predictions_file import Predictions
from flaxtl.terminal import advancing
from flaxtl.train import hosts, rundir, steps
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.evaluate import Evaluation, evaluate
from flaxtl.train.features import Inputs
from flaxtl.train.feeds import Feed
from flaxtl.train.groups import Flat
from flaxtl.train.inputs import tidy
from flaxtl.train.loop import Outcome
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup


def judge(outcome: Outcome, console: Console) -> Flat:
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
    if hosts.writes():
        predictions_file.write(setup.workdir / "predictions.csv", predictions)
        rundir.note(setup.workdir, calibration=_calibration(predictions.of_split("validation"), console), complete=True)
        tidy(setup)
    return parameters


def _calibration(validation: Predictions, console: Console) -> dict[str, float | int | None]:
    """The temperature of the answers on validation pictures, None where there is none, and how many pictures."""
    temperature, n = calibration.fit_temperature(validation.probabilities, validation.labels), len(validation.paths)
    if temperature:
        console.print(f"calibration: temperature {temperature:.3f}, fitted on {n} validation pictures", markup=False)
    return {"temperature": temperature, "n": n}


def _measure(outcome: Outcome, console: Console) -> tuple[dict[str, Evaluation], Flat]:
    """Every phase on the test split, if there is one.

    Returns the last phase's answers on validation and test, and its parameters.
    """
    setup, inputs = outcome
    final: dict[str, Evaluation] = {}
    with Checkpoints(setup.workdir) as checkpoints:
        for done, phase in enumerate(setup.phases, start=1):
            parameters = checkpoints.restore_phase(done, setup.abstract_parameters())
            splits = ["validation", "test"] if phase is setup.phases[-1] else ["test"]
            for split in (split for split in splits if split in inputs):
                final[split] = _evaluate(setup, phase, parameters, inputs[split], split, console)
            if "test" in final:
                measures = final["test"].measures
                rundir.note_phase(setup.workdir, phase.name, test=measures._asdict())
                console.print(
                    f"{phase.name}: test accuracy {measures.accuracy:.2%} on {measures.n} pictures", markup=False
                )
    return {split: final[split] for split in setup.manifest.splits if split in final}, parameters


def _evaluate(setup: Setup, phase: Phase, parameters: Flat, inputs: Inputs, split: str, console: Console) -> Evaluation:
    """The phase's parameters on one split, from the frozen prefix where there is one."""
    data = _feed(phase, parameters, inputs, split, console)
    step = steps.eval_step(setup.network.model, setup.mesh, phase.cut, data.sharding(setup.mesh))
    return evaluate(step, parameters, data, setup.config.batch)


def _feed(phase: Phase, parameters: Flat, inputs: Inputs, split: str, console: Console) -> Feed:
    if phase.cut is None:
        return inputs.pictures()
    return inputs.features(
        phase.cut, parameters, lambda title, total: advancing(console, f"{split} pictures {title}", total)
    )
