"""Networks as tables of layers: a published network, a recipe's network."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flaxtl import cache
from flaxtl.data import sources
from flaxtl.models import catalog, classifier
from flaxtl.models.architecture import Architecture
from flaxtl.models.classifier import STATISTICS, Classifier
from flaxtl.terminal import table
from flaxtl.train.phases import Phase, plan
from flaxtl.train.setup import Network, network
from flaxtl.train.table import layer_rows


def published(name: str) -> tuple[Table, str]:
    """The layers of a published network with its ImageNet top, at its own picture size, and its totals."""
    architecture = catalog.find(name)
    model, size = Classifier(architecture), architecture.size
    shapes = classifier.shapes(model, size, size)["backbone"]
    cells = []
    for layer in classifier.layers(model, size, size):
        count = sum(math.prod(shape) for shape in shapes.get(layer.name, {}).values())
        cells.append((layer.name, layer.kind, _shape(layer.shape), f"{count:,}"))
    title = f"{architecture.name} at {size}x{size}"
    return table(title, ("layer", "kind", "output", "parameters"), cells), _published_totals(architecture, shapes)


def _published_totals(architecture: Architecture, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """All numbers that Keras counts as parameters, and which of them no gradient moves."""
    counts = [(leaf, math.prod(shape)) for leaves in shapes.values() for leaf, shape in leaves.items()]
    statistics = sum(count for leaf, count in counts if leaf in STATISTICS)
    elsewhere = architecture.parameters_with_top - sum(count for _, count in counts)
    told = [f"{statistics:,} of them statistics of batch norms"] if statistics else []
    told += [f"{elsewhere} of a layer that is preprocessing here"] if elsewhere else []
    remark = f" ({', '.join(told)})" if told else ""
    total, base = architecture.parameters_with_top, architecture.parameters_base
    return f"Total: {total:,} parameters{remark}; {base:,} without the top"


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
