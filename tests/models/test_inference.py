"""Inference in chunks: their sizes, and results equal to those of whole batches."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers import numpy_vit

from flaxtl.errors import UserError
from flaxtl.models import inference, registry
from flaxtl.models.classifier import Classifier, forward, init_params
from flaxtl.models.head import Head
from flaxtl.models.inference import infer, map_chunks

MODEL = Classifier(registry.get_spec("mobilenet_025"), Head(3, "global_average", units=()))
SIDE = 32
LARGE, SMALL = "conv_pw_11_relu", "conv_pw_13_relu"
"""Layers of MODEL with 2x2 and 1x1 pixels, for images of SIDE."""


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, 64, 64, jax.random.key(0), head_only=False)


@pytest.fixture
def images(monkeypatch):
    """Return six images, of which two are a chunk."""
    monkeypatch.setattr(inference, "CHUNK_PIXELS", 2 * SIDE**2)
    return np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize(
    ("batch", "side", "expected"),
    [
        (32, 200, 4),
        (32, 224, 2),  # three do not divide 32
        (30, 224, 3),
        (31, 200, 31),  # a prime number: one by one would be slower
        (10, 100, 10),
        (32, 100, 16),
        (32, 32, 32),
        (8, 512, 1),
        (1, 200, 1),
    ],
)
def test_map_chunks_divides_batches_by_their_pixels(batch, side, expected):
    found = []

    def record(chunk, num_chunks):
        found.append((*chunk.shape, num_chunks))
        return chunk[:, 0, 0, 0]

    shape = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
    outputs = jax.eval_shape(lambda images: map_chunks(record, images), shape)
    assert found == [(expected, side, side, 3, batch // expected)]
    assert outputs.shape == (batch,)


def test_map_chunks_keeps_the_order_of_the_images(images):
    outputs = map_chunks(lambda chunk, num_chunks: {"half": chunk // 2, "n": num_chunks + chunk[:, 0, 0, 0]}, images)
    np.testing.assert_array_equal(outputs["half"], images // 2)
    np.testing.assert_array_equal(outputs["n"], 3 + images[:, 0, 0, 0])


def infer_twice(params, images, **cuts):
    """Return the results in chunks and of the whole batch, and check which of the programs has a loop over chunks."""
    programs = [jax.jit(lambda params, n=n: infer(MODEL, params, images, in_chunks=n, **cuts)) for n in (True, False)]
    assert ["stablehlo.while" in program.lower(params).as_text() for program in programs] == [True, False]
    return [program(params) for program in programs]


@pytest.mark.parametrize(
    "cuts",
    [
        {"taps": (SMALL, LARGE)},
        {"taps": (SMALL, LARGE), "stop": SMALL},
        {"taps": (LARGE,), "stop": LARGE},
        {"stop": "conv_pw_1"},
    ],
    ids=str,
)
def test_infer_in_chunks_equals_whole_batch(params, images, cuts):
    """The same float32 sums, perhaps in another order: of 256 terms, 16 roundings of 2**-24, in each of 27 layers."""
    in_chunks, whole = infer_twice(params, images, **cuts)
    assert in_chunks.taps.keys() == whole.taps.keys() == set(cuts.get("taps", ()))
    assert (in_chunks.logits is None) == ("stop" in cuts)
    for value, expected in zip(jax.tree.leaves(in_chunks), jax.tree.leaves(whole), strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=0, atol=27 * 2.0**-20 * np.abs(expected).max())


@pytest.mark.parametrize("cuts", [{"taps": ("conv_pw_99",)}, {"stop": LARGE, "taps": (SMALL,)}], ids=str)
def test_infer_taps_of_layers_that_do_not_run_are_user_errors(params, images, cuts):
    with pytest.raises(UserError, match=cuts["taps"][0]):
        jax.eval_shape(lambda: infer(MODEL, params, images, in_chunks=True, **cuts))


def program_text(function, *arguments):
    return jax.jit(lambda *given: function(*given).logits).lower(*arguments).as_text()


def test_infer_from_a_layer_is_the_forward_pass(params, images):
    features = np.zeros((6, 16, 16, 16), np.float32)
    infer_above, forward_above = (partial(run, MODEL, start="conv_pw_1_relu") for run in (infer, forward))
    text = program_text(partial(infer_above, in_chunks=True), params, features)
    assert text == program_text(forward_above, params, features)


def test_infer_without_large_layers_is_the_forward_pass(monkeypatch, images):
    monkeypatch.setattr(inference, "LARGE_STRIDE", 1)
    model = Classifier(numpy_vit.SPEC, Head(3, "global_average", units=()))
    params = init_params(model, SIDE, SIDE, jax.random.key(0), head_only=False)
    text = program_text(partial(infer, model, in_chunks=True), params, images)
    assert text == program_text(partial(forward, model), params, images)
