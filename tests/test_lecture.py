"""docs/lecture.ipynb runs from top to bottom, and shows what it promises."""

import json
import re

import nbformat
import pages
import pytest
from nbclient import NotebookClient


def outputs(cell, kind):
    """What a cell shows of that MIME type, as one text."""
    shown = (output["data"].get(kind, "") for output in cell.get("outputs", ()) if "data" in output)
    return "".join("".join(each) for each in shown)


def test_it_is_kept_without_outputs():
    cells = json.loads(pages.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").symlink_to(pages.ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    notebook = nbformat.read(pages.NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where).execute()  # an error is raised

    runs = [cell for cell in notebook.cells if "test pictures right" in outputs(cell, "text/plain")]
    assert len(runs) == 2  # the frozen base alone, all three phases
    for cell in runs:
        accuracy = re.search(r"([\d.]+)\s?% of 120 test pictures right", outputs(cell, "text/plain"))
        assert float(accuracy[1]) > 60  # a fifth would be chance
        assert outputs(cell, "text/html").count("<svg") == 3  # loss, accuracy, confusion matrix
    assert sum(bool(outputs(cell, "image/png")) for cell in notebook.cells) == 3  # classes, augmentation, errors
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert len(re.findall(r"hidden units \S.*: validation accuracy [\d.]+%", told)) == 3
    assert (tmp_path / "runs" / "lecture" / "all" / "report" / "index.html").is_file()
