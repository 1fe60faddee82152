"""The lecture's own way, in a process of its own: `python -m benchmarks.lecture_keras SETTINGS ANSWER.json`."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras.applications.imagenet_utils import preprocess_input
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from benchmarks import with_keras


class Clock(keras.callbacks.Callback):
    """Seconds of every epoch, its validation included."""

    def __init__(self) -> None:
        """None so far."""
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Start."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    """Train, and write what came of it."""
    settings = json.loads(sys.argv[1])
    base = with_keras.network(settings)
    if settings["weights"]:
        base.load_weights(settings["weights"])
    base.trainable = False
    model = with_keras.under_head(base, settings["classes"])
    with_keras.compile_as_lecture(model)
    clock = Clock()
    history = model.fit(
        _endless(_images(settings, "train", shuffle=True)),
        validation_data=_images(settings, "validation", shuffle=False),
        steps_per_epoch=settings["steps"],
        epochs=settings["epochs"],
        callbacks=[clock],
        verbose=0,
    ).history
    told = {"epoch_seconds": clock.seconds, "validation_accuracy": history["val_accuracy"]}
    told |= {"weights": settings["weights"] or "random"}
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")


def _endless(flow: Any) -> Iterator[Any]:
    """The batches as a generator: of a sequence of known length Keras would cut the epoch that it ends in."""
    while True:
        yield next(flow)


def _images(settings: dict[str, Any], split: str, *, shuffle: bool) -> Any:
    mode = settings["preprocessing"]
    preprocess = (lambda x: preprocess_input(x, mode=mode)) if mode in ("caffe", "tf", "torch") else None
    generator = ImageDataGenerator(preprocessing_function=preprocess)
    side = settings["size"]
    return generator.flow_from_directory(
        settings[split], (side, side), batch_size=settings["batch"], shuffle=shuffle, interpolation="nearest"
    )


if __name__ == "__main__":
    main()
