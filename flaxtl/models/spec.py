"""What the registry knows about a model: how it is built, its published weights, size, accuracy and license."""

from collections.abc import Callable
from dataclasses import dataclass

from flaxtl.errors import unknown
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.models.net import Net
from flaxtl.models.tracer import Value

KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"

TF_KERNELS = "weights_tf_dim_ordering_tf_kernels"
"""Part of the file names of most of Keras' weights."""

Groups = tuple[tuple[str, str], ...]
"""Ordered rules (group, regular expression over 'section/layer/leaf'); the first full match decides."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Attributes:
      name: file name in the cache.
      url: where it is downloaded from.
      hash: MD5 or SHA-256, in hexadecimal; '' if none is published.
    """

    name: str
    url: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of the registry.

    Attributes:
      name: key in the registry.
      build: function of (net, pixels, include_top) that runs the layers; `include_top` adds the published classifier
        of the 1,000 ImageNet classes.
      preprocessing: key in `imagenet.PREPROCESSING`.
      weights: published weights of the whole network.
      weights_no_top: published weights of the backbone.
      num_params: as Keras' `count_params` of the whole network, including batch statistics.
      num_params_no_top: the same of the backbone.
      top1: accuracy in percent on the ImageNet validation set, one center crop, as published.
      top5: top-5 accuracy, likewise; None if it is not published.
      groups: default param groups: the head, the last block of the backbone, the rest.
      license: of the published weights.
      paper: arXiv identifier or DOI.
      input_size: side in pixels of the square images that the weights were published for.
      min_input_size: smallest side that the network accepts.
      blocks: regular expression for the beginning of layer names that tells the blocks of the backbone apart, for
        layer-wise decay: its last group, or the whole match. A layer that does not match is in the block of the layer
        before it. '' makes every layer with parameters a block.
      builtin: file in flaxtl/pretrained/builtin with backbone weights that come with flaxtl; '' if there is none.
    """

    name: str
    build: Callable[[Net, Value, bool], Value]
    preprocessing: str
    weights: WeightsFile
    weights_no_top: WeightsFile
    num_params: int
    num_params_no_top: int
    top1: float
    top5: float | None
    groups: Groups
    license: str
    paper: str
    input_size: int = 224
    min_input_size: int = 32
    blocks: str = ""
    builtin: str = ""

    def __post_init__(self) -> None:
        """Raise UserError for an unknown preprocessing."""
        if self.preprocessing not in PREPROCESSING:
            raise unknown("preprocessing", self.preprocessing, PREPROCESSING)

    @property
    def last_block(self) -> str:
        """Name of the group of the backbone's last block, the second of `groups`; `top` in a phase's `lr`."""
        return self.groups[1][0]


def keras_weights(path: str, *, md5: str = "", sha256: str = "", root: str = KERAS_APPLICATIONS) -> WeightsFile:
    """Return a weight file of keras.applications; `path` is relative to `root`."""
    return WeightsFile(path.rsplit("/", 1)[-1], f"{root}/{path}", md5 or sha256)


def default_groups(*, last_block: str, layers: str) -> Groups:
    """Return the usual three groups: 'head', the last block and 'base'.

    Args:
      last_block: name of its group.
      layers: regular expression over the names of the layers of the last block.
    """
    return (("head", "head/.*"), (last_block, f"backbone/(?:{layers})/.*"), ("base", "backbone/.*"))
