"""Run docs/lecture.ipynb and store its outputs in it: `python tools/run_notebook.py`, from the top of a checkout.

Progress bars print thousands of fragments with control sequences. What a terminal would show in the end is stored.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path("docs/lecture.ipynb")
CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")
"""A control sequence (argument, letter), a return, the end of a line, or text."""


def main() -> None:
    """Run all cells in docs/, and write the notebook."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:
        compact_outputs(cell)
    nbformat.write(notebook, NOTEBOOK)


def compact_outputs(cell: Any) -> None:
    """Replace what a cell printed by one text, without warnings on stderr; keep images as PNG only."""
    if cell.cell_type != "code":
        return
    cell.metadata.pop("execution", None)
    printed = "".join(
        each["text"] for each in cell.outputs if each["output_type"] == "stream" and each["name"] == "stdout"
    )
    others = (each for each in cell.outputs if each["output_type"] != "stream")
    results = [each for each in others if any(each.get("data", {"": "an error"}).values())]  # ended bars are empty
    for result in results:
        result.get("data", {}).pop("image/jpeg", None)
        if "text/plain" in result.get("data", {}):
            result["data"]["text/plain"] = shown_text(result["data"]["text/plain"])
    streams = [nbformat.v4.new_output("stream", name="stdout", text=shown_text(printed) + "\n")] if printed else []
    cell.outputs = streams + results


def shown_text(printed: str) -> str:
    """Return what a terminal shows after `printed`: bars that erase themselves leave nothing."""
    lines, row, column = [""], 0, 0
    for argument, letter, start, end, text in CONTROL.findall(printed):
        if letter == "A":
            row = max(row - int(argument or 1), 0)
        elif letter == "K":
            lines[row] = ""
        elif start:
            column = 0
        elif end:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return "\n".join(line.rstrip() for line in lines).strip("\n")


if __name__ == "__main__":
    main()
