"""Convert Keras' VGG16 file to the compact base that is part of flaxtl.

    python tools/make_builtin_weights.py --weights=vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 \
        --output=flaxtl/pretrained/builtin/vgg16_notop.safetensors --precision=int8
"""

import argparse
import hashlib
from pathlib import Path

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.pretrained import safetensors_io
from flaxtl.pretrained.backbone import expected_shapes, optional_layers
from flaxtl.pretrained.loader import load_weights

METADATA = {
    "architecture": "vgg16",
    "source": "https://www.robots.ox.ac.uk/~vgg/research/very_deep/ as converted by Keras",
    "license": "CC BY 4.0, Karen Simonyan and Andrew Zisserman",
}


def main() -> None:
    """Convert the file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="Keras' VGG16 file, with or without top")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "int8"), default="int8")
    arguments = parser.parse_args()

    vgg16 = registry.get_spec("vgg16")
    base = Classifier(vgg16, Head(num_classes=1, pooling="global_average", units=()))
    loaded = load_weights(arguments.weights, expected_shapes(base), optional_layers(vgg16))
    source_md5 = hashlib.md5(arguments.weights.read_bytes(), usedforsecurity=False).hexdigest()
    metadata = METADATA | {"source_file": arguments.weights.name, "source_md5": source_md5}
    safetensors_io.write_safetensors(arguments.output, loaded.params, metadata, arguments.precision)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes, from {loaded.format}")


if __name__ == "__main__":
    main()
