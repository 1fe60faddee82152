"""AlexNet: Krizhevsky, Sutskever and Hinton 2012, in the replica of the Caffe authors, bvlc_alexnet.

Layer by layer as in the ONNX model zoo's bvlcalexnet, under Caffe's names; a convolution's output is what its relu,
which works in place in Caffe, leaves there. The authors' two graphics cards live on as the two groups of conv2, conv4
and conv5, each of which sees only half of the channels.
"""

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value

LAST_ROW_AND_COLUMN = ((0, 1), (0, 1))


def alexnet(net: Net, x: Value, top: bool) -> Value:
    """Five convolutions, three of them pooled; with `top` the 1,000-class ImageNet classifier."""
    x = net.conv(x, 96, 11, strides=4, padding="valid", act="relu", name="conv1")
    x = net.local_response_norm(x, name="norm1")
    x = net.max_pool(x, 3, strides=2, name="pool1")
    x = net.conv(x, 256, 5, groups=2, act="relu", name="conv2")
    x = net.local_response_norm(x, name="norm2")
    x = net.max_pool(x, 3, strides=2, name="pool2")
    x = net.conv(x, 384, 3, act="relu", name="conv3")
    x = net.conv(x, 384, 3, groups=2, act="relu", name="conv4")
    x = net.conv(x, 256, 3, groups=2, act="relu", name="conv5")
    x = net.pad(x, LAST_ROW_AND_COLUMN, name="pool5_pad")  # only this pool rounds its size up
    x = net.max_pool(x, 3, strides=2, name="pool5")
    if top:
        x = net.flatten(x, name="flatten")
        for number in (6, 7):
            x = net.dense(x, 4096, act="relu", name=f"fc{number}")
            x = net.dropout(x, 0.5, name=f"drop{number}")
        x = net.dense(x, 1000, name="fc8")
        x = net.activation(x, "softmax", name="predictions")
    return x


# The file with the SHA-256 of the zoo's Git LFS pointer; the zoo moved from github.com/onnx/models in July 2025.
_FILE = WeightsFile(
    "bvlcalexnet-12.onnx",
    "https://huggingface.co/onnxmodelzoo/bvlcalexnet-12/resolve/main/bvlcalexnet-12.onnx",
    "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
)

# Accuracies: models/bvlc_alexnet/readme.md in github.com/BVLC/caffe, at 227x227, the size of its training crops. At the
# zoo's own 224x224, pool1 and pool2 leave out a last row and column: 54.80 and 78.23 (vision/classification/alexnet).
# Preprocessing: the script that measured those, examples/onnxrt/onnx_model_zoo/alexnet of intel/neural-compressor.
NETWORKS = (
    ModelSpec(
        name="alexnet",
        build=alexnet,
        input_size=227,
        min_input_size=51,
        preprocessing="caffe",
        num_params=60_965_224,
        num_params_no_top=2_334_080,
        top1=57.1,
        top5=80.2,
        license="unrestricted (E. Shelhamer, BVLC)",
        paper="doi:10.1145/3065386",
        weights=_FILE,
        weights_no_top=_FILE,
        groups=default_groups("conv5", "conv5"),
    ),
)
