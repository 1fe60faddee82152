"""The same forward pass and training step in PyTorch, in channels_last format; bfloat16 by autocast."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from benchmarks.subject import Trial, Unsupported
from benchmarks.torch_networks import NETWORKS
from torch import nn


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network from float32 images to logits."""
    base = _base(settings)
    top = base.imagenet_top(settings["size"]) if settings["top"] else _head(base, settings)
    model = _place(nn.Sequential(base, top), settings).eval()
    images = _images(settings)

    def step() -> torch.Tensor:
        with torch.inference_mode(), _precision(settings):
            return model(images)

    return _trial(step)


def train(settings: dict[str, Any]) -> Trial:
    """Time the step of a phase: the base is frozen, except its top block in phase `top`."""
    base = _base(settings).requires_grad_(False)
    base.eval()  # frozen batch norms use their running statistics
    if settings["phase"] == "top":
        base.top_block.requires_grad_(True).train()
    model = nn.Sequential(base, _head(base, settings))
    compiled = _place(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.NAdam(trainable, lr=1e-3, betas=(0.9, 0.99))
    images = _images(settings)
    labels = torch.arange(settings["batch"], device=_device()) % settings["classes"]

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _precision(settings):
            loss = nn.functional.cross_entropy(compiled(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss

    return _trial(step)


def _base(settings: dict[str, Any]) -> Any:
    if settings["model"] not in NETWORKS:
        raise Unsupported(f"not available: PyTorch has only {', '.join(NETWORKS)}")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, JAX's default on GPUs
    torch.backends.cudnn.benchmark = True  # search for the fastest convolution
    return NETWORKS[settings["model"]]()


def _head(base: Any, settings: dict[str, Any]) -> nn.Module:
    """Return the course's head."""
    hidden = (nn.LazyLinear(128), nn.ReLU(True), nn.Dropout(0.4), nn.Linear(128, settings["classes"]))
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *hidden)
    with torch.no_grad():
        head(base.cpu()(torch.zeros(1, 3, settings["size"], settings["size"])))  # initializes LazyLinear
    return head


def _place(model: nn.Module, settings: dict[str, Any]) -> Any:
    model = model.to(_device(), memory_format=torch.channels_last)
    return torch.compile(model, mode="max-autotune" if _device() == "cuda" else None) if settings["compile"] else model


def _images(settings: dict[str, Any]) -> torch.Tensor:
    images = torch.rand(settings["batch"], 3, settings["size"], settings["size"], device=_device())
    return (256 * images - 128).to(memory_format=torch.channels_last)


def _precision(settings: dict[str, Any]) -> Any:
    return torch.autocast(_device(), torch.bfloat16) if settings["dtype"] == "bfloat16" else nullcontext()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _trial(step: Callable[[], Any]) -> Trial:
    on_gpu = _device() == "cuda"
    wait = (lambda result: torch.cuda.synchronize()) if on_gpu else (lambda result: None)
    return Trial(step, wait, asynchronous=on_gpu, facts={"device": torch.cuda.get_device_name() if on_gpu else "cpu"})
