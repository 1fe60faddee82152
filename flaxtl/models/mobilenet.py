"""MobileNet at four widths: Howard et al. 2017, arXiv:1704.04861, table 1.

The layers are those of Keras' mobilenet.py. `alpha` is the paper's width multiplier: the number of channels of every
layer is multiplied by it.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of blocks 1 to 13."""

STRIDED = (2, 4, 6, 12)
"""Numbers of the blocks of stride 2."""


def mobilenet(net: Net, x: Value, include_top: bool, *, alpha: float) -> Value:
    """Convolution of stride 2, then thirteen depthwise separable blocks; the classifier is a convolution."""
    x = net.conv(x, int(32 * alpha), 3, strides=2, use_bias=False, name="conv1")
    x = net.batch_norm(x, name="conv1_bn")
    x = net.relu(x, max_value=6, name="conv1_relu")
    for number, channels in enumerate(CHANNELS, start=1):
        x = _block(net, x, int(channels * alpha), number)
    if include_top:
        x = net.global_average_pool(x, keepdims=True)
        x = net.dropout(x, 0.001, name="dropout")
        x = net.conv(x, 1000, 1, name="conv_preds")
        x = net.reshape(x, (1000,), name="reshape_2")
        x = net.activation(x, "softmax", name="predictions")
    return x


def _block(net: Net, x: Value, channels: int, number: int) -> Value:
    """Depthwise 3x3, then 1x1 convolution. With stride 2, zeros are added at the bottom and right for any size."""
    if number in STRIDED:
        x = net.pad(x, ((0, 1), (0, 1)), name=f"conv_pad_{number}")
        x = net.depthwise_conv(x, 3, strides=2, padding="valid", name=f"conv_dw_{number}")
    else:
        x = net.depthwise_conv(x, 3, name=f"conv_dw_{number}")
    x = net.batch_norm(x, name=f"conv_dw_{number}_bn")
    x = net.relu(x, max_value=6, name=f"conv_dw_{number}_relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"conv_pw_{number}")
    x = net.batch_norm(x, name=f"conv_pw_{number}_bn")
    return net.relu(x, max_value=6, name=f"conv_pw_{number}_relu")


_mobilenet_spec = partial(
    ModelSpec,
    preprocessing="tf",
    blocks=r"conv_(?:dw|pw)_(\d+)",
    groups=default_groups(last_block="last_stage", layers=r"conv_[dp]w_1[23](?:_bn)?"),
    license="Apache 2.0 (Google)",
    paper="arXiv:1704.04861",
)

# Files: Keras' mobilenet.py, which has files for four image sizes (here: 224) and no hashes. Counts: count_params.
# Accuracies: README of keras-applications.
MODELS = (
    _mobilenet_spec(
        name="mobilenet_100",
        build=partial(mobilenet, alpha=1.0),
        weights=keras_weights("mobilenet/mobilenet_1_0_224_tf.h5"),
        weights_no_top=keras_weights("mobilenet/mobilenet_1_0_224_tf_no_top.h5"),
        num_params=4_253_864,
        num_params_no_top=3_228_864,
        top1=70.424,
        top5=89.504,
    ),
    _mobilenet_spec(
        name="mobilenet_075",
        build=partial(mobilenet, alpha=0.75),
        weights=keras_weights("mobilenet/mobilenet_7_5_224_tf.h5"),
        weights_no_top=keras_weights("mobilenet/mobilenet_7_5_224_tf_no_top.h5"),
        num_params=2_601_976,
        num_params_no_top=1_832_976,
        top1=68.412,
        top5=88.242,
    ),
    _mobilenet_spec(
        name="mobilenet_050",
        build=partial(mobilenet, alpha=0.50),
        weights=keras_weights("mobilenet/mobilenet_5_0_224_tf.h5"),
        weights_no_top=keras_weights("mobilenet/mobilenet_5_0_224_tf_no_top.h5"),
        num_params=1_342_536,
        num_params_no_top=829_536,
        top1=64.292,
        top5=85.624,
    ),
    _mobilenet_spec(
        name="mobilenet_025",
        build=partial(mobilenet, alpha=0.25),
        weights=keras_weights("mobilenet/mobilenet_2_5_224_tf.h5"),
        weights_no_top=keras_weights("mobilenet/mobilenet_2_5_224_tf_no_top.h5"),
        num_params=475_544,
        num_params_no_top=218_544,
        top1=51.582,
        top5=75.792,
    ),
)
