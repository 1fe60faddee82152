import re

import ml_dtypes
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained.convert import name_leaves
from flaxtl.pretrained.merge import StoredTensor, merge_params

EXPECTED = {"block1_conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)}, "block1_conv2": {"kernel": (3, 3, 4, 5)}}


def stored(name, *shape, dtype=np.float32):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).astype(dtype)
    return StoredTensor(name, values.dtype.name, values)


def fitting():
    return {
        "block1_conv1": {"kernel": stored("k1", 3, 3, 3, 4), "bias": stored("b1", 4)},
        "block1_conv2": {"kernel": stored("k2", 3, 3, 4, 5)},
    }


def test_everything_fits():
    found = fitting()
    params, rows = merge_params(EXPECTED, found)
    assert {layer: {leaf: array.shape for leaf, array in leaves.items()} for layer, leaves in params.items()} == (
        EXPECTED
    )
    np.testing.assert_array_equal(params["block1_conv2"]["kernel"], found["block1_conv2"]["kernel"].values)
    assert rows == [
        ("block1_conv1", "kernel", (3, 3, 3, 4), "float32", "k1", "loaded"),
        ("block1_conv1", "bias", (4,), "float32", "b1", "loaded"),
        ("block1_conv2", "kernel", (3, 3, 4, 5), "float32", "k2", "loaded"),
    ]


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (np.full((3, 3, 4, 5), np.nan, np.float32), r"(?i)\b(infinite|finite|inf|nan)\b"),
        (np.full((3, 3, 4, 5), np.inf, ml_dtypes.bfloat16), r"(?i)\b(infinite|finite|inf|nan)\b"),
        (np.full((3, 3, 4, 5), 200, np.uint8), r"\buint8\b"),
    ],
)
def test_values_that_are_no_weights(kernel, reason):
    found = fitting()
    found["block1_conv2"]["kernel"] = StoredTensor("k2", kernel.dtype.name, kernel)
    with pytest.raises(UserError) as error:
        merge_params(EXPECTED, found)
    (line,) = [line for line in str(error.value).splitlines() if line.startswith("  ! block1_conv2/kernel ")]
    assert re.search(reason, line)
    assert re.search(r"\bk2\b", line)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ">f4"])
def test_leaves_are_float32_and_contiguous(dtype):
    found = fitting()
    kernel = stored("k2", 5, 4, 3, 3, dtype=dtype)
    found["block1_conv2"]["kernel"] = StoredTensor("k2", kernel.dtype, kernel.values.T)
    leaf = merge_params(EXPECTED, found)[0]["block1_conv2"]["kernel"]
    assert leaf.dtype == np.float32
    assert leaf.dtype.isnative
    assert leaf.flags.c_contiguous
    np.testing.assert_array_equal(leaf, kernel.values.T.astype(np.float64))  # widening is exact


def test_optional_layers_are_skipped_and_told():
    found = fitting() | {"predictions": {"kernel": stored("k3", 80, 3), "bias": stored("b3", 3)}}
    params, rows = merge_params(EXPECTED, found, optional={"predictions", "fc1"})
    assert params.keys() == EXPECTED.keys()
    assert [row for row in rows if row.status == "skipped"] == [
        ("predictions", "kernel", (80, 3), "float32", "k3", "skipped"),
        ("predictions", "bias", (3,), "float32", "b3", "skipped"),
    ]


def test_an_optional_layer_that_is_expected_is_still_checked():
    found = fitting()
    found["block1_conv2"]["bias"] = stored("b2", 5)
    with pytest.raises(UserError, match=r"\+ block1_conv2/bias \(5,\).*\bb2\b"):
        merge_params(EXPECTED, found, optional={"block1_conv2"})


def test_one_error_lists_everything():
    found = {
        "block1_conv1": {"kernel": stored("k1", 3, 3, 4, 4), "bias": stored("b1", 4), "2": stored("b1 again", 4)},
        "predictions": {"kernel": stored("k3", 80, 3)},
    }
    with pytest.raises(UserError) as caught:
        merge_params(EXPECTED, found, source="x.h5")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("x.h5 ")
    lines = [
        r"  - block1_conv2/kernel \(3, 3, 4, 5\)",
        r"  \+ block1_conv1/2 \(4,\)\D*\bb1 again",
        r"  \+ predictions/kernel \(80, 3\)\D*\bk3",
        r"  ! block1_conv1/kernel\D*\(3, 3, 4, 4\)\D*\(3, 3, 3, 4\)",
    ]
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(lines, rest, strict=True)), rest


@pytest.mark.parametrize(
    ("held", "expected", "told"),
    [
        ({"block5_conv3", "block3_conv4"}, {"block5_conv3"}, r"\bVGG19\b.*\bblock3_conv4\b"),
        ({"block5_conv3"}, ["block3_conv4", "block5_conv3"], None),
        (
            {"a", "b"},
            ["a", "b", "c", "d"],
            r"\blayer c\b.*\btop\b",
        ),
        ({"a", "c"}, ["a", "b", "c", "d"], None),
        ({"a", "x"}, ["a", "b", "c", "d"], None),
        ({"block5_conv3"}, {"conv1"}, r"\bVGG16\b.*\bblock5_conv3\b"),
        ({"dense"}, {"conv1"}, None),
    ],
)
def test_the_error_guesses_whose_weights_these_are(held, expected, told):
    found = {layer: {"kernel": stored("k", 1)} for layer in sorted(held)}
    with pytest.raises(UserError) as caught:
        merge_params({layer: {"kernel": (2,)} for layer in sorted(expected)}, found)
    hint = str(caught.value).splitlines()[0]
    assert re.search(told or r"(?i)\bmissing\b", hint)
    assert told or not re.search(r"\bVGG|\btop\b", hint)


def test_channels_first_kernels_are_named():
    found = fitting()
    found["block1_conv2"]["kernel"] = stored("k2", 5, 4, 3, 3)
    with pytest.raises(UserError, match=r"(?i)! block1_conv2/kernel .*\bchannels.first\b.*\bPyTorch\b"):
        merge_params(EXPECTED, found)


def test_arrays_become_leaves_by_position():
    layers = {"conv": [stored("x_W", 1), stored("x_b", 1), stored("x_c", 1)], "dense": [stored("0", 1)], "flatten": []}
    leaves = {
        layer: {leaf: array.name for leaf, array in found.items()} for layer, found in name_leaves(layers, {}).items()
    }
    assert leaves == {"conv": {"kernel": "x_W", "bias": "x_b", "2": "x_c"}, "dense": {"kernel": "0"}}
