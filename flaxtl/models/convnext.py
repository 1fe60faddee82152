"""ConvNeXt tiny, small, base, large and xlarge: Liu et al. 2022, arXiv:2201.03545.

The layers are those of Keras' convnext.py; their names start with that of the network. The sum at the end of a block is
not a layer in Keras, so a network can be cut between stages, but not between blocks. Stochastic depth does not occur:
Keras builds all published networks with a rate of zero.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

EPSILON = 1e-6
"""Epsilon of the layer norms."""

DEPTHS = (3, 3, 27, 3)
"""Blocks per stage of all networks but tiny, which has 9 in the third."""


def convnext(
    net: Net, x: Value, include_top: bool, *, name: str, widths: tuple[int, ...], depths: tuple[int, ...] = DEPTHS
) -> Value:
    """Four stages of `depths` blocks with `widths` channels; without the top, they end in a layer norm."""
    x = net.conv(x, widths[0], 4, strides=4, padding="valid", name=f"{name}_stem_conv")
    x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_stem_layernorm")
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_downsampling_layernorm_{stage - 1}")
            x = net.conv(x, width, 2, strides=2, padding="valid", name=f"{name}_downsampling_conv_{stage - 1}")
        for number in range(depth):
            x = _block(net, x, width, name=f"{name}_stage_{stage}_block_{number}")
    if not include_top:
        return net.layer_norm(x, epsilon=EPSILON)
    x = net.global_average_pool(x, name=f"{name}_head_gap")
    x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_head_layernorm")
    return net.dense(x, 1000, act="softmax", name=f"{name}_head_dense")


def _block(net: Net, x: Value, width: int, *, name: str) -> Value:
    """Inverted bottleneck: 7x7 depthwise convolution, layer norm, four times as many channels and back, layer scale."""
    shortcut = x
    x = net.depthwise_conv(x, 7, use_bias=True, name=f"{name}_depthwise_conv")
    x = net.layer_norm(x, epsilon=EPSILON, name=f"{name}_layernorm")
    x = net.dense(x, 4 * width, name=f"{name}_pointwise_conv_1")
    x = net.activation(x, "gelu", name=f"{name}_gelu")
    x = net.dense(x, width, name=f"{name}_pointwise_conv_2")
    x = net.layer_scale(x, name=f"{name}_layer_scale")
    x = net.activation(x, "linear", name=f"{name}_identity")
    return net.operation(lambda shortcut, x: shortcut + x, shortcut, x)


_convnext_spec = partial(
    ModelSpec,
    preprocessing="torch",
    top5=None,
    blocks=r".*_stage_\d+_block_\d+",
    groups=default_groups(last_block="stage_3", layers=r".*_stage_3_.*|layer_normalization"),
    license="MIT (Meta)",
    paper="arXiv:2201.03545",
)

# Counts, files and hashes: Keras' convnext.py. Accuracies: keras.io/api/applications, which gives no top-5; base, large
# and xlarge were trained on ImageNet-21k first.
MODELS = (
    _convnext_spec(
        name="convnext_tiny",
        build=partial(convnext, name="convnext_tiny", widths=(96, 192, 384, 768), depths=(3, 3, 9, 3)),
        weights=keras_weights(
            "convnext/convnext_tiny.h5", sha256="8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff"
        ),
        weights_no_top=keras_weights(
            "convnext/convnext_tiny_notop.h5", sha256="d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"
        ),
        num_params=28_589_128,
        num_params_no_top=27_820_128,
        top1=81.3,
    ),
    _convnext_spec(
        name="convnext_small",
        build=partial(convnext, name="convnext_small", widths=(96, 192, 384, 768)),
        weights=keras_weights(
            "convnext/convnext_small.h5", sha256="ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c"
        ),
        weights_no_top=keras_weights(
            "convnext/convnext_small_notop.h5",
            sha256="6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
        ),
        num_params=50_223_688,
        num_params_no_top=49_454_688,
        top1=82.3,
    ),
    _convnext_spec(
        name="convnext_base",
        build=partial(convnext, name="convnext_base", widths=(128, 256, 512, 1024)),
        weights=keras_weights(
            "convnext/convnext_base.h5", sha256="52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6"
        ),
        weights_no_top=keras_weights(
            "convnext/convnext_base_notop.h5", sha256="40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"
        ),
        num_params=88_591_464,
        num_params_no_top=87_566_464,
        top1=85.3,
    ),
    _convnext_spec(
        name="convnext_large",
        build=partial(convnext, name="convnext_large", widths=(192, 384, 768, 1536)),
        weights=keras_weights(
            "convnext/convnext_large.h5", sha256="070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6"
        ),
        weights_no_top=keras_weights(
            "convnext/convnext_large_notop.h5",
            sha256="96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
        ),
        num_params=197_767_336,
        num_params_no_top=196_230_336,
        top1=86.3,
    ),
    _convnext_spec(
        name="convnext_xlarge",
        build=partial(convnext, name="convnext_xlarge", widths=(256, 512, 1024, 2048)),
        weights=keras_weights(
            "convnext/convnext_xlarge.h5", sha256="c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee"
        ),
        weights_no_top=keras_weights(
            "convnext/convnext_xlarge_notop.h5",
            sha256="de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
        ),
        num_params=350_196_968,
        num_params_no_top=348_147_968,
        top1=86.7,
    ),
)
