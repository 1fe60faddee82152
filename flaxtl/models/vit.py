"""ViT Ti/16, S/16, B/16, B/32, L/16: Dosovitskiy et al. 2020, arXiv:2010.11929; Steiner et al. 2021, arXiv:2106.10270.

The layers are those of the authors' vit_jax/models_vit.py, without its `pre_logits`: the weights of the second paper,
"AugReg", have none. Names are those of the .npz files, flattened, without "Transformer/", such as
`encoderblock_0_MlpBlock_3_Dense_0`. Sizes are those of vit_jax/configs/models.py.

The weights were trained with Flax's defaults: GELU is the tanh approximation, and the epsilon of a layer norm is 1e-6.
timm computes the exact GELU with the same weights.
"""

from functools import partial
from typing import Any

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value

AUGREG = "https://storage.googleapis.com/vit_models/augreg"

INPUT_SIZE = 224
"""Side in pixels of the images that the weights were published for, here."""

EPSILON = 1e-6
"""Of the layer norms: Flax's default."""


def vit(net: Net, x: Value, include_top: bool, *, patch: int, channels: int, depth: int, heads: int) -> Value:
    """Run a class token and patches of `patch` x `patch` pixels through `depth` encoder blocks.

    The output is the class token, [batch, channels]. Pixels at the right and bottom that fill no patch are left out.
    """
    side = INPUT_SIZE // patch
    patches = net.conv(x, channels, patch, strides=patch, padding="valid", name="embedding")
    x = net.class_token(patches, name="cls")
    x = net.position_embedding(x, patches, (side, side), name="posembed_input")
    for block in range(depth):
        x = _encoder_block(net, x, channels, heads, name=f"encoderblock_{block}")
    x = net.layer_norm(x, epsilon=EPSILON, name="encoder_norm")
    x = net.first_token(x, name="class_token")
    return net.dense(x, 1000, act="softmax", name="head") if include_top else x


def _encoder_block(net: Net, x: Value, channels: int, heads: int, *, name: str) -> Value:
    """Self-attention, then two dense layers; each after a layer norm, and added to its input."""
    shortcut, attention = x, f"{name}_MultiHeadDotProductAttention_1"
    x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_LayerNorm_0")
    query, key, value = (net.dense(x, channels, name=f"{attention}_{part}") for part in ("query", "key", "value"))
    x = net.attention(query, key, value, heads, name=f"{name}_attention")
    x = net.dense(x, channels, name=f"{attention}_out")
    shortcut = x = net.add([shortcut, x], name=f"{name}_residual")
    x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_LayerNorm_2")
    x = net.dense(x, 4 * channels, act="gelu_tanh", name=f"{name}_MlpBlock_3_Dense_0")
    x = net.dense(x, channels, name=f"{name}_MlpBlock_3_Dense_1")
    return net.add([shortcut, x], name=f"{name}_output")


def _checkpoint(training: str, fine_tuning: str) -> WeightsFile:
    """Return the file that was trained on ImageNet-21k and fine-tuned on ImageNet at 224 pixels."""
    name = f"{training}-sd_{training[-3:]}--imagenet2012-steps_20k-{fine_tuning}-res_{INPUT_SIZE}.npz"
    return WeightsFile(name, f"{AUGREG}/{name}", hash="")


def _vit_spec(*, build: partial[Value], weights: WeightsFile, **facts: Any) -> ModelSpec:
    """Return the record of a network with these facts; the base is in the same file as the top."""
    last = f"encoderblock_{build.keywords['depth'] - 1}"
    return ModelSpec(
        build=build,
        preprocessing="tf",
        weights=weights,
        weights_no_top=weights,
        blocks=r"encoderblock_\d+",
        groups=default_groups(last_block=last, layers=f"{last}_.*|encoder_norm"),
        license="Apache-2.0 (Google)",
        paper="arXiv:2106.10270",
        input_size=INPUT_SIZE,
        **facts,
    )


# Accuracies: timm's results-imagenet.csv, of 248x248 pixels cropped to 224x224.
# The files are those that timm's vision_transformer.py names; no hashes are published.
MODELS = (
    _vit_spec(
        name="vit_tiny_patch16_224",
        build=partial(vit, patch=16, channels=192, depth=12, heads=3),
        weights=_checkpoint("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0", "lr_0.03"),
        num_params=5_717_416,
        num_params_no_top=5_524_416,
        top1=75.454,
        top5=92.844,
    ),
    _vit_spec(
        name="vit_small_patch16_224",
        build=partial(vit, patch=16, channels=384, depth=12, heads=6),
        weights=_checkpoint("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0", "lr_0.03"),
        num_params=22_050_664,
        num_params_no_top=21_665_664,
        top1=81.384,
        top5=96.136,
    ),
    _vit_spec(
        name="vit_base_patch16_224",
        build=partial(vit, patch=16, channels=768, depth=12, heads=12),
        weights=_checkpoint("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0", "lr_0.01"),
        num_params=86_567_656,
        num_params_no_top=85_798_656,
        top1=84.532,
        top5=97.292,
    ),
    _vit_spec(
        name="vit_base_patch32_224",
        build=partial(vit, patch=32, channels=768, depth=12, heads=12),
        weights=_checkpoint("B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0", "lr_0.03"),
        num_params=88_224_232,
        num_params_no_top=87_455_232,
        top1=80.716,
        top5=95.566,
    ),
    _vit_spec(
        name="vit_large_patch16_224",
        build=partial(vit, patch=16, channels=1024, depth=24, heads=16),
        weights=_checkpoint("L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1", "lr_0.01"),
        num_params=304_326_632,
        num_params_no_top=303_301_632,
        top1=85.834,
        top5=97.818,
    ),
)
