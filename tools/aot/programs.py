"""The steps of a run as abstract programs: nothing is allocated, so the mesh may be of devices that are not there."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxtl.config import load_config
from flaxtl.data.device_dataset import DeviceDataset, example_shape, split_over, stored_shape
from flaxtl.data.loaders import Batch, DeviceLoader, IndexBatch
from flaxtl.data.manifest import Example, Manifest
from flaxtl.models.classifier import FlatParams, cast_for_compute, forward_logits, unflatten_params
from flaxtl.parallel import devices
from flaxtl.train import eval_steps, train_step, trainer
from flaxtl.train.feature_cache import AugmentedViews, make_feature_step
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import Phase
from flaxtl.train.setup import RunSetup, build_setup
from flaxtl.train.train_step import TrainState

NUM_IMAGES = {"train": 1835, "validation": 734}
"""The splits of the flower images of the config flowers_vgg16."""

Abstract = jax.ShapeDtypeStruct


def make_setup(config: str, overrides: list[str], num_images: dict[str, int] = NUM_IMAGES) -> RunSetup:
    """Return the setup of a config for images that do not exist; it has as many classes as the config, at least 5."""
    loaded = load_config(config, overrides)
    classes = tuple(map(str, loaded.data.classes)) or tuple("abcde")
    examples = (
        Example(f"/{split}/{i}", classes[i % len(classes)], split, 64 * "0")
        for split, count in num_images.items()
        for i in range(count)
    )
    return build_setup(loaded, Path(), Manifest(classes, tuple(examples)))


class PhasePrograms:
    """The programs of one phase on a mesh, as `trainer.train_phase` makes them for data in device memory."""

    def __init__(self, setup: RunSetup, mesh: Mesh, phase: Phase) -> None:
        self.setup, self.mesh, self.phase = setup, mesh, phase
        self.params = {path: Abstract(shape, jnp.float32) for path, shape in setup.model_info.shapes.items()}
        self.optimizer = phase_optimizer(
            setup.config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps
        )
        fresh = phase.augment and not (phase.cut_layer and setup.config.feature_cache.views)
        self.start_layer = None if fresh else phase.cut_layer
        step_config = trainer.make_step_config(setup, phase, self.optimizer, self.start_layer)
        self.step_config = step_config._replace(mesh=mesh)

    def state(self) -> TrainState:
        """Return the shapes of the state before the first step."""

        def create(params: FlatParams) -> TrainState:
            trainable, batch_stats, _ = self.phase.param_groups.partition(params)
            opt_state, num_classes = self.optimizer.init(trainable), len(self.setup.manifest.classes)
            return TrainState.create(0, trainable, batch_stats, opt_state, num_classes, use_ema=self.phase.ema > 0)

        shapes: TrainState = jax.eval_shape(create, self.params)
        return shapes

    def frozen(self) -> FlatParams:
        """Return the shapes of the frozen parameters, as `trainer.train_phase` casts them."""
        model, partition = self.setup.model_info.model, self.phase.param_groups.partition
        shapes: FlatParams = jax.eval_shape(
            lambda params: partition(cast_for_compute(params, model)).frozen, self.params
        )
        return shapes

    def data(self, split: str, layer: str | None) -> DeviceDataset:
        """Return the shapes of a split in device memory: images, or outputs of a layer."""
        info, size = self.setup.model_info, self.setup.config.data
        num_rows = len(self.setup.manifest.of_split(split))
        views = self.setup.config.feature_cache.views
        if split == "train" and self.phase.augment and layer is not None:
            num_rows *= views
        if layer is None:
            shape, dtype = (size.height, size.width, 3), jnp.dtype(jnp.uint8)
        else:
            shape = next(candidate.shape for candidate in info.layers if candidate.name == layer)
            is_half = jnp.dtype(info.model.dtype).itemsize == 2 or (self.phase.augment and views > 0)
            dtype = jnp.dtype(jnp.uint16 if is_half else jnp.float32)
        shape = (num_rows, *shape)
        inputs, labels = (
            Abstract(stored_shape(shape, dtype.itemsize, self.mesh), dtype),
            Abstract((num_rows,), jnp.int32),
        )
        return DeviceDataset(inputs, labels, example_shape(shape, self.mesh), split_over(self.mesh))  # type: ignore[arg-type]  # shapes

    def batch(self, data: DeviceDataset, *shape: int) -> Batch:
        """Return the shapes of batches [*shape] of indices."""
        indices: Any = Abstract(shape, jnp.int32)
        return IndexBatch(data, indices, indices)

    def count_products(self) -> int:
        """Return the convolutions and matrix products of a train step that differentiates no frozen layer.

        Each of the forward pass, and one for the kernel and one for the input of each layer that trains; the lowest
        needs no gradient of its input.
        """
        model, batch_size = self.setup.model_info.model, self.setup.config.batch_size
        if self.start_layer is None:
            inputs = Abstract((batch_size, self.setup.config.data.height, self.setup.config.data.width, 3), jnp.uint8)
        else:
            layers = self.setup.model_info.layers
            shape = next(layer.shape for layer in layers if layer.name == self.start_layer)
            inputs = Abstract((batch_size, *shape), model.dtype)

        def run(params: FlatParams, inputs: jax.Array) -> jax.Array:
            return forward_logits(model, unflatten_params(params), inputs, start=self.start_layer)

        in_forward = count_products(jax.make_jaxpr(run)(self.params, inputs).jaxpr, devices.platform_of(self.mesh))
        return in_forward + 2 * sum(len(leaf.shape) > 1 for leaf in self.state().params.values()) - 1

    def train(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the jitted steps of an epoch, and their abstract arguments."""
        data = self.data("train", self.start_layer)
        batches = self.batch(data, self.phase.steps_per_epoch, self.setup.config.batch_size)
        step = train_step.make_multi_step(self.step_config, DeviceLoader(data).sharding(self.mesh))
        number = Abstract((), jnp.int32)
        return step, (self.state(), self.frozen(), batches, number, number)

    def evaluate(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the jitted evaluation step, and its abstract arguments."""
        model, layer, size = self.setup.model_info.model, self.phase.cut_layer, self.setup.config.batch_size
        data = self.data("validation", layer)
        step = eval_steps.make_eval_step.__wrapped__(model, self.mesh, layer, DeviceLoader(data).sharding(self.mesh))
        params = self.params | self.frozen()
        return step, (params, self.batch(data, size), Abstract((size,), jnp.bool_))

    def validate(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the jitted evaluation of many batches, and its abstract arguments."""
        model, layer, size = self.setup.model_info.model, self.phase.cut_layer, self.setup.config.batch_size
        data = self.data("validation", layer)
        sharding, num_batches = DeviceLoader(data).sharding(self.mesh), -(-len(data) // size)
        step = eval_steps.make_multi_eval_step.__wrapped__(model, self.mesh, layer, sharding)
        masks, number = Abstract((num_batches, size), jnp.bool_), Abstract((), jnp.int32)
        sums = jax.eval_shape(partial(MetricSums.zero, len(self.setup.manifest.classes)))
        return step, (self.params | self.frozen(), self.batch(data, num_batches, size), masks, number, number, sums)

    def extract(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the jitted computation of the features of a batch, and its abstract arguments."""
        model, data, size = self.setup.model_info.model, self.setup.config.data, self.setup.config.batch_size
        assert self.phase.cut_layer is not None, "the phase trains on features"
        views = AugmentedViews(np.dtype(model.dtype))
        step = make_feature_step.__wrapped__(model, self.mesh, (self.phase.cut_layer,), views)
        images, numbers = Abstract((size, data.height, data.width, 3), jnp.uint8), Abstract((size,), jnp.int32)
        return step, (self.params, images, numbers, numbers)


def count_products(jaxpr: Any, platform: str) -> int:
    """Count convolutions and matrix products on a platform ('cpu', 'gpu' or 'tpu'), also in the functions it calls."""
    own = sum(equation.primitive.name in ("conv_general_dilated", "dot_general") for equation in jaxpr.eqns)
    called = (inner for equation in jaxpr.eqns for inner in _called(equation, platform))
    return own + sum(count_products(inner, platform) for inner in called)


def _called(equation: Any, platform: str) -> Iterator[Any]:
    """Yield the functions that an equation calls; of `lax.platform_dependent`, the one for the platform."""
    params = equation.params
    if platforms := params.get("branches_platforms"):
        index = next(i for i, names in enumerate(platforms) if names is None or platform in names)
        params = {"branch": params["branches"][index]}
    for value in jax.tree.leaves(list(params.values())):
        if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
            yield inner


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
