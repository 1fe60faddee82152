"""Feature cache: outputs of frozen layers, computed once per image and kept in files.

A frozen backbone gives the same output for the same image, so phases that train only the layers above a *cut layer*
read its outputs from here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter, check_space
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.loaders import ImageSet, Mask
from flaxtl.data.sampler import padded_batches
from flaxtl.models.classifier import Classifier, FlatParams, unflatten_params
from flaxtl.models.inference import infer
from flaxtl.parallel import devices, processes

Item = TypeVar("Item")

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
        compiled = make_feature_step(self.model, self.mesh, layers, views)
        for rows, mask in padded_batches(len(images) * views.num_views - first, batch_size):
            indices, epochs = np.divmod(first + rows, np.int32(views.num_views))
            batch = (processes.put_global(array, sharding) for array in (images.read(indices), epochs, indices))
            yield compiled(self.params, *batch), mask


@cache
def make_feature_step(
    model: Classifier, mesh: Mesh, layers: tuple[str, ...], views: AugmentedViews
) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted (params, images [batch, ...], epochs [batch], indices [batch]) -> outputs by layer."""

    def run(params: FlatParams, images: jax.Array, epochs: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        if views.augmentation is not None:
            images = augment(example_keys(views.seed, epochs, indices), images, views.augmentation)
        in_chunks = devices.is_one_cpu(mesh)
        taps = infer(model, unflatten_params(params), images, in_chunks=in_chunks, stop=layers[-1], taps=layers).taps
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
