"""`import flaxtl`: its public names are there, and nothing is loaded before it is used."""

import inspect
import pydoc
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import flaxtl
from flaxtl import api

CONTRACT = {
    "RunResult",
    "create_model",
    "extract_features",
    "list_models",
    "load_config",
    "load_images",
    "load_run",
    "make_optimizer",
    "param_groups",
    "partition",
    "train",
}


def python(code):
    """Return what a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout


def test_import_flaxtl_loads_no_library():
    code = """
import sys
before = set(sys.modules)
import flaxtl
dir(flaxtl)
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
"""
    assert python(code) == "['flaxtl']\n"


def test_public_names_are_listed_and_loaded():
    assert set(flaxtl.__all__) == CONTRACT | {"UserError", "merge"}
    assert set(flaxtl.__all__) <= set(dir(flaxtl))
    for name in flaxtl.__all__:
        value = getattr(flaxtl, name)
        assert callable(value)
        assert value.__doc__
    with pytest.raises(AttributeError, match="'trian'"):
        _ = flaxtl.trian


def test_type_checkers_see_every_public_name():
    with tokenize.open(flaxtl.__file__) as file:
        _, block = file.read().split("if TYPE_CHECKING:")
    block = block.split("__version__")[0]
    assert [name for name in flaxtl.__all__ if not any(name in line for line in block.splitlines())] == []
    assert Path(flaxtl.__file__).with_name("py.typed").is_file()


def test_train_is_a_function_and_a_package(monkeypatch):
    """Whatever has been imported before; `import flaxtl.train.trainer` binds the package to `flaxtl.train`."""
    code = """
import flaxtl
first = flaxtl.train
from flaxtl import train
import flaxtl.train.signals
from flaxtl.train import signals
print(first is train is flaxtl.train, callable(train), flaxtl.train.signals is signals)
"""
    assert python(code) == "True True True\n"
    ours, function = inspect.signature(flaxtl.train), inspect.signature(api.train)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in function.parameters.values()
    ]
    monkeypatch.setattr(api, "train", lambda config, workdir: (config, workdir))
    assert flaxtl.train("config", workdir="runs/a") == ("config", "runs/a")


def test_help_of_create_model_shows_signature_and_arguments():
    text = pydoc.plain(pydoc.render_doc(flaxtl.create_model))
    for part in ("num_classes: int | None = None", "input_size", "float32 [n, num_classes]", "Raises:", "trainable="):
        assert part in text
