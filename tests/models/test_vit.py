"""ViT against NumPy's float64 with the same random weights, and what is particular about it.

They differ by float32 rounding only.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiling, numpy_vit

from flaxtl.errors import UserError
from flaxtl.evaluation.gradcam import check_layer, default_layer, gradcam_maps
from flaxtl.models import classifier, registry, vit
from flaxtl.models.classifier import Classifier, forward, forward_logits
from flaxtl.models.head import Head
from flaxtl.models.tracer import cut_points
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_timm_weights, load_weights
from flaxtl.train.param_groups import assign_groups

NETWORK = Classifier(numpy_vit.SPEC)
MODEL = Classifier(numpy_vit.SPEC, Head(3, "global_average", units=()))
BOUND = 1e-6  # three times the largest deviation, 3e-7


@pytest.fixture(scope="module")
def arrays():
    return numpy_vit.random_arrays()


@pytest.fixture(scope="module")
def params(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "x.npz"
    np.savez(path, **arrays)
    return {"backbone": load_weights(path, expected_shapes(NETWORK)).params}


@pytest.fixture(scope="module")
def with_head(params):
    shapes = expected_shapes(MODEL)
    head = {
        "kernel": np.random.default_rng(2).standard_normal((numpy_vit.CHANNELS, 3), np.float32),
        "bias": np.zeros(3),
    }
    return {"backbone": {layer: params["backbone"][layer] for layer in shapes}, "head": {"predictions": head}}


def random_images(height, width):
    return np.random.default_rng(1).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (40, 83)])
@compiling.compiled_quickly()
def test_logits_equal_float64_reference(arrays, params, height, width):
    """At the published size, and with resampled embeddings, 2x5 of 14x14, and pixels that fill no patch."""
    images = random_images(height, width)
    expected = numpy_vit.logits(arrays, images)
    assert np.ptp(expected) > 1
    actual = jax.jit(partial(forward_logits, NETWORK))(params, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND * np.abs(expected).max())


@pytest.mark.exhaustive("networks")
@pytest.mark.parametrize("name", [spec.name for spec in vit.MODELS])
def test_published_network_equals_float64_reference(name, tmp_path):
    spec = registry.get_spec(name)
    size = spec.build.keywords
    arrays = numpy_vit.random_arrays(
        size["channels"], size["heads"], size["depth"], patch=size["patch"], side=224 // size["patch"]
    )
    np.savez(tmp_path / "x.npz", **arrays)
    network, images = Classifier(spec), random_images(224, 224)
    params = {"backbone": load_weights(tmp_path / "x.npz", expected_shapes(network), trusted=True).params}
    expected = numpy_vit.logits(arrays, images)
    actual = jax.jit(partial(forward_logits, network))(params, images)
    bound = 4.2e-6 * np.abs(expected).max()  # three times the largest deviation, that of B/32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def test_restart_at_cut_points_gives_the_same_logits(with_head):
    """The cut points are where features can be cached: after every sum, not between query, key and value."""
    images = random_images(32, 32)
    points = [name for name in cut_points(classifier.list_layers(MODEL, 32, 32)) if "pool" not in name][:8]
    sums = [f"encoderblock_{block}_{part}" for block in (0, 1) for part in ("residual", "output")]
    assert points == ["embedding", "posembed_input", *sums, "encoder_norm", "class_token"]
    run = jax.jit(partial(forward, MODEL), static_argnames=("start", "taps"))
    whole = run(with_head, images, taps=("encoderblock_0_output",))
    rest = run(with_head, whole.taps["encoderblock_0_output"], start="encoderblock_0_output")
    np.testing.assert_allclose(rest.logits, whole.logits, rtol=0, atol=1e-6)


def test_bfloat16_reaches_every_layer():
    model = Classifier(numpy_vit.SPEC, MODEL.head, dtype=jnp.bfloat16)
    layers = tuple(layer.name for layer in classifier.list_layers(model, 64, 32) if layer.section == "backbone")
    run = partial(model.init_with_output, taps=layers)
    result, variables = jax.eval_shape(run, jax.random.key(0), np.zeros((1, 64, 32, 3), np.uint8))
    assert {tap.dtype for tap in result.taps.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_cast_for_compute_leaves_layer_norms():
    flat = classifier.flatten_params(classifier.param_shapes(MODEL, 32, 32))
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in flat.items()}
    model = MODEL.clone(dtype=jnp.bfloat16)
    cast = jax.eval_shape(lambda params: classifier.cast_for_compute(params, model), params)
    in_float32 = {path for path, value in cast.items() if value.dtype == jnp.float32}
    assert in_float32 == {path for path in flat if re.search(r"norm/|Norm_\d/|predictions", path)}


def test_gradcam_maps_are_those_of_the_patches(with_head):
    """Below the last attention, because only the class token goes on from the last block; that token has no place."""
    images, name = random_images(32, 48), "encoderblock_0_output"
    layers = classifier.list_layers(MODEL, 32, 48)
    assert default_layer(layers) == name
    layer = check_layer(layers, name)
    assert layer.shape == (2, 3, numpy_vit.CHANNELS)
    classes = np.array([[0, 1], [2, 2]], np.int32)
    maps = jax.jit(lambda params, x: gradcam_maps(MODEL, params, x, classes, layer))(with_head, images)

    tokens = jax.jit(lambda params, x: forward(MODEL, params, x, stop=name).output)(with_head, images)

    @jax.jit
    def gradient(tokens, chosen):
        def score(tokens):
            return jnp.take_along_axis(forward_logits(MODEL, with_head, tokens, start=name), chosen[:, None], 1).sum()

        return jax.grad(score)(tokens)

    for column in range(2):
        weights = np.asarray(gradient(tokens, classes[:, column]))[:, 1:].mean(1, keepdims=True)
        expected = np.maximum((weights * np.asarray(tokens)[:, 1:]).sum(-1), 0).reshape(-1, 2, 3)
        largest = expected.max((1, 2), keepdims=True)
        np.testing.assert_allclose(maps[:, column], expected / np.where(largest, largest, 1), rtol=0, atol=1e-5)


def test_check_layer_class_token_names_alternative():
    with pytest.raises(UserError, match=r"'class_token'.*'encoderblock_0_output'"):
        check_layer(classifier.list_layers(MODEL, 32, 32), "class_token")


def test_head_average_2x2_of_a_token_is_refused():
    with pytest.raises(UserError, match=r"average_2x2.*global_average"):
        classifier.list_layers(Classifier(numpy_vit.SPEC, Head(3, "average_2x2")), 32, 32)


def test_tokens_are_pooled_if_the_backbone_ends_before_the_class_token():
    model = Classifier(numpy_vit.SPEC, MODEL.head, output_layer="encoder_norm")
    layers = classifier.list_layers(model, 32, 32)
    assert [layer.shape for layer in layers[-3:-1]] == [(numpy_vit.CHANNELS,)] * 2


def test_rules_of_docs_divide_blocks():
    shapes = classifier.flatten_params(
        classifier.param_shapes(Classifier(registry.get_spec("vit_tiny_patch16_224"), MODEL.head), 224, 224)
    )
    rules = (
        ("head", "head/.*"),
        ("block11", "backbone/(?:encoderblock_11_.*|encoder_norm)/.*"),
        ("blocks7_10", r"backbone/encoderblock_(?:[789]|10)_.*"),
        ("base", "backbone/.*"),
    )
    groups = assign_groups(list(shapes), rules)
    blocks = {
        int(match[1]) for path in groups if groups[path] == "blocks7_10" and (match := re.search(r"k_(\d+)", path))
    }
    assert blocks == {7, 8, 9, 10}
    assert groups["backbone/cls/token"] == groups["backbone/posembed_input/pos_embedding"] == "base"


# ---------------------------------------------------------------------- timm

try:
    import timm
    import torch
    from safetensors.torch import save_file
except ImportError:
    timm = None  # not in the dev extra, because only an exhaustive test uses it


@pytest.mark.exhaustive("torch")
@pytest.mark.skipif(timm is None, reason="needs timm and PyTorch")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch32_224"])
def test_network_equals_timm(name, tmp_path):
    """From one .npz file, which timm reads too, and from timm's safetensors.

    timm's GELU is exact. With the approximation that the weights were trained with, the rest is float32 rounding.
    """
    build = registry.get_spec(name).build.keywords
    sizes = {"channels": build["channels"], "heads": build["heads"], "depth": build["depth"], "patch": build["patch"]}
    arrays = numpy_vit.random_arrays(**sizes, side=224 // build["patch"])
    np.savez(tmp_path / "x.npz", **arrays)
    network = timm.create_model(name, act_layer=partial(torch.nn.GELU, approximate="tanh"))
    network.load_pretrained(tmp_path / "x.npz")
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    images = random_images(224, 224)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)).numpy()
    model = Classifier(registry.get_spec(name))
    shapes = expected_shapes(model)
    from_npz = load_weights(tmp_path / "x.npz", shapes).params
    from_timm = load_timm_weights(tmp_path / "x.safetensors", name, shapes).params
    np.testing.assert_equal(from_timm, from_npz)
    logits = np.asarray(jax.jit(partial(forward_logits, model))({"backbone": from_npz}, images))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
