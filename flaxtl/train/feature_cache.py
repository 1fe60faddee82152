"""The frozen prefix of a network, run over images or augmented views of them into files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl import __version__
from flaxtl.data.array_store import ArrayStoreWriter, FeatureFile, check_feature_space
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.loaders import (
    MAX_MEMORY_FRACTION,
    DeviceDataset,
    DeviceLoader,
    ImageSet,
    Loader,
    MappedLoader,
    ViewsLoader,
    bits,
)
from flaxtl.data.sampler import padded_batches
from flaxtl.errors import UserError
from flaxtl.models.classifier import Classifier, FlatParams, forward, unflatten_params
from flaxtl.models.tracer import Layer
from flaxtl.parallel import devices, processes

Item = TypeVar("Item")

VIEWS_DTYPE = np.dtype(jnp.bfloat16)
"""Of stored views: half the memory of float32, for its range. VGG16, which is fed with grey levels, has outputs of up
to 19,900 on 40 images of flowers (block3_pool); float16 ends at 65,504. What is rounded off is at most 1/256."""


class AugmentedViews(NamedTuple):
    """In how many ways each image is looked at, and how what comes of it is stored.

    View v of image i is what the step itself would make of it in pass v, with the same seed. Without augmentation
    there is one view, the image as it is.
    """

    dtype: np.dtype[Any]
    n: int = 1
    seed: int = 0
    augmentation: AugmentConfig | None = None


class FeatureExtractor(NamedTuple):
    """The layers of `model` below and at its cuts."""

    model: Classifier
    mesh: Mesh
    parameters: FlatParams

    def fill(
        self,
        files: Mapping[str, FeatureFile],
        images: ImageSet,
        views: AugmentedViews,
        batch: int,
        advance: Callable[[int], None],
    ) -> None:
        """Write the outputs of layers, given from low to high, to their files, row i * views.n + v of each.

        One pass serves them all; it goes on where an earlier one was ended. All processes compute, the first writes.
        `advance` is called with numbers of rows done.
        """
        n, folder = len(images) * views.n, next(iter(files.values())).path.parent
        with ExitStack() as stack:
            drafts = (
                {cut: stack.enter_context(ArrayStoreWriter(file)) for cut, file in files.items()}
                if processes.is_main_process()
                else {}
            )
            processes.barrier("the files of features are begun")
            done = {cut: file.rows_done() for cut, file in files.items()}
            processes.assert_equal(
                f"what lies in {folder}", repr([(done[cut], file.scratch.exists()) for cut, file in files.items()])
            )
            check_feature_space(folder, sum((n - done[cut]) * file.row_bytes for cut, file in files.items()))
            first = min(done.values())
            advance(first)
            for outputs, real in _one_behind(self._outputs(tuple(files), images, views, batch, first)):
                for cut, draft in drafts.items():
                    draft.put(first, np.asarray(outputs[cut])[real])
                advance(int(real.sum()))
                first += int(real.sum())
        processes.barrier("the files of features are complete")

    def _outputs(
        self, cuts: tuple[str, ...], images: ImageSet, views: AugmentedViews, batch: int, first: int
    ) -> Iterator[tuple[dict[str, jax.Array], npt.NDArray[np.bool_]]]:
        """Of each batch of rows from `first` on, by layer, with the mask of those that do not pad it."""

        split = devices.batch_sharding(self.mesh)
        compiled = _program(self.model, self.mesh, cuts, views)
        for places, real in padded_batches(len(images) * views.n - first, batch):
            indices, passes = np.divmod(first + places, np.int32(views.n))
            given = (processes.put_global(part, split) for part in (images.read(indices), passes, indices))
            yield compiled(self.parameters, *given), real


@cache
def _program(
    model: Classifier, mesh: Mesh, cuts: tuple[str, ...], views: AugmentedViews
) -> Callable[..., dict[str, jax.Array]]:
    """(parameters, images [batch, ...], passes [batch], indices [batch]) -> outputs by layer, for any split."""

    def run(parameters: FlatParams, seen: jax.Array, passes: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        if views.augmentation is not None:
            seen = augment(example_keys(views.seed, passes, indices), seen, views.augmentation)
        taps = forward(model, unflatten_params(parameters), seen, stop=cuts[-1], taps=cuts).taps
        return {cut: output.astype(views.dtype) for cut, output in taps.items()}

    whole, split = devices.replicated_sharding(mesh), devices.batch_sharding(mesh)
    return jax.jit(run, in_shardings=(whole, split, split, split), out_shardings=whole)


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Each item when the next is on its way, so that the device works while the host writes."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


ProgressFn = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Title and total -> a progress bar; entering it gives the function that advances it."""


class CutLayers(NamedTuple):
    """Layers that phases start from, and in which views the images come there."""

    layers: Sequence[str]
    views: AugmentedViews


def param_digests(parameters: Mapping[str, jax.Array]) -> dict[str, str]:
    """path -> SHA-256 of a parameter's bytes, as they are on the device now.

    Of a copy, because an array remembers what was once fetched of it from an accelerator.
    """
    copies = ((path, np.asarray(jnp.copy(value))) for path, value in parameters.items())
    return {path: hashlib.sha256(array.tobytes()).hexdigest() for path, array in copies}


class SplitData:
    """The decoded images of one split, and what the frozen prefix makes of them.

    `cuts` are the layers that the run's phases start from: one pass over the images serves them all. `augmented` are
    those of phases that learn from a few augmented views of each image.
    """

    def __init__(
        self,
        model: Classifier,
        layers: Sequence[Layer],
        mesh: Mesh,
        images: ImageSet,
        cuts: Sequence[str],
        directory: Path,
        batch: int,
        augmented: CutLayers | None = None,
    ) -> None:
        """Files go to `directory`."""
        self._model, self._mesh, self._batch, self._directory = model, mesh, batch, directory
        self._shapes = {layer.name: layer.shape for layer in layers if layer.section == "backbone"}
        self._order = list(self._shapes)
        self._clean = CutLayers(cuts, AugmentedViews(np.dtype(model.dtype)))
        self._augmented = augmented
        self._images = images
        self._held: dict[Path, jax.Array] = {}
        self._pixels = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    @property
    def digest(self) -> str:
        """Tells the images from all others."""
        return self._images.digest

    @property
    def held_bytes(self) -> int:
        """How much of each device's memory is taken."""
        return self._pixels + sum(array.nbytes for array in self._held.values())

    def images(self) -> Loader:
        """The images themselves."""
        feed = self._images.feed(self._mesh)
        if isinstance(feed, DeviceLoader):
            self._pixels = feed.data.inputs.nbytes  # they stay
        self._held = {}
        return feed

    def features(self, cut: str, parameters: FlatParams, progress: ProgressFn, beside: int = 0) -> Loader:
        """The outputs of layer `cut`, computed, with a progress bar, if they are not at hand.

        They lie on the device, if there is room `beside` so many bytes.
        """
        return self._feed(self._clean, cut, parameters, progress, beside)

    def views(self, cut: str, parameters: FlatParams, progress: ProgressFn, beside: int = 0) -> Loader:
        """The outputs of layer `cut` for augmented views of each image, a pass over the images a view.

        After as many passes the views come again. They are computed and kept as `features` are.
        """
        assert self._augmented is not None, "asked for only where it was announced"
        return self._feed(self._augmented, cut, parameters, progress, beside)

    def _feed(self, cuts: CutLayers, cut: str, parameters: FlatParams, progress: ProgressFn, beside: int) -> Loader:
        digests = param_digests({path: value for path, value in parameters.items() if path.startswith("backbone/")})
        files = {name: self._file(cuts, name, digests) for name in self._sorted(cuts.layers)}
        file, labels, count = files[cut], self._images.labels, cuts.views.n
        self._held = {path: array for path, array in self._held.items() if path == file.path}
        if not self._held:
            self._fill(files, cut, cuts.views, parameters, progress)
            if not self._fits(file, beside):
                return MappedLoader(file, labels, self._mesh, count)
            self._held[file.path] = processes.put_global(
                bits(file.read(slice(None))), devices.replicated_sharding(self._mesh)
            )
        rows = processes.put_global(np.repeat(labels, count), devices.replicated_sharding(self._mesh))
        data = DeviceDataset(self._held[file.path], rows)
        return DeviceLoader(data) if cuts.views.augmentation is None else ViewsLoader(data, count)

    def _fill(
        self,
        files: Mapping[str, FeatureFile],
        cut: str,
        views: AugmentedViews,
        parameters: FlatParams,
        progress: ProgressFn,
    ) -> None:
        """Compute what is missing, unless `cut` is there."""
        missing = {name: file for name, file in files.items() if processes.any_process(file.mapped() is None)}
        if cut not in missing:
            return
        title = f"up to {cut}" if views.augmentation is None else f"in {views.n} views up to {cut}"
        with progress(title, len(self) * views.n) as advance:
            FeatureExtractor(self._model, self._mesh, parameters).fill(
                missing, self._images, views, self._batch, advance
            )
        if processes.any_process(files[cut].mapped() is None):
            raise UserError(
                f"not every process finds the features that the first wrote to {self._directory}; "
                "let feature_cache.dir be a folder that all of them share"
            )

    def _fits(self, file: FeatureFile, beside: int) -> bool:
        """Whether every process has room for it on its devices."""
        memory, _ = devices.device_memory(self._mesh)
        return not processes.any_process(file.nbytes + self._pixels + beside > MAX_MEMORY_FRACTION * memory)

    def _file(self, cuts: CutLayers, cut: str, digests: Mapping[str, str]) -> FeatureFile:
        shape = (len(self) * cuts.views.n, *self._shapes[cut])
        path = self._directory / f"{self._key(cut, digests, cuts.views)}.npy"
        return FeatureFile(path, shape, cuts.views.dtype)

    def _key(self, cut: str, digests: Mapping[str, str], views: AugmentedViews | None = None) -> str:
        """Names everything that the outputs of `cut` depend on."""
        below = set(self._order[: self._order.index(cut) + 1])
        model = self._model
        parts = [
            __version__,
            jax.default_backend(),
            self._images.digest,
            model.architecture.name,
            str(model.dtype),
            cut,
            repr(views or self._clean.views),
        ]
        parts += sorted(f"{path}={value}" for path, value in digests.items() if path.split("/")[1] in below)
        return f"{cut}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:20]}"

    def _sorted(self, layers: Sequence[str]) -> list[str]:
        """From low to high, each once."""
        return sorted(set(layers), key=self._order.index)
