"""Transfer learning for image classification in JAX and Flax.

    import flaxtl

    config = flaxtl.load_config("folder", "data.source=folder:flowers", "model.name=resnet50")
    run = flaxtl.train(config, workdir="runs/flowers")

    model, variables = flaxtl.create_model("vgg16", num_classes=5)
    logits = model.apply(variables, images)

The public names are loaded when they are first used, so that `import flaxtl` loads neither jax nor numpy.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see
    from ml_collections import ConfigDict

    from flaxtl.api import RunResult, load_config, load_run, train
    from flaxtl.data.decode import load_images
    from flaxtl.errors import UserError
    from flaxtl.evaluation.features import extract_features
    from flaxtl.pretrained.create_model import create_model, list_models
    from flaxtl.train.optimizers import make_optimizer
    from flaxtl.train.param_groups import merge, param_groups, partition

__version__ = "0.1.0"

__all__ = [
    "RunResult",
    "UserError",
    "create_model",
    "extract_features",
    "list_models",
    "load_config",
    "load_images",
    "load_run",
    "make_optimizer",
    "merge",
    "param_groups",
    "partition",
    "train",
]

_MODULES = {
    "RunResult": "flaxtl.api",
    "UserError": "flaxtl.errors",
    "create_model": "flaxtl.pretrained.create_model",
    "extract_features": "flaxtl.evaluation.features",
    "list_models": "flaxtl.pretrained.create_model",
    "load_config": "flaxtl.api",
    "load_images": "flaxtl.data.decode",
    "load_run": "flaxtl.api",
    "make_optimizer": "flaxtl.train.optimizers",
    "merge": "flaxtl.train.param_groups",
    "param_groups": "flaxtl.train.param_groups",
    "partition": "flaxtl.train.param_groups",
}
"""Public name -> the module that defines it. `train` is missing: it is the package `flaxtl.train`, see below."""


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name == "train":
        return import_module("flaxtl.train")
    if name not in _MODULES:
        raise AttributeError(f"module 'flaxtl' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})


class TrainPackage(ModuleType):
    """The class of the package `flaxtl.train`, which can be called: `flaxtl.train(config, workdir)`.

    `train` is a function of the Python API and a package. Python binds the package to the attribute `flaxtl.train`
    whenever one of its modules is imported, so the function would depend on what else a program has imported.
    """

    def __call__(self, config: "ConfigDict", workdir: str | Path) -> "RunResult":
        """Train or resume a run, evaluate it and write its report: see `flaxtl.api.train`."""
        from flaxtl.api import train

        return train(config, workdir)
