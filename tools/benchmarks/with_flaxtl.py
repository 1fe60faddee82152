"""flaxtl's decoding, augmentation, forward pass and train step, built from the same functions as `flaxtl train`."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.trial import CLASSES, Trial, image_files
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flaxtl.config import complete_config
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize, decode_all, decode_into
from flaxtl.data.device_dataset import put_dataset
from flaxtl.data.loaders import DeviceLoader, HostLoader, Loader
from flaxtl.data.sampler import EpochSampler
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, FlatParams
from flaxtl.models.convolution import conv
from flaxtl.models.head import Head
from flaxtl.models.inference import infer
from flaxtl.models.layers import Conv, DepthwiseConv, SeparableConv, depthwise_conv
from flaxtl.parallel import devices
from flaxtl.train import setup, train_step
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import build_phases

BATCHES = 4
"""Size of the training set, in batches."""

LRS = {"head": {"head": 1e-3, "top": 0.0, "base": 0.0}, "top": {"head": 1e-6, "top": 1e-6, "base": 0.0}}
"""Phase -> learning rate of each group."""

AUGMENTATION = AugmentConfig(
    rotation=30.0, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True
)
"""Augmentation of the course (configs/flowers_vgg16.py)."""

MATMUL_SIDE, CPU_MATMUL_SIDE = 8192, 2048
"""Side of the square matrices that are multiplied: large enough for full speed."""


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network from uint8 images to logits, or to the output of a `layer`."""
    size, dtype = settings["size"], setup.DTYPES[settings["dtype"]]
    model = Classifier(registry.get_spec(settings["model"]), Head(CLASSES), dtype=dtype)
    shapes = classifier.flatten_params(classifier.param_shapes(model, size, size))
    params = classifier.unflatten_params(_random_params(shapes))
    images = jnp.asarray(_random_images((settings["batch"], size, size, 3)))
    run, in_chunks = partial(infer, model, stop=settings.get("layer")), jax.default_backend() == "cpu"
    predict, whole = (jax.jit(partial(run, in_chunks=value)) for value in (in_chunks, False))
    memory = predict.lower(params, images).compile().memory_analysis()  # the program that the first step finds again
    trial = _trial(lambda: predict(params, images), whole.trace(params, images), settings)
    trial.facts["temporary_mebibytes"] = memory.temp_size_in_bytes / 2**20
    return trial


def train(settings: dict[str, Any]) -> Trial:
    """Time the step of a phase; with `cached`, on the outputs of its frozen layers; with `augment`, augmented.

    With `steps`, a call makes that many, as in a run with data in the memory of an accelerator.
    """
    config, batch, size = _config(settings), settings["batch"], settings["size"]
    info = setup.build_model(config, CLASSES)
    (phase,) = build_phases(config, info.model, info.layers, info.groups, BATCHES * batch)
    optimizer = phase_optimizer(config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    start_layer = phase.cut_layer if settings["cached"] else None
    augmentation = AUGMENTATION if settings.get("augment") else None
    step_config = train_step.StepConfig(
        info.model, optimizer, mesh, config.seed, start_layer, augmentation, cut_layer=phase.cut_layer
    )

    inputs = _random_images((BATCHES * batch, size, size, 3))
    if start_layer is not None:
        (shape,) = (layer.shape for layer in info.layers if layer.name == start_layer)
        inputs = _random_images((BATCHES * batch, *shape)).astype(info.model.dtype)
    labels = np.arange(len(inputs), dtype=np.int32) % CLASSES
    params = _random_params(info.shapes)
    trainable, batch_stats, _ = phase.param_groups.partition(params)
    cast = jax.jit(partial(classifier.cast_for_compute, model=info.model))  # not a program for each shape
    frozen = phase.param_groups.partition(cast(params)).frozen
    state = train_step.TrainState.create(0, trainable, batch_stats, optimizer.init(trainable), CLASSES)
    state, frozen = devices.replicate((state, frozen), mesh)
    loader = DeviceLoader(put_dataset(inputs, labels, mesh))
    sampler = EpochSampler(config.seed, batch, len(labels))
    batches = loader.train_batches(sampler, 0, 2**31, None)
    update = train_step.make_train_step(step_config, loader.sharding(mesh))
    whole = train_step.make_train_step(step_config._replace(cut_layer=None), loader.sharding(mesh))
    traced = whole.trace(state, frozen, next(batches))
    inputs_of_call: Iterator[tuple[Any, ...]] = ((batch,) for batch in batches)
    if steps := settings.get("steps"):
        update = train_step.make_multi_step(step_config, loader.sharding(mesh))
        stacked = loader.stacked_batches(sampler, 0, steps, steps)
        inputs_of_call = repeat((stacked, np.int32(0), np.int32(steps)))

    def step() -> jax.Array:
        nonlocal state
        state = update(state, frozen, *next(inputs_of_call))
        return jnp.copy(state.step)  # the next call donates the state

    return _trial(step, traced, settings, images=batch * (steps or 1))


WORK: dict[str, dict[str, Any]] = {
    "frozen": {"phase": "head", "cached": True, "augment": False},
    "augmented": {"phase": "head", "cached": False, "augment": True},
    "finetune": {"phase": "top", "cached": False, "augment": True},
}
"""The phases of the course, as settings of `train`."""


def measure_work(settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and figures of the kinds of `work` in the settings: the forward pass, and steps of the course."""
    for name in settings["work"]:
        trial = forward(settings) if name == "forward" else train(settings | WORK[name])
        yield name, trial.measure(settings["seconds"]) | {"images": settings["batch"]}


def list_convolutions(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the shapes of a network's convolutions, and how many `layers` have each."""
    found: Counter[tuple[Any, ...]] = Counter()

    def record(run: Any, arguments: Any, options: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            found.update(_convolutions_of(context.module, *arguments))
        return run(*arguments, **options)

    model = Classifier(registry.get_spec(settings["model"]), Head(CLASSES))
    image = jax.ShapeDtypeStruct((1, settings["size"], settings["size"], 3), jnp.uint8)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), image)
    names = ("kind", "height", "width", "inputs", "outputs", "kernel", "stride", "padding", "groups")
    return [dict(zip(names, values, strict=True)) | {"layers": layers} for values, layers in found.items()]


def _convolutions_of(module: nn.Module, x: Any = None, *_: object) -> list[tuple[Any, ...]]:
    if not isinstance(module, Conv | DepthwiseConv | SeparableConv):
        return []
    _, height, width, channels = x.shape
    kernel, stride, padding = module.kernel_size, module.strides, module.padding
    if isinstance(module, Conv):
        return [("conv", height, width, channels, module.features, kernel, stride, padding, module.groups)]
    found = [("depthwise", height, width, channels, channels, kernel, stride, padding, channels)]
    if isinstance(module, SeparableConv):
        weights = jax.ShapeDtypeStruct((*kernel, 1, channels), x.dtype)
        between = jax.eval_shape(lambda x, weights: depthwise_conv(x, weights, (stride,) * 2, padding), x, weights)
        found.append(("conv", *between.shape[1:], module.features, (1, 1), 1, "VALID", 1))
    return found


def convolution(settings: dict[str, Any], shape: dict[str, Any]) -> Trial:
    """Time one convolution, a row of `with_flaxtl.list_convolutions`."""
    dtype, strides = setup.DTYPES[settings["dtype"]], (shape["stride"],) * 2
    key = jax.random.key(0)
    x = jax.random.normal(key, (settings["batch"], *(shape[name] for name in ("height", "width", "inputs"))), dtype)
    channels = (shape["inputs"] // shape["groups"], shape["outputs"])
    kernel = jax.random.normal(key, (*shape["kernel"], *channels), dtype)
    if shape["kind"] == "depthwise":
        run = jax.jit(lambda x, kernel: depthwise_conv(x, kernel, strides, shape["padding"]))
    else:
        run = jax.jit(
            lambda x, kernel: conv(x, kernel, strides=strides, padding=shape["padding"], groups=shape["groups"])
        )
    return Trial(lambda: run(x, kernel), settings["batch"], jax.block_until_ready)


def describe_device(settings: dict[str, Any]) -> dict[str, Any]:
    """Return kind and number of the devices, and the speed of one: of matrix products, and of reading and writing."""
    device = jax.devices()[0]
    side = CPU_MATMUL_SIDE if device.platform == "cpu" else MATMUL_SIDE
    array = jax.device_put(jnp.ones((4, side, side), jnp.float32), device)
    seconds = _fastest(jax.jit(lambda array: array + 1), array)
    rates = {dtype: matmul_rate(device, dtype) for dtype in setup.DTYPES}
    return {
        "kind": device.device_kind,
        "count": jax.device_count(),
        "matmul": rates,
        "bytes_per_second": 2 * array.nbytes / seconds,
    }


def _trial(step: Any, traced: Any, settings: dict[str, Any], images: int | None = None) -> Trial:
    """Count operations of the program for a TPU: a loop in that for a CPU would count once.

    They are counted before compilation: afterwards XLA does not know what its libraries compute.
    """
    operations = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    device = jax.devices()[0]
    facts = {
        "device": device.device_kind,
        "flop_per_image": operations / settings["batch"],
        "matmul_flop_per_second": matmul_rate(device, settings["dtype"]),
    }
    return Trial(
        step, images or settings["batch"], jax.block_until_ready, asynchronous=device.platform != "cpu", facts=facts
    )


def matmul_rate(device: jax.Device, dtype: str) -> float:
    """Return the operations per second of the fastest of five products of square matrices."""
    side = CPU_MATMUL_SIDE if device.platform == "cpu" else MATMUL_SIDE
    factor = jax.device_put(jnp.ones((side, side), dtype), device)
    return float(2 * side**3 / _fastest(jax.jit(jnp.matmul), factor, factor))


def _fastest(function: Any, *arguments: jax.Array) -> float:
    """Return the seconds of the fastest of five calls, after one that compiles."""
    seconds = []
    for _ in range(1 + 5):
        start_time = time.perf_counter()
        function(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - start_time)
    return min(seconds[1:])


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


def _random_images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decode(settings: dict[str, Any]) -> Trial:
    """Time decoding of all images, into memory or into a file."""
    files, resize = image_files(settings), _resize(settings)

    def decode_to_new_file() -> None:
        with TemporaryDirectory() as folder:
            _decode_to_file(files, resize, Path(folder))

    step = decode_to_new_file if settings["to_file"] else lambda: decode_all(files, resize)
    return Trial(step, len(files))


def augment(settings: dict[str, Any]) -> Trial:
    """Time batches of decoded images until they are augmented and on the device; see `data.augment_on`."""
    files, resize, batch = image_files(settings), _resize(settings), settings["batch"]
    labels, mesh = np.zeros(len(files), np.int32), devices.make_mesh(batch)
    if settings["streamed"]:
        store = _decode_to_file(files, resize, Path(settings["folder"]).parent)
        loader: Loader = HostLoader(store, labels, mesh, augment_on=settings["augment_on"])
    else:
        loader = DeviceLoader(put_dataset(decode_all(files, resize), labels, mesh))
    use = jax.jit(lambda examples: examples.inputs(0, AUGMENTATION))
    batches = loader.train_batches(EpochSampler(0, batch, len(files)), 0, 2**31, AUGMENTATION)
    return Trial(lambda: use(next(batches)), batch, jax.block_until_ready)


def _resize(settings: dict[str, Any]) -> Resize:
    return Resize(settings["size"], settings["size"], "squash", "nearest")


def _decode_to_file(files: list[Path], resize: Resize, folder: Path) -> ArrayStore:
    store = ArrayStore(folder / "images.npy", (len(files), resize.height, resize.width, 3), np.dtype(np.uint8))
    with ArrayStoreWriter(store) as writer:
        decode_into(writer, files, resize)
    return store
