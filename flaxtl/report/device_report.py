"""`flaxtl devices`: what jax sees, how fast it is, and an estimate of the images per second of two networks."""

import re
from dataclasses import asdict
from typing import Any

from rich.table import Table

from flaxtl.console import make_table
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import flatten_params
from flaxtl.models.flops import eval_step_flops, forward_flops, train_step_flops
from flaxtl.parallel.device_speed import DeviceGroup, DeviceSpeed
from flaxtl.pretrained.backbone import headless_model

NETWORKS = ("vgg16", "resnet50")
INPUT_SIZE = 200
"""Height and width of the images of the estimate: those of the configs that come with flaxtl."""

ESTIMATE_NOTE = (
    f"Images per second are estimates for {INPUT_SIZE}x{INPUT_SIZE} pixels, from the rate of matrix products and the "
    "operations of the networks: small layers and memory make training slower, Winograd's convolution faster."
)


def step_flops(network: str) -> dict[str, int]:
    """Return the floating-point operations of one image, for 'features' and 'fine-tuning'.

    'features' is the forward pass of the whole backbone. 'fine-tuning' adds the backward pass of its last block. The
    head is left out.
    """
    model = headless_model(registry.get_spec(network))
    shapes = flatten_params(classifier.param_shapes(model, INPUT_SIZE, INPUT_SIZE))
    layers = [layer for layer in classifier.list_layers(model, INPUT_SIZE, INPUT_SIZE) if layer.section == "backbone"]
    flops = forward_flops(layers, shapes)
    _, (_, last_block), *_ = model.spec.groups
    names = list(flops)
    lowest = next(i for i, name in enumerate(names) if re.fullmatch(last_block, f"backbone/{name}/kernel"))
    return {
        "features": eval_step_flops(flops, None),
        "fine-tuning": train_step_flops(flops, start_layer=None, cut_layer=names[lowest - 1]),
    }


def estimate_images(speed: DeviceSpeed) -> dict[str, dict[str, dict[str, float]]]:
    """Return network -> dtype -> step -> images per second of one device."""
    return {
        network: {
            dtype: {step: rate / count for step, count in step_flops(network).items()}
            for dtype, rate in speed.matmul_flops.items()
        }
        for network in NETWORKS
    }


def device_tables(groups: list[DeviceGroup], speed: DeviceSpeed) -> list[Table]:
    """Return the devices, the measured speed of the first one, and the estimates, as tables."""
    devices = [
        (group.platform, group.kind, str(group.count), f"{group.memory_bytes / 2**30:,.1f} GiB") for group in groups
    ]
    measured = [
        *((f"{dtype} matrix product", _format_rate(rate, "FLOP/s")) for dtype, rate in speed.matmul_flops.items()),
        ("memory, read and written", _format_rate(speed.bytes_per_second, "B/s")),
    ]
    estimates = [
        (network, dtype, *(_significant(count) for count in images.values()))
        for network, by_dtype in estimate_images(speed).items()
        for dtype, images in by_dtype.items()
    ]
    return [
        make_table("Devices", ("platform", "kind", "count", "memory of each"), devices),
        make_table("Measured speed of one device", ("what", "speed"), measured),
        make_table(
            "Estimated images per second of one device",
            ("network", "dtype", "features", "fine-tuning the last block"),
            estimates,
        ),
    ]


def device_json(groups: list[DeviceGroup], speed: DeviceSpeed, hint: str) -> dict[str, Any]:
    """Return the same as JSON values."""
    return {
        "devices": [asdict(group) for group in groups],
        "matmul_flops_per_second": speed.matmul_flops,
        "memory_bytes_per_second": speed.bytes_per_second,
        "estimated_images_per_second": {"input_size": INPUT_SIZE, **estimate_images(speed)},
        "hint": hint,
    }


def _format_rate(rate: float, unit: str) -> str:
    """Return a rate with its unit: 14 GFLOP/s or 3.9 TB/s."""
    return f"{_significant(rate / 1e12)} T{unit}" if rate >= 1e12 else f"{_significant(rate / 1e9)} G{unit}"


def _significant(value: float) -> str:
    """Return a number with two significant digits: 1,200 or 0.034."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
