"""Images a second from file to batch: decoded for the first time, and augmented in every epoch."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from benchmarks import peers
from benchmarks.measure import Work, median, rates
from flaxtl import fileio
from flaxtl.console import make_console, make_table
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize, decode_all, decode_into
from flaxtl.data.loaders import DeviceDataset, DeviceLoader, HostLoader, Loader
from flaxtl.data.sampler import EpochSampler
from flaxtl.data.sources import base
from flaxtl.parallel import devices

LECTURE = AugmentConfig(**peers.LECTURE)


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py data`."""
    parser.add_argument("--source", default="synthetic", help="as for flaxtl train; garden unless told")
    parser.add_argument("--images", type=int, default=512, help="how many of them")
    parser.add_argument("--side", type=int, default=200, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes of PyTorch's DataLoader")
    parser.set_defaults(run=run, repeats=5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    found = base.open_source(options.source, fileio.cache_dir("data")).images
    step = max(1, len(found) // options.images)
    files = [image.path for image in found[::step]][: options.images]
    with ExitStack() as stack:
        measured = rates(dict(_ways(files, options, stack)), options.repeats)
    rows = {name: median(values) for name, values in measured.items()}
    reference = {kind: rows.get(f"{kind}: Keras ImageDataGenerator") for kind in ("decode", "augment")}
    cells = []
    for name, rate in rows.items():
        peer = reference[name.split(":")[0]]
        cells.append((name, f"{rate:,.0f}", f"{rate / peer:.1f}" if peer else "not installed"))
    title = f"{len(files)} images to {options.side} x {options.side}, batches of {options.batch}"
    make_console().print(make_table(title, ("way", "images/s", "x Keras ImageDataGenerator"), cells))
    return {"kind": "data", "images": len(files), "side": options.side, "batch": options.batch, "rates": measured}


def _ways(files: list[Path], options: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[str, Work]]:
    """Every way that can be measured here. 'decode' starts from files, 'augment' from what its way keeps of them."""
    side, batch = options.side, options.batch
    resize = Resize(side, side, "squash", "nearest")
    if peers.installed("keras") and peers.installed("scipy"):
        folder = stack.enter_context(peers.folder_of(files))
        yield "decode: Keras ImageDataGenerator", peers.keras(folder, side, batch, augmented=False)
        yield "augment: Keras ImageDataGenerator", peers.keras(folder, side, batch, augmented=True)
    if peers.installed("torch"):
        for kind in ("decode", "augment"):
            work = peers.torch(files, side, batch, options.workers, augmented=kind == "augment")
            yield f"{kind}: PyTorch DataLoader, {options.workers} workers", work
    yield "decode: flaxtl to memory", lambda: len(decode_all(files, resize))
    yield "decode: flaxtl to a file", lambda: _decode_to_file(files, resize)
    labels = np.zeros(len(files), np.int32)
    order = EpochSampler(0, batch, len(files))
    yield "augment: flaxtl resident", _resident(decode_all(files, resize), labels, order, batch)
    if peers.installed("tensorflow"):
        kept = stack.enter_context(_stored(files, resize))
        yield "augment: flaxtl stream", _stream(HostLoader(kept, labels, devices.make_mesh(batch)), order, batch)


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


def _resident(pixels: np.ndarray, labels: np.ndarray, order: EpochSampler, batch: int) -> Work:
    """A pass of batches that are picked and augmented on the device."""
    mesh = devices.make_mesh(batch)
    feed = DeviceLoader(DeviceDataset(*jax.device_put((pixels, labels), devices.replicated_sharding(mesh))))
    augmented = jax.jit(lambda examples: examples.inputs(0, LECTURE))
    return _passes(feed, order, batch, lambda examples: jax.block_until_ready(augmented(examples)))


def _stream(feed: Loader, order: EpochSampler, batch: int) -> Work:
    """A pass of batches that TensorFlow reads and augments, put on the device."""
    return _passes(feed, order, batch, lambda examples: jax.block_until_ready(jax.device_put(examples.images)))


def _passes(feed: Loader, order: EpochSampler, batch: int, use: Any) -> Work:
    """Some passes at each call, each going on where the last one ended: many batches, of which few were made ahead."""
    steps = max(64, len(feed) // batch)
    stream = feed.train_batches(order, 0, 2**31, LECTURE)

    def work() -> int:
        for examples in islice(stream, steps):
            use(examples)
        return steps * batch

    return work
