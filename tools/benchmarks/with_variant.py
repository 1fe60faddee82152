"""flaxtl's forward pass after one of its parts was replaced, for `variants`."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from benchmarks import with_flaxtl
from benchmarks.trial import Trial
from jax import lax

from flaxtl.models import inference, winograd


def _use_default(*arrays: jax.Array, default: Any, **by_platform: Any) -> Any:
    """Return what `lax.platform_dependent` computes on platforms without a function of their own."""
    return default(*arrays)


REPLACED: dict[str, tuple[ModuleType, str, Any]] = {
    "whole batches": (inference, "CHUNK_PIXELS", sys.maxsize),
    "small tiles": (winograd, "LARGE_TILES", winograd.SMALL_TILES),
    "XLA's convolutions": (lax, "platform_dependent", _use_default),
}
"""Variant -> module, name and new value of what is replaced."""


def forward(settings: dict[str, Any]) -> Trial:
    """Time the network as `variant`, and write its outputs to FOLDER/VARIANT.npy, float32."""
    if replaced := REPLACED.get(settings["variant"]):
        setattr(*replaced)
    trial = with_flaxtl.forward(settings)
    result = trial.step()
    output = result.output if result.logits is None else result.logits
    np.save(Path(settings["folder"]) / f"{settings['variant']}.npy", np.asarray(output, np.float32))
    return trial
