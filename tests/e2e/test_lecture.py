"""docs/lecture.ipynb has its outputs (tools/run_notebook.py), and runs from top to bottom with outputs like them."""

import ast
import re

import nbformat
import pytest
from helpers import doc_pages

ACCURACY = re.compile(r"\btest accuracy ([\d.]+)\s?%\s\(120 images\)")
SHORTER = "config.augmented.epochs = config.finetune.epochs = 1\nconfig.data.height = config.data.width = 64"


def read_notebook():
    return nbformat.read(doc_pages.NOTEBOOK, as_version=4)


def result(cell, kind):
    """Return the result of a cell's last line, as that MIME type; '' if it has none."""
    outputs = [each for each in cell.get("outputs", ()) if each["output_type"] == "execute_result"]
    return outputs[0]["data"].get(kind, "") if outputs else ""


def check_results(notebook):
    """Check what every run of the notebook shows, whatever the number of epochs."""
    runs = [cell for cell in notebook.cells if ACCURACY.search(result(cell, "text/plain"))]
    assert len(runs) == 2  # the frozen base alone, all three phases
    for cell in runs:
        accuracy = ACCURACY.search(result(cell, "text/plain"))
        assert float(accuracy[1]) > 60  # chance is 20 %
        assert result(cell, "text/html").count("<svg") == 3  # loss, accuracy, confusion matrix
    assert sum(bool(result(cell, "image/png")) for cell in notebook.cells) == 3  # classes, augmentation, errors
    check_errors(next(cell for cell in notebook.cells if "predictions.losses" in cell.source))
    heads = ast.literal_eval(result(notebook.cells[-2], "text/plain"))
    assert list(heads) == [(), (128,), (256, 128)]
    assert min(heads.values()) > 0.6


def check_errors(cell):
    """Check the probabilities of the true classes of the test images with the largest loss."""
    printed = "".join(each["text"] for each in cell.outputs if each["output_type"] == "stream")
    probabilities = [float(percent) for percent in re.findall(r"([\d.]+)% for ", printed)]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities)
    assert probabilities[0] < 50  # the image is classified wrongly
    assert probabilities[-1] <= 100


def kinds_of_outputs(cell):
    """Return the MIME types of what a cell shows; a progress bar that has ended is empty."""
    shown = (each["data"] for each in cell.get("outputs", ()) if any(each.get("data", {}).values()))
    return [sorted(set(data) - {"image/jpeg"}) for data in shown]


def test_committed_outputs_are_those_of_one_complete_run():
    notebook = read_notebook()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [each for cell in code for each in cell.outputs if each["output_type"] == "error"]
    check_results(notebook)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """With small images, and one epoch in each of the phases that take long."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").symlink_to(doc_pages.ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", str(doc_pages.ROOT))
    from nbclient import NotebookClient  # only here: the fast set does without it

    committed, notebook = read_notebook(), read_notebook()
    config_cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    config_cell.source += f"\n{SHORTER}"
    where = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()  # an error is raised

    check_results(notebook)
    for cell, earlier in zip(notebook.cells, committed.cells, strict=True):
        assert kinds_of_outputs(cell) == kinds_of_outputs(earlier), cell.source
    assert (tmp_path / "runs" / "lecture" / "all" / "report" / "index.html").is_file()
