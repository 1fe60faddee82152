"""The same forward pass and training step in Keras 3, with the backend of KERAS_BACKEND; and the course's own script.

Inputs are preprocessed float32 images on the device, while flaxtl's model includes preprocessing.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from benchmarks.subject import Trial, Unsupported
from keras.applications.imagenet_utils import preprocess_input
from keras.src.legacy.preprocessing.image import ImageDataGenerator

NADAM = {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.99}


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network, compiled by the backend's own means."""
    _set_precision(settings)
    model = _network(settings) if settings["top"] else _add_head(_network(settings), settings["classes"])
    images = keras.ops.convert_to_tensor(_images(settings))
    run = _compiled(model)
    return _trial(lambda: run(images))


def train(settings: dict[str, Any]) -> Trial:
    """Time `train_on_batch`, which blocks until the step is done."""
    _set_precision(settings)
    base = _network(settings)
    for layer in base.layers:
        in_top_block = re.fullmatch(settings["top_block"], f"backbone/{layer.name}/kernel")
        layer.trainable = settings["phase"] == "top" and bool(in_top_block)
    model = _add_head(base, settings["classes"])
    _compile_model(model)
    images = keras.ops.convert_to_tensor(_images(settings))
    labels = np.eye(settings["classes"], dtype=np.float32)[np.arange(settings["batch"]) % settings["classes"]]
    labels = keras.ops.convert_to_tensor(labels)
    return _trial(lambda: model.train_on_batch(images, labels))


def course(settings: dict[str, Any]) -> dict[str, Any]:
    """Train the course's phase without augmentation as its script does.

    ImageDataGenerator decodes every batch again, the frozen base processes every image in every epoch, and every epoch
    is validated.
    """
    base = _network(settings)
    if settings["weights"]:
        base.load_weights(settings["weights"])
    base.trainable = False
    model = _add_head(base, settings["classes"])
    _compile_model(model)
    timer = _EpochTimer()
    history = model.fit(
        _endless(_image_flow(settings, "train", shuffle=True)),
        validation_data=_image_flow(settings, "validation", shuffle=False),
        steps_per_epoch=settings["steps"],
        epochs=settings["epochs"],
        callbacks=[timer],
        verbose=0,
    ).history
    return {"epoch_seconds": timer.seconds, "validation_accuracy": history["val_accuracy"]}


class _EpochTimer(keras.callbacks.Callback):
    """Measure the seconds of every epoch, including validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._start_time = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self._start_time)


def _endless(flow: Any) -> Iterator[Any]:
    """Hide the length of a sequence, at whose end Keras would cut the epoch."""
    while True:
        yield next(flow)


def _image_flow(settings: dict[str, Any], split: str, *, shuffle: bool) -> Any:
    mode, size = settings["preprocessing"], settings["size"]
    preprocess = (lambda x: preprocess_input(x, mode=mode)) if mode in ("caffe", "tf", "torch") else None
    return ImageDataGenerator(preprocessing_function=preprocess).flow_from_directory(
        settings[split], (size, size), batch_size=settings["batch"], shuffle=shuffle, interpolation="nearest"
    )


def _add_head(base: Any, classes: int) -> Any:
    """Return a base with the course's head."""
    head = (
        keras.layers.AveragePooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(classes, activation="softmax", dtype="float32"),
    )
    return keras.Sequential([base, *head])


def _compile_model(model: Any) -> None:
    """Compile with the course's loss and optimizer."""
    model.compile(keras.optimizers.Nadam(**NADAM), loss="categorical_crossentropy", metrics=["accuracy"])


def _network(settings: dict[str, Any]) -> Any:
    """Return the network of this name in keras.applications, with random weights."""
    builders = {_bare(name): builder for name, builder in vars(keras.applications).items() if name[:1].isupper()}
    if _bare(settings["model"]) not in builders:
        raise Unsupported(f"not available: keras.applications has no {settings['model']}")
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

        return tensorflow.function(lambda x: model(x, training=False), jit_compile=_is_accelerated())
    import jax

    trainable, other = ([v.value for v in kind] for kind in (model.trainable_variables, model.non_trainable_variables))
    run = jax.jit(lambda trainable, other, x: model.stateless_call(trainable, other, x, training=False)[0])
    return lambda x: run(trainable, other, x)


def _trial(step: Callable[[], Any]) -> Trial:
    return Trial(step, keras.ops.convert_to_numpy, asynchronous=_is_accelerated(), facts={"device": _device()})


def _is_accelerated() -> bool:
    return not _device().lower().startswith("cpu")


def _device() -> str:
    """Return the kind of device that Keras uses."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        gpus = tensorflow.config.list_physical_devices("GPU")
        return tensorflow.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "cpu"
    import jax

    return jax.devices()[0].device_kind
