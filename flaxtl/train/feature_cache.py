"""Feature cache: outputs of frozen layers, computed once per image and kept in files.

A frozen backbone gives the same output for the same image, so phases that train only the layers above a *cut layer*
read its outputs from here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxtl import __version__
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter, check_space
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.loaders import (
    MAX_MEMORY_FRACTION,
    DeviceDataset,
    DeviceLoader,
    HostLoader,
    ImageSet,
    Loader,
    Mask,
    bits,
)
from flaxtl.data.sampler import padded_batches
from flaxtl.errors import UserError
from flaxtl.models.classifier import Classifier, FlatParams, forward, unflatten_params
from flaxtl.models.tracer import Layer
from flaxtl.parallel import devices, processes
from flaxtl.train.param_groups import layer_of

Item = TypeVar("Item")

ProgressFn = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, total) -> context manager of a progress bar, which yields the function that advances it."""

VIEWS_DTYPE = np.dtype(jnp.bfloat16)
"""Dtype of augmented views: half the memory of float32, with its range. VGG16's preprocessing keeps gray levels, so its
outputs reach 19,900 (block3_pool, 40 flower images); float16 ends at 65,504. The rounding error is at most 1/256."""


class AugmentedViews(NamedTuple):
    """How many augmented views of each image are cached, and how.

    View v of image i is what the train step itself would compute in epoch v with the same seed. Without `augmentation`
    there is one view, the image itself.
    """

    dtype: np.dtype[Any]
    num_views: int = 1
    seed: int = 0
    augmentation: AugmentConfig | None = None


class CutLayers(NamedTuple):
    """The cut layers of a run's phases, and the views that are cached of them."""

    layers: Sequence[str]
    views: AugmentedViews


class SplitData:
    """The images of one split and their cached features; creates the loaders of both.

    Args:
      split: name of the split, for progress bars.
      model: the classifier.
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
        self._features: tuple[Path, jax.Array] | None = None  # in device memory

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """A string that identifies the images."""
        return self._images.digest

    @property
    def device_bytes(self) -> int:
        """Memory that the split uses on each device."""
        return self._image_bytes + (self._features[1].nbytes if self._features else 0)

    def image_loader(self) -> Loader:
        """Return the loader of the images."""
        self._features = None
        loader = self._images.loader(self._mesh)
        if isinstance(loader, DeviceLoader):
            self._image_bytes = loader.data.inputs.nbytes
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
        assert cuts is not None, "views are announced at construction"
        assert cuts.views.num_views == max(num_views, 1), "so is their number"
        digests = param_digests({path: value for path, value in params.items() if path.startswith("backbone/")})
        layers = sorted(set(cuts.layers), key=self._order.index)
        stores = {layer: self._store(layer, cuts.views, digests) for layer in layers}
        store, labels = stores[cut_layer], self._images.labels
        if self._features is None or self._features[0] != store.path:
            self._features = None
            self._extract_missing(stores, cut_layer, cuts.views, params, progress)
            if not self._fits_on_device(store, reserved_bytes):
                return HostLoader(store, labels, self._mesh, cuts.views.num_views)
            self._features = store.path, self._replicate(bits(store.read()))
        data = DeviceDataset(self._features[1], self._replicate(np.repeat(labels, cuts.views.num_views)))
        return DeviceLoader(data, cuts.views.num_views)

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
        needed = store.nbytes + self._image_bytes + reserved_bytes
        return not processes.any_process(needed > MAX_MEMORY_FRACTION * memory)

    def _replicate(self, array: Any) -> jax.Array:
        return processes.put_global(array, devices.replicated_sharding(self._mesh))

    def _store(self, layer: str, views: AugmentedViews, digests: Mapping[str, str]) -> ArrayStore:
        shape = (len(self) * views.num_views, *self._shapes[layer])
        return ArrayStore(self._cache_dir / f"{self._key(layer, views, digests)}.npy", shape, views.dtype)

    def _key(self, layer: str, views: AugmentedViews, digests: Mapping[str, str]) -> str:
        """Return a name that identifies everything that the outputs of `layer` depend on."""
        needed_layers = set(self._order[: self._order.index(layer) + 1])
        model = self._model
        parts = [
            __version__,
            jax.default_backend(),
            self._images.digest,
            model.spec.name,
            str(model.dtype),
            layer,
            repr(views),
            *sorted(f"{path}={digest}" for path, digest in digests.items() if layer_of(path) in needed_layers),
        ]
        return f"{layer}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:20]}"


class FeatureExtractor(NamedTuple):
    """Computes the outputs of a model's layers for all images of a split."""

    model: Classifier
    mesh: Mesh
    params: FlatParams

    def extract(
        self,
        stores: Mapping[str, ArrayStore],
        images: ImageSet,
        views: AugmentedViews,
        batch_size: int,
        advance: Callable[[int], None],
    ) -> None:
        """Write the outputs of layers to their stores; continues where an earlier call was interrupted.

        All processes compute, process 0 writes.

        Args:
          stores: layer -> store, from the first layer to the last. Row `i * num_views + v` is view v of image i.
          images: the images.
          views: what is computed of each image.
          batch_size: rows per step.
          advance: called with the number of rows that were done.
        """
        num_rows, folder = len(images) * views.num_views, next(iter(stores.values())).path.parent
        advice = "Free some space, set feature_cache.dir to another disk, or reduce feature_cache.views."
        check_space(stores.values(), "Features need", advice)
        with ExitStack() as stack:
            writers = {
                layer: stack.enter_context(ArrayStoreWriter(store))
                for layer, store in stores.items()
                if processes.is_main_process()
            }
            processes.barrier("the feature files are open")
            found = [(store.rows_done(), store.partial_path.exists()) for store in stores.values()]
            processes.assert_equal(f"The content of {folder}", repr(found))
            first = min(rows for rows, _ in found)
            advance(first)
            for outputs, mask in _dispatch_ahead(self._outputs(tuple(stores), images, views, batch_size, first)):
                for layer, writer in writers.items():
                    writer.write(first, np.asarray(outputs[layer])[mask])
                first += int(mask.sum())
                advance(int(mask.sum()))
            assert first == num_rows
        processes.barrier("the feature files are complete")

    def _outputs(
        self, layers: tuple[str, ...], images: ImageSet, views: AugmentedViews, batch_size: int, first: int
    ) -> Iterator[tuple[dict[str, jax.Array], Mask]]:
        """Yield the layers' outputs of each batch of rows from `first` on, with the mask of its rows."""
        sharding = devices.batch_sharding(self.mesh)
        compiled = _forward_fn(self.model, self.mesh, layers, views)
        for rows, mask in padded_batches(len(images) * views.num_views - first, batch_size):
            indices, epochs = np.divmod(first + rows, np.int32(views.num_views))
            batch = (processes.put_global(array, sharding) for array in (images.read(indices), epochs, indices))
            yield compiled(self.params, *batch), mask


@cache
def _forward_fn(
    model: Classifier, mesh: Mesh, layers: tuple[str, ...], views: AugmentedViews
) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted (params, images [batch, ...], epochs [batch], indices [batch]) -> outputs by layer."""

    def run(params: FlatParams, images: jax.Array, epochs: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        if views.augmentation is not None:
            images = augment(example_keys(views.seed, epochs, indices), images, views.augmentation)
        taps = forward(model, unflatten_params(params), images, stop=layers[-1], taps=layers).taps
        return {layer: output.astype(views.dtype) for layer, output in taps.items()}

    replicated, split = devices.replicated_sharding(mesh), devices.batch_sharding(mesh)
    return jax.jit(run, in_shardings=(replicated, split, split, split), out_shardings=replicated)


def _dispatch_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item once the next one was dispatched, so that the device computes while the host writes."""
    previous: list[Item] = []
    for item in items:
        yield from previous
        previous = [item]
    yield from previous


def param_digests(params: Mapping[str, jax.Array]) -> dict[str, str]:
    """Return the SHA-256 of each parameter's bytes, as they are on the device now.

    Arrays are copied first, because a jax.Array caches its value once it has been fetched to the host.
    """
    copies = ((path, np.asarray(jnp.copy(value))) for path, value in params.items())
    return {path: hashlib.sha256(array.tobytes()).hexdigest() for path, array in copies}
