"""Leaf names, kernel layouts, and the preprocessing of the first layer."""

import numpy as np
import pytest
from jax import lax

from flaxtl.models.imagenet import CAFFE, PREPROCESSING, TF, TORCH
from flaxtl.pretrained import convert
from flaxtl.pretrained.merge import StoredTensor

RANDOM = np.random.default_rng(0)


def stored(name, *shape):
    return StoredTensor(name, "float32", np.zeros(shape, np.float32))


def test_name_leaves_names_arrays_by_position():
    layers = {"conv": [stored("x_W", 1), stored("x_b", 1), stored("x_c", 1)], "dense": [stored("0", 1)], "flatten": []}
    named = convert.name_leaves(layers, {})
    assert {layer: {leaf: tensor.name for leaf, tensor in leaves.items()} for layer, leaves in named.items()} == {
        "conv": {"kernel": "x_W", "bias": "x_b", "2": "x_c"},
        "dense": {"kernel": "0"},
    }


@pytest.mark.parametrize("shape", [(3, 3, 1, 8), (3, 3, 4, 8)], ids=["depthwise", "ordinary"])
def test_name_leaves_reshapes_depthwise_kernels_only(shape):
    kernel = StoredTensor("k", "float32", RANDOM.standard_normal((3, 3, 4, 2 if shape[2] == 1 else 8)))
    named = convert.name_leaves({"conv": [kernel]}, {"conv": {"kernel": shape}})["conv"]["kernel"]
    np.testing.assert_array_equal(named.values, kernel.values.reshape(shape))


def test_kernels_without_outputs_or_rows_keep_their_number_of_values():
    kernel = StoredTensor("k", "float32", np.zeros((0, 3, 4, 2)))
    named = convert.name_leaves({"conv": [kernel]}, {"conv": {"kernel": (3, 3, 1, 8)}})["conv"]["kernel"]
    assert named.values.shape == (0, 3, 1, 8)
    assert convert.channels_last_kernel("fc1", np.zeros((0, 1024))).shape == (1024, 0)


@pytest.mark.parametrize(("layer", "channels"), [("fc1", 512), ("fc6", 256)])
def test_channels_last_kernel_reorders_inputs_of_flattened_maps(layer, channels):
    """PyTorch and Caffe flatten map by map, Keras pixel by pixel."""
    kernel, maps = RANDOM.standard_normal((3, channels * 4)), RANDOM.standard_normal((channels, 2, 2))
    ours = maps.transpose(1, 2, 0).ravel() @ convert.channels_last_kernel(layer, kernel)
    np.testing.assert_allclose(ours, kernel @ maps.ravel(), rtol=0, atol=1e-11)  # 2,048 products of float64


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
def test_channels_last_kernel_keeps_other_ranks(shape):
    values = RANDOM.standard_normal(shape)
    assert convert.channels_last_kernel("fc1", values) is values


@pytest.mark.parametrize(("source", "target"), [("torch", "caffe"), ("caffe", "tf"), ("tf", "torch")])
def test_adapt_preprocessing_keeps_outputs_of_the_first_layer(source, target):
    """Of a convolution without padding, up to float32 rounding of values of about 100."""
    assert [PREPROCESSING[name] for name in ("caffe", "tf", "torch")] == [CAFFE, TF, TORCH]
    images = RANDOM.integers(0, 256, (1, 6, 6, 3)).astype(np.uint8)
    params = {
        "conv1": {
            "kernel": RANDOM.standard_normal((3, 3, 3, 4)).astype(np.float32),
            "bias": RANDOM.standard_normal(4).astype(np.float32),
        },
        "conv2": {"kernel": np.ones(1, np.float32)},
    }

    def first_layer(params, preprocessing):
        pixels, kernel = PREPROCESSING[preprocessing](images), params["conv1"]["kernel"]
        dimensions = ("NHWC", "HWIO", "NHWC")
        outputs = lax.conv_general_dilated(pixels, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        return np.asarray(outputs + params["conv1"]["bias"])

    adapted = convert.adapt_preprocessing(params, source, target)
    expected = first_layer(params, source)
    np.testing.assert_allclose(first_layer(adapted, target), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert adapted["conv2"] is params["conv2"]


def test_adapt_preprocessing_to_the_same_returns_params_unchanged():
    params = {"conv1": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}
    assert convert.adapt_preprocessing(params, "caffe", "caffe") is params
