"""A recipe and a manifest become what a run works with; every setting is checked here, before anything is computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from flaxtl import cache
from flaxtl.data import fingerprint, sources
from flaxtl.data.augment import Augmentation
from flaxtl.data.decode import Resize
from flaxtl.data.manifest import Manifest, build
from flaxtl.data.order import Order
from flaxtl.errors import UserError, listed, unknown
from flaxtl.models import catalog, classifier
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.trace import Layer
from flaxtl.terminal import advancing
from flaxtl.train import groups
from flaxtl.train import mesh as meshes
from flaxtl.train.balance import class_weights
from flaxtl.train.phases import Phase, plan

CHOICES = {
    "sampling": ("shuffled", "balanced"),
    "on_error": ("fail", "skip"),
    "pipeline": ("auto", "resident", "stream"),
}
"""Settings under data that are one of a few words."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Network:
    """A recipe's network: the model, its layers, the shape and the group of every parameter by path."""

    model: Classifier
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, str]
    cut_groups: frozenset[str] = frozenset()  # of which model.stop leaves no parameter

    def count(self, prefix: str) -> int:
        """Parameters whose path starts with `prefix`."""
        return sum(math.prod(shape) for path, shape in self.shapes.items() if path.startswith(prefix))


@dataclass(frozen=True)
class Setup:
    """What a run works with."""

    config: Any
    workdir: Path
    manifest: Manifest
    network: Network
    phases: tuple[Phase, ...]
    resize: Resize
    augmentation: Augmentation
    class_weights: tuple[float, ...] | None
    mesh: Mesh

    def order(self) -> Order:
        """In which order the training pictures are seen."""
        labels = self.manifest.labels(self.manifest.of_split("train"))
        balanced = labels if self.config.data.sampling == "balanced" else None
        return Order(self.config.seed, self.config.batch, len(labels), balanced)

    def abstract_parameters(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and sharding of every parameter by path: what a checkpoint is restored by."""
        sharding = meshes.replicated(self.mesh)
        shapes = self.network.shapes.items()
        return {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for path, shape in shapes}


def network(config: Any, classes: int) -> Network:
    """The recipe's network for that many classes."""
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    architecture = catalog.find(config.model.name)
    head = Head(classes, config.head.pooling, tuple(config.head.units), config.head.dropout)
    model = Classifier(architecture, head, config.model.stop or None, DTYPES[config.dtype])
    size = (config.data.height, config.data.width)
    shapes = groups.flatten(classifier.shapes(model, *size))
    # Rules are for the whole network, so that cutting its base asks for no others.
    whole = groups.flatten(classifier.shapes(model.clone(last=None), *size)) if model.last else shapes
    assigned = groups.assign(list(whole), config.groups or architecture.groups)
    kept = {path: assigned[path] for path in shapes}
    cut = frozenset(assigned.values()) - frozenset(kept.values())
    return Network(model, tuple(classifier.layers(model, *size)), shapes, kept, cut)


def check_names(config: Any) -> None:
    """Refuse, before any picture is looked at, a network that is not in the catalog and words that are no choice."""
    catalog.find(config.model.name)
    for key, known in CHOICES.items():
        if config.data[key] not in known:
            raise unknown(f"data.{key}", config.data[key], known)


def prepare(config: Any, workdir: Path, manifest: Manifest) -> Setup:
    """Check every setting of the recipe and put the parts together."""
    check_names(config)
    net = network(config, len(manifest.classes))
    data = config.data
    train = manifest.of_split("train")
    return Setup(
        config=config,
        workdir=workdir,
        manifest=manifest,
        network=net,
        phases=plan(config, net.model, net.layers, net.groups, len(train), net.cut_groups),
        resize=Resize(data.height, data.width, data.resize, data.filter),
        augmentation=Augmentation(**config.augmentation.to_dict()),
        class_weights=class_weights(config.class_weights, manifest.classes, manifest.labels(train)),
        mesh=meshes.make(config.batch),
    )


def kept_manifest(workdir: Path) -> Manifest:
    """The manifest of a run that goes on; raises UserError if one of its pictures is no longer what it was."""
    manifest = Manifest.read(workdir / "manifest.csv")
    found = fingerprint.of([Path(example.path) for example in manifest.examples], look=False)
    changed = [
        example.path for example, now in zip(manifest.examples, found, strict=True) if example.sha256 != now.sha256
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{len(changed)} pictures are not what they were when the run in {workdir} began: "
            f"{', '.join(changed[:5])}{more}; bring them back, or start anew in another --workdir"
        )
    return manifest


def manifest_of(config: Any, workdir: Path, console: Console) -> Manifest:
    """Find the recipe's pictures and split them.

    Raises UserError for other classes than the recipe expects, and for a `workdir` among the pictures.
    """
    data = config.data
    listing = sources.find(data.source, cache.directory("data"))
    if Path(listing.origin).is_dir() and workdir.resolve().is_relative_to(listing.origin):
        raise UserError(
            f"--workdir={workdir} lies within the source {listing.origin} and would become a part of it; choose another"
        )
    expected = tuple(data.classes)
    if expected and expected != listing.classes:
        raise UserError(
            f"{data.source} holds the classes {listed(listing.classes)}, but the recipe expects "
            f"{listed(expected)}; correct data.source, or data.classes (--config.data.classes='()' takes any)"
        )
    with advancing(console, "looking for duplicates", len(listing.found)) as advance:
        return build(
            listing,
            data.fractions.to_dict(),
            config.seed,
            near_duplicates=data.near_duplicates,
            allow_leaks=data.allow_leaks,
            warn=lambda sentence: console.print(sentence, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
