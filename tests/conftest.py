"""Test setup: tests run on the CPU, with separate caches, and Keras runs on the JAX backend."""

import gc
import os
import tempfile
from pathlib import Path

import pytest
from helpers import compiling

pytest_plugins = ["helpers.processor_time"]

gc.disable()  # until all tests are collected: next to nothing of it is garbage

_keras_home = tempfile.TemporaryDirectory(prefix="flaxtl-keras-")  # removed when the process ends

# Before anything imports jax or keras: both read these once. A user's keras.json could change the data format.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["KERAS_HOME"] = _keras_home.name

# Tests spend most of their time compiling, so one compilation cache serves the whole session: xdist's workers and the
# processes that tests start inherit it. A folder that is already set, as for repeated runs, is used and kept.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="flaxtl-compiled-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")  # storing a program takes 0.01 s
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# `make slow` and `make exhaustive` set this variable to 0, and test the optimized programs.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    os.environ.update(compiling.quick_variables())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one worker, and those of both files of tf.data: only that one imports TensorFlow."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tf.data" if "/test_tfdata" in file else file

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """Keep the garbage collector from visiting again and again what stays until the end, and let it run less often."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """Keep tests from reading weights or data in the user's caches, and from writing there."""
    place = tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(prefix="caches-", dir=place, ignore_cleanup_errors=True) as caches:
        monkeypatch.setenv("FLAXTL_CACHE", f"{caches}/flaxtl")
        monkeypatch.setenv("KERAS_HOME", f"{caches}/keras")
        yield


@pytest.fixture
def quick_processes(monkeypatch):
    """Let the processes that a slow test starts compile with few optimizations; those of the fast set do anyway."""
    for name, value in compiling.quick_variables().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def shared():
    """Return the folder of real images and weights next to a developer's checkout."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no real images and weights beside this checkout")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images of a small run."""
    from helpers import tiny_run

    return tiny_run.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The setup of a small run."""
    from helpers import tiny_run

    return tiny_run.setup(folder, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def parameters(prepared):
    """The fresh parameters of a small run."""
    from helpers import tiny_run

    return tiny_run.parameters(prepared.model_info, prepared.config)
