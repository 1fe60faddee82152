"""PyTorch's models, built here with timm's names and random weights, equal flaxtl's with the converted file.

PyTorch and XLA order the sums of a layer differently. Measured, relative to the largest output: EfficientNetB0 1.1e-6,
DenseNet121 1.4e-6 (PyTorch's epsilon is 1e-5 and Keras' 1.001e-5, which is less than rounding), VGG16 2.0e-6 where the
border is out of sight; the bound is three times that.
"""

import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxtl.cli import main
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head
from flaxtl.models.imagenet import TORCH as preprocess
from flaxtl.pretrained import timm
from flaxtl.pretrained.backbone import convert_weights_file, expected_shapes
from flaxtl.pretrained.loader import load_weights

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    torch = None  # not in the dev extra, because only exhaustive tests use it

BOUND = 6e-6


class RandomNet:
    """PyTorch's layers, each with random weights from its first call; `weights` is the resulting state dict."""

    def __init__(self, epsilon):
        self.epsilon = epsilon
        self.weights = {}
        self.random = np.random.default_rng(0)

    def array(self, name, shape, scale=0.1, shift=0.0):
        values = (scale * self.random.standard_normal(shape) + shift).astype(np.float32)
        self.weights[name] = values
        return torch.from_numpy(values)

    def conv(self, x, name, features, size, stride=1, padding=0, groups=1, bias=False):
        inputs = x.shape[1] // groups
        kernel = self.array(f"{name}.weight", (features, inputs, size, size), np.sqrt(2 / (inputs * size * size)))
        shift = self.array(f"{name}.bias", (features,)) if bias else None
        return F.conv2d(x, kernel, shift, stride, padding, groups=groups)

    def norm(self, x, name):
        channels = x.shape[1]
        mean, shift = self.array(f"{name}.running_mean", channels), self.array(f"{name}.bias", channels)
        var, scale = (self.array(f"{name}.{part}", channels, 0.1, 1) for part in ("running_var", "weight"))
        self.weights[f"{name}.num_batches_tracked"] = np.array(7)
        return F.batch_norm(x, mean, var.abs(), scale, shift, eps=self.epsilon)

    def linear(self, x, name, features):
        kernel = self.array(f"{name}.weight", (features, x.shape[1]), 1 / np.sqrt(x.shape[1]))
        return F.linear(x, kernel, self.array(f"{name}.bias", (features,), 0.01))


def vgg16(net, x):
    number = 0
    for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(depth):
            x = F.relu(net.conv(x, f"features.{number}", width, 3, padding=1, bias=True))
            number += 2
        x = F.max_pool2d(x, 2)
        number += 1
    return x


def densenet121(net, x):
    def activated(x, name):
        return F.relu(net.norm(x, name))

    x = activated(net.conv(x, "features.conv0", 64, 7, 2, 3), "features.norm0")
    x = F.max_pool2d(x, 3, 2, 1)
    for block, depth in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, depth + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = net.conv(activated(x, f"{name}.norm1"), f"{name}.conv1", 128, 1)
            new = net.conv(activated(new, f"{name}.norm2"), f"{name}.conv2", 32, 3, padding=1)
            x = torch.cat([x, new], 1)
        if block < 4:
            name = f"features.transition{block}"
            x = F.avg_pool2d(net.conv(activated(x, f"{name}.norm"), f"{name}.conv", x.shape[1] // 2, 1), 2)
    x = activated(x, "features.norm5")
    return net.linear(x.mean((2, 3)), "classifier", 1000)


def efficientnet_b0(net, x):
    def same(x, name, features, size, stride=1, groups=1):
        """TensorFlow's 'same': the odd row and column of zeros at the bottom and right."""
        border = []
        for side in (x.shape[3], x.shape[2]):
            zeros = max((-(-side // stride) - 1) * stride + size - side, 0)
            border += [zeros // 2, zeros - zeros // 2]
        return net.conv(F.pad(x, border), name, features, size, stride, groups=groups)

    def block(x, name, features, size, stride, expansion):
        shortcut, narrow, inside = x, x.shape[1] // 4, x.shape[1] * expansion
        norms = iter(("bn1", "bn2", "bn3"))
        if expansion > 1:
            x = F.silu(net.norm(net.conv(x, f"{name}.conv_pw", inside, 1), f"{name}.{next(norms)}"))
        x = same(x, f"{name}.conv_dw", inside, size, stride, inside)
        x = F.silu(net.norm(x, f"{name}.{next(norms)}"))
        factors = F.silu(net.conv(x.mean((2, 3), keepdim=True), f"{name}.se.conv_reduce", narrow, 1, bias=True))
        x = x * torch.sigmoid(net.conv(factors, f"{name}.se.conv_expand", inside, 1, bias=True))
        last = "conv_pwl" if expansion > 1 else "conv_pw"
        x = net.norm(net.conv(x, f"{name}.{last}", features, 1), f"{name}.{next(norms)}")
        return x + shortcut if x.shape == shortcut.shape else x

    stages = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6))
    stages += ((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6))
    x = F.silu(net.norm(same(x, "conv_stem", 32, 3, 2), "bn1"))
    for stage, (depth, features, size, stride, expansion) in enumerate(stages):
        for number in range(depth):
            x = block(x, f"blocks.{stage}.{number}", features, size, 1 if number else stride, expansion)
    x = F.silu(net.norm(net.conv(x, "conv_head", 1280, 1), "bn2"))
    return net.linear(x.mean((2, 3)), "classifier", 1000)


class Outputs(NamedTuple):
    """Return PyTorch's output and flaxtl's from the converted file, channels last."""

    theirs: np.ndarray
    ours: np.ndarray


def compare(name, network, tmp_path, *, top, epsilon=1e-5, side=64):
    """Compute both for one image: the logits with the top, otherwise the base's last pool."""
    images = np.random.default_rng(1).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    net = RandomNet(epsilon)
    pixels = torch.from_numpy(np.array(preprocess(images)).transpose(0, 3, 1, 2))
    theirs = np.moveaxis(network(net, pixels).numpy(), 1, -1)
    save_file(net.weights, tmp_path / "torch.safetensors")
    convert_weights_file(name, tmp_path / "torch.safetensors", tmp_path / "ours.safetensors", timm=True)
    model = Classifier(registry.get_spec(name), None if top else Head(2, "global_average"))
    parameters = {"backbone": load_weights(tmp_path / "ours.safetensors", expected_shapes(model)).params}
    last = None if top else "block5_pool"
    result = jax.jit(lambda parameters, x: forward(model, parameters, x, stop=last))(parameters, images)
    return Outputs(theirs, np.asarray(result.logits if top else result.output))


@pytest.mark.exhaustive("torch")
@pytest.mark.parametrize(
    ("name", "network", "epsilon"),
    [
        ("efficientnet_b0", efficientnet_b0, 1e-3),
        ("densenet121", densenet121, 1e-5),
    ],
)
def test_converted_model_with_torch_preprocessing_equals_pytorch(name, network, epsilon, tmp_path):
    both = compare(name, network, tmp_path, top=True, epsilon=epsilon)
    assert np.ptp(both.theirs) > 0.5
    np.testing.assert_allclose(both.ours, both.theirs, rtol=0, atol=BOUND * np.abs(both.theirs).max())


@pytest.mark.exhaustive("torch")
def test_converted_vgg_adapts_to_caffe_preprocessing(tmp_path):
    """The middle of the 7x7 outputs, which sees 212x212 of 224x224 pixels, is equal. The others also see the border.

    There the zeros of the first convolution are PyTorch's mean color before the change and Keras' after it, half a
    gray level apart: measured 1.2e-4 of the largest output.
    """
    theirs, ours = compare("vgg16", vgg16, tmp_path, top=False, side=224)
    np.testing.assert_allclose(ours[:, 3, 3], theirs[:, 3, 3], rtol=0, atol=BOUND * theirs.max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-4 * theirs.max())


def test_read_timm_maps_batch_norm_and_convolution_leaves(tmp_path):
    random = np.random.default_rng(0)
    norm = {name: random.standard_normal(4, np.float32) for name in ("weight", "bias", "running_mean", "running_var")}
    kernel = random.standard_normal((5, 4, 3, 2), np.float32)
    tensors = {f"features.norm0.{name}": values for name, values in norm.items()}
    tensors |= {"features.norm0.num_batches_tracked": np.array(7), "features.conv0.weight": kernel}
    save_file(tensors, tmp_path / "x")
    layers = timm.read_timm(tmp_path / "x", "densenet121", {"conv1_conv", "conv1_bn"}, {})
    values = {layer: {leaf: tensor.values for leaf, tensor in leaves.items()} for layer, leaves in layers.items()}
    leaves = dict(zip(("scale", "bias", "mean", "var"), norm.values(), strict=True))
    np.testing.assert_equal(values, {"conv1_bn": leaves, "conv1_conv": {"kernel": kernel.transpose(2, 3, 1, 0)}})


@pytest.mark.parametrize("module", ["classifier.0", "pre_logits.fc1"])
def test_read_vgg_fc1_reorders_inputs(module, tmp_path):
    """torchvision flattens the map, timm has a convolution over all of it. Here both are a dense layer."""
    random = np.random.default_rng(0)
    kernel, maps = random.standard_normal((3, 512, 7, 7), np.float32), random.standard_normal((512, 7, 7), np.float32)
    stored = kernel.reshape(3, -1) if module == "classifier.0" else kernel
    save_file({f"{module}.weight": stored}, tmp_path / "x")
    layers = timm.read_timm(tmp_path / "x", "vgg16", {"fc1"}, {"fc1": {"kernel": (25088, 3)}})
    ours = maps.transpose(1, 2, 0).ravel() @ layers["fc1"]["kernel"].values
    expected = np.einsum("ochw,chw->o", kernel, maps)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)  # 25,088 products of float32, about 160 in size


@pytest.mark.parametrize(
    "network",
    [
        "vgg16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vgg19", "densenet121", "densenet201", "efficientnet_b0")
        ),
    ],
)
def test_module_names_cover_every_layer(network):
    """VGG's dense layers have two: timm's and torchvision's."""
    known = set(expected_shapes(Classifier(registry.get_spec(network))))
    pairs = list(timm.module_names(network, known))
    assert {layer for _, layer in pairs} == known
    assert len({module for module, _ in pairs}) == len(pairs) == len(known) + 3 * network.startswith("vgg")


@pytest.mark.parametrize("network", ["resnet50", "efficientnet_v2_b0", "mobilenet_100", "alexnet"])
def test_module_names_of_unsupported_model_are_refused(network):
    with pytest.raises(UserError, match=rf"(?=.*--layout=timm\b)(?=.*\b{network}\b)"):
        timm.module_names(network, ())


def test_convert_timm_lists_modules_without_counterpart(tmp_path):
    """vgg16_bn has batch norms, and therefore other module numbers."""
    save_file({"features.1.weight": np.zeros(64, np.float32)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"\+ features\.1/kernel \(64,\).*\bfeatures\.1\.weight\b"):
        convert_weights_file("vgg16", tmp_path / "x", tmp_path / "y.safetensors", timm=True)


def test_convert_timm_names_a_file_of_another_format(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match=r"x\.pth is a pickle.*safetensors\.torch\.save_file.*not a safetensors file"):
        convert_weights_file("vgg16", tmp_path / "x.pth", tmp_path / "y", timm=True)


def test_convert_command_passes_the_layout(tmp_path, capsys):
    save_file({"a.weight": np.zeros(1, np.float32)}, tmp_path / "x")
    options = ["--model=resnet50", f"--weights={tmp_path}/x", f"--output={tmp_path}/y.safetensors", "--layout=timm"]
    with pytest.raises(SystemExit) as exited:
        main.main(["convert", *options])
    assert exited.value.code == 2
    assert re.search(r"(?=.*--layout=timm\b)(?=.*\bresnet50\b)", capsys.readouterr().err)
