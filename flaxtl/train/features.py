"""The frozen prefix of a network, computed once a picture.

What lies below the lowest layer that learns gives the same output for the same picture in every epoch. It is
computed once, kept on the device, and written to a file named after everything it depends on: the pixels, the
weights, the cut and the precision. A resumed run, or one that shares the directory, reads it back.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl import __version__, files
from flaxtl.data.order import evaluation_batches
from flaxtl.data.resident import Resident
from flaxtl.errors import UserError
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.trace import Layer
from flaxtl.train import hosts
from flaxtl.train import mesh as meshes
from flaxtl.train.feeds import Feed, ResidentFeed
from flaxtl.train.groups import Flat, nest
from flaxtl.train.pictures import Pictures

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Title and total -> a progress bar; entering it gives the function that advances it."""


def digest(parameters: Mapping[str, jax.Array]) -> dict[str, str]:
    """path -> SHA-256 of a parameter's bytes, as they are on the device now.

    Of a copy, because an array remembers what was once fetched of it from an accelerator.
    """
    copies = ((path, np.asarray(jnp.copy(value))) for path, value in parameters.items())
    return {path: hashlib.sha256(array.tobytes()).hexdigest() for path, array in copies}


class Inputs:
    """The decoded pictures of one split, and what the frozen prefix makes of them.

    `cuts` are the layers that the run's phases start from: one pass over the pictures serves them all.
    """

    def __init__(
        self,
        model: Classifier,
        layers: Sequence[Layer],
        mesh: Mesh,
        pictures: Pictures,
        cuts: Sequence[str],
        directory: Path,
        batch: int,
    ) -> None:
        """Files go to `directory`."""
        self._model, self._mesh, self._batch, self._directory = model, mesh, batch, directory
        self._order = [layer.name for layer in layers if layer.section == "backbone"]
        self._cuts = sorted(set(cuts), key=self._order.index)
        self._pictures = pictures
        self._labels = hosts.spread(pictures.labels, meshes.replicated(mesh))
        self._held: dict[str, jax.Array] = {}

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    @property
    def digest(self) -> str:
        """Tells the pictures from all others."""
        return self._pictures.digest

    def pictures(self) -> Feed:
        """The pictures themselves."""
        return self._pictures.feed(self._mesh)

    def features(self, cut: str, parameters: Flat, progress: Bar) -> ResidentFeed:
        """The outputs of layer `cut`, computed, with a progress bar, if they are not at hand."""
        digests = digest({path: value for path, value in parameters.items() if path.startswith("backbone/")})
        keys = {name: self._key(name, digests) for name in self._cuts}
        self._held = {key: value for key, value in self._held.items() if key in keys.values()}
        if keys[cut] not in self._held:
            self._read(keys)
        if keys[cut] not in self._held:
            with progress(f"up to {cut}", len(self)) as advance:
                self._compute(keys, parameters, advance)
        return ResidentFeed(Resident(self._held[keys[cut]], self._labels))

    def _key(self, cut: str, digests: Mapping[str, str]) -> str:
        """Names everything that the outputs of `cut` depend on."""
        below = set(self._order[: self._order.index(cut) + 1])
        model = self._model
        parts = [
            __version__,
            jax.default_backend(),
            self._pictures.digest,
            model.architecture.name,
            str(model.dtype),
            cut,
        ]
        parts += sorted(f"{path}={value}" for path, value in digests.items() if path.split("/")[1] in below)
        return f"{cut}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:20]}"

    def _file(self, key: str) -> Path:
        return self._directory / f"{key}.npy"

    def _read(self, keys: Mapping[str, str]) -> None:
        for key in keys.values():
            if key in self._held:
                continue
            stored = self._stored(key)
            if not hosts.any_of(stored is None):
                self._held[key] = hosts.spread(stored, meshes.replicated(self._mesh))

    def _stored(self, key: str) -> npt.NDArray[Any] | None:
        """What the file of `key` holds; None if there is none, or a damaged one: it is then computed again."""
        try:
            stored: npt.NDArray[Any] = np.load(self._file(key)).view(self._model.dtype)  # of bfloat16 .npy keeps bytes
        except (OSError, EOFError, ValueError):
            return None
        return stored

    def _compute(self, keys: Mapping[str, str], parameters: Flat, advance: Callable[[int], None]) -> None:
        """One pass over the pictures up to the highest cut, the lower ones tapped on the way."""
        cuts = tuple(self._cuts)

        def run(parameters: Flat, pictures: jax.Array) -> dict[str, jax.Array]:
            return forward(self._model, nest(parameters), pictures, stop=cuts[-1], taps=cuts).taps

        whole, split = meshes.replicated(self._mesh), meshes.batched(self._mesh)
        compiled = jax.jit(run, in_shardings=(whole, split), out_shardings=whole)
        outputs: dict[str, npt.NDArray[Any]] = {}
        first = 0
        for indices, real in evaluation_batches(len(self), self._batch):
            last = first + int(real.sum())
            for cut, value in compiled(parameters, hosts.spread(self._pictures.read(indices), split)).items():
                output = outputs.setdefault(cut, np.empty((len(self), *value.shape[1:]), value.dtype))
                output[first:last] = np.asarray(value)[real]
            advance(last - first)
            first = last
        for cut, output in outputs.items():
            if hosts.writes():
                self._write(keys[cut], output)
            self._held[keys[cut]] = hosts.spread(output, whole)

    def _write(self, key: str, output: npt.NDArray[Any]) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with files.whole(self._file(key), "wb") as file:
                np.save(file, output)
        except OSError as error:
            raise UserError(
                f"cannot write features to {self._directory} ({error.strerror}); choose another features.directory"
            ) from error
