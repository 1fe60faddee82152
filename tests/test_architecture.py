"""The house rules: who imports whom, what stays light, and how large a file may be."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flaxtl"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400

LEVELS = (
    ("errors",),
    ("fileio", "console", "config"),
    ("parallel",),
    ("models", "data"),
    ("pretrained",),
    ("train",),
    ("evaluation",),
    ("report", "export"),
    ("tuning", "api"),
    ("cli",),
)
"""Packages and top-level modules; each may import itself and what stands in a row above it, nothing else."""

EXCEPTIONS: set[tuple[str, str]] = set()
"""Files that still import upward, and what."""

KEPT_TO = {
    "flax": "models/",
    "optax": "train/",
    "orbax": "train/",
    "h5py": "pretrained/",
    "matplotlib": "report/plots.py",
    "tensorflow": "data/tfdata.py",
    "tensorflow_datasets": "data/sources/tfds.py",
    "onnx": ("export/onnx.py", "pretrained/onnx_reader.py"),
    "onnxruntime": "export/predict_script.py",
}
"""Library -> the only part of the package that imports it."""

INSIDE_FUNCTIONS = {"tensorflow_datasets", "pooch", "onnxruntime"}
"""Libraries that most commands never need, imported where they are used."""

ABSENT = {"keras", "torch"}


class Import(NamedTuple):
    """One import statement's target, in a file."""

    file: str
    target: str
    inside_function: bool


def imports_of(file):
    """Every import of a file, `from a import b` as a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {child for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(file.relative_to(ROOT).as_posix(), target, node in inside)


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module):
    """'flaxtl.train.trainer' -> 'train'; '' for flaxtl itself."""
    name = module.split(".")[1] if "." in module else ""
    return "cli" if name == "__main__" else name


IMPORTS = [found for file in FILES for found in imports_of(file)]
MODULES = [module_of(file) for file in FILES]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
EXTRAS = {
    "flaxtl.data.tfdata": r"\bTensorFlow\b.*pip install 'flaxtl\[stream\]'",
    "flaxtl.export.onnx": r"\bonnx\b.*\bonnxruntime\b.*pip install 'flaxtl\[onnx\]'",
}
"""What imports a library that need not be there, and is imported where it is wanted; a pattern of what it says then."""


def test_levels_name_every_package():
    assert len(IMPORTS) > 100
    assert {package_of(module) for module in MODULES} - {""} == LEVEL_OF.keys()


def test_imports_run_downward_only():
    upward = []
    for found in IMPORTS:
        own, other = package_of(module_of(ROOT / found.file)), package_of(found.target)
        between = found.target.startswith("flaxtl.") and own in LEVEL_OF and other in LEVEL_OF and own != other
        if between and LEVEL_OF[other] >= LEVEL_OF[own]:
            upward.append((found.file, other))
    assert set(upward) == EXCEPTIONS


@pytest.mark.parametrize(("library", "place"), KEPT_TO.items())
def test_a_library_is_kept_to_its_room(library, place):
    users = {found.file for found in IMPORTS if found.target.split(".")[0] == library}
    assert users
    assert {user for user in users if not user.removeprefix("flaxtl/").startswith(place)} == set()


def test_what_few_commands_need_is_imported_inside_functions():
    libraries = [(found.target.split(".")[0], found.file) for found in IMPORTS if not found.inside_function]
    assert [pair for pair in libraries if pair[0] in INSIDE_FUNCTIONS] == []


def test_the_references_are_not_imported():
    assert [found for found in IMPORTS if found.target.split(".")[0] in ABSENT] == []


def test_libraries_are_those_that_pyproject_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = map(Requirement, project["dependencies"] + extras["stream"] + extras["onnx"])
    declared = {distribution(each.name) for each in required if each.marker is None or each.marker.evaluate()}
    declared.add(distribution("tensorflow-datasets"))
    declared.remove(distribution("filelock"))  # jax imports it, without asking for it
    distributions = packages_distributions()
    imported = set()
    for found in IMPORTS:
        library = found.target.split(".")[0]
        if library != "flaxtl" and library not in sys.stdlib_module_names:
            imported.add(next(name for name in map(distribution, distributions[library]) if name in declared))
    assert imported == declared


def distribution(name):
    """The spelling that all ways to write a name have in common."""
    return name.lower().replace("_", "-")


def test_configs_import_nothing_of_ours():
    found = [found for file in (ROOT / "configs").glob("*.py") for found in imports_of(file)]
    assert {each.target for each in found} == {"ml_collections.ConfigDict"}


def test_no_file_is_too_long():
    python = [file for folder in ("flaxtl", "tests", "configs", "tools") for file in (ROOT / folder).rglob("*.py")]
    long = {str(file): lines for file in python if (lines := len(file.read_text("utf-8").splitlines())) > LONGEST}
    assert long == {}


def test_no_module_is_a_drawer_for_everything():
    assert [
        module for module in MODULES if module.split(".")[-1] in {"utils", "util", "helpers", "misc", "common"}
    ] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def python(code, *arguments):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ABSENCE = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "tensorflow_datasets", "keras", "onnx", "onnxruntime"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Absent())
"""


def test_everything_imports_without_what_need_not_be_there():
    code = """
for module in sys.argv[1:]:
    importlib.import_module(module)
print("imported", len(sys.argv) - 1)
"""
    others = sorted(set(MODULES) - EXTRAS.keys())
    assert python(ABSENCE + code, *others) == f"imported {len(others)}\n"


@pytest.mark.parametrize("module", EXTRAS)
def test_what_is_not_there_is_told_with_how_to_install_it(module):
    code = """
from flaxtl.errors import UserError
try:
    importlib.import_module(sys.argv[1])
except UserError as error:
    print(error)
"""
    (line,) = python(ABSENCE + code, module).splitlines()
    assert re.search(EXTRAS[module], line)


def test_nothing_imports_what_need_not_be_there_before_it_is_wanted():
    early = [found for found in IMPORTS if found.target in EXTRAS and not found.inside_function]
    assert {module_of(ROOT / found.file) for found in early} <= EXTRAS.keys()


def test_a_command_loads_only_what_it_needs():
    code = """
import sys
from flaxtl.cli import main
heavy = ["jax", "flax", "numpy", "h5py", "PIL", "matplotlib", "tensorflow", "keras"]
early = [name for name in heavy if name in sys.modules]
main.main(["models"])
late = [name for name in ("matplotlib", "tensorflow", "tensorflow_datasets", "keras") if name in sys.modules]
print(early, late)
"""
    assert python(code).splitlines()[-1] == "[] []"
