"""flaxtl's forward pass and training step on one device, built from the same functions as `flaxtl train`."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import peak
from benchmarks.peers import COURSE_AUGMENTATION
from benchmarks.subject import Trial
from jax.sharding import Mesh
from ml_collections import ConfigDict

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
"""Size of the training set, in batches."""

LRS = {"head": {"head": 1e-3, "top": 0.0, "base": 0.0}, "top": {"head": 1e-6, "top": 1e-6, "base": 0.0}}
"""Phase -> learning rate of each group."""


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network from uint8 images to logits."""
    model, size = _model(settings), settings["size"]
    shapes = classifier.flatten_params(classifier.param_shapes(model, size, size))
    params = classifier.unflatten_params(_random_params(shapes))
    images = jnp.asarray(_random_images((settings["batch"], size, size, 3)))
    predict = jax.jit(partial(classifier.forward_logits, model))
    return _trial(lambda: predict(params, images), settings)


def forward_flops(settings: dict[str, Any]) -> float:
    """Return the floating-point operations per image, as XLA counts them: products with padding do not count."""
    model, size = _model(settings), settings["size"]
    shapes = classifier.flatten_params(classifier.param_shapes(model, size, size))
    params = classifier.unflatten_params(_abstract_params(shapes))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with jax.default_device(jax.devices("cpu")[0]):
        return _flops(jax.jit(partial(classifier.forward_logits, model)).lower(params, images))


def train(settings: dict[str, Any]) -> Trial:
    """Time the step of a phase; with `cached`, on the outputs of its frozen layers."""
    setting = _Training.build(settings, jax.devices()[0])
    inputs = _random_images(setting.data.inputs.shape).astype(setting.data.inputs.dtype)
    labels = np.arange(len(setting.data), dtype=np.int32) % settings["classes"]
    state, frozen = setting.create_state(_random_params(setting.model_info.shapes))
    state, frozen, data = devices.replicate((state, frozen, DeviceDataset(inputs, labels)), setting.step_config.mesh)
    batches = DeviceLoader(data).train_batches(setting.sampler, 0, 2**31, setting.step_config.augmentation)

    def step() -> jax.Array:
        nonlocal state
        state = setting.step(state, frozen, next(batches))
        return state.step

    return _trial(step, settings)


def train_flops(settings: dict[str, Any]) -> float:
    """Return the floating-point operations per image of a training step, counted like `forward_flops`."""
    setting = _Training.build(settings, jax.devices("cpu")[0])
    state, frozen = jax.eval_shape(setting.create_state, _abstract_params(setting.model_info.shapes))
    loader = DeviceLoader(setting.data)
    batch = next(loader.train_batches(setting.sampler, 0, 1, setting.step_config.augmentation))
    return _flops(setting.step.lower(state, frozen, batch)) / settings["batch"]


def _flops(lowered: Any) -> float:
    """Count before compilation: afterwards XLA does not know what its libraries compute."""
    return float(lowered.cost_analysis()["flops"])


class _Training(NamedTuple):
    """The step of a phase and what it needs; `data` holds only shapes and dtypes."""

    model_info: setup.ModelInfo
    phase: Phase
    step_config: train_step.StepConfig
    sampler: EpochSampler
    data: DeviceDataset
    step: Any

    @classmethod
    def build(cls, settings: dict[str, Any], device: jax.Device) -> "_Training":
        """Build the step of the only phase of a config."""
        config = _config(settings)
        model_info = setup.build_model(config, settings["classes"])
        n = BATCHES * settings["batch"]
        (phase,) = build_phases(config, model_info.model, model_info.layers, model_info.groups, n)
        optimizer = phase_optimizer(
            config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps
        )
        cut_layer = phase.cut_layer if settings["cached"] else None
        shape, dtype = (settings["size"], settings["size"], 3), jnp.uint8
        if cut_layer is not None:
            (shape,) = (layer.shape for layer in model_info.layers if layer.name == cut_layer)
            dtype = model_info.model.dtype
        data = DeviceDataset(jax.ShapeDtypeStruct((n, *shape), dtype), jax.ShapeDtypeStruct((n,), jnp.int32))
        step_config = train_step.StepConfig(
            model_info.model,
            optimizer,
            Mesh(np.array([device]), ("data",)),
            config.seed,
            start_layer=cut_layer,
            augmentation=AugmentConfig(**COURSE_AUGMENTATION) if settings["augment"] and cut_layer is None else None,
        )
        step = train_step.make_train_step(step_config, DeviceLoader(data).sharding(step_config.mesh))
        return cls(model_info, phase, step_config, EpochSampler(config.seed, config.batch_size, n), data, step)

    def create_state(self, params: FlatParams) -> tuple[train_step.TrainState, FlatParams]:
        """Return the state before the first step, and the frozen parameters."""
        trainable, batch_stats, frozen = self.phase.param_groups.partition(params)
        num_classes = self.model_info.model.head.num_classes
        opt_state = self.step_config.optimizer.init(trainable)
        return train_step.TrainState.create(0, trainable, batch_stats, opt_state, num_classes), frozen


def _model(settings: dict[str, Any]) -> Classifier:
    head = None if settings["top"] else Head(settings["classes"])
    return Classifier(registry.get_spec(settings["model"]), head, dtype=setup.DTYPES[settings["dtype"]])


def _config(settings: dict[str, Any]) -> ConfigDict:
    values = {
        "batch_size": settings["batch"],
        "dtype": settings["dtype"],
        "data": {"height": settings["size"], "width": settings["size"]},
        "model": {"name": settings["model"]},
        "optimizer": {"name": "nadam", "b1": 0.9, "b2": 0.99},
        "phases": ("measured",),
        "measured": {"lr": LRS[settings["phase"]]},
    }
    return complete_config(ConfigDict(values))


def _random_params(shapes: Mapping[str, tuple[int, ...]]) -> FlatParams:
    """Draw He-initialized kernels, unit scales and variances, zero biases and means."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, path.endswith(("/scale", "/var")), np.float32)
        limit = (6 / math.prod(shape[:-1])) ** 0.5
        return limit * (2 * rng.random(shape, np.float32) - 1)

    return {path: jnp.asarray(draw(path, shape)) for path, shape in shapes.items()}


def _abstract_params(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def _random_images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _trial(step: Any, settings: dict[str, Any]) -> Trial:
    device = jax.devices()[0]
    facts = {"device": device.device_kind, "peak": peak.peak_flops(device, settings["dtype"])._asdict()}
    return Trial(step, jax.block_until_ready, asynchronous=device.platform != "cpu", facts=facts)
