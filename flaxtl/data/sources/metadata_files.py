"""Labels of images in metadata.csv and metadata.jsonl, as ImageFolder of Hugging Face's `datasets` reads them."""

import json
from pathlib import Path

from flaxtl.data.sources import csv_text
from flaxtl.data.sources.parquet_images import UNLABELED
from flaxtl.errors import UserError, unknown

METADATA = ("metadata.csv", "metadata.jsonl")
"""Names of the files; a repository may have them in any folder."""


def read_labels(file: Path, label: str | None, reference: str) -> list[tuple[str, str]]:
    """Return (image, label) for the labeled rows of a file; [] if it has no column of labels.

    Args:
      file: one of METADATA. Its column `file_name` has paths relative to its folder.
      label: the column of the label; None: 'label'.
      reference: the dataset, as the user wrote it.

    Raises:
      UserError: the file is damaged, or does not have the column that `label` names.
    """
    column = (label or "label").lower()
    text = csv_text.decode_text(file, csv_text.read_bytes(file))
    if file.suffix == ".csv":
        table = csv_text.parse_table(file, text, {"file_name"})
        rows = [dict(zip(table.header, cells, strict=False)) for _, cells in table.rows]
    else:
        rows = [_json_row(number, line, reference) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not {"file_name", column} <= set(columns):
        if label:
            raise unknown(f"column of {file.name} of {reference}", label, columns)
        return []
    cells = [(row.get("file_name", "").strip(), row.get(column, "").strip()) for row in rows]
    return [(image, value) for image, value in cells if image and value not in ("", str(UNLABELED))]


def _json_row(number: int, line: str, reference: str) -> dict[str, str]:
    """Return the texts and integers of a line of metadata.jsonl, by column; class indices are labels, too."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"Line {number} of metadata.jsonl of {reference} is not a JSON object: {line[:40]!r}.")
    return {name.lower(): str(value) for name, value in row.items() if isinstance(value, str | int)}
