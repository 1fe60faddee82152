"""SafeFile returns stored numeric arrays and refuses everything else."""

import h5py
import ml_dtypes
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained import hdf5
from flaxtl.pretrained.hdf5 import open_h5

VALUES = np.arange(6, dtype=np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.h5"


def refusal(path, name, match):
    with pytest.raises(UserError, match=match) as caught, open_h5(path, path) as file:
        file.array(file.root, name)
    assert str(path) in str(caught.value)


def test_array_returns_name_dtype_and_values(path):
    with h5py.File(path, "w") as file:
        file["a/b"] = VALUES
    with open_h5(path, path) as file:
        stored = file.array(file.root, "a/b")
    assert (stored.name, stored.dtype) == ("a/b", "float32")
    np.testing.assert_array_equal(stored.values, VALUES)


@pytest.mark.parametrize("shape", [(6,), ()])
def test_array_reads_bfloat16(path, shape):
    values = np.full(shape, 1.5, ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file["a"] = values
    with open_h5(path, path) as file:
        stored = file.array(file.root, "a")
    assert (stored.dtype, stored.values.shape) == ("bfloat16", shape)
    np.testing.assert_array_equal(stored.values, values)


@pytest.mark.parametrize("where", ["a", "b/a"])
def test_array_behind_soft_link_is_refused(path, where):
    with h5py.File(path, "w") as file:
        file["real"] = VALUES
        file[where] = h5py.SoftLink("/real")
    refusal(path, where, r"(?i)\blinks?\b")


def test_array_behind_external_link_is_refused(path, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["group/real"] = VALUES
    with h5py.File(path, "w") as file:
        file["a"] = h5py.ExternalLink("secret.h5", "/group")
    refusal(path, "a/real", r"(?i)\blinks?\b")


def test_array_in_external_storage_is_refused(path, tmp_path):
    VALUES.tofile(tmp_path / "secret.bin")
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (6,), "f4", external=[(tmp_path / "secret.bin", 0, 24)])
    refusal(path, "a", r"(?i)\b(another|other|different) file\b")


def test_virtual_dataset_is_refused(path, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["real"] = VALUES
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "real", (6,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("a", layout)
    refusal(path, "a", r"(?i)\b(another|other|different) file\b")


@pytest.mark.parametrize("shape", [(2**20,), (2**40,)])
def test_array_declared_far_larger_than_stored_is_refused(path, shape):
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape, "f4", chunks=(2**18,))
        file["a"][0] = 1.0
    stored = 4 * 2**18
    assert (4 * shape[0] > 1000 * stored) == (shape == (2**40,))
    if shape == (2**40,):
        refusal(path, "a", r"\b4,398,046,511,104\b")
    else:
        with open_h5(path, path) as file:
            assert file.array(file.root, "a").values.shape == shape


def test_array_of_compressed_zeros_is_refused(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.zeros(2**22, np.float32), compression="gzip", chunks=(2**22,))
    refusal(path, "a", r"\b16,777,216\b")


def test_repeated_reads_of_one_array_count_towards_the_limit(path, monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_BYTES", 3 * VALUES.nbytes)
    with h5py.File(path, "w") as file:
        file["a"] = VALUES
        file["b"] = file["c"] = file["d"] = file["a"]
    with open_h5(path, path) as file:
        for name in "abc":
            file.array(file.root, name)
        with pytest.raises(UserError, match=rf"/d\b.*\b{VALUES.nbytes} bytes\b"):
            file.array(file.root, "d")


@pytest.mark.parametrize(
    "content",
    [["text"], h5py.Empty("f4"), np.zeros(2, [("x", "f4")]), np.zeros(3, "V2,V2"), np.array([1 + 2j])],
    ids=["text", "nothing", "compound", "two opaques", "complex"],
)
def test_array_that_is_not_numeric_is_refused(path, content):
    with h5py.File(path, "w") as file:
        file["a"] = content
    refusal(path, "a", r"(?i)\b(numbers|numeric)\b")


def test_group_in_place_of_array_and_reverse_are_refused(path):
    with h5py.File(path, "w") as file:
        file["group/array"] = VALUES
    refusal(path, "group", r"(?i)'group'.*\barray\b")
    refusal(path, "group/array/deeper", r"'/group/array'.*\bgroup\b")
    with open_h5(path, path) as file, pytest.raises(UserError, match=r"'group/array'.*\bgroup\b"):
        file.group(file.root, "group/array")
