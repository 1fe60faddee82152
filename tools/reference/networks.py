"""The catalog of networks as tables: their figures, and whose work they are."""

from typing import Any

from flaxtl.report import tables
from reference.markdown import code, table, text

INTRODUCTION = """# Networks in figures

*Parameters* counts the whole network with its 1,000 ImageNet classes, *base* what transfer learning starts from, both
with the statistics of batch norms. *Input* is the side of the images that the weights go with, *least* the smallest
that the base takes. Accuracies are those of the ImageNet validation images, one centre crop, in per cent, as
published. *Preprocessing* is part of the network: images go in as they are. `flaxtl models` tells besides which
weights are at hand.
"""

PAPERS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
"""Where a paper of that kind is found."""


def page() -> str:
    """The page in Markdown."""
    rows = tables.model_records()
    columns = ("network", "parameters", "base", "input", "least", "top-1", "top-5", "preprocessing")
    figures = table(columns, map(_figures, rows))
    sources = table(("paper", "networks", "licence of the weights"), _sources(rows))
    return f"{INTRODUCTION}\n{figures}\n\n## Papers and licences\n\n{sources}\n"


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{row[key]:,}" for key in ("parameters_with_top", "parameters_base", "size", "minimum_size"))
    accuracies = (f"{row[key]:.1f}" for key in ("top1", "top5"))
    return code(row["name"]), *numbers, *accuracies, code(row["preprocessing"])


def _sources(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each paper and licence, with its networks."""
    networks: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        networks.setdefault((row["paper"], row["licence"]), []).append(code(row["name"]))
    return [(_link(paper), ", ".join(names), text(licence)) for (paper, licence), names in networks.items()]


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}]({PAPERS[kind]}{number})"
