"""The frozen prefix of a network, run over pictures or augmented views of them into files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.apply import augment
from flaxtl.data.augment import Augmentation, keys
from flaxtl.data.order import evaluation_batches
from flaxtl.models.classifier import Classifier, forward
from flaxtl.train import hosts
from flaxtl.train import mesh as meshes
from flaxtl.train.feature_files import Draft, FeatureFile, find_room
from flaxtl.train.groups import Flat, nest
from flaxtl.train.pictures import Pictures

Item = TypeVar("Item")

VIEWS_DTYPE = np.dtype(jnp.bfloat16)
"""Of stored views: half the memory of float32, for its range. VGG16, which is fed with grey levels, has outputs of up
to 19,900 on 40 pictures of flowers (block3_pool); float16 ends at 65,504. What is rounded off is at most 1/256."""


class Views(NamedTuple):
    """In how many ways each picture is looked at, and how what comes of it is stored.

    View v of picture i is what the step itself would make of it in pass v, with the same seed. Without augmentation
    there is one view, the picture as it is.
    """

    dtype: np.dtype[Any]
    n: int = 1
    seed: int = 0
    augmentation: Augmentation | None = None


class Prefix(NamedTuple):
    """The layers of `model` below and at its cuts."""

    model: Classifier
    mesh: Mesh
    parameters: Flat

    def fill(
        self,
        files: Mapping[str, FeatureFile],
        pictures: Pictures,
        views: Views,
        batch: int,
        advance: Callable[[int], None],
    ) -> None:
        """Write the outputs of layers, given from low to high, to their files, row i * views.n + v of each.

        One pass serves them all; it goes on where an earlier one was ended. All processes compute, the first writes.
        `advance` is called with numbers of rows done.
        """
        n, folder = len(pictures) * views.n, next(iter(files.values())).path.parent
        with ExitStack() as stack:
            drafts = {cut: stack.enter_context(Draft(file)) for cut, file in files.items()} if hosts.writes() else {}
            hosts.barrier("the files of features are begun")
            done = {cut: file.rows_done() for cut, file in files.items()}
            hosts.same(
                f"what lies in {folder}", repr([(done[cut], file.scratch.exists()) for cut, file in files.items()])
            )
            find_room(folder, sum((n - done[cut]) * file.row_bytes for cut, file in files.items()))
            first = min(done.values())
            advance(first)
            for outputs, real in _one_behind(self._outputs(tuple(files), pictures, views, batch, first)):
                for cut, draft in drafts.items():
                    draft.put(first, np.asarray(outputs[cut])[real])
                advance(int(real.sum()))
                first += int(real.sum())
        hosts.barrier("the files of features are complete")

    def _outputs(
        self, cuts: tuple[str, ...], pictures: Pictures, views: Views, batch: int, first: int
    ) -> Iterator[tuple[dict[str, jax.Array], npt.NDArray[np.bool_]]]:
        """Of each batch of rows from `first` on, by layer, with the mask of those that do not pad it."""

        split = meshes.batched(self.mesh)
        compiled = _program(self.model, self.mesh, cuts, views)
        for places, real in evaluation_batches(len(pictures) * views.n - first, batch):
            indices, passes = np.divmod(first + places, np.int32(views.n))
            given = (hosts.spread(part, split) for part in (pictures.read(indices), passes, indices))
            yield compiled(self.parameters, *given), real


@cache
def _program(model: Classifier, mesh: Mesh, cuts: tuple[str, ...], views: Views) -> Callable[..., dict[str, jax.Array]]:
    """(parameters, pictures [batch, ...], passes [batch], indices [batch]) -> outputs by layer, for any split."""

    def run(parameters: Flat, seen: jax.Array, passes: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        if views.augmentation is not None:
            seen = augment(keys(views.seed, passes, indices), seen, views.augmentation)
        taps = forward(model, nest(parameters), seen, stop=cuts[-1], taps=cuts).taps
        return {cut: output.astype(views.dtype) for cut, output in taps.items()}

    whole, split = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(run, in_shardings=(whole, split, split, split), out_shardings=whole)


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Each item when the next is on its way, so that the device works while the host writes."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
