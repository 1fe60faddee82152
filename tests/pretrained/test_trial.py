"""A crash or hang of a C library on a damaged or hostile file must not affect this process."""

import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained import loader, trial
from flaxtl.pretrained.loader import load_weights

EXPECTED = {"a": {"kernel": (2,)}}


@pytest.fixture
def file(tmp_path):
    """A Keras file with one layer that has one array of two numbers."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"k"]
        group["k"] = np.zeros(2, np.float32)
    return path


def test_trial_refuses_hdf5_that_makes_the_library_loop(file):
    """The second string of the global heap claims 127 bytes instead of 1."""
    content = bytearray(file.read_bytes())
    length = content.index(b"GCOL") + 48
    assert content[length] == 1
    content[length] = 127
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.h5\b.*\bdamaged\b"):
        load_weights(file, EXPECTED)


@pytest.mark.slow
def test_trial_refuses_onnx_that_inflates_in_memory(tmp_path):
    """Two bytes per empty initializer become 170 in memory."""
    size = 32 * 2**20
    file = tmp_path / "a.onnx"
    varint = bytes([0x80 | size >> shift & 0x7F for shift in (0, 7, 14)]) + bytes([size >> 21])
    file.write_bytes(b"\x08\x03\x3a" + varint + b"\x2a\x00" * (size // 2))
    with pytest.raises(UserError, match=r"a\.onnx\b.*\bdamaged\b"):
        load_weights(file, EXPECTED)


@pytest.mark.parametrize("end", ["os.abort()", "time.sleep(60)", "bytearray(2**40)"])
def test_trial_that_dies_or_hangs_refuses_the_file(file, monkeypatch, end):
    code = "import os, sys, time; sys.path[:] = sys.argv[2:]; from flaxtl.pretrained import trial"
    monkeypatch.setattr(trial, "_CODE", f"{code}\ntrial.main(lambda path: {end})")
    monkeypatch.setattr(trial, "_CPU_SECONDS", 1)
    monkeypatch.setattr(trial, "_WALL_FACTOR", 3)
    with pytest.raises(UserError, match=r"a\.h5\b.*\bdamaged\b"):
        load_weights(file, EXPECTED)


def test_trial_that_does_not_start_does_not_blame_the_file(file, monkeypatch):
    monkeypatch.setattr(trial, "_CODE", "import nothing_of_that_name")
    with pytest.raises(RuntimeError, match="nothing_of_that_name"):
        load_weights(file, EXPECTED)


def test_trusted_file_is_read_without_trial(file, monkeypatch):
    monkeypatch.setattr(loader, "trial_read", None)
    assert load_weights(file, EXPECTED, trusted=True).params["a"]["kernel"].shape == (2,)


def test_trial_reports_the_reason_of_a_refusal(tmp_path):
    path = tmp_path / "\udcff é.h5"  # a Linux file name need not be Unicode
    with h5py.File(os.fsencode(path), "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*Keras weight file"):
        trial.trial_read(path)


def test_trial_process_does_not_load_jax():
    """It would cost a second, and most of the address space that the trial allows."""
    code = "import sys; from flaxtl.pretrained import loader, trial; print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
