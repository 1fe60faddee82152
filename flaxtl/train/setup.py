"""A config and a manifest become what a run works with; every setting is checked here, before anything is computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from flaxtl import fileio
from flaxtl.console import progress_bar
from flaxtl.data import duplicates
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize
from flaxtl.data.manifest import Manifest, make_manifest
from flaxtl.data.sampler import EpochSampler
from flaxtl.data.sources import base
from flaxtl.errors import UserError, join_names, unknown
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.tracer import Layer
from flaxtl.parallel import devices
from flaxtl.train import param_groups
from flaxtl.train.metrics import class_weights
from flaxtl.train.phases import Phase, build_phases

CHOICES = {
    "sampling": ("shuffled", "balanced"),
    "on_error": ("fail", "skip"),
    "pipeline": ("auto", "resident", "stream"),
}
"""Settings under data that are one of a few words."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class ModelInfo:
    """A config's network: the model, its layers, the shape and the group of every parameter by path."""

    model: Classifier
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, str]
    cut_groups: frozenset[str] = frozenset()  # of which model.output_layer leaves no parameter

    def count(self, prefix: str) -> int:
        """Parameters whose path starts with `prefix`."""
        return sum(math.prod(shape) for path, shape in self.shapes.items() if path.startswith(prefix))


@dataclass(frozen=True)
class RunSetup:
    """What a run works with."""

    config: Any
    workdir: Path
    manifest: Manifest
    model_info: ModelInfo
    phases: tuple[Phase, ...]
    resize: Resize
    augmentation: AugmentConfig
    class_weights: tuple[float, ...] | None
    mesh: Mesh

    def sampler(self) -> EpochSampler:
        """In which order the training images are seen."""
        labels = self.manifest.labels(self.manifest.of_split("train"))
        balanced = labels if self.config.data.sampling == "balanced" else None
        return EpochSampler(self.config.seed, self.config.batch_size, len(labels), balanced)

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and sharding of every parameter by path: what a checkpoint is restored by."""
        sharding = devices.replicated_sharding(self.mesh)
        shapes = self.model_info.shapes.items()
        return {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for path, shape in shapes}


def build_model(config: Any, classes: int) -> ModelInfo:
    """The config's network for that many classes."""
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    architecture = registry.get_spec(config.model.name)
    head = Head(classes, config.head.pooling, tuple(config.head.units), config.head.dropout)
    model = Classifier(architecture, head, config.model.output_layer or None, DTYPES[config.dtype])
    size = (config.data.height, config.data.width)
    shapes = classifier.flatten_params(classifier.param_shapes(model, *size))
    # Rules are for the whole network, so that cutting its base asks for no others.
    whole = (
        classifier.flatten_params(classifier.param_shapes(model.clone(output_layer=None), *size))
        if model.output_layer
        else shapes
    )
    assigned = param_groups.assign_groups(list(whole), config.param_groups or architecture.groups)
    kept = {path: assigned[path] for path in shapes}
    cut = frozenset(assigned.values()) - frozenset(kept.values())
    return ModelInfo(model, tuple(classifier.list_layers(model, *size)), shapes, kept, cut)


def check_names(config: Any) -> None:
    """Refuse, before any image is looked at, a network that is not in the catalog and words that are no choice."""
    registry.get_spec(config.model.name)
    for key, known in CHOICES.items():
        if config.data[key] not in known:
            raise unknown(f"data.{key}", config.data[key], known)


def build_setup(config: Any, workdir: Path, manifest: Manifest) -> RunSetup:
    """Check every setting of the config and put the parts together."""
    check_names(config)
    net = build_model(config, len(manifest.classes))
    data = config.data
    train = manifest.of_split("train")
    return RunSetup(
        config=config,
        workdir=workdir,
        manifest=manifest,
        model_info=net,
        phases=build_phases(config, net.model, net.layers, net.groups, len(train), net.cut_groups),
        resize=Resize(data.height, data.width, data.resize, data.interpolation),
        augmentation=AugmentConfig(**config.augmentation.to_dict()),
        class_weights=class_weights(config.class_weights, manifest.classes, manifest.labels(train)),
        mesh=devices.make_mesh(config.batch_size),
    )


def load_manifest(workdir: Path) -> Manifest:
    """The manifest of a run that goes on; raises UserError if one of its images is no longer what it was."""
    manifest = Manifest.read(workdir / "manifest.csv")
    found = duplicates.fingerprint_files([Path(example.path) for example in manifest.examples], perceptual=False)
    changed = [
        example.path for example, now in zip(manifest.examples, found, strict=True) if example.sha256 != now.sha256
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{len(changed)} images are not what they were when the run in {workdir} began: "
            f"{', '.join(changed[:5])}{more}; bring them back, or start anew in another --workdir"
        )
    return manifest


def build_manifest(config: Any, workdir: Path, console: Console) -> Manifest:
    """Find the config's images and split them.

    Raises UserError for other classes than the config expects, and for a `workdir` among the images.
    """
    data = config.data
    listing = base.open_source(data.source, fileio.cache_dir("data"))
    if Path(listing.origin).is_dir() and workdir.resolve().is_relative_to(listing.origin):
        raise UserError(
            f"--workdir={workdir} lies within the source {listing.origin} and would become a part of it; choose another"
        )
    expected = tuple(data.classes)
    if expected and expected != listing.classes:
        raise UserError(
            f"{data.source} holds the classes {join_names(listing.classes)}, but the config expects "
            f"{join_names(expected)}; correct data.source, or data.classes (--config.data.classes='()' takes any)"
        )
    with progress_bar(console, "looking for duplicates", len(listing.images)) as advance:
        return make_manifest(
            listing,
            data.fractions.to_dict(),
            config.seed,
            near_duplicates=data.near_duplicates,
            allow_leaks=data.allow_leaks,
            warn=lambda sentence: console.print(sentence, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
