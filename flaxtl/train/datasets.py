"""The splits of a run: images decoded into memory or into a file, their cached features, and the loaders of both."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from flaxtl import __version__
from flaxtl.console import ProgressFn, message, progress_bar
from flaxtl.data.array_store import (
    DIGEST_LENGTH,
    ArrayStore,
    ArrayStoreWriter,
    aligned_empty,
    check_space,
    remove_stores,
)
from flaxtl.data.decode import (
    REMEDY,
    EncodedImages,
    ImageSink,
    Resize,
    decode_into,
    find_unreadable,
    raise_unreadable,
)
from flaxtl.data.device_dataset import DeviceDataset, device_bytes, put_dataset
from flaxtl.data.loaders import (
    DeviceLoader,
    HostLoader,
    ImagePixels,
    ImageSet,
    Loader,
    choose_pipeline,
    fits_in_memory,
)
from flaxtl.data.manifest import Example
from flaxtl.errors import UserError
from flaxtl.fileio import user_path
from flaxtl.models.classifier import Classifier, FlatParams
from flaxtl.models.convolution import CONV_VERSION
from flaxtl.models.tracer import Layer
from flaxtl.parallel import devices, processes
from flaxtl.train.feature_cache import VIEWS_DTYPE, AugmentedViews, CutLayers, FeatureExtractor, param_digests
from flaxtl.train.param_groups import layer_of
from flaxtl.train.setup import RunSetup, build_setup

MAX_LISTED = 10
"""Skipped images that are named on the console; summary.json names all."""

SKIP_REMEDY = "Replace or remove them, or leave them out: --config.data.on_error=skip"
"""What the error for unreadable images of a new run advises."""


class SplitData:
    """The images of one split and their cached features; creates the loaders of both.

    Args:
      split: name of the split, for progress bars.
      model: the classifier, in the dtype of its cached features.
      layers: its layers, in order.
      mesh: devices to compute on.
      images: the decoded images.
      cut_layers: cut layers of the phases without augmentation; one run over the images computes all of them.
      cache_dir: folder of the feature files.
      batch_size: images per step when features are computed.
      augmented: cut layers and views of the phases with augmentation, if their features are cached.
    """

    def __init__(
        self,
        split: str,
        model: Classifier,
        layers: Sequence[Layer],
        mesh: Mesh,
        images: ImageSet,
        cut_layers: Sequence[str],
        cache_dir: Path,
        batch_size: int,
        augmented: CutLayers | None = None,
    ) -> None:
        self._split, self._model, self._mesh, self._images = split, model, mesh, images
        self._cache_dir, self._batch_size = cache_dir, batch_size
        self._shapes = {layer.name: layer.shape for layer in layers if layer.section == "backbone"}
        self._order = list(self._shapes)
        self._plain = CutLayers(cut_layers, AugmentedViews(np.dtype(model.dtype)))
        self._augmented = augmented
        self._image_bytes = 0
        self._features: tuple[Path, DeviceDataset] | None = None  # in device memory

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """A string that identifies the images."""
        return self._images.digest

    @property
    def device_bytes(self) -> int:
        """Memory that the split uses on each device."""
        return self._image_bytes + (self._features[1].device_bytes if self._features else 0)

    def image_loader(self) -> Loader:
        """Return the loader of the images."""
        self._features = None
        loader = self._images.loader(self._mesh)
        if isinstance(loader, DeviceLoader):
            self._image_bytes = loader.data.device_bytes
        return loader

    def feature_loader(
        self, cut_layer: str, params: FlatParams, progress: ProgressFn, num_views: int = 0, reserved_bytes: int = 0
    ) -> Loader:
        """Return the loader of a layer's outputs; compute them if they are not cached.

        Args:
          cut_layer: the layer.
          params: all parameters.
          progress: makes the progress bar.
          num_views: augmented views of each image, 0: the image itself. Epoch e sees view `e % num_views`.
          reserved_bytes: device memory that is needed for other data. Features that do not fit are read from the file.
        """
        cuts = self._augmented if num_views else self._plain
        assert cuts is not None, "SplitData was created without augmented views"
        assert cuts.views.num_views == max(num_views, 1), "all phases use the same number of views"
        digests = param_digests({path: value for path, value in params.items() if path.startswith("backbone/")})
        layers = sorted(set(cuts.layers), key=self._order.index)
        stores = {layer: self._store(layer, cuts.views, digests) for layer in layers}
        store, labels = stores[cut_layer], self._images.labels
        if self._features is None or self._features[0] != store.path:
            self._features = None
            self._extract_missing(stores, cut_layer, cuts.views, params, progress)
            if not self._fits_on_device(store, reserved_bytes):
                return HostLoader(store, labels, self._mesh, cuts.views.num_views)
            repeated = np.repeat(labels, cuts.views.num_views)
            self._features = store.path, put_dataset(store.read(), repeated, self._mesh)
        return DeviceLoader(self._features[1], cuts.views.num_views)

    def _extract_missing(
        self,
        stores: Mapping[str, ArrayStore],
        cut_layer: str,
        views: AugmentedViews,
        params: FlatParams,
        progress: ProgressFn,
    ) -> None:
        """Compute all stores that are missing, unless that of `cut_layer` is there."""
        missing = {layer: store for layer, store in stores.items() if processes.any_process(not store.exists())}
        if cut_layer not in missing:
            return
        suffix = "" if views.augmentation is None else f", {views.num_views} views"
        title = f"Computing features: {self._split}{suffix} ({cut_layer})"
        with progress(title, len(self) * views.num_views) as advance:
            extractor = FeatureExtractor(self._model, self._mesh, params)
            extractor.extract(missing, self._images, views, self._batch_size, advance)
        if processes.any_process(not stores[cut_layer].exists()):
            raise UserError(
                f"Process 0 wrote features to {self._cache_dir}, but not every process can read them there. "
                "Set feature_cache.dir to a folder that all processes share."
            )

    def _fits_on_device(self, store: ArrayStore, reserved_bytes: int) -> bool:
        """Return whether the features fit into the device memory of every process."""
        memory, _ = devices.device_memory(self._mesh)
        needed = device_bytes(store.shape, store.dtype.itemsize, self._mesh) + self._image_bytes + reserved_bytes
        return fits_in_memory(needed, memory)

    def _store(self, layer: str, views: AugmentedViews, digests: Mapping[str, str]) -> ArrayStore:
        shape = (len(self) * views.num_views, *self._shapes[layer])
        return ArrayStore(self._cache_dir / f"{self._key(layer, views, digests)}.npy", shape, views.dtype)

    def _key(self, layer: str, views: AugmentedViews, digests: Mapping[str, str]) -> str:
        """Return a name that identifies everything that the outputs of `layer` depend on."""
        needed_layers = set(self._order[: self._order.index(layer) + 1])
        model = self._model
        parts = [
            __version__,
            devices.platform_of(self._mesh),
            CONV_VERSION,
            self._images.digest,
            model.spec.name,
            str(model.dtype),
            model.precision,
            layer,
            repr(views),
            *sorted(f"{path}={digest}" for path, digest in digests.items() if layer_of(path) in needed_layers),
        ]
        return f"{layer}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:DIGEST_LENGTH]}"


def load_splits(
    setup: RunSetup, splits: Sequence[str], console: Console, *, may_skip: bool
) -> tuple[RunSetup, dict[str, SplitData], dict[str, str]]:
    """Decode all images of `splits`; with `data.loader=tfdata` only to find those that cannot be read.

    Args:
      setup: the run.
      splits: names of splits.
      console: where progress and skipped images are shown.
      may_skip: allow `data.on_error=skip` to remove unreadable images from the manifest.

    Returns:
      The setup with a manifest of the readable images only; split name -> its data; path -> reason, for skipped images.

    Raises:
      UserError: images cannot be read; one error lists those of all splits.
    """
    examples = [example for split in splits for example in setup.manifest.of_split(split)]
    remedy: str | None = REMEDY
    if may_skip:
        remedy = None if setup.config.data.on_error == "skip" else SKIP_REMEDY
    images: ImagePixels | ArrayStore | EncodedImages
    if setup.config.data.loader == "tfdata":
        from flaxtl.data import tfdata  # noqa: F401  # without TensorFlow, stop here rather than at the first step

        images, unreadable = _encoded_images(setup, examples, console, remedy)
    elif _is_streamed(setup, len(examples), console):
        images, unreadable = _decode_to_disk(setup, examples, console, remedy)
    else:
        images, unreadable = _decode_to_memory(setup, examples, console, remedy)
    skipped = {examples[index].path: reason for index, reason in unreadable.items()}
    if skipped:
        _report_skipped(skipped, len(examples), console)
        setup = build_setup(setup.config, setup.workdir, setup.manifest.without(skipped))
    split_data, first = {}, 0
    for split in splits:
        members = setup.manifest.of_split(split)
        last = first + len(members)
        split_data[split] = _split_data(setup, split, _image_set(setup, members, images, first, last))
        first = last
    return setup, split_data, skipped


def decode_examples(setup: RunSetup, examples: Sequence[Example], console: Console) -> ImageSet:
    """Decode any images as the run decodes its own; if they are too many for memory, again whenever they are read.

    No file is written: the run may be in training, and its directory has the images of its own splits only.

    Raises:
      UserError: images cannot be read; one error lists all.
    """
    decode = _encoded_images if _is_streamed(setup, len(examples), console) else _decode_to_memory
    images, _ = decode(setup, examples, console, REMEDY)
    return _image_set(setup, examples, images, 0, len(examples))


def feature_cache_dir(setup: RunSetup) -> Path:
    """Return the folder of cached features: `feature_cache.dir`, or one in the run directory."""
    return user_path(setup.config.feature_cache.dir or setup.workdir / "features")


def remove_intermediate_files(setup: RunSetup) -> None:
    """Remove files that only resuming needs: decoded images, and features in the run directory."""
    images = _image_dir(setup).parent
    for folder in (*images.glob("[0-9]*"), images):
        remove_stores(folder)
    if not setup.config.feature_cache.dir:
        remove_stores(feature_cache_dir(setup))


def _report_skipped(skipped: dict[str, str], num_images: int, console: Console) -> None:
    names = ", ".join(f"{path} ({reason})" for path, reason in list(skipped.items())[:MAX_LISTED])
    more = f" and {len(skipped) - MAX_LISTED} more (all in summary.json)" if len(skipped) > MAX_LISTED else ""
    message(console, f"Skipped {len(skipped)} of {num_images} images that cannot be read: {names}{more}")


def _is_streamed(setup: RunSetup, num_images: int, console: Console) -> bool:
    """Return whether images are read from disk in each epoch, with a message on what `data.pipeline=auto` selects."""
    pipeline = setup.config.data.pipeline
    if pipeline == "auto":
        num_bytes = device_bytes((num_images, setup.resize.height, setup.resize.width, 3), 1, setup.mesh)
        pipeline, reason = choose_pipeline(num_bytes, *devices.device_memory(setup.mesh), setup.mesh.size)
        message(console, reason)
    return bool(pipeline == "stream")


def _decode_to_memory(
    setup: RunSetup, examples: Sequence[Example], console: Console, remedy: str | None
) -> tuple[ImagePixels, dict[int, str]]:
    """Return the readable images in order, and index -> reason for the others."""
    images: ImagePixels = aligned_empty((len(examples), setup.resize.height, setup.resize.width, 3), np.uint8)
    unreadable = _decode_into(images, setup, examples, console, remedy)
    readable = [index for index in range(len(examples)) if index not in unreadable]
    for row, index in enumerate(readable):
        if row < index:  # in place: a copy would double the memory
            images[row] = images[index]
    return images[: len(readable)], unreadable


def _encoded_images(
    setup: RunSetup, examples: Sequence[Example], console: Console, remedy: str | None
) -> tuple[EncodedImages, dict[int, str]]:
    """Return the readable files in order, and index -> reason for the others."""
    unreadable = _decode_into(None, setup, examples, console, remedy)
    paths = (Path(example.path) for index, example in enumerate(examples) if index not in unreadable)
    return EncodedImages(tuple(paths), setup.resize), unreadable


def _decode_to_disk(
    setup: RunSetup, examples: Sequence[Example], console: Console, remedy: str | None
) -> tuple[ArrayStore, dict[int, str]]:
    """Decode into a file that is named after its images, so that a resumed run finds it."""
    store = _image_store(setup, examples)
    if store.exists():
        return store, {}
    remove_stores(_image_dir(setup))  # images of another manifest
    check_space([store], "Decoded images need", "Free some space or reduce data.height and data.width.")
    with ArrayStoreWriter(store) as writer:
        unreadable = _decode_into(writer, setup, examples, console, remedy)
        if unreadable:
            readable = [index for index in range(len(examples)) if index not in unreadable]
            compact = _image_store(setup, [examples[index] for index in readable])
            with ArrayStoreWriter(compact) as compact_writer:
                for row, index in enumerate(readable):
                    compact_writer[row] = writer.read([index])[0]
            writer.discard()
            store = compact
    return store, unreadable


def _decode_into(
    images: ImageSink | None, setup: RunSetup, examples: Sequence[Example], console: Console, remedy: str | None
) -> dict[int, str]:
    """Decode with a progress bar, if `images` is None to nowhere; return index -> reason for unreadable images.

    Raises:
      UserError: there are unreadable images; it advises the `remedy`, and without one nothing is raised.
    """
    paths = [Path(example.path) for example in examples]
    decode = find_unreadable if images is None else partial(decode_into, images)
    with progress_bar(console, "Checking images" if images is None else "Decoding images", len(paths)) as advance:
        unreadable = decode(paths, setup.resize, lambda done: advance(1))
    if remedy:
        raise_unreadable(paths, unreadable, remedy)
    return unreadable


def _image_store(setup: RunSetup, examples: Sequence[Example]) -> ArrayStore:
    path = _image_dir(setup) / f"{_digest(setup.resize, examples)[:DIGEST_LENGTH]}.npy"
    return ArrayStore(path, (len(examples), setup.resize.height, setup.resize.width, 3), np.dtype(np.uint8))


def _image_dir(setup: RunSetup) -> Path:
    """Each process has its own folder, so none waits for another, and it may be on a local disk."""
    return setup.workdir / "images" / str(jax.process_index())


def _digest(resize: Resize, examples: Sequence[Example]) -> str:
    """Return a hash that identifies the decoded images of these files."""
    parts = [__version__, str(resize), *(example.sha256 for example in examples)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _image_set(
    setup: RunSetup,
    examples: Sequence[Example],
    images: ImagePixels | ArrayStore | EncodedImages,
    first: int,
    last: int,
) -> ImageSet:
    """Return images `first` to `last` (exclusive), which are those of `examples`."""
    labels = setup.manifest.labels(examples)
    if isinstance(images, np.ndarray):
        return ImageSet(images[first:last], labels)
    digest = _digest(setup.resize, examples)
    return ImageSet(images.part(first, last), labels, digest, setup.config.data.augment_on)


def _split_data(setup: RunSetup, split: str, images: ImageSet) -> SplitData:
    """Cut layers of augmented phases need augmented views of the training images, all others plain images."""
    config = setup.config
    augmentation = setup.augmentation.without_mixing()
    views = AugmentedViews(VIEWS_DTYPE, config.feature_cache.views, config.seed, augmentation)
    augmented = [phase for phase in setup.phases if split == "train" and phase.augment]
    plain = [phase for phase in setup.phases if phase not in augmented]
    return SplitData(
        split=split,
        model=setup.feature_model,
        layers=setup.model_info.layers,
        mesh=setup.mesh,
        images=images,
        cut_layers=[phase.cut_layer for phase in plain if phase.cut_layer],
        cache_dir=feature_cache_dir(setup),
        batch_size=config.batch_size,
        augmented=CutLayers([phase.cut_layer for phase in augmented if phase.cut_layer], views)
        if views.num_views
        else None,
    )
