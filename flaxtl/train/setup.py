"""The setup of a run: its model, manifest and phases, with every setting checked before anything is computed."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from flaxtl import fileio
from flaxtl.console import message, progress_bar
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.bit_depth import check_bit_depth
from flaxtl.data.decode import Resize
from flaxtl.data.loaders import AUGMENT_ON, LOADERS, PIPELINES
from flaxtl.data.manifest import Manifest, make_manifest
from flaxtl.data.sampler import EpochSampler
from flaxtl.data.sources import base
from flaxtl.defaults import LAST_BLOCK
from flaxtl.errors import UserError, join_names, unknown
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, flatten_params
from flaxtl.models.head import Head
from flaxtl.models.spec import ModelSpec
from flaxtl.models.tracer import Layer
from flaxtl.parallel import devices
from flaxtl.pretrained.backbone import check_weights
from flaxtl.train.metrics import class_weights
from flaxtl.train.param_groups import assign_groups
from flaxtl.train.phases import Phase, build_phases, check_training_settings

CHOICES = {
    "sampling": ("shuffled", "balanced"),
    "on_error": ("fail", "skip"),
    "pipeline": ("auto", *PIPELINES),
    "augment_on": AUGMENT_ON,
    "loader": LOADERS,
}
"""Settings below `data` with a fixed set of values."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

ARITHMETIC = {"dtype": tuple(DTYPES), "precision": ("default", "high", "highest")}
"""Settings of the arithmetic, and their values."""


@dataclass(frozen=True)
class ModelInfo:
    """The model of a config, and facts about it.

    Attributes:
      model: the classifier.
      layers: its layers, in order.
      shapes: path -> shape of every parameter.
      groups: path -> parameter group.
      unused_groups: groups that `model.output_layer` leaves without parameters.
    """

    model: Classifier
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, str]
    unused_groups: frozenset[str] = frozenset()

    @property
    def backbone_layers(self) -> tuple[str, ...]:
        """Names of the backbone's layers, in order."""
        return tuple(layer.name for layer in self.layers if layer.section == "backbone")

    def count(self, prefix: str) -> int:
        """Return the number of parameters in paths that start with `prefix`."""
        return sum(math.prod(shape) for path, shape in self.shapes.items() if path.startswith(prefix))


@dataclass(frozen=True)
class RunSetup:
    """Everything that a run needs except data and weights."""

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
        """Return the sampler of the training images."""
        labels = self.manifest.labels(self.manifest.of_split("train"))
        balanced = labels if self.config.data.sampling == "balanced" else None
        return EpochSampler(self.config.seed, self.config.batch_size, len(labels), balanced)

    @property
    def feature_model(self) -> Classifier:
        """The model that computes cached features, in the dtype `feature_cache.compute_dtype`."""
        name = self.config.feature_cache.compute_dtype or self.config.dtype
        return self.model_info.model.clone(dtype=DTYPES[name])

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shape and sharding of every parameter, as restoring a checkpoint needs them."""
        sharding = devices.replicated_sharding(self.mesh)
        shapes = self.model_info.shapes.items()
        return {path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for path, shape in shapes}


def build_setup(config: Any, workdir: Path, manifest: Manifest) -> RunSetup:
    """Check every setting of the config and build the setup."""
    check_settings(config)
    model_info = build_model(config, len(manifest.classes))
    train = manifest.of_split("train")
    phases = build_phases(
        config, model_info.model, model_info.layers, model_info.groups, len(train), model_info.unused_groups
    )
    return RunSetup(
        config=config,
        workdir=workdir,
        manifest=manifest,
        model_info=model_info,
        phases=phases,
        resize=resize_of(config),
        augmentation=AugmentConfig(**config.augmentation.to_dict()),
        class_weights=class_weights(config.class_weights, manifest.classes, manifest.labels(train)),
        mesh=devices.make_mesh(config.batch_size),
    )


def check_config(config: Any) -> None:
    """Make every check that needs no image: the search for duplicates, which reads all of them, may take minutes.

    Raises:
      UserError: a setting is invalid, alone or for this model: its layers, parameter groups and learning rates.
    """
    check_settings(config)
    resize_of(config)  # checks its values
    info = build_model(config, num_classes=max(len(config.data.classes), 2))
    check_weights(info.model, str(config.weights.path), str(config.weights.skip_layers))
    build_phases(config, info.model, info.layers, info.groups, sys.maxsize, info.unused_groups)


def check_settings(config: Any) -> None:
    """Check every setting that can be checked before any image is read and the model is built."""
    check_training_settings(config)
    _check_arithmetic(config)
    _make_head(config, num_classes=2)  # checks its values
    _check_groups(config, registry.get_spec(config.model.name))
    check_bit_depth(config.data.bit_depth)
    AugmentConfig(**config.augmentation.to_dict())  # checks its values
    for key, known in CHOICES.items():
        if config.data[key] not in known:
            raise unknown(f"data.{key}", config.data[key], known)
    if config.data.loader == "tfdata" and config.data.pipeline != "auto":
        raise UserError(
            f"data.pipeline={config.data.pipeline} keeps decoded images, but data.loader=tfdata decodes them in each "
            "epoch. Remove one of the two settings."
        )


def resize_of(config: Any) -> Resize:
    """Return how a config resizes images."""
    data = config.data
    return Resize(data.height, data.width, data.resize, data.interpolation, data.crop_pct, data.bit_depth)


def _make_head(config: Any, num_classes: int) -> Head:
    return Head(num_classes, **config.head.to_dict() | {"units": tuple(config.head.units)})


def _check_arithmetic(config: Any) -> None:
    for key, known in ARITHMETIC.items():
        if config[key] not in known:
            raise unknown(key, config[key], known)
    if (name := config.feature_cache.compute_dtype) not in ("", *DTYPES):
        raise unknown("feature_cache.compute_dtype", name, tuple(DTYPES))


def _check_groups(config: Any, spec: ModelSpec) -> None:
    """Raise UserError if a phase has a learning rate for a group that no rule defines."""
    known = [name for name, _ in config.param_groups or (*spec.groups, (LAST_BLOCK, ""))]
    for phase in config.phases:
        for group in config[phase].lr:
            if group not in known:
                raise unknown(f"group (in {phase}.lr)", group, known)


def build_model(config: Any, num_classes: int) -> ModelInfo:
    """Return the config's model for a number of classes."""
    _check_arithmetic(config)
    spec = registry.get_spec(config.model.name)
    model = Classifier(
        spec, _make_head(config, num_classes), config.model.output_layer or None, DTYPES[config.dtype], config.precision
    )
    size = (config.data.height, config.data.width)
    shapes = flatten_params(classifier.param_shapes(model, *size))
    # The rules are matched against the whole backbone, so that they do not depend on model.output_layer.
    whole = shapes
    if model.output_layer:
        whole = flatten_params(classifier.param_shapes(model.clone(output_layer=None), *size))
    all_groups = assign_groups(list(whole), config.param_groups or spec.groups)
    groups = {path: all_groups[path] for path in shapes}
    unused = frozenset(all_groups.values()) - frozenset(groups.values())
    return ModelInfo(model, tuple(classifier.list_layers(model, *size)), shapes, groups, unused)


def _check_outside(workdir: Path, source: Path) -> None:
    """Raise UserError if the run directory is inside the folder of the images."""
    if source.is_dir() and workdir.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"--workdir={workdir} is inside the data source {source} and would become a part of it. "
            "Use another --workdir."
        )


def build_manifest(config: Any, workdir: Path, console: Console) -> Manifest:
    """Find the config's images and split them.

    Raises:
      UserError: a setting is invalid, or the source has other classes than the config expects, or contains `workdir`;
        see `make_manifest`.
    """
    check_config(config)
    data = config.data
    scheme, _, location = data.source.partition(":")
    if scheme == "folder":  # before it is listed, because the lock has created the run directory
        _check_outside(workdir, fileio.user_path(location))
    listing = base.open_config_source(data)
    _check_outside(workdir, Path(listing.origin))
    expected = tuple(map(str, data.classes))  # an override 1,2 is read as numbers
    if expected and expected != listing.classes:
        raise UserError(
            f"{data.source} has the classes {join_names(listing.classes)}, but the config expects "
            f"{join_names(expected)}. Correct data.source or data.classes (--config.data.classes='()' accepts any)."
        )
    class_weights(config.class_weights, listing.classes, np.arange(len(listing.classes), dtype=np.int32))  # checks
    with progress_bar(console, "Looking for duplicates", len(listing.images)) as advance:
        return make_manifest(
            listing,
            data.fractions.to_dict(),
            config.seed,
            near_duplicates=data.near_duplicates,
            allow_leaks=data.allow_leaks,
            bit_depth=data.bit_depth,
            warn=partial(message, console),
            on_progress=lambda done: advance(1),
        )
