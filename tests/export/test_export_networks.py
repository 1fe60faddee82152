"""One model of every family as ONNX with random weights: onnxruntime against flaxtl."""

import jax
import numpy as np
import onnxruntime
import pytest

from flaxtl.data.decode import Resize
from flaxtl.evaluation.predictor import Predictor
from flaxtl.export import onnx
from flaxtl.export.formats import probabilities
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward_logits
from flaxtl.models.head import Head
from flaxtl.parallel import devices

ROUNDING = 8
"""Tolerance, as a multiple of the effect of changing every parameter by one unit in the last place.

Sums in another order have an effect that depends on the model: from 1e-7 to 8e-4 here, because random activations
grow and cancel unlike those of trained models.
"""

SLOW = (
    "googlenet",
    "resnet50",
    "mobilenet_v3_small_100",
    "vit_tiny_patch16_224",
)
NAMES = [family.MODELS[0].name for family in registry.FAMILIES]


def random_params(model, side):
    """Return random params, including batch statistics, that preserve the scale of activations."""
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


def perturb(params, seed):
    """Change every parameter by one unit in the last place, up or down."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + random.choice((-1, 1), leaf.shape) * np.spacing(leaf), params)


@pytest.mark.parametrize(
    ("name", "output_layer"),
    [
        ("mobilenet_025", "conv_pw_3_relu"),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in SLOW),
        *(pytest.param(name, None, marks=pytest.mark.exhaustive("networks")) for name in NAMES if name not in SLOW),
    ],
)
def test_write_onnx_every_family_matches_flaxtl(name, output_layer, tmp_path):
    spec = registry.get_spec(name)
    side = max(spec.min_input_size, 64)
    model = Classifier(spec, Head(num_classes=5, pooling="global_average", units=(8,)), output_layer)
    params = random_params(model, side)
    images = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    last = params["head"]["predictions"]
    last["kernel"] *= 4 / np.abs(jax.jit(forward_logits, static_argnums=0)(model, params, images)).max()
    predictor = Predictor(model, params, Resize(side, side), (), devices.make_mesh(1))
    onnx.write_onnx(tmp_path / "model.onnx", predictor, "")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images})
    predict = jax.jit(probabilities, static_argnums=0)
    expected = predict(model, params, images)
    last_place = max(np.abs(predict(model, perturb(params, seed), images) - expected).max() for seed in range(3))
    assert np.ptp(expected, axis=0).max() > 10 * ROUNDING * last_place  # otherwise an error could stay undetected
    np.testing.assert_allclose(output, expected, rtol=0, atol=ROUNDING * last_place)
