"""Rules of the source tree: which module may import which, what starts fast, and how long a file may be."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from flaxtl.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flaxtl"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

LEVELS = (
    ("errors", "defaults"),
    ("fileio", "console", "config", "hub_access", "child_process"),
    ("parallel",),
    ("models", "data"),
    ("pretrained",),
    ("train",),
    ("evaluation",),
    ("report", "export"),
    ("tuning", "api"),
    ("cli",),
)
"""Packages and top-level modules, lowest level first; each may import itself and what is on a lower level."""

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
    "pyarrow": "data/sources/parquet_images.py",
}
"""Library -> the only part, or parts, of the package that may import it."""

INSIDE_FUNCTIONS = {"tensorflow_datasets", "pooch", "onnxruntime"}
"""Libraries that few commands need: imported where they are used, inside functions."""

NEVER_IMPORTED = {"keras", "torch"}


class Import(NamedTuple):
    """What an import statement in a file imports."""

    file: str
    target: str
    inside_function: bool


def statements(body, inside_function=False):
    """Yield every statement of a block and of the blocks in it, and whether it is inside a function."""
    for statement in body:
        yield statement, inside_function
        inside = inside_function or isinstance(statement, ast.FunctionDef)
        for block in ("body", "orelse", "handlers", "finalbody", "cases"):
            yield from statements(getattr(statement, block, ()), inside)


def imports_of(file):
    """Yield every import of a file; `from a import b` imports a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for statement, inside_function in statements(tree.body):
        if isinstance(statement, ast.Import):
            targets = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{file}: a relative import"
            targets = [f"{statement.module}.{alias.name}" for alias in statement.names]
        else:
            continue
        for target in targets:
            yield Import(file.relative_to(ROOT).as_posix(), target, inside_function)


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module):
    """Return 'train' for flaxtl.train.trainer, and '' for flaxtl itself."""
    name = module.split(".")[1] if "." in module else ""
    return "cli" if name == "__main__" else name


@cache
def all_imports():
    """Return every import of the package."""
    return [imported for file in FILES for imported in imports_of(file)]


MODULES = [module_of(file) for file in FILES]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
EXTRAS = {
    "flaxtl.data.tfdata": r"\bTensorFlow\b.*pip install 'flaxtl\[stream\]'",
    "flaxtl.export.onnx": r"\bonnx\b.*\bonnxruntime\b.*pip install 'flaxtl\[onnx\]'",
}
"""Modules that import an optional library -> a pattern for the error if it is not installed."""

OPTIONAL = ("tensorflow", "tensorflow_datasets", "keras", "onnx", "onnxruntime")


def test_levels_list_every_package():
    assert len(all_imports()) > 100
    assert {package_of(module) for module in MODULES} - {""} == LEVEL_OF.keys()


def test_imports_run_downward_only():
    upward = []
    for imported in all_imports():
        own, other = package_of(module_of(ROOT / imported.file)), package_of(imported.target)
        between = imported.target.startswith("flaxtl.") and own in LEVEL_OF and other in LEVEL_OF and own != other
        if between and LEVEL_OF[other] >= LEVEL_OF[own]:
            upward.append((imported.file, other))
    assert upward == []


@pytest.mark.parametrize(("library", "place"), KEPT_TO.items())
def test_library_is_imported_in_its_place_only(library, place):
    users = {imported.file for imported in all_imports() if imported.target.split(".")[0] == library}
    assert users
    assert {user for user in users if not user.removeprefix("flaxtl/").startswith(place)} == set()


def test_rarely_used_libraries_are_imported_inside_functions():
    libraries = [
        (imported.target.split(".")[0], imported.file) for imported in all_imports() if not imported.inside_function
    ]
    assert [pair for pair in libraries if pair[0] in INSIDE_FUNCTIONS] == []


def test_reference_implementations_are_not_imported():
    assert [imported for imported in all_imports() if imported.target.split(".")[0] in NEVER_IMPORTED] == []


def test_libraries_are_those_that_pyproject_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = map(
        Requirement, project["dependencies"] + extras["stream"] + extras["onnx"] + extras["hub"] + extras["heif"]
    )
    declared = {
        distribution(requirement.name)
        for requirement in required
        if requirement.marker is None or requirement.marker.evaluate()
    }
    declared.add(distribution("tensorflow-datasets"))
    declared.remove(distribution("filelock"))  # jax imports it, but does not declare it
    distributions = packages_distributions()
    names = set()
    for imported in all_imports():
        library = imported.target.split(".")[0]
        if library != "flaxtl" and library not in sys.stdlib_module_names:
            names.add(
                next(name for name in map(distribution, distributions.get(library, [library])) if name in declared)
            )
    assert names == declared


def distribution(name):
    """Normalize the name of a distribution."""
    return name.lower().replace("_", "-")


def test_setuptools_lists_every_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {module_of(file) for file in FILES if file.name == "__init__.py"}
    assert set(setuptools["packages"]) == packages | setuptools["package-dir"].keys()


def test_modules_have_no_import_cycle():
    uses = {module: set() for module in MODULES}
    for imported in all_imports():
        if not imported.inside_function:
            target = next(
                (name for name in (imported.target, imported.target.rpartition(".")[0]) if name in uses), None
            )
            uses[module_of(ROOT / imported.file)] |= {target} - {None, "flaxtl"}
    while leaves := [module for module, used in uses.items() if not used & uses.keys()]:
        for module in leaves:
            del uses[module]
    assert uses == {}


def test_modules_are_imported_under_their_own_name():
    renamed = re.compile(r"^\s*(from flaxtl[\w.]* import \w+ as \w+|import flaxtl\S* as \w+)", re.MULTILINE)
    assert [(file.name, match[1]) for file in FILES for match in renamed.finditer(file.read_text("utf-8"))] == []


def test_package_uses_the_words_image_and_config():
    files = [*FILES, *PACKAGE.rglob("*.jinja")]
    pattern = re.compile("(?<!multi-)picture|recipe", re.IGNORECASE)  # multi-picture JPEG is a file format
    assert [(file.name, match[0]) for file in files for match in pattern.finditer(file.read_text("utf-8"))] == []


def test_configs_import_only_ml_collections():
    targets = {imported.target for file in (ROOT / "configs").glob("*.py") for imported in imports_of(file)}
    assert targets == {"ml_collections.ConfigDict"}


def test_files_are_at_most_400_lines_long():
    python = [file for folder in ("flaxtl", "tests", "configs", "tools") for file in (ROOT / folder).rglob("*.py")]
    long = {str(file): lines for file in python if (lines := len(file.read_text("utf-8").splitlines())) > MAX_LINES}
    assert long == {}


def test_names_of_tests_have_at_most_70_characters():
    files = {file: ast.parse(file.read_text("utf-8")) for file in (ROOT / "tests").rglob("test_*.py")}
    functions = {node.name for tree in files.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for name in functions if name.startswith("test_") and len(name) > 70} == set()


def test_no_module_is_named_utils():
    assert [
        module for module in MODULES if module.split(".")[-1] in {"utils", "util", "helpers", "misc", "common"}
    ] == []


@pytest.mark.parametrize("module", sorted(set(MODULES) - EXTRAS.keys()))  # those of EXTRAS have their own tests
def test_every_module_imports(module):
    importlib.import_module(module)


def python(code, *arguments):
    """Return what a new interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_modules_import_without_optional_libraries():
    code = """
import importlib, sys
names, modules = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(names))  # None: the import fails
for module in modules:
    importlib.import_module(module)
print("imported", len(modules))
"""
    others = sorted(set(MODULES) - EXTRAS.keys())
    assert python(code, ",".join(OPTIONAL), *others) == f"imported {len(others)}\n"


@pytest.mark.parametrize("module", EXTRAS)
def test_missing_library_error_says_how_to_install_it(module, monkeypatch):
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)  # the import fails
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UserError, match=EXTRAS[module]):
        importlib.import_module(module)


def test_modules_with_optional_libraries_are_imported_late():
    early = [imported for imported in all_imports() if imported.target in EXTRAS and not imported.inside_function]
    assert {module_of(ROOT / imported.file) for imported in early} <= EXTRAS.keys()


def test_command_starts_without_heavy_libraries():
    code = """
import sys
from flaxtl.cli import main
heavy = ["jax", "flax", "numpy", "h5py", "PIL", "matplotlib", "tensorflow", "keras"]
print([name for name in heavy if name in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"


def test_training_starts_without_libraries_of_the_report():
    code = """
import sys
from flaxtl import api
from flaxtl.train import trainer
print([name for name in ("matplotlib", "jinja2", "flaxtl.report.report") if name in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_models_command_loads_only_what_it_needs():
    code = """
import sys
from flaxtl.cli import main
main.main(["models"])
print([name for name in ("matplotlib", "tensorflow", "tensorflow_datasets", "keras") if name in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"
