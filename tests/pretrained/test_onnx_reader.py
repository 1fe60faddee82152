"""ONNX files, written here by the package `onnx` itself, and damaged ones."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flaxtl.errors import UserError
from flaxtl.pretrained.loader import load_weights
from flaxtl.pretrained.onnx_reader import is_onnx, read_onnx

EXPECTED = {"conv1": {"kernel": (2, 3, 4, 5), "bias": (5,)}, "mixed_1x1": {"kernel": (6, 7), "bias": (7,)}}
RANDOM = np.random.default_rng(0)
KERNEL, BIAS = RANDOM.standard_normal((5, 4, 2, 3), np.float32), RANDOM.standard_normal(5, np.float32)
MATRIX, SHIFT = RANDOM.standard_normal((7, 6), np.float32), RANDOM.standard_normal(7, np.float32)


def tensors():
    """All arrays of EXPECTED, in both ways to store floats, and a tensor that is not a weight."""
    return [
        numpy_helper.from_array(KERNEL, "conv1_w_0"),
        helper.make_tensor("conv1_b_0", TensorProto.FLOAT, (5,), BIAS),  # as a list of floats
        numpy_helper.from_array(MATRIX, "mixed/1x1_w_0"),
        numpy_helper.from_array(SHIFT, "mixed/1x1_b_0"),
        numpy_helper.from_array(np.array([1, -1]), "OC2_DUMMY_1"),
    ]


def save(path, initializers):
    node = helper.make_node("Relu", ["data_0"], ["prob_1"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("data_0", "prob_1")]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, producer_name="onnx-caffe2"), path)
    return path


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "weights.bin", tensors())  # detected by its content, not by its name


def test_load_onnx_returns_leaves_in_flax_layout(file):
    loaded = load_weights(file, EXPECTED)
    assert loaded.format == "ONNX"
    np.testing.assert_array_equal(loaded.params["conv1"]["kernel"], KERNEL.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded.params["conv1"]["bias"], BIAS)
    np.testing.assert_array_equal(loaded.params["mixed_1x1"]["kernel"], MATRIX.T)
    np.testing.assert_array_equal(loaded.params["mixed_1x1"]["bias"], SHIFT)
    assert [row.stored_as for row in loaded.rows] == ["conv1_w_0", "conv1_b_0", "mixed/1x1_w_0", "mixed/1x1_b_0"]


def test_read_matrix_with_four_axes_returns_dense_kernel(tmp_path):
    """As in old Caffe models and the zoo's inception_v1: loss3/classifier_w_0 is [1, 1, 1000, 1024]."""
    layers = read_onnx(save(tmp_path / "x.onnx", [numpy_helper.from_array(MATRIX[None, None], "last_w_0")]))
    np.testing.assert_array_equal(layers["last"]["kernel"].values, MATRIX.T)


def test_read_dense_kernel_after_flatten_reorders_inputs(tmp_path):
    """AlexNet's fc6 reads 256 maps of 6x6: in Caffe map by map, here pixel by pixel."""
    kernel, maps = RANDOM.standard_normal((3, 256 * 36)), RANDOM.standard_normal((256, 6, 6))
    layers = read_onnx(save(tmp_path / "x.onnx", [numpy_helper.from_array(kernel, "fc6_w_0")]))
    ours = maps.transpose(1, 2, 0).ravel() @ layers["fc6"]["kernel"].values
    np.testing.assert_allclose(ours, kernel @ maps.ravel(), rtol=0, atol=1e-11)  # 9,216 products of float64


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_read_keeps_other_precisions(tmp_path, kind):
    number = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16}[kind]
    values = np.arange(-3, 3).astype(np.float32)  # exact in each
    stored = helper.make_tensor("conv1_b_0", number, (6,), values)
    whole = numpy_helper.from_array(numpy_helper.to_array(stored), "conv1_b_0")
    bias = read_onnx(save(tmp_path / "x.onnx", [whole]))["conv1"]["bias"]
    assert bias.dtype == kind
    np.testing.assert_array_equal(bias.values.astype(np.float32), values)


def test_load_unknown_initializer_is_listed_in_error(tmp_path):
    file = save(tmp_path / "x.onnx", [*tensors(), numpy_helper.from_array(BIAS, "features.0.bias")])
    with pytest.raises(UserError, match=r"\+ features\.0\.bias/initiali[sz]er \(5,\).* features\.0\.bias"):
        load_weights(file, EXPECTED)


def test_read_external_data_is_refused(tmp_path):
    file = save(tmp_path / "x.onnx", tensors())
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="x.data", size_threshold=0)
    with pytest.raises(UserError, match=r"x\.onnx (?!.*\bONNX\b).*'conv1_w_0'"):
        read_onnx(file)


def test_read_duplicate_name_is_refused(tmp_path):
    file = save(tmp_path / "x.onnx", [*tensors(), numpy_helper.from_array(BIAS, "conv1_b_0")])
    with pytest.raises(UserError, match=r"x\.onnx .*\bONNX\b.*'conv1_b_0'"):
        read_onnx(file)


@pytest.mark.parametrize("dims", [[2**62, 2**62], [-1, -1], [3], [2**40], [0]], ids=str)
def test_read_shape_that_differs_from_data_is_refused(tmp_path, dims):
    tensor = numpy_helper.from_array(BIAS, "conv1_b_0")
    tensor.dims[:] = dims
    with pytest.raises(UserError, match=r"x\.onnx .*\bONNX\b"):
        read_onnx(save(tmp_path / "x.onnx", [tensor]))


def test_read_shape_of_too_many_axes_is_refused(tmp_path):
    tensor = numpy_helper.from_array(BIAS, "conv1_b_0")
    tensor.dims[:] = [*[1] * 70, 5]
    with pytest.raises(UserError, match=r"x\.onnx .*\bONNX\b"):
        read_onnx(save(tmp_path / "x.onnx", [tensor]))


FIELDS = {
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a number without end": b"\x38" + b"\x80" * 20,
    "a number cut short": b"\x38\x80",
    "a wire type that does not exist": b"\x3f",
    "a group without end": b"\x3b",
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_read_invalid_field_is_refused(tmp_path, field):
    file = tmp_path / "x.onnx"
    file.write_bytes(b"\x08\x03\x12\x01x" + field)
    with pytest.raises(UserError, match=r"x\.onnx .*\bONNX\b"):
        read_onnx(file)


def test_read_number_in_place_of_name_allocates_nothing(tmp_path):
    """bytes(n) would be n zeros: a name that is the number 2**40 must not become one."""
    tensor = b"\x10\x01" + b"\x40\x80\x80\x80\x80\x80\x20"  # data_type 1, name as a varint
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    file = tmp_path / "x.onnx"
    file.write_bytes(b"\x08\x03\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(UserError, match=r"x\.onnx .*\bONNX\b"):  # no shape and no data: not even a scalar
        read_onnx(file)


def test_read_damage_at_any_byte_raises_only_user_errors(file):
    """Truncated every seven bytes, then each byte changed in turn."""
    content = file.read_bytes()
    broken = [content[:end] for end in range(1, len(content), 7)]
    broken += [content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :] for at in range(len(content))]
    refused = 0
    for damaged in broken:
        file.write_bytes(damaged)
        try:
            read_onnx(file)
        except UserError:
            refused += 1
    assert refused > len(content) // 7


def test_read_without_the_package_says_how_to_install_it(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"\bonnx\b.*pip install 'flaxtl\[onnx\]'"):
        read_onnx(file)


def test_is_onnx_recognizes_the_first_bytes(file):
    assert is_onnx(file.read_bytes()[:512])
    assert is_onnx(b"\x08\x03\x12\x0bonnx-caffe2")  # the zoo's
    for other in (b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02}q", b"<!doctype html>", b"\x08", b""):
        assert not is_onnx(other)
