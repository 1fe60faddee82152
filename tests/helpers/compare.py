"""Comparing a function and its gradients with a reference."""

import jax
import numpy as np


def outputs_and_gradients(function, *arguments, dy):
    """Return the output, and the gradient of the sum of output * dy with respect to each argument."""
    output, gradients = jax.vjp(function, *arguments)
    return output, *gradients(dy)


def relative_error(value, expected):
    """Return the root mean square of the error, relative to that of what is expected."""
    value, expected = np.asarray(value, np.float32), np.asarray(expected, np.float32)
    return np.sqrt(np.square(value - expected).mean() / np.square(expected).mean())
