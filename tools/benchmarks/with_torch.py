"""The same work in PyTorch: networks in channels_last format, bfloat16 by autocast; a DataLoader with processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from benchmarks.trial import CLASSES, Trial, Unsupported
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import get_model

LAST_BLOCKS = {"vgg16": 24, "vgg19": 28, "efficientnet_b0": 7}
"""Index of block5_conv1, or of block7a, in torchvision's list of layers."""


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network from float32 images to logits."""
    base, _ = _backbone(settings)
    model = _place(nn.Sequential(base, _head(base, settings)), settings).eval()
    images = _images(settings)

    def step() -> torch.Tensor:
        with torch.inference_mode(), _precision(settings):
            return model(images)

    return _trial(step, settings)


def train(settings: dict[str, Any]) -> Trial:
    """Time the step of a phase: the base is frozen, except its last block in phase `top`."""
    base, last_block = _backbone(settings)
    base.requires_grad_(False).eval()  # frozen batch norms use their running statistics
    if settings["phase"] == "top":
        last_block.requires_grad_(True).train()
    model = nn.Sequential(base, _head(base, settings))
    compiled = _place(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.NAdam(trainable, lr=1e-3, betas=(0.9, 0.99))
    images = _images(settings)
    labels = torch.arange(settings["batch"], device=_device()) % CLASSES

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _precision(settings):
            loss = nn.functional.cross_entropy(compiled(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss

    return _trial(step, settings)


PHASES = {"augmented": "head", "finetune": "top"}
"""Kind of work -> phase. The images are not augmented here, which is in PyTorch's favor."""


def measure_work(settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and figures of the kinds of `work` in the settings: the forward pass, and steps from images."""
    for name in settings["work"]:
        trial = forward(settings) if name == "forward" else train(settings | {"phase": PHASES[name]})
        yield name, trial.measure(settings["seconds"])


def decode(settings: dict[str, Any]) -> Trial:
    """Time an epoch of a DataLoader whose processes decode with Pillow."""
    return _loader_trial(settings)


def augment(settings: dict[str, Any]) -> Trial:
    """Time the same with the course's augmentation; every epoch decodes the images again."""
    affine = transforms.RandomAffine(30, translate=(0.2, 0.2), scale=(0.8, 1.2), shear=0.2)
    return _loader_trial(settings, affine, transforms.RandomHorizontalFlip())


def _loader_trial(settings: dict[str, Any], *augmentation: Any) -> Trial:
    resize = transforms.Resize((settings["size"],) * 2, transforms.InterpolationMode.NEAREST)
    steps = transforms.Compose([resize, *augmentation, transforms.PILToTensor()])
    dataset = ImageFolder(settings["folder"], steps)
    workers = os.cpu_count() or 1
    loader = DataLoader(dataset, settings["batch"], shuffle=True, num_workers=workers, persistent_workers=True)
    facts = {"cpu_seconds_per_image": None, "peak_mebibytes": None}  # its processes are not measured
    return Trial(lambda: sum(len(images) for images, _ in loader), len(dataset), facts=facts)


def _backbone(settings: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Return a network without its head, and the block that phase `top` trains."""
    name = settings["model"]
    if name not in (*LAST_BLOCKS, "resnet50"):
        raise Unsupported(f"not available: only {', '.join(LAST_BLOCKS)} and resnet50 are compared with PyTorch")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, JAX's default on GPUs
    torch.backends.cudnn.benchmark = True  # search for the fastest convolution
    network = get_model(name, weights=None)
    if name in LAST_BLOCKS:
        return network.features, network.features[LAST_BLOCKS[name] :]
    for stage in (network.layer2, network.layer3, network.layer4):  # strides as in Keras: in the first 1x1 convolution
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return nn.Sequential(*list(network.children())[:-2]), network.layer4


def _head(base: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Return the course's head."""
    hidden = (nn.LazyLinear(128), nn.ReLU(True), nn.Dropout(0.4), nn.Linear(128, CLASSES))
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *hidden)
    with torch.no_grad():
        head(base(torch.zeros(1, 3, settings["size"], settings["size"])))  # initializes LazyLinear
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


def _trial(step: Callable[[], Any], settings: dict[str, Any]) -> Trial:
    on_gpu = _device() == "cuda"
    wait = (lambda result: torch.cuda.synchronize()) if on_gpu else (lambda result: None)
    facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    return Trial(step, settings["batch"], wait, asynchronous=on_gpu, facts=facts)
