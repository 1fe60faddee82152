"""tools/fuzz.py in short, and the smallest file of each fault that it has found."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxtl.config import config_from_json, load_config
from flaxtl.data.decode import Resize, decode
from flaxtl.data.sources import csv_file
from flaxtl.errors import UserError
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.report import galleries

ROOT = Path(__file__).parents[2]
KINDS = ("h5", "keras3", "safetensors", "onnx", "checkpoint", "config", "manifest", "images")


def fuzz(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), *arguments, f"--keep={tmp_path}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


FEW = {("h5", "keras3"): 8, ("safetensors", "onnx", "images"): 40, ("checkpoint", "config", "manifest"): 12}


@pytest.mark.parametrize(("kinds", "files"), FEW.items(), ids=["hdf5", "bytes", "runs"])
def test_a_few_files_of_every_kind(tmp_path, kinds, files):
    done = fuzz(tmp_path, *kinds, f"--files={files}")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["kind", *kinds]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_files(tmp_path, kind):
    done = fuzz(tmp_path, kind, "--files=300", "--seed=1")
    assert done.returncode == 0, done.stderr


TRAP = """
import os, pickle, time
from pathlib import Path
from fuzzing import worker
from fuzzing.subject import Subject

VALID = bytes(range(100))
ACTS = {
    "fault": lambda: 1 / 0,
    "write": lambda: Path(OUTSIDE).touch(),
    "unpickle": lambda: pickle.loads(pickle.dumps(Path())),
    "memory": lambda: len(bytearray(BYTES)),
    "hang": lambda: time.sleep(60),
    "crash": os.abort,
}

def made(kind):
    def make(folder):
        (folder / "a").write_bytes(VALID)
        return [Subject(folder, ("a",), lambda case, file: (case / file).read_bytes() == VALID or ACTS[kind]())]
    return make

for kind in ACTS:
    globals()[kind] = made(kind)
    worker.KINDS[kind] = f"{__name__}:{kind}"
worker.main()
"""


def test_what_the_tool_is_there_to_see(tmp_path, monkeypatch):
    outside, keep = tmp_path / "outside", tmp_path / "kept"
    (tmp_path / "trap.py").write_text(TRAP.replace("OUTSIDE", repr(str(outside))).replace("BYTES", "2**27"))
    monkeypatch.syspath_prepend(ROOT / "tools")
    nursery = importlib.import_module("fuzzing.nursery")
    monkeypatch.setattr(nursery, "SECONDS", 2)
    monkeypatch.setattr(nursery, "BYTES", 2**26)
    monkeypatch.chdir(tmp_path)  # where `-m trap` is found
    with nursery.Nursery(keep, "trap") as one:
        seen = {kind: one.ask(kind, 0, 0).outcome for kind in ("fault", "write", "unpickle", "memory", "hang", "crash")}
    assert seen == {kind: {"write": "forbidden", "unpickle": "forbidden"}.get(kind, kind) for kind in seen}
    assert {file.name for file in keep.iterdir()} == {f"{kind}-0-0{end}" for kind in seen for end in ("-a", ".txt")}


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
def test_a_config_of_a_stranger(values):
    with pytest.raises(UserError):
        config_from_json(values)


def test_a_config_that_fails_without_a_word(tmp_path):
    (tmp_path / "a.py").write_text("raise MemoryError")
    with pytest.raises(UserError, match="cannot be read: MemoryError"):
        load_config(str(tmp_path / "a.py"))


def test_a_list_with_a_row_that_ends_before_its_path(tmp_path):
    (tmp_path / "a.csv").write_text("label,path\nred\n")
    with pytest.raises(UserError, match="row 2: it has 1 columns instead of 2"):
        csv_file.scan_csv(tmp_path / "a.csv")


def test_a_list_with_a_name_that_no_file_can_have(tmp_path):
    (tmp_path / "a.csv").write_text(f"label,path\nred,{'x' * 300}\n")
    with pytest.raises(UserError, match="row 2: cannot reach"):
        csv_file.scan_csv(tmp_path / "a.csv")


def test_a_image_with_a_name_that_no_file_can_have_is_missing_in_the_report(tmp_path):
    predictions = predictions_file.Predictions(
        (f"/{'x' * 300}",), ("test",), np.array([0]), np.array([[0.9, 0.1]], np.float32), ("a", "b")
    )
    (tile,) = galleries.correct_predictions(predictions, 1)
    assert (tile.uri, tile.trouble) == ("", "image cannot be read")


def test_a_image_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")  # whose reader would wait for a writer
    for path in (tmp_path / "a.jpg", Path("/dev/zero")):
        with pytest.raises(UserError, match="no ordinary file"):
            decode(path, Resize(8, 8))
    with pytest.raises(UserError, match="null"):
        decode(Path("a\0.jpg"), Resize(8, 8))


FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
UNPICKLING = {"torch.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle"}


def pickles_in(text):
    """What in a source file would load a pickle, or code in another dress."""
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


def test_no_pickle_is_loaded():
    sources = [file for folder in ("flaxtl", "tools", "configs") for file in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    assert {str(file): found for file in sources if (found := list(pickles_in(file.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "np.load(f, allow_pickle=True)", "torch.load(f)", "yaml.load(f)"],
)
def test_a_pickle_would_be_found(text):
    assert list(pickles_in(text))
