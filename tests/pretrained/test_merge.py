import re

import ml_dtypes
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained.merge import StoredTensor, merge_params

EXPECTED = {"block1_conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)}, "block1_conv2": {"kernel": (3, 3, 4, 5)}}


def stored(name, *shape, dtype=np.float32):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).astype(dtype)
    return StoredTensor(name, values.dtype.name, values)


def matching_layers():
    return {
        "block1_conv1": {"kernel": stored("k1", 3, 3, 3, 4), "bias": stored("b1", 4)},
        "block1_conv2": {"kernel": stored("k2", 3, 3, 4, 5)},
    }


def test_merge_params_takes_all_expected_leaves():
    layers = matching_layers()
    params, rows = merge_params(EXPECTED, layers)
    assert {layer: {leaf: array.shape for leaf, array in leaves.items()} for layer, leaves in params.items()} == (
        EXPECTED
    )
    np.testing.assert_array_equal(params["block1_conv2"]["kernel"], layers["block1_conv2"]["kernel"].values)
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
def test_merge_params_refuses_integers_nan_and_infinity(kernel, reason):
    layers = matching_layers()
    layers["block1_conv2"]["kernel"] = StoredTensor("k2", kernel.dtype.name, kernel)
    with pytest.raises(UserError) as error:
        merge_params(EXPECTED, layers)
    (line,) = [line for line in str(error.value).splitlines() if line.startswith("  ! block1_conv2/kernel ")]
    assert re.search(reason, line)
    assert re.search(r"\bk2\b", line)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ">f4"])
def test_merge_params_returns_contiguous_float32(dtype):
    layers = matching_layers()
    kernel = stored("k2", 5, 4, 3, 3, dtype=dtype)
    layers["block1_conv2"]["kernel"] = StoredTensor("k2", kernel.dtype, kernel.values.T)
    leaf = merge_params(EXPECTED, layers)[0]["block1_conv2"]["kernel"]
    assert leaf.dtype == np.float32
    assert leaf.dtype.isnative
    assert leaf.flags.c_contiguous
    np.testing.assert_array_equal(leaf, kernel.values.T.astype(np.float64))  # widening is exact


def test_merge_params_skips_optional_layers():
    layers = matching_layers() | {"predictions": {"kernel": stored("k3", 80, 3), "bias": stored("b3", 3)}}
    params, rows = merge_params(EXPECTED, layers, optional={"predictions", "fc1"})
    assert params.keys() == EXPECTED.keys()
    assert [row for row in rows if row.status == "skipped"] == [
        ("predictions", "kernel", (80, 3), "float32", "k3", "skipped"),
        ("predictions", "bias", (3,), "float32", "b3", "skipped"),
    ]


def test_merge_params_checks_expected_layers_that_are_optional_too():
    layers = matching_layers()
    layers["block1_conv2"]["bias"] = stored("b2", 5)
    with pytest.raises(UserError, match=r"\+ block1_conv2/bias \(5,\).*\bb2\b"):
        merge_params(EXPECTED, layers, optional={"block1_conv2"})


def test_merge_params_lists_all_problems_in_one_error():
    layers = {
        "block1_conv1": {"kernel": stored("k1", 3, 3, 4, 4), "bias": stored("b1", 4), "2": stored("b1 again", 4)},
        "predictions": {"kernel": stored("k3", 80, 3)},
    }
    with pytest.raises(UserError) as caught:
        merge_params(EXPECTED, layers, source="x.h5")
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
    ("in_file", "expected", "hint"),
    [
        ({"block5_conv3", "block3_conv4"}, {"block5_conv3"}, r"\bVGG19\b.*\bblock3_conv4\b"),
        ({"block5_conv3"}, ["block3_conv4", "block5_conv3"], None),
        ({"a", "b"}, ["a", "b", "c", "d"], r"\blayer c or later\b.*\bpart of the model\b"),
        ({"a", "c"}, ["a", "b", "c", "d"], None),
        ({"a", "x"}, ["a", "b", "c", "d"], None),
        ({"block5_conv3"}, {"conv1"}, r"\bVGG16\b.*\bblock5_conv3\b"),
        ({"dense"}, {"conv1"}, None),
    ],
)
def test_merge_error_identifies_the_model_of_the_file(in_file, expected, hint):
    layers = {layer: {"kernel": stored("k", 1)} for layer in sorted(in_file)}
    with pytest.raises(UserError) as caught:
        merge_params({layer: {"kernel": (2,)} for layer in sorted(expected)}, layers)
    first_line = str(caught.value).splitlines()[0]
    assert re.search(hint or r"(?i)\bmissing\b", first_line)
    assert hint or not re.search(r"\bVGG|\bpart of\b", first_line)


def test_merge_error_suggests_to_skip_another_head():
    head = {"my_head": {"kernel": stored("k3", 5, 3)}, "my_norm": {"scale": stored("s", 5)}}
    advice = r"\bskip_layers='my_head\|my_norm' \(--config\.weights\.skip_layers\b.*--skip-layers\b"
    with pytest.raises(UserError, match=advice):
        merge_params(EXPECTED, matching_layers() | head)
    incomplete = {layer: leaves for layer, leaves in matching_layers().items() if layer != "block1_conv1"}
    deeper = matching_layers() | {"block1_conv3": {"kernel": stored("k3", 3, 3, 5, 5)}}
    for layers in (incomplete | head, deeper):
        with pytest.raises(UserError, match=r"^(?![\s\S]*skip_layers)"):
            merge_params(EXPECTED, layers)


def test_merge_error_suggests_to_skip_a_head_of_another_size():
    head = {"kernel": stored("k3", 7, 21_843), "bias": stored("b3", 21_843)}
    expected = EXPECTED | {"head": {"kernel": (7, 1000), "bias": (1000,)}}
    with pytest.raises(UserError, match=r"\bskip_layers='head' "):
        merge_params(expected, matching_layers() | {"head": head})
    deeper = {"kernel": stored("k3", 3, 3, 5, 9), "bias": stored("b3", 9)}
    with pytest.raises(UserError, match=r"^(?![\s\S]*skip_layers)"):
        merge_params(EXPECTED | {"conv": {"kernel": (3, 3, 5, 5), "bias": (5,)}}, matching_layers() | {"conv": deeper})


def test_merge_error_recognizes_channels_first_kernels():
    layers = matching_layers()
    layers["block1_conv2"]["kernel"] = stored("k2", 5, 4, 3, 3)
    with pytest.raises(UserError, match=r"(?i)! block1_conv2/kernel .*\bchannels.first\b.*\bPyTorch\b"):
        merge_params(EXPECTED, layers)
