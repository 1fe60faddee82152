"""Networks as tables of layers: a published network, a config's network."""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flaxtl import fileio
from flaxtl.console import make_table, printable, progress_bar, truncate_rows
from flaxtl.data import split_writer
from flaxtl.data.sources import base
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import BATCH_STATS, Classifier
from flaxtl.models.spec import ModelSpec
from flaxtl.pretrained import download
from flaxtl.train.logger import layer_records
from flaxtl.train.phases import Phase, build_phases
from flaxtl.train.setup import ModelInfo, build_model


def pretrained_summary(name: str) -> tuple[Table, str]:
    """The layers of a published network with its ImageNet top, at its own image size, and its totals."""
    architecture = registry.get_spec(name)
    model, size = Classifier(architecture), architecture.input_size
    shapes = classifier.param_shapes(model, size, size)["backbone"]
    cells = []
    for layer in classifier.list_layers(model, size, size):
        count = sum(math.prod(shape) for shape in shapes.get(layer.name, {}).values())
        cells.append((layer.name, layer.kind, _shape(layer.shape), f"{count:,}"))
    title = f"{architecture.name} at {size}x{size}"
    return make_table(title, ("layer", "kind", "output", "parameters"), cells), _published_totals(architecture, shapes)


def _published_totals(architecture: ModelSpec, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """All numbers that Keras counts as parameters, and which of them no gradient moves."""
    counts = [(leaf, math.prod(shape)) for leaves in shapes.values() for leaf, shape in leaves.items()]
    statistics = sum(count for leaf, count in counts if leaf in BATCH_STATS)
    elsewhere = architecture.num_params - sum(count for _, count in counts)
    told = [f"{statistics:,} of them statistics of batch norms"] if statistics else []
    told += [f"{elsewhere} of a layer that is preprocessing here"] if elsewhere else []
    remark = f" ({', '.join(told)})" if told else ""
    total, base = architecture.num_params, architecture.num_params_no_top
    return f"Total: {total:,} parameters{remark}; {base:,} without the top"


def config_summary(config: Any) -> tuple[Table, str]:
    """The layers of a config's network with their groups and the phases in which they learn, and totals."""
    classes = tuple(config.data.classes) or base.open_source(config.data.source, fileio.cache_dir("data")).classes
    net = build_model(config, len(classes))
    phases = build_phases(config, net.model, net.layers, net.groups, sys.maxsize, net.unused_groups)
    cells = [
        (
            row.layer,
            row.kind,
            _shape(row.shape),
            f"{row.params:,}",
            row.group,
            ", ".join(row.trained_in),
        )
        for row in layer_records(net, phases, "")
    ]
    title = (
        f"{config.model.name} at {config.data.height}x{config.data.width} under a new head of {len(classes)} classes"
    )
    columns = ("layer", "kind", "output", "parameters", "group", "trained in")
    return make_table(title, columns, cells), _totals(net, phases)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _totals(net: ModelInfo, phases: Sequence[Phase]) -> str:
    """Parameters of base, head and groups, and how many learn in each phase."""
    size = {path: math.prod(shape) for path, shape in net.shapes.items()}
    lines = [f"Base: {net.count('backbone/'):,} parameters; head: {net.count('head/'):,}"]
    for group in dict.fromkeys(net.groups.values()):
        lines.append(f"Group {group}: {sum(size[path] for path, name in net.groups.items() if name == group):,}")
    for phase in phases:
        learning = sum(count for path, count in size.items() if phase.param_groups.is_trainable(path))
        lines.append(f"Learning in phase {phase.name}: {learning:,} of {sum(size.values()):,}")
    return "\n".join(lines)


WEIGHTS_LEGEND = (
    "at hand: Keras' cache or flaxtl's has a file of that name, or the package has one; it is checked when it is used"
)
"""What the last column means."""


def model_records() -> list[dict[str, Any]]:
    """One JSON object an architecture."""
    return [_row(architecture) for architecture in registry.MODELS.values()]


def _row(row: ModelSpec) -> dict[str, Any]:
    return {
        "name": row.name,
        "parameters_with_top": row.num_params,
        "parameters_base": row.num_params_no_top,
        "size": row.input_size,
        "minimum_size": row.min_input_size,
        "preprocessing": row.preprocessing,
        "top1": row.top1,
        "top5": row.top5,
        "licence": row.license,
        "paper": row.paper,
        "weights": {"top": vars(row.weights), "base": vars(row.weights_no_top)},
        "at_hand": weights_status(row),
    }


def weights_status(row: ModelSpec) -> dict[str, str | None]:
    """Where weights are without a network: of the whole network ('top') and of its base; None where nowhere.

    No file is opened for it: a hash of 500 MB takes longer than a table may.
    """
    top, base = (
        next((cached.source for cached in download.cached_files(file.name)), None)
        for file in (row.weights, row.weights_no_top)
    )
    return {"top": top, "base": base or top or ("built in" if row.builtin else None)}


def models_table() -> Table:
    """The catalog for the console."""
    columns = ("network", "parameters", "base", "input", "top-1 %", "top-5 %", "preprocessing", "at hand")
    cells = [
        (
            row.name,
            f"{row.num_params:,}",
            f"{row.num_params_no_top:,}",
            f"{row.input_size} (min {row.min_input_size})",
            f"{row.top1:.1f}",
            f"{row.top5:.1f}",
            row.preprocessing,
            _spelled(**weights_status(row)),
        )
        for row in registry.MODELS.values()
    ]
    return make_table("Networks", columns, cells)


def _spelled(top: str | None, base: str | None) -> str:
    if top:
        return f"whole ({top})"
    return f"base ({base})" if base else ""


def split_into_folders(
    source: str, output: Path, fractions: str, seed: int, near_duplicates: int, link: bool, console: Console
) -> Table:
    """As `split_files.write_folders`; what the user should know goes to `console`. Returns images by class, split."""
    parts = split_writer.parse_fractions(fractions)
    listing = base.open_source(source, fileio.cache_dir("data"))
    with progress_bar(console, "splitting", 2 * len(listing.images)) as advance:
        counts = split_writer.write_folders(
            listing,
            output,
            parts,
            seed,
            near_duplicates=near_duplicates,
            link=link,
            notify=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
    return _split_table([split for split, part in parts.items() if part > 0], counts)


def split_into_folds(source: str, output: Path, k: int, seed: int, near_duplicates: int, console: Console) -> Table:
    """As `split_files.write_folds`; what the user should know goes to `console`. Returns images by class and fold."""
    listing = base.open_source(source, fileio.cache_dir("data"))
    with progress_bar(console, "splitting", len(listing.images)) as advance:
        counts = split_writer.write_folds(
            listing,
            output,
            k,
            seed,
            near_duplicates=near_duplicates,
            notify=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
    return _split_table([f"fold {number}" for number in range(1, k + 1)], counts)


def _split_table(splits: Sequence[str], counts: Counter[tuple[str, str]]) -> Table:
    def row(name: str, numbers: Sequence[int]) -> list[str]:
        return [printable(name), *(f"{n:,}" for n in (*numbers, sum(numbers)))]

    classes = sorted({label for label, _ in counts})
    cells = [row(label, [counts[label, split] for split in splits]) for label in classes]
    totals = row("all", [sum(counts[label, split] for label in classes) for split in splits])
    return make_table("Images", ("class", *splits, "all"), [*truncate_rows(cells, " classes"), totals])
