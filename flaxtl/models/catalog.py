"""Everything that is true of an architecture, by its name."""

from collections.abc import Callable
from dataclasses import dataclass

from flaxtl.errors import unknown
from flaxtl.models import vgg
from flaxtl.models.net import Net, Value

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class WeightFile:
    """A file of pretrained weights: its name in Keras' cache, where it is had, and the MD5 that Keras publishes."""

    name: str
    url: str
    md5: str


@dataclass(frozen=True)
class Architecture:
    """One row of the catalog.

    `size` is the side of the square picture it was trained on, `minimum_size` the smallest side it accepts;
    parameter counts are those that Keras' `count_params` gives; accuracies are ImageNet validation, one centre crop,
    in percent, as Keras' table has them. `groups` is the default rule list for freezing.
    """

    name: str
    build: Callable[[Net, Value, bool], Value]
    size: int
    minimum_size: int
    preprocessing: str
    parameters_with_top: int
    parameters_base: int
    top1: float
    top5: float
    licence: str
    paper: str
    file_with_top: WeightFile
    file_base: WeightFile
    builtin_base: str
    groups: tuple[tuple[str, str], ...]


def _keras_files(name: str, with_top: str, base: str) -> tuple[WeightFile, WeightFile]:
    stem = f"{name}_weights_tf_dim_ordering_tf_kernels"
    files = ((f"{stem}.h5", with_top), (f"{stem}_notop.h5", base))
    first, second = (WeightFile(file, f"{KERAS}/{name}/{file}", md5) for file, md5 in files)
    return first, second


VGG_GROUPS = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("base", "backbone/.*"))
VGG_LICENCE = "CC BY 4.0 (K. Simonyan, A. Zisserman)"
VGG_PAPER = "arXiv:1409.1556"

# Sizes, counts, files and hashes: Keras' vgg16.py and vgg19.py. Accuracies: keras-applications' README.
VGG16_FILES = _keras_files("vgg16", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc")
VGG19_FILES = _keras_files("vgg19", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6")

ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture(
            name="vgg16",
            build=vgg.vgg16,
            size=224,
            minimum_size=32,
            preprocessing="caffe",
            parameters_with_top=138_357_544,
            parameters_base=14_714_688,
            top1=71.268,
            top5=90.050,
            licence=VGG_LICENCE,
            paper=VGG_PAPER,
            file_with_top=VGG16_FILES[0],
            file_base=VGG16_FILES[1],
            builtin_base="vgg16_notop.safetensors",
            groups=VGG_GROUPS,
        ),
        Architecture(
            name="vgg19",
            build=vgg.vgg19,
            size=224,
            minimum_size=32,
            preprocessing="caffe",
            parameters_with_top=143_667_240,
            parameters_base=20_024_384,
            top1=71.256,
            top5=89.988,
            licence=VGG_LICENCE,
            paper=VGG_PAPER,
            file_with_top=VGG19_FILES[0],
            file_base=VGG19_FILES[1],
            builtin_base="",
            groups=VGG_GROUPS,
        ),
    )
}


def find(name: str) -> Architecture:
    """The architecture called `name`; a misspelt name is an error that suggests the right one."""
    if name not in ARCHITECTURES:
        raise unknown("network", name, ARCHITECTURES)
    return ARCHITECTURES[name]
