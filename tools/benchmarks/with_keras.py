"""The same work in Keras 3, with the backend of KERAS_BACKEND; and the course's own script.

Networks get preprocessed float32 images on the device, while flaxtl's models include preprocessing.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from benchmarks.trial import CLASSES, Trial, Unsupported
from fresh_process import peak_mebibytes
from keras.applications.imagenet_utils import preprocess_input
from keras.src.legacy.preprocessing.image import ImageDataGenerator


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network, compiled by the backend's own means."""
    _set_precision(settings)
    model = _add_head(_network(settings), CLASSES)
    images = keras.ops.convert_to_tensor(_images(settings))
    run = _compiled(model)
    return _trial(lambda: run(images), settings)


def train(settings: dict[str, Any]) -> Trial:
    """Time `train_on_batch`, which blocks until the step is done."""
    _set_precision(settings)
    base = _network(settings)
    for layer in base.layers:
        in_last_block = re.fullmatch(settings["last_block"], f"backbone/{layer.name}/kernel")
        layer.trainable = settings["phase"] == "top" and bool(in_last_block)
    model = _add_head(base, CLASSES)
    images = keras.ops.convert_to_tensor(_images(settings))
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(settings["batch"]) % CLASSES]
    labels = keras.ops.convert_to_tensor(labels)
    return _trial(lambda: model.train_on_batch(images, labels), settings)


def decode(settings: dict[str, Any]) -> Trial:
    """Time an epoch of ImageDataGenerator.flow_from_directory without augmentation."""
    return _generator_trial(ImageDataGenerator(), settings)


def augment(settings: dict[str, Any]) -> Trial:
    """Time the same with the course's augmentation; every epoch decodes the images again."""
    shifts = {"width_shift_range": 0.2, "height_shift_range": 0.2}
    generator = ImageDataGenerator(rotation_range=30, shear_range=0.2, zoom_range=0.2, horizontal_flip=True, **shifts)
    return _generator_trial(generator, settings)


def _generator_trial(generator: ImageDataGenerator, settings: dict[str, Any]) -> Trial:
    size = (settings["size"], settings["size"])
    flow = generator.flow_from_directory(
        settings["folder"], size, batch_size=settings["batch"], interpolation="nearest"
    )
    return Trial(lambda: [next(flow) for _ in range(len(flow))], flow.samples)


def convolution(settings: dict[str, Any], shape: dict[str, Any]) -> Trial:
    """Time one convolution, a row of `with_flaxtl.list_convolutions`."""
    is_depthwise = shape["kind"] == "depthwise"
    x = keras.random.normal(
        (settings["batch"], shape["height"], shape["width"], shape["inputs"]), dtype=settings["dtype"]
    )
    channels = (shape["inputs"], 1) if is_depthwise else (shape["inputs"] // shape["groups"], shape["outputs"])
    kernel = keras.random.normal((*shape["kernel"], *channels), dtype=settings["dtype"])
    operation = keras.ops.depthwise_conv if is_depthwise else keras.ops.conv
    run = _jitted(lambda x, kernel: operation(x, kernel, shape["stride"], shape["padding"].lower()))
    return _trial(lambda: run(x, kernel), settings)


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
    marks: list[tuple[float, float]] = []

    def mark(*_: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    model.fit(
        _endless(_image_flow(settings, "train", shuffle=True)),
        validation_data=_image_flow(settings, "validation", shuffle=False),
        steps_per_epoch=settings["steps"],
        epochs=settings["epochs"],
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=mark, on_epoch_end=mark)],
        verbose=0,
    )
    epochs = list(zip(marks[::2], marks[1::2], strict=True))
    return {
        "epoch_seconds": [end[0] - start[0] for start, end in epochs],
        "epoch_cpu_seconds": [end[1] - start[1] for start, end in epochs],
        "cpu_seconds": time.process_time(),
        "mebibytes": peak_mebibytes(),
    }


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
    """Return a base with the course's head, loss and optimizer."""
    head = (
        keras.layers.AveragePooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(classes, activation="softmax", dtype="float32"),
    )
    model = keras.Sequential([base, *head])
    optimizer = keras.optimizers.Nadam(learning_rate=1e-3, beta_1=0.9, beta_2=0.99)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def _network(settings: dict[str, Any]) -> Any:
    """Return the network of this name in keras.applications, with random weights."""
    builders = {name.lower(): builder for name, builder in vars(keras.applications).items() if name[:1].isupper()}
    name, size = re.sub("_100$|[-_]", "", settings["model"]), settings["size"]  # _100: width in percent
    if name not in builders:
        raise Unsupported(f"not available: keras.applications has no {settings['model']}")
    return builders[name](weights=None, include_top=False, input_shape=(size, size, 3))


def _set_precision(settings: dict[str, Any]) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if settings["dtype"] == "bfloat16" else "float32")


def _images(settings: dict[str, Any]) -> np.ndarray:
    shape = (settings["batch"], settings["size"], settings["size"], 3)
    return np.random.default_rng(0).uniform(-128, 128, shape).astype(np.float32)


def _compiled(model: Any) -> Callable[[Any], Any]:
    if keras.backend.backend() == "tensorflow":
        return _jitted(lambda x: model(x, training=False))
    trainable, other = ([v.value for v in kind] for kind in (model.trainable_variables, model.non_trainable_variables))
    run = _jitted(lambda trainable, other, x: model.stateless_call(trainable, other, x, training=False)[0])
    return lambda x: run(trainable, other, x)


def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(function, jit_compile=_device() != "cpu")
    import jax

    return jax.jit(function)


def _trial(step: Callable[[], Any], settings: dict[str, Any]) -> Trial:
    wait, facts = keras.ops.convert_to_numpy, {"device": _device()}
    return Trial(step, settings["batch"], wait, asynchronous=_device() != "cpu", facts=facts)


def _device() -> str:
    """Return the kind of device that Keras uses: 'cpu', 'gpu' or 'tpu'."""
    return keras.distribution.list_devices()[0].split(":")[0]
