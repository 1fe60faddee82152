"""README.md and requirements.txt of an export folder."""

import ast
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from flaxtl.export import predict_script, readme
from flaxtl.export.exporter import FORMATS
from flaxtl.export.metadata import ModelMetadata

VERSIONS = {"flaxtl": "0.1.0", "jax": "0.10.2", "pillow": "13.0.0"}
METADATA = {
    "versions": VERSIONS,
    "phase": "finetune",
    "architecture": "vgg16",
    "output_layer": None,
    "head": {"num_classes": 2, "pooling": "flatten", "units": [], "dropout": 0.0},
    "dtype": "float32",
    "classes": ["oak_red", "<b>elm"],
    "input": {"name": "images", "dtype": "uint8", "shape": ["batch", 32, 48, 3]},
    "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", 2]},
    "preprocessing": {"name": "x", "formula": "", "channels": "RGB", "scale": 1.0, "mean": [], "std": []},
    "resize": {"height": 32, "width": 48, "policy": "squash", "interpolation": "bilinear", "crop_pct": 0.875},
    "temperature": 1.25,
    "license": "CC BY 4.0",
}


def rendered(form="onnx", name="trees", **changes):
    metadata = msgspec.convert(METADATA | {"file": f"model.{form}"} | changes, ModelMetadata)
    return readme.render_readme(metadata, name, has_model_card=True)


def requirements(form):
    lines = readme.render_requirements(form, VERSIONS).splitlines()
    parsed = [Requirement(line.partition("#")[0]) for line in lines if not line.startswith("#")]
    return {requirement.name: requirement for requirement in parsed}


@pytest.mark.parametrize("form", FORMATS)
def test_render_requirements_are_what_predict_py_imports(form):
    runtime = {"safetensors": "flaxtl", "stablehlo": "jax", "onnx": "onnxruntime"}
    assert requirements(form).keys() == {runtime[form], "numpy", "pillow"}
    tree = ast.parse(Path(predict_script.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported = {module.split(".")[0].lower().replace("pil", "pillow") for module in modules}
    assert imported >= requirements(form).keys()


def test_render_requirements_has_the_lower_bounds_of_flaxtl():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    bounds = {line.name: line for line in map(Requirement, project["dependencies"])}
    assert all(requirements("onnx")[name] == bounds[name] for name in ("numpy", "pillow"))


@pytest.mark.parametrize("form", FORMATS)
def test_render_readme_lists_the_files(form):
    files = re.findall(r"^\| ([\w.]+\.\w+) \|", rendered(form), re.MULTILINE)
    assert files == [f"model.{form}", "predict.py", "model.json", "requirements.txt", "model_card.md"]


def test_render_readme_names_classes_as_text():
    assert r"Classes: oak\_red and \<b\>elm." in rendered()
    assert r"Classes: \~\~ash\~\~ and fir \&lt; \$x\$." in rendered(classes=["~~ash~~", "fir &lt; $x$"])


def test_render_readme_replaces_unprintable_characters():
    text = rendered(name="caf\udce9", classes=["\x1b[2Joak", "e\u202elm"])
    assert text.startswith("# caf\ufffd: classifier of 2 classes\n")
    assert "Classes: \ufffd\\[2Joak and e\ufffdlm." in text


def test_render_readme_says_whether_confidence_is_calibrated():
    assert "calibrated with the temperature 1.250" in rendered()
    assert "which are not calibrated" in rendered(temperature=None)


def test_render_readme_code_uses_functions_of_predict_py():
    (code,) = re.findall(r"```python\n(.*?)```", rendered(), re.DOTALL)
    names = re.findall(r"from predict import (.*)", code)[0].split(", ")
    assert all(callable(getattr(predict_script, name)) for name in names)
    assert "[1, 32, 48, 3]" in code
