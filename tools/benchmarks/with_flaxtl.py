"""flaxtl's forward pass and training step on one device, as `flaxtl train` makes them."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import peak, peers
from benchmarks.worker import Trial
from flaxtl.config import complete_config
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.loaders import DeviceDataset, DeviceLoader
from flaxtl.data.sampler import EpochSampler
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, FlatParams
from flaxtl.models.head import Head
from flaxtl.parallel import devices
from flaxtl.train import setup, train_step
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import Phase, build_phases

BATCHES = 4
"""Batches of images that the training steps pick from."""

RATES = {"head": {"head": 1e-3, "top": 0.0, "base": 0.0}, "top": {"head": 1e-6, "top": 1e-6, "base": 0.0}}
"""phase -> the lecture's rate of every group."""


def forward(settings: dict[str, Any]) -> Trial:
    """The network from uint8 images to logits."""
    model = _network(settings)
    size = settings["size"]
    parameters = classifier.unflatten_params(
        _parameters(classifier.flatten_params(classifier.param_shapes(model, size, size)))
    )
    images = jnp.asarray(_images(settings["batch"], size))
    run = jax.jit(lambda parameters, images: classifier.forward_logits(model, parameters, images))
    return _trial(lambda: run(parameters, images), settings)


def forward_flops(settings: dict[str, Any]) -> float:
    """Floating-point operations an image, by XLA's own count; products with a border's zeros do not count."""
    model, size = _network(settings), settings["size"]
    shapes = classifier.param_shapes(model, size, size)
    parameters = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with jax.default_device(jax.devices("cpu")[0]):
        return _flops(jax.jit(lambda p, x: classifier.forward_logits(model, p, x)).lower(parameters, images))


def train(settings: dict[str, Any]) -> Trial:
    """A phase's step; with `cached`, on the outputs of its frozen layers."""
    leg = _leg(settings, jax.devices()[0])
    drawn = np.random.default_rng(0).integers(0, 256, leg.data.inputs.shape, np.uint8).astype(leg.data.inputs.dtype)
    labels = np.arange(len(leg.data), dtype=np.int32) % settings["classes"]
    state, frozen = _begin(leg, _parameters(leg.network.shapes))
    state, frozen, data = devices.replicate((state, frozen, DeviceDataset(drawn, labels)), leg.mesh)
    examples = DeviceLoader(data).train_batches(leg.order, 0, 2**31, leg.augmentation)

    def step() -> jax.Array:
        nonlocal state
        state = leg.step(state, frozen, next(examples))
        return state.step

    return _trial(step, settings)


def train_flops(settings: dict[str, Any]) -> float:
    """Floating-point operations an image of a step, as `forward_flops`."""
    leg = _leg(settings, jax.devices("cpu")[0])
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in leg.network.shapes.items()}
    state, frozen = jax.eval_shape(partial(_begin, leg), shapes)
    examples = next(DeviceLoader(leg.data).train_batches(leg.order, 0, 1, leg.augmentation))
    return _flops(leg.step.lower(state, frozen, examples)) / settings["batch"]


def _flops(lowered: Any) -> float:
    """Of the program as it was written: after compilation XLA no longer knows what its libraries compute."""
    return float(lowered.cost_analysis()["flops"])


def _network(settings: dict[str, Any]) -> Classifier:
    head = None if settings["top"] else Head(settings["classes"])
    return Classifier(registry.get_spec(settings["model"]), head, dtype=setup.DTYPES[settings["dtype"]])


class _Leg(NamedTuple):
    """A phase's step and what it belongs to; of its `data` shapes and dtypes."""

    network: setup.ModelInfo
    phase: Phase
    optimizer: optax.GradientTransformation
    mesh: Mesh
    order: EpochSampler
    data: DeviceDataset
    augmentation: AugmentConfig | None
    step: Any


def _leg(settings: dict[str, Any], device: jax.Device) -> _Leg:
    config = _config(settings)
    network = setup.build_model(config, settings["classes"])
    n = BATCHES * settings["batch"]
    (phase,) = build_phases(config, network.model, network.layers, network.groups, n)
    transformation = phase_optimizer(
        config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps
    )
    mesh = Mesh(np.array([device]), ("data",))
    cut = phase.cut_layer if settings["cached"] else None
    augmentation = AugmentConfig(**peers.LECTURE) if settings["augment"] and cut is None else None
    data = _data(network, cut, n, settings["size"])
    sharding = DeviceLoader(data).sharding(mesh)
    task = train_step.StepConfig(
        network.model, transformation, mesh, config.seed, start_layer=cut, augmentation=augmentation
    )
    step = train_step.make_train_step(task, sharding)
    return _Leg(
        network, phase, transformation, mesh, EpochSampler(config.seed, config.batch_size, n), data, augmentation, step
    )


def _begin(leg: _Leg, parameters: FlatParams) -> tuple[train_step.TrainState, FlatParams]:
    """The state before the first step, and the frozen parameters."""
    learning, statistics, frozen = leg.phase.param_groups.partition(parameters)
    classes = leg.network.model.head.num_classes
    return train_step.TrainState.create(0, learning, statistics, leg.optimizer.init(learning), classes), frozen


def _data(network: setup.ModelInfo, cut: str | None, n: int, size: int) -> DeviceDataset:
    """Shapes and dtypes of what the steps pick from: images, or with `cut` the outputs of that layer."""
    shape, dtype = (size, size, 3), jnp.uint8
    if cut is not None:
        (shape,) = (layer.shape for layer in network.layers if layer.name == cut)
        dtype = network.model.dtype
    return DeviceDataset(jax.ShapeDtypeStruct((n, *shape), dtype), jax.ShapeDtypeStruct((n,), jnp.int32))


def _config(settings: dict[str, Any]) -> ConfigDict:
    given = {
        "batch": settings["batch"],
        "dtype": settings["dtype"],
        "data": {"height": settings["size"], "width": settings["size"]},
        "model": {"name": settings["model"]},
        "optimizer": {"name": "nadam", "b1": 0.9, "b2": 0.99},
        "phases": ("measured",),
        "measured": {"lr": RATES[settings["phase"]]},
    }
    return complete_config(ConfigDict(given))


def _parameters(shapes: Mapping[str, tuple[int, ...]]) -> FlatParams:
    """Kernels drawn as He et al. 2015 do, the rest as fresh layers have it: speed needs no more than usual numbers."""
    random = np.random.default_rng(0)

    def value(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, path.endswith(("/scale", "/var")), np.float32)
        limit = (6 / math.prod(shape[:-1])) ** 0.5
        return limit * (2 * random.random(shape, np.float32) - 1)

    return {path: jnp.asarray(value(path, shape)) for path, shape in shapes.items()}


def _images(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def _trial(step: Any, settings: dict[str, Any]) -> Trial:
    device = jax.devices()[0]
    return Trial(
        step,
        jax.block_until_ready,
        queue=device.platform != "cpu",
        facts={"device": device.device_kind, "peak": peak.of(device, settings["dtype"])._asdict()},
    )
