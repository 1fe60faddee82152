"""Training: param groups, phases, the train step, the epoch loop, checkpoints. Alone imports optax and orbax.

The package is also the function `flaxtl.train(config, workdir)` of the Python API, which trains a run, evaluates it and
writes its report. See `flaxtl.api.train`.
"""

import sys

from flaxtl import TrainPackage

sys.modules[__name__].__class__ = TrainPackage
