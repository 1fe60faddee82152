"""A short run of tools/fuzz.py, and a minimal file for each fault that it found."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz import fuzz
from fuzz_mutations import mutate

from flaxtl.config import config_from_json, load_config
from flaxtl.data.decode import Resize, decode
from flaxtl.data.sources import csv_file
from flaxtl.errors import UserError
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.report.photos import PhotoAlbum

ROOT = Path(__file__).parents[2]


def run_fuzz(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), *arguments, f"--keep={tmp_path}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


KINDS = ("h5", "keras3", "safetensors", "onnx", "checkpoint", "run", "lists", "images")


@pytest.mark.parametrize(("kind", "files"), [pytest.param("h5", 4, marks=pytest.mark.slow), ("safetensors", 30)])
def test_fuzz_few_files_finds_no_failure(tmp_path, kind, files):
    process = run_fuzz(tmp_path, kind, f"--files={files}")
    assert process.returncode == 0, process.stderr
    assert [line.split()[0] for line in process.stdout.splitlines()] == ["kind", kind]


@pytest.mark.slow
def test_fuzz_few_files_of_a_run_finds_no_failure(tmp_path):
    process = run_fuzz(tmp_path, "checkpoint", "run", "lists", "images", "--files=2")
    assert process.returncode == 0, process.stderr


@pytest.mark.exhaustive("mutants")
@pytest.mark.parametrize("kind", KINDS)
def test_fuzz_thousands_of_files_finds_no_failure(tmp_path, kind):
    process = run_fuzz(tmp_path, kind, "--files=2000", "--seed=1")
    assert process.returncode == 0, process.stderr


TRAP = """
import os, pickle, time
from pathlib import Path
from fuzz import Sample

def write_sample(folder, action):
    (folder / "a").write_bytes(bytes(100))
    return [Sample(folder, ("a",), lambda case, file: case.name == "case-valid" or action())]

def fault(folder): return write_sample(folder, lambda: 1 / 0)
def write(folder): return write_sample(folder, Path(OUTSIDE).touch)
def unpickle(folder): return write_sample(folder, lambda: pickle.loads(pickle.dumps(Path())))
def memory(folder): return write_sample(folder, lambda: [bytearray(2**27), time.sleep(60)])
def hang(folder): return write_sample(folder, lambda: time.sleep(60))
def crash(folder): return write_sample(folder, os.abort)
def accepted(folder): return write_sample(folder, lambda: 0)
"""


OUTCOMES = {"fault": "fault", "write": "forbidden", "unpickle": "forbidden", "memory": "memory", "hang": "hang"}
OUTCOMES |= {"crash": "crash", "accepted": "accepted"}


@pytest.mark.parametrize(("name", "outcome"), OUTCOMES.items())
def test_fuzz_detects_every_kind_of_failure(tmp_path, monkeypatch, name, outcome):
    (tmp_path / "trap.py").write_text(TRAP.replace("OUTSIDE", repr(str(tmp_path / "outside"))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    results = list(fuzz(f"trap:{name}", 0, [0, 1], scratch, max_seconds=2, max_mebibytes=128))
    assert [(result.number, result.file, result.outcome) for result in results] == [(n, "a", outcome) for n in (0, 1)]
    assert (scratch / "case-1" / "a").exists() == (outcome != "accepted")


def test_mutate_is_a_function_of_the_generator():
    content = b'{"a": [1, 2, "b"]}\n'
    first, second = ([mutate(content, Random(n), text=True) for n in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 40


@pytest.mark.parametrize(
    "values",
    [
        1.5,
        ["ab"],
        {"a.b": 1},
        {"phases": [["frozen"]]},
        {"phases": ["a"], "a": {"lr": {"head": 10**400}}},
        {"phases": ["a"], "a": {}, "head": {"dropout": 10**400}},
        {"phases": ["a"], "a": {}, "seed": 2**63},
        {"phases": ["a"], "a": {}, "param_groups": [[1.5, "head/.*"]]},
    ],
)
def test_config_from_json_invalid_is_refused(values):
    with pytest.raises(UserError):
        config_from_json(values)


def test_load_config_exception_without_message_is_named(tmp_path):
    (tmp_path / "a.py").write_text("raise MemoryError")
    with pytest.raises(UserError, match="MemoryError"):
        load_config(str(tmp_path / "a.py"))


def test_scan_csv_short_row_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("label,path\nred\n")
    with pytest.raises(UserError, match="row 2: it has 1 columns instead of 2"):
        csv_file.scan_csv(tmp_path / "a.csv")


def test_scan_csv_impossible_file_name_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(f"label,path\nred,{'x' * 300}\n")
    with pytest.raises(UserError, match=r"row 2: .*File name too long"):
        csv_file.scan_csv(tmp_path / "a.csv")


def test_correct_predictions_impossible_file_name_has_no_thumbnail(tmp_path):
    predictions = predictions_file.Predictions(
        (f"/{'x' * 300}",), ("test",), np.array([0]), np.array([[0.9, 0.1]], np.float32), ("a", "b")
    )
    (tile,) = PhotoAlbum(predictions, 0, {}, None).take([0], 1)
    assert (tile.uri, tile.problem) == ("", "image cannot be read")


def test_decode_special_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")  # opening it would block
    for path in (tmp_path / "a.jpg", Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            decode(path, Resize(8, 8))
    with pytest.raises(UserError, match="null"):
        decode(Path("a\0.jpg"), Resize(8, 8))


FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
UNPICKLING = {"torch.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle"}


def pickle_uses(text):
    """Yield everything in a source file that can load a pickle or similar code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            yield node.module
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "allow_pickle"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLING:
            yield ast.unparse(node)


def test_sources_load_no_pickle():
    sources = [file for folder in ("flaxtl", "tools", "configs") for file in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    assert {str(file): uses for file in sources if (uses := list(pickle_uses(file.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "np.load(f, allow_pickle=True)", "torch.load(f)", "yaml.load(f)"],
)
def test_pickle_uses_finds_pickle(text):
    assert list(pickle_uses(text))
