"""model.json: all that is true of an exported network, for whoever uses it without flaxtl."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from flaxtl.data.decode import COVER, Resize
from flaxtl.models.classifier import Classifier
from flaxtl.models.preprocess import STEPS
from flaxtl.results import run_files
from flaxtl.results.predict import Predictor
from flaxtl.results.trained import Trained

PACKAGES = ("flaxtl", "jax", "pillow")
"""Whose versions matter later: jax reads programs that are not too old, and Pillow resizes."""


def describe(run: Trained, predictor: Predictor) -> dict[str, Any]:
    """The network that `predictor` runs, in words and numbers; JSON values.

    `temperature` is the one that was fitted to the run's answers, which are handed out as they are; null without one.
    """
    model, resize = predictor.model, predictor.resize
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "phase": run.phase,
        **_network(model),
        "classes": list(predictor.classes),
        "input": {
            "name": "pictures",
            "dtype": "uint8",
            "shape": ["batch", resize.height, resize.width, 3],
            "channels": "RGB",
        },
        "output": {
            "name": "probabilities",
            "dtype": "float32",
            "shape": ["batch", len(predictor.classes)],
        },
        "preprocessing": _preprocessing(model),
        "resize": _resize(resize),
        "temperature": run_files.summary_of(run.setup.workdir).get("calibration", {}).get("temperature"),
        "licence": model.architecture.licence,
    }


def _network(model: Classifier) -> dict[str, Any]:
    assert model.head is not None, "a run has its own classes"
    return {
        "architecture": model.architecture.name,
        "stop": model.last,
        "head": asdict(model.head),
        "dtype": np.dtype(model.dtype).name,
    }


def _preprocessing(model: Classifier) -> dict[str, Any]:
    name = model.architecture.preprocessing
    return {
        "name": name,
        "formula": "(pixel / scale - subtract) / divide, channels in this order; part of the network in model.stablehlo"
        " and model.onnx, to be done before the first layer of model.safetensors",
        **STEPS[name]._asdict(),
    }


def _resize(resize: Resize) -> dict[str, Any]:
    """`cover` is used by the policy 'crop' alone."""
    return {**asdict(resize), "cover": COVER}
