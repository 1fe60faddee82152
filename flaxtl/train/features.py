"""The frozen prefix of a network, computed once a picture, or once for each of a few augmented views of it.

What lies below the lowest layer that learns gives the same output for the same picture in every epoch. It is
computed once, into a file named after everything it depends on: the pixels, their augmentation, the weights, the cut
and the precision. It then lies on the device, or is read batch by batch where it would take too much of its memory. A
resumed run, or one that shares the directory, finds the file.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxtl import __version__
from flaxtl.data.pipeline import SHARE
from flaxtl.data.resident import Resident, bits
from flaxtl.errors import UserError
from flaxtl.models.classifier import Classifier
from flaxtl.models.trace import Layer
from flaxtl.train import hosts
from flaxtl.train import mesh as meshes
from flaxtl.train.feature_feeds import MappedFeed, ViewsFeed
from flaxtl.train.feature_files import FeatureFile
from flaxtl.train.feeds import Feed, ResidentFeed
from flaxtl.train.groups import Flat
from flaxtl.train.pictures import Pictures
from flaxtl.train.prefix import Prefix, Views

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Title and total -> a progress bar; entering it gives the function that advances it."""


class Cuts(NamedTuple):
    """Layers that phases start from, and in which views the pictures come there."""

    layers: Sequence[str]
    views: Views


def digest(parameters: Mapping[str, jax.Array]) -> dict[str, str]:
    """path -> SHA-256 of a parameter's bytes, as they are on the device now.

    Of a copy, because an array remembers what was once fetched of it from an accelerator.
    """
    copies = ((path, np.asarray(jnp.copy(value))) for path, value in parameters.items())
    return {path: hashlib.sha256(array.tobytes()).hexdigest() for path, array in copies}


class Inputs:
    """The decoded pictures of one split, and what the frozen prefix makes of them.

    `cuts` are the layers that the run's phases start from: one pass over the pictures serves them all. `augmented` are
    those of phases that learn from a few augmented views of each picture.
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
        augmented: Cuts | None = None,
    ) -> None:
        """Files go to `directory`."""
        self._model, self._mesh, self._batch, self._directory = model, mesh, batch, directory
        self._shapes = {layer.name: layer.shape for layer in layers if layer.section == "backbone"}
        self._order = list(self._shapes)
        self._clean = Cuts(cuts, Views(np.dtype(model.dtype)))
        self._augmented = augmented
        self._pictures = pictures
        self._held: dict[Path, jax.Array] = {}
        self._pixels = 0

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    @property
    def digest(self) -> str:
        """Tells the pictures from all others."""
        return self._pictures.digest

    @property
    def held_bytes(self) -> int:
        """How much of each device's memory is taken."""
        return self._pixels + sum(array.nbytes for array in self._held.values())

    def pictures(self) -> Feed:
        """The pictures themselves."""
        feed = self._pictures.feed(self._mesh)
        if isinstance(feed, ResidentFeed):
            self._pixels = feed.data.inputs.nbytes  # they stay
        self._held = {}
        return feed

    def features(self, cut: str, parameters: Flat, progress: Bar, beside: int = 0) -> Feed:
        """The outputs of layer `cut`, computed, with a progress bar, if they are not at hand.

        They lie on the device, if there is room `beside` so many bytes.
        """
        return self._feed(self._clean, cut, parameters, progress, beside)

    def views(self, cut: str, parameters: Flat, progress: Bar, beside: int = 0) -> Feed:
        """The outputs of layer `cut` for augmented views of each picture, a pass over the pictures a view.

        After as many passes the views come again. They are computed and kept as `features` are.
        """
        assert self._augmented is not None, "asked for only where it was announced"
        return self._feed(self._augmented, cut, parameters, progress, beside)

    def _feed(self, cuts: Cuts, cut: str, parameters: Flat, progress: Bar, beside: int) -> Feed:
        digests = digest({path: value for path, value in parameters.items() if path.startswith("backbone/")})
        files = {name: self._file(cuts, name, digests) for name in self._sorted(cuts.layers)}
        file, labels, count = files[cut], self._pictures.labels, cuts.views.n
        self._held = {path: array for path, array in self._held.items() if path == file.path}
        if not self._held:
            self._fill(files, cut, cuts.views, parameters, progress)
            if not self._fits(file, beside):
                return MappedFeed(file, labels, self._mesh, count)
            self._held[file.path] = hosts.spread(bits(file.read(slice(None))), meshes.replicated(self._mesh))
        rows = hosts.spread(np.repeat(labels, count), meshes.replicated(self._mesh))
        data = Resident(self._held[file.path], rows)
        return ResidentFeed(data) if cuts.views.augmentation is None else ViewsFeed(data, count)

    def _fill(self, files: Mapping[str, FeatureFile], cut: str, views: Views, parameters: Flat, progress: Bar) -> None:
        """Compute what is missing, unless `cut` is there."""
        missing = {name: file for name, file in files.items() if hosts.any_of(file.mapped() is None)}
        if cut not in missing:
            return
        title = f"up to {cut}" if views.augmentation is None else f"in {views.n} views up to {cut}"
        with progress(title, len(self) * views.n) as advance:
            Prefix(self._model, self._mesh, parameters).fill(missing, self._pictures, views, self._batch, advance)
        if hosts.any_of(files[cut].mapped() is None):
            raise UserError(
                f"not every process finds the features that the first wrote to {self._directory}; "
                "let features.directory be a folder that all of them share"
            )

    def _fits(self, file: FeatureFile, beside: int) -> bool:
        """Whether every process has room for it on its devices."""
        memory, _ = meshes.memory(self._mesh)
        return not hosts.any_of(file.nbytes + self._pixels + beside > SHARE * memory)

    def _file(self, cuts: Cuts, cut: str, digests: Mapping[str, str]) -> FeatureFile:
        shape = (len(self) * cuts.views.n, *self._shapes[cut])
        path = self._directory / f"{self._key(cut, digests, cuts.views)}.npy"
        return FeatureFile(path, shape, cuts.views.dtype)

    def _key(self, cut: str, digests: Mapping[str, str], views: Views | None = None) -> str:
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
            repr(views or self._clean.views),
        ]
        parts += sorted(f"{path}={value}" for path, value in digests.items() if path.split("/")[1] in below)
        return f"{cut}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:20]}"

    def _sorted(self, layers: Sequence[str]) -> list[str]:
        """From low to high, each once."""
        return sorted(set(layers), key=self._order.index)
