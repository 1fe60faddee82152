"""VGG16, VGG19 and ResNet50 in PyTorch with the layers of Keras, for speed comparisons; images are [n, 3, h, w]."""

from collections.abc import Iterator

import torch
from torch import nn

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Sequential):
    """Simonyan and Zisserman 2014: five blocks of 3x3 convolutions, of which `depths` are the numbers of layers."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        inputs = (3, *WIDTHS)
        super().__init__(*(_block(inputs[i], WIDTHS[i], depth) for i, depth in enumerate(depths)))

    @property
    def top_block(self) -> nn.Module:
        """The block that phase `top` trains."""
        return self[-1]

    def imagenet_top(self, size: int) -> nn.Module:
        """Return the three dense layers of the ImageNet classifier."""
        cells = (size // 32) ** 2
        hidden = [nn.Linear(512 * cells, 4096), nn.ReLU(True), nn.Linear(4096, 4096), nn.ReLU(True)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(4096, 1000))


def _block(inputs: int, width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv2d(inputs if number == 0 else width, width, 3, padding=1), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class ResNet50(nn.Sequential):
    """He et al. 2015 as in Keras: stride in the first 1x1 convolution, biases before the batch norms."""

    def __init__(self) -> None:
        stem = (*_convolution(3, 64, 7, stride=2), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        super().__init__(nn.Sequential(*stem), *_stages())

    @property
    def top_block(self) -> nn.Module:
        """The block that phase `top` trains."""
        return self[-1]

    def imagenet_top(self, size: int) -> nn.Module:
        """Return global average pooling and one dense layer."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def _stages() -> Iterator[nn.Module]:
    inputs = 64
    for number, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**number
        first = Bottleneck(inputs, width, stride=1 if number == 0 else 2)
        yield nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(depth - 1)))
        inputs = 4 * width


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, with a shortcut that is projected if the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *_convolution(inputs, width, 1, stride),
            nn.ReLU(True),
            *_convolution(width, width, 3),
            nn.ReLU(True),
            *_convolution(width, 4 * width, 1),
        )
        projected = inputs != 4 * width
        self.shortcut = nn.Sequential(*_convolution(inputs, 4 * width, 1, stride)) if projected else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, inputs, h, w] to [n, 4 * width, h / stride, w / stride]."""
        return torch.relu(self.path(x) + self.shortcut(x))


def _convolution(inputs: int, width: int, side: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, width, side, stride, padding=side // 2)
    return convolution, nn.BatchNorm2d(width, eps=1.001e-5, momentum=0.01)


NETWORKS = {
    "vgg16": lambda: VGG((2, 2, 3, 3, 3)),
    "vgg19": lambda: VGG((2, 2, 4, 4, 4)),
    "resnet50": ResNet50,
}
