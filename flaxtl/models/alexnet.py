"""AlexNet: Krizhevsky, Sutskever and Hinton 2012, doi:10.1145/3065386, in the Caffe authors' version, bvlc_alexnet.

The layers are those of the ONNX model zoo's bvlcalexnet, under Caffe's names. Caffe's relu works in place, so the
output of a convolution is after its relu. The two groups of conv2, conv4 and conv5, each of which reads only half of
the channels, date from the two GPUs that the authors trained on.
"""

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value

LAST_ROW_AND_COLUMN = ((0, 1), (0, 1))


def alexnet(net: Net, x: Value, include_top: bool) -> Value:
    """Five convolutions, three of them followed by a pool."""
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
    if include_top:
        x = net.flatten(x, name="flatten")
        for number in (6, 7):
            x = net.dense(x, 4096, act="relu", name=f"fc{number}")
            x = net.dropout(x, 0.5, name=f"drop{number}")
        x = net.dense(x, 1000, name="fc8")
        x = net.activation(x, "softmax", name="predictions")
    return x


# SHA-256: the zoo's Git LFS pointer. The zoo moved here from github.com/onnx/models in July 2025.
_FILE = WeightsFile(
    "bvlcalexnet-12.onnx",
    "https://huggingface.co/onnxmodelzoo/bvlcalexnet-12/resolve/main/bvlcalexnet-12.onnx",
    "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
)

# Accuracies: models/bvlc_alexnet/readme.md in github.com/BVLC/caffe, at 227x227, the size of its training crops. At the
# zoo's 224x224, where pool1 and pool2 drop a last row and column: 54.80 and 78.23 (vision/classification/alexnet).
# Preprocessing: the script that measured those, examples/onnxrt/onnx_model_zoo/alexnet of intel/neural-compressor.
MODELS = (
    ModelSpec(
        name="alexnet",
        build=alexnet,
        preprocessing="caffe",
        weights=_FILE,
        weights_no_top=_FILE,
        num_params=60_965_224,
        num_params_no_top=2_334_080,
        top1=57.1,
        top5=80.2,
        groups=default_groups(last_block="conv5", layers="conv5"),
        license="unrestricted (E. Shelhamer, BVLC)",
        paper="doi:10.1145/3065386",
        input_size=227,
        min_input_size=51,
    ),
)
