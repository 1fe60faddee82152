"""One network of every family as ONNX, with random weights, run by onnxruntime beside our own."""

import jax
import numpy as np
import onnxruntime
import pytest

from flaxtl.data.decode import Resize
from flaxtl.export import onnx
from flaxtl.export.formats import probability_fn
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward_logits
from flaxtl.models.head import Head

ROUNDING = 8
"""How many times more than a change of every parameter by one unit of its last place other sums may move a probability.

Layers are summed in another order, and what such errors come to is the network's affair: from 1e-7 to 8e-4 in these,
whose random activations grow and cancel as those of trained ones do not.
"""

FAST = "mobilenet_0.25"
NAMES = [FAST, *(pytest.param(family.NETWORKS[0].name, marks=pytest.mark.slow) for family in registry.FAMILIES)]


def drawn(model, side):
    """Random parameters, statistics among them, that keep the size of what passes through."""
    random = np.random.default_rng(0)

    def leaf(name, shape):
        values = random.standard_normal(shape, np.float32)
        if name in ("var", "scale"):
            return 1 + np.abs(values) / 10
        if len(shape) == 1:
            return values / 10
        return values * np.float32(np.sqrt(2 / np.prod(shape[:2] if shape[2:3] == (1,) else shape[:-1])))

    shapes = classifier.param_shapes(model, side, side)
    return {
        section: {
            layer: {name: leaf(name, shape) for name, shape in leaves.items()} for layer, leaves in layers.items()
        }
        for section, layers in shapes.items()
    }


def moved(parameters, seed):
    """Every parameter one unit of its last place larger or smaller."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + random.choice((-1, 1), leaf.shape) * np.spacing(leaf), parameters)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_ours(name, tmp_path):
    architecture = registry.get_spec(name)
    side = max(architecture.min_input_size, 64)
    model = Classifier(architecture, Head(num_classes=5, pooling="global_average", units=(8,)))
    parameters = drawn(model, side)
    images = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    last = parameters["head"]["predictions"]
    last["kernel"] *= 4 / np.abs(jax.jit(forward_logits, static_argnums=0)(model, parameters, images)).max()
    onnx.write_onnx(tmp_path / "model.onnx", model, parameters, Resize(side, side), "")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    ours = jax.jit(probability_fn, static_argnums=0)
    expected = ours(model, parameters, images)
    last_place = max(np.abs(ours(model, moved(parameters, seed), images) - expected).max() for seed in range(3))
    assert np.ptp(expected, axis=0).max() > 10 * ROUNDING * last_place  # else a fault could hide in it
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * last_place)
