"""The words of the catalog: what is told of an architecture and of its weight files."""

from collections.abc import Callable
from dataclasses import dataclass

from flaxtl.models.net import Net
from flaxtl.models.tracer import Value

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"

Groups = tuple[tuple[str, str], ...]
"""An ordered rule list: (group, regular expression over 'section/layer/leaf'); the first full match wins."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: its name in a cache, where it is had, its MD5 or SHA-256 ('' if none is published)."""

    name: str
    url: str
    hash: str


@dataclass(frozen=True)
class ModelSpec:
    """One row of the catalog.

    `build` runs the layers on a Net; its third argument asks for the network's own top of 1,000 ImageNet classes.
    `input_size` is the side of the square images of the weights, `min_input_size` the smallest side that it accepts;
    parameter counts are those that Keras' `count_params` gives, the statistics of batch norms included; accuracies are
    ImageNet validation, one centre crop, in percent, as published. `groups` is the default rule list for freezing.
    """

    name: str
    build: Callable[[Net, Value, bool], Value]
    input_size: int
    min_input_size: int
    preprocessing: str
    num_params: int
    num_params_no_top: int
    top1: float
    top5: float
    license: str
    paper: str
    weights: WeightsFile
    weights_no_top: WeightsFile
    groups: Groups
    builtin: str = ""

    @property
    def top_group(self) -> str:
        """Name of the group that is the base's top block: the second of `groups`."""
        return self.groups[1][0]


def keras_weights(
    folder: str, stem: str, with_top: str, base: str, *, base_ending: str = "_notop", root: str = KERAS
) -> tuple[WeightsFile, WeightsFile]:
    """The files `STEM.h5` and `STEM_notop.h5` in a folder of Keras', with their MD5s."""
    files = ((f"{stem}.h5", with_top), (f"{stem}{base_ending}.h5", base))
    first, second = (WeightsFile(file, f"{root}/{folder}/{file}", md5) for file, md5 in files)
    return first, second


def default_groups(top: str, layers: str) -> Groups:
    """The usual three groups: the new head, the base's top block (a regular expression over layer names), the rest."""
    return (("head", "head/.*"), (top, f"backbone/(?:{layers})/.*"), ("base", "backbone/.*"))


def row(
    name: str,
    build: Callable[[Net, Value, bool], Value],
    files: tuple[WeightsFile, WeightsFile],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    *,
    preprocessing: str,
    license: str,
    paper: str,
    groups: Groups,
    size: int = 224,
    builtin: str = "",
) -> ModelSpec:
    """The row of a network for images of 32 pixels and more.

    `files` and `parameters` are those with the top and those of the base, `accuracy` is (top-1, top-5) in percent.
    """
    return ModelSpec(
        name=name,
        build=build,
        input_size=size,
        min_input_size=32,
        preprocessing=preprocessing,
        num_params=parameters[0],
        num_params_no_top=parameters[1],
        top1=accuracy[0],
        top5=accuracy[1],
        license=license,
        paper=paper,
        weights=files[0],
        weights_no_top=files[1],
        groups=groups,
        builtin=builtin,
    )
