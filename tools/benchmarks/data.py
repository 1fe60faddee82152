"""Images per second from file to batch: decoding, and augmentation in every epoch."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from benchmarks import peers
from benchmarks.measure import Work, rates
from benchmarks.subject import is_installed

from flaxtl import console, fileio
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize, decode_all, decode_into
from flaxtl.data.loaders import DeviceDataset, DeviceLoader, HostLoader, Loader
from flaxtl.data.sampler import EpochSampler
from flaxtl.data.sources import base
from flaxtl.parallel import devices

AUGMENTATION = AugmentConfig(**peers.COURSE_AUGMENTATION)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py data`."""
    parser.add_argument("--source", default="synthetic", help="as data.source of flaxtl train (default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, help="number of images (default: %(default)s)")
    parser.add_argument("--side", type=int, default=200, help="height and width (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of PyTorch's DataLoader (default: %(default)s)"
    )
    parser.set_defaults(run=run, repeats=5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    images = base.open_source(options.source, fileio.cache_dir("data")).images
    step = max(1, len(images) // options.images)
    files = [image.path for image in images[::step]][: options.images]
    with ExitStack() as stack:
        measured = rates(dict(_works(files, options, stack)), options.repeats)
    rows = {name: median(values) for name, values in measured.items()}
    reference = {kind: rows.get(f"{kind}: Keras ImageDataGenerator") for kind in ("decode", "augment")}
    cells = []
    for name, rate in rows.items():
        peer = reference[name.split(":")[0]]
        cells.append((name, f"{rate:,.0f}", f"{rate / peer:.1f}" if peer else "not installed"))
    title = f"{len(files)} images to {options.side} x {options.side}, batch size {options.batch}"
    columns = ("implementation", "images/s", "x Keras ImageDataGenerator")
    console.make_console().print(console.make_table(title, columns, cells))
    return {"kind": "data", "images": len(files), "side": options.side, "batch": options.batch, "rates": measured}


def _works(files: list[Path], options: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[str, Work]]:
    """Yield what is installed. 'decode' starts from files, 'augment' from what is kept between epochs."""
    side, batch = options.side, options.batch
    resize = Resize(side, side, "squash", "nearest")
    if is_installed("keras") and is_installed("scipy"):
        folder = Path(stack.enter_context(TemporaryDirectory()))
        peers.link_images(folder, ((file, str(number % 2)) for number, file in enumerate(files)))
        yield "decode: Keras ImageDataGenerator", peers.keras_work(folder, side, batch, augmented=False)
        yield "augment: Keras ImageDataGenerator", peers.keras_work(folder, side, batch, augmented=True)
    if is_installed("torch"):
        for kind in ("decode", "augment"):
            work = peers.torch_work(files, side, batch, options.workers, augmented=kind == "augment")
            yield f"{kind}: PyTorch DataLoader, {options.workers} workers", work
    yield "decode: flaxtl to memory", lambda: len(decode_all(files, resize))
    yield "decode: flaxtl to a file", lambda: _decode_to_file(files, resize)
    labels = np.zeros(len(files), np.int32)
    sampler = EpochSampler(0, batch, len(files))
    yield "augment: flaxtl, in device memory", _device_work(decode_all(files, resize), labels, sampler, batch)
    if is_installed("tensorflow"):
        store = stack.enter_context(_stored(files, resize))
        yield (
            "augment: flaxtl, tf.data",
            _host_work(HostLoader(store, labels, devices.make_mesh(batch)), sampler, batch),
        )


def _decode_to_file(files: list[Path], resize: Resize) -> int:
    with _stored(files, resize):
        return len(files)


@contextmanager
def _stored(files: list[Path], resize: Resize) -> Iterator[ArrayStore]:
    shape = (len(files), resize.height, resize.width, 3)
    with TemporaryDirectory() as folder:
        store = ArrayStore(Path(folder) / "images.npy", shape, np.dtype(np.uint8))
        with ArrayStoreWriter(store) as writer:
            decode_into(writer, files, resize)
        yield store


def _device_work(pixels: np.ndarray, labels: np.ndarray, sampler: EpochSampler, batch: int) -> Work:
    """Return work on batches that are gathered and augmented on the device."""
    mesh = devices.make_mesh(batch)
    loader = DeviceLoader(DeviceDataset(*jax.device_put((pixels, labels), devices.replicated_sharding(mesh))))
    augment = jax.jit(lambda examples: examples.inputs(0, AUGMENTATION))
    return _epochs(loader, sampler, batch, lambda examples: jax.block_until_ready(augment(examples)))


def _host_work(loader: Loader, sampler: EpochSampler, batch: int) -> Work:
    """Return work on batches that TensorFlow reads and augments, copied to the device."""
    return _epochs(loader, sampler, batch, lambda examples: jax.block_until_ready(jax.device_put(examples.images)))


def _epochs(loader: Loader, sampler: EpochSampler, batch: int, use: Any) -> Work:
    """Return work that takes the next batches at each call: many, so that few of them were prefetched before."""
    steps = max(64, len(loader) // batch)
    stream = loader.train_batches(sampler, 0, 2**31, AUGMENTATION)

    def work() -> int:
        for examples in islice(stream, steps):
            use(examples)
        return steps * batch

    return work
