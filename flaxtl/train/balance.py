"""Weights of classes in the training loss."""

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flaxtl.errors import UserError, unknown

KINDS = ("none", "balanced")


def class_weights(setting: str, classes: Sequence[str], labels: npt.NDArray[np.int32]) -> tuple[float, ...] | None:
    """The factor on the loss of each class's examples, in the order of `classes`; None leaves all as they are.

    Args:
      setting: 'none'; 'balanced', which weighs a class by n / (classes * n of the class), so that every class counts
        the same in a pass over the data; or factors by class name, "{'daisy': 2.0}", 1 where a class is not named (as
        Keras' `class_weight`).
      classes: class names; labels: class indices of the training pictures, int32 [n].

    Raises UserError for another setting, an unknown class or a factor that is no number of 0 or more.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        return tuple((len(labels) / (len(classes) * counts)).tolist())
    factors = _factors(setting)
    for name, factor in factors.items():
        if name not in classes:
            raise unknown("class in class_weights", str(name), classes)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f"class_weights gives {name!r} the factor {factor!r}; give a number of 0 or more")
    if not any(factors.get(name, 1) for name in classes):
        raise UserError("class_weights gives every class the factor 0, so that nothing is learned; raise one of them")
    return tuple(float(factors.get(name, 1)) for name in classes)


def _factors(setting: str) -> dict[Any, Any]:
    if not setting.startswith("{"):
        raise unknown("class_weights", setting, KINDS)
    try:
        factors = ast.literal_eval(setting)
    except (SyntaxError, ValueError):
        factors = None
    if not isinstance(factors, dict):
        raise UserError("class_weights must be none, balanced, or factors by class name such as {'daisy': 2.0}")
    return factors
