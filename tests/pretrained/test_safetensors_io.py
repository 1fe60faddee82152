import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxtl.errors import UserError
from flaxtl.pretrained import merge
from flaxtl.pretrained.safetensors_io import quantize, read_safetensors, read_tensors, write_safetensors

RNG = np.random.default_rng(0)
TREE = {
    "block1_conv1": {
        "kernel": RNG.normal(size=(3, 3, 3, 8)).astype(np.float32),
        "bias": RNG.normal(size=8).astype(np.float32),
    },
    "a/b": {"kernel": RNG.normal(size=(5, 2)).astype(np.float32)},
}


def values_of(path):
    return {
        layer: {leaf: s.values for leaf, s in leaves.items()} for layer, leaves in read_safetensors(path).layers.items()
    }


def header(path):
    """Return dtype and shape of each tensor, from the file's header."""
    content = path.read_bytes()
    tensors = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors.pop("__metadata__")
    return {name: (entry["dtype"], entry["shape"]) for name, entry in tensors.items()}


def test_float32_round_trip_is_exact(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TREE, {"architecture": "vgg16"})
    assert read_safetensors(path).metadata == {"architecture": "vgg16", "precision": "float32"}
    for layer, leaves in values_of(path).items():
        assert leaves.keys() == TREE[layer].keys()
        for leaf, values in leaves.items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, TREE[layer][leaf])


def test_bfloat16_rounds_kernels_only(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TREE, {}, "bfloat16")
    assert header(path) == {
        "block1_conv1/kernel": ("BF16", [3, 3, 3, 8]),
        "block1_conv1/bias": ("F32", [8]),
        "a/b/kernel": ("BF16", [5, 2]),
    }
    kernel = TREE["block1_conv1"]["kernel"]
    values = values_of(path)["block1_conv1"]
    np.testing.assert_array_equal(values["kernel"], kernel.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(values["bias"], TREE["block1_conv1"]["bias"])
    assert read_safetensors(path).layers["block1_conv1"]["kernel"].dtype == "bfloat16"


def test_int8_keeps_a_scale_per_output_channel(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TREE, {}, "int8")
    assert header(path) == {
        "block1_conv1/kernel": ("I8", [3, 3, 3, 8]),
        "block1_conv1/kernel.scale": ("F32", [8]),
        "block1_conv1/bias": ("F32", [8]),
        "a/b/kernel": ("I8", [5, 2]),
        "a/b/kernel.scale": ("F32", [2]),
    }
    kernel = TREE["block1_conv1"]["kernel"]
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    # rounding to the nearest step leaves at most half of it; the rest is float32's own rounding of quotient and product
    error = np.abs(values_of(path)["block1_conv1"]["kernel"] - kernel)
    assert (error <= step / 2 + 127 * step * 2**-23).all()
    assert error.max() > step.max() / 4
    np.testing.assert_array_equal(values_of(path)["block1_conv1"]["bias"], TREE["block1_conv1"]["bias"])
    assert read_safetensors(path).layers["block1_conv1"]["kernel"].dtype == "int8"


def test_quantize_returns_known_values():
    kernel = np.array([[127.0, 0.0, -2.0], [-63.4, 0.0, 1.0]], np.float32)
    rounded, scale = quantize(kernel)
    np.testing.assert_array_equal(rounded, [[127, 0, -127], [-63, 0, 64]])  # 63.5 rounds to the even 64
    np.testing.assert_array_equal(scale, np.array([1.0, 1.0, 2 / 127], np.float32))
    assert (rounded.dtype, scale.dtype) == (np.int8, np.float32)


def test_write_fortran_order_keeps_values(tmp_path):
    kernel = np.asfortranarray(TREE["a/b"]["kernel"])
    write_safetensors(tmp_path / "x", {"fc": {"kernel": kernel}}, {})
    np.testing.assert_array_equal(values_of(tmp_path / "x")["fc"]["kernel"], kernel)


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "new" / "x.safetensors"
    write_safetensors(path, TREE, {})
    before = path.read_bytes()

    def full_disk(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(path, TREE, {}, "int8")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep", [8, 60, 0.5, 0.99])
def test_read_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TREE, {})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=r"x\.safetensors\b.*\b(damaged|corrupt)"):
        read_safetensors(path)


def test_read_null_metadata_is_empty(tmp_path):
    tensors = {"fc/kernel": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps({"__metadata__": None, **tensors}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert read_safetensors(tmp_path / "x").metadata == {}


def test_read_int8_without_matching_scale_is_refused(tmp_path):
    save_file({"fc/kernel": np.ones((2, 3), np.int8)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"'fc/kernel'.*\bint8\b.*\bscale\b"):
        read_safetensors(tmp_path / "x")
    save_file({"fc/kernel": np.ones((2, 3), np.int8), "fc/kernel.scale": np.ones(2, np.float32)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"'fc/kernel'.*\bint8\b.*\bscale\b"):
        read_safetensors(tmp_path / "x")


def test_read_refuses_more_float32_bytes_than_any_model(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "a.safetensors", {"a": {"kernel": np.zeros(64, np.float32)}}, {}, "int8")
    monkeypatch.setattr(merge, "MAX_BYTES", 255)
    with pytest.raises(UserError, match=r"a\.safetensors\b.*\b512 bytes\b"):
        read_safetensors(tmp_path / "a.safetensors")


def test_read_unsupported_dtype_is_refused(tmp_path):
    save_file({"fc/kernel": np.ones((2, 3), np.int32)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"x stores 'fc/kernel' as I32, which is not supported\. Save it as F32\."):
        read_safetensors(tmp_path / "x")


def test_read_file_of_pytorch_says_how_to_convert_it(tmp_path):
    save_file({"features.0.weight": np.ones((2, 3, 1, 1), np.float32)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"'features\.0\.weight'.*flaxtl convert --layout=timm\."):
        read_safetensors(tmp_path / "x")


def test_read_tensors_are_in_the_order_of_their_names(tmp_path):
    """The library returns them in a random order."""
    names = [f"fc{number}/kernel" for number in range(10)]
    save_file(dict.fromkeys(reversed(names), np.ones(1, np.float32)), tmp_path / "x")
    assert list(read_tensors(tmp_path / "x")[0]) == names


def test_read_file_without_metadata(tmp_path):
    save_file({"fc/kernel": np.ones((2, 3), np.float16)}, tmp_path / "x")
    layers, metadata = read_safetensors(tmp_path / "x")
    assert metadata == {}
    assert (layers["fc"]["kernel"].dtype, layers["fc"]["kernel"].name) == ("float16", "fc/kernel")
