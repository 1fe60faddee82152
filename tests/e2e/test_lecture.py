"""docs/lecture.ipynb runs from top to bottom and shows the expected results."""

import ast
import json
import re

import nbformat
import pytest
from helpers import doc_pages
from nbclient import NotebookClient

ACCURACY = re.compile(r"\btest accuracy ([\d.]+)\s?%\s\(120 images\)")


def result(cell, kind):
    """Return the result of a cell's last line, as that MIME type; '' if it has none."""
    outputs = [each for each in cell.get("outputs", ()) if each["output_type"] == "execute_result"]
    return outputs[0]["data"].get(kind, "") if outputs else ""


def test_it_is_kept_without_outputs():
    cells = json.loads(doc_pages.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").symlink_to(doc_pages.ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", str(doc_pages.ROOT))
    notebook = nbformat.read(doc_pages.NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()  # an error is raised

    runs = [cell for cell in notebook.cells if ACCURACY.search(result(cell, "text/plain"))]
    assert len(runs) == 2  # the frozen base alone, all three phases
    for cell in runs:
        accuracy = ACCURACY.search(result(cell, "text/plain"))
        assert float(accuracy[1]) > 60  # chance is 20 %
        assert result(cell, "text/html").count("<svg") == 3  # loss, accuracy, confusion matrix
    assert sum(bool(result(cell, "image/png")) for cell in notebook.cells) == 3  # classes, augmentation, errors
    heads = ast.literal_eval(result(notebook.cells[-2], "text/plain"))
    assert list(heads) == [(), (128,), (256, 128)]
    assert min(heads.values()) > 0.6
    assert (tmp_path / "runs" / "lecture" / "all" / "report" / "index.html").is_file()
