"""`flaxtl models`: the catalog as a table and as JSON. Nothing that training needs is loaded for it."""

from typing import Any

from rich.table import Table

from flaxtl.models import catalog
from flaxtl.models.architecture import Architecture
from flaxtl.terminal import table
from flaxtl.weights import fetch

AT_HAND = (
    "at hand: Keras' cache or flaxtl's has a file of that name, or the package has one; it is checked when it is used"
)
"""What the last column means."""


def rows() -> list[dict[str, Any]]:
    """One JSON object an architecture."""
    return [_row(architecture) for architecture in catalog.ARCHITECTURES.values()]


def _row(row: Architecture) -> dict[str, Any]:
    return {
        "name": row.name,
        "parameters_with_top": row.parameters_with_top,
        "parameters_base": row.parameters_base,
        "size": row.size,
        "minimum_size": row.minimum_size,
        "preprocessing": row.preprocessing,
        "top1": row.top1,
        "top5": row.top5,
        "licence": row.licence,
        "paper": row.paper,
        "weights": {"top": vars(row.file_with_top), "base": vars(row.file_base)},
        "at_hand": at_hand(row),
    }


def at_hand(row: Architecture) -> dict[str, str | None]:
    """Where weights are without a network: of the whole network ('top') and of its base; None where nowhere.

    No file is opened for it: a hash of 500 MB takes longer than a table may.
    """
    top, base = (
        next((found.origin for found in fetch.cached(file.name)), None) for file in (row.file_with_top, row.file_base)
    )
    return {"top": top, "base": base or top or ("built in" if row.builtin_base else None)}


def as_table() -> Table:
    """The catalog for the console."""
    columns = ("network", "parameters", "base", "input", "top-1 %", "top-5 %", "preprocessing", "at hand")
    cells = [
        (
            row.name,
            f"{row.parameters_with_top:,}",
            f"{row.parameters_base:,}",
            f"{row.size} (min {row.minimum_size})",
            f"{row.top1:.1f}",
            f"{row.top5:.1f}",
            row.preprocessing,
            _told(**at_hand(row)),
        )
        for row in catalog.ARCHITECTURES.values()
    ]
    return table("Networks", columns, cells)


def _told(top: str | None, base: str | None) -> str:
    if top:
        return f"whole ({top})"
    return f"base ({base})" if base else ""
