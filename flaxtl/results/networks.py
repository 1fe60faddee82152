"""Networks as tables: the catalog, a published network, a recipe's network."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from flaxtl import cache
from flaxtl.data import sources
from flaxtl.models import catalog, classifier
from flaxtl.models.architecture import Architecture
from flaxtl.models.classifier import Classifier
from flaxtl.terminal import table
from flaxtl.train.phases import Phase, plan
from flaxtl.train.setup import Network, network
from flaxtl.train.table import layer_rows


def catalog_rows() -> list[dict[str, Any]]:
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
        "built_in": bool(row.builtin_base),
        "weights": {"top": vars(row.file_with_top), "base": vars(row.file_base)},
    }


def catalog_table() -> Table:
    """The catalog for the console."""
    columns = ("network", "parameters", "base", "input", "top-1 %", "top-5 %", "preprocessing", "built in")
    cells = [
        (
            row.name,
            f"{row.parameters_with_top:,}",
            f"{row.parameters_base:,}",
            f"{row.size} (min {row.minimum_size})",
            f"{row.top1:.1f}",
            f"{row.top5:.1f}",
            row.preprocessing,
            "base" if row.builtin_base else "",
        )
        for row in catalog.ARCHITECTURES.values()
    ]
    return table("Networks", columns, cells)


def published(name: str) -> tuple[Table, str]:
    """The layers of a published network with its ImageNet top, at its own picture size."""
    architecture = catalog.find(name)
    model = Classifier(architecture)
    shapes = classifier.shapes(model, architecture.size, architecture.size)["backbone"]
    cells = []
    for layer in classifier.layers(model, architecture.size, architecture.size):
        count = sum(math.prod(shape) for shape in shapes.get(layer.name, {}).values())
        cells.append((layer.name, layer.kind, _shape(layer.shape), f"{count:,}"))
    title = f"{name} at {architecture.size}x{architecture.size}"
    total = f"Total: {architecture.parameters_with_top:,} parameters; {architecture.parameters_base:,} without the top"
    return table(title, ("layer", "kind", "output", "parameters"), cells), total


def of_recipe(config: Any) -> tuple[Table, str]:
    """The layers of a recipe's network with their groups and the phases in which they learn, and totals."""
    classes = tuple(config.data.classes) or sources.find(config.data.source, cache.directory("data")).classes
    net = network(config, len(classes))
    phases = plan(config, net.model, net.layers, net.groups, sys.maxsize, net.cut_groups)
    cells = [
        (
            row["layer"],
            row["kind"],
            _shape(row["shape"]),
            f"{row['parameters']:,}",
            row["group"],
            ", ".join(row["learns"]),
        )
        for row in layer_rows(net, phases, "")
    ]
    title = (
        f"{config.model.name} at {config.data.height}x{config.data.width} under a new head of {len(classes)} classes"
    )
    columns = ("layer", "kind", "output", "parameters", "group", "learns in")
    return table(title, columns, cells), _totals(net, phases)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _totals(net: Network, phases: Sequence[Phase]) -> str:
    """Parameters of base, head and groups, and how many learn in each phase."""
    size = {path: math.prod(shape) for path, shape in net.shapes.items()}
    lines = [f"Base: {net.count('backbone/'):,} parameters; head: {net.count('head/'):,}"]
    for group in dict.fromkeys(net.groups.values()):
        lines.append(f"Group {group}: {sum(size[path] for path, name in net.groups.items() if name == group):,}")
    for phase in phases:
        learning = sum(count for path, count in size.items() if phase.split.learns(path))
        lines.append(f"Learning in phase {phase.name}: {learning:,} of {sum(size.values()):,}")
    return "\n".join(lines)
