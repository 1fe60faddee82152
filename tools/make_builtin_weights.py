"""Make the compact VGG16 base that ships with flaxtl from Keras' file.

    python tools/make_builtin_weights.py --weights=vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 \
        --output=flaxtl/weights/builtin/vgg16_notop.safetensors --precision=int8
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from flaxtl.weights import safetensors_file
from flaxtl.weights.load import load
from flaxtl.weights.tree import Tree

# Convolutions a block and their channels (Simonyan and Zisserman 2015, table 1, configuration D).
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
TOP = frozenset({"fc1", "fc2", "predictions"})
METADATA = {
    "architecture": "vgg16",
    "source": "https://www.robots.ox.ac.uk/~vgg/research/very_deep/ as converted by Keras",
    "licence": "CC BY 4.0, Karen Simonyan and Andrew Zisserman",
}


def expected_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of VGG16 without its top."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    channels_in = 3
    for block, (convolutions, channels) in enumerate(BLOCKS, start=1):
        for convolution in range(1, convolutions + 1):
            kernel = (3, 3, channels_in, channels)
            shapes[f"block{block}_conv{convolution}"] = {"kernel": kernel, "bias": (channels,)}
            channels_in = channels
    return shapes


def print_rounding(exact: Tree, path: Path) -> None:
    """Print, for each kernel, the rounding error relative to the largest and to the mean absolute weight."""
    rounded = safetensors_file.read(path).leaves
    print(f"{'layer':14} {'max error / max':>16} {'mean error / mean':>18}")
    for layer, leaves in exact.items():
        kernel = leaves["kernel"]
        error = np.abs(rounded[layer]["kernel"].values - kernel)
        print(f"{layer:14} {error.max() / np.abs(kernel).max():16.5f} {error.mean() / np.abs(kernel).mean():18.5f}")


def main() -> None:
    """Read, check, write, and tell how much was rounded away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="Keras' VGG16 file, with or without top")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "int8"), default="int8")
    arguments = parser.parse_args()

    loaded = load(arguments.weights, expected_shapes(), TOP)
    source_md5 = hashlib.md5(arguments.weights.read_bytes(), usedforsecurity=False).hexdigest()
    metadata = METADATA | {"source_file": arguments.weights.name, "source_md5": source_md5}
    safetensors_file.write(arguments.output, loaded.tree, metadata, arguments.precision)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes, from {loaded.origin}")
    print_rounding(loaded.tree, arguments.output)


if __name__ == "__main__":
    main()
