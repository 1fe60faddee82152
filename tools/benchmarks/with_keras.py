"""The same forward pass and training step in Keras 3, on the backend that KERAS_BACKEND names.

Images are given as preprocessed float32 arrays that lie on the device; our own passes preprocess theirs.
"""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks.worker import NoSuchPeer, Trial

LECTURE = {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.99}
"""Of the lecture's Nadam."""


def forward(settings: dict[str, Any]) -> Trial:
    """The network, compiled by the backend's own means."""
    _set_precision(settings)
    model = network(settings) if settings["top"] else under_head(network(settings), settings["classes"])
    images = keras.ops.convert_to_tensor(_images(settings))
    run = _compiled(model)
    return _trial(lambda: run(images))


def train(settings: dict[str, Any]) -> Trial:
    """`train_on_batch`, which returns when the step is done."""
    _set_precision(settings)
    base = network(settings)
    for layer in base.layers:
        learns = settings["phase"] == "top" and re.fullmatch(settings["learning"], f"backbone/{layer.name}/kernel")
        layer.trainable = bool(learns)
    model = under_head(base, settings["classes"])
    compile_as_lecture(model)
    images = keras.ops.convert_to_tensor(_images(settings))
    labels = np.eye(settings["classes"], dtype=np.float32)[np.arange(settings["batch"]) % settings["classes"]]
    answers = keras.ops.convert_to_tensor(labels)
    return _trial(lambda: model.train_on_batch(images, answers))


def under_head(base: Any, classes: int) -> Any:
    """The lecture's head on top of a base."""
    head = (
        keras.layers.AveragePooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(classes, activation="softmax", dtype="float32"),
    )
    return keras.Sequential([base, *head])


def compile_as_lecture(model: Any) -> None:
    """With the lecture's loss and optimizer."""
    model.compile(keras.optimizers.Nadam(**LECTURE), loss="categorical_crossentropy", metrics=["accuracy"])


def network(settings: dict[str, Any]) -> Any:
    """The network of keras.applications that has the catalog's name, with random weights."""
    builders = {_bare(name): builder for name, builder in vars(keras.applications).items() if name[:1].isupper()}
    if _bare(settings["model"]) not in builders:
        raise NoSuchPeer("no such peer: keras.applications has no such network by this name")
    size = settings["size"]
    return builders[_bare(settings["model"])](
        weights=None, include_top=settings["top"], input_shape=(size, size, 3), classes=1000
    )


def _bare(name: str) -> str:
    return re.sub("[-_]", "", name.lower())


def _set_precision(settings: dict[str, Any]) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if settings["dtype"] == "bfloat16" else "float32")


def _images(settings: dict[str, Any]) -> np.ndarray:
    shape = (settings["batch"], settings["size"], settings["size"], 3)
    return np.random.default_rng(0).uniform(-128, 128, shape).astype(np.float32)


def _compiled(model: Any) -> Callable[[Any], Any]:
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(lambda x: model(x, training=False), jit_compile=_accelerated())
    import jax

    learning, still = ([v.value for v in kind] for kind in (model.trainable_variables, model.non_trainable_variables))
    run = jax.jit(lambda learning, still, x: model.stateless_call(learning, still, x, training=False)[0])
    return lambda x: run(learning, still, x)


def _trial(step: Callable[[], Any]) -> Trial:
    return Trial(step, keras.ops.convert_to_numpy, queue=_accelerated(), facts={"device": _device()})


def _accelerated() -> bool:
    return not _device().lower().startswith("cpu")


def _device() -> str:
    """The kind of device that Keras computes on."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        found = tensorflow.config.list_physical_devices("GPU")
        return tensorflow.config.experimental.get_device_details(found[0])["device_name"] if found else "cpu"
    import jax

    return jax.devices()[0].device_kind
