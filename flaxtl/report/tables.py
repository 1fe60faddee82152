"""Tables on the console: available models, layers of a model, and images per split.

Printed by `flaxtl models`, `flaxtl summary` and `flaxtl split`.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flaxtl.console import make_table, printable, truncate_rows
from flaxtl.data.sources.base import open_config_source
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import BATCH_STATS, Classifier
from flaxtl.models.spec import ModelSpec
from flaxtl.pretrained import download
from flaxtl.train.phases import Phase, build_phases
from flaxtl.train.run_dir import layer_records
from flaxtl.train.setup import ModelInfo, build_model, check_settings

WEIGHTS_LEGEND = (
    "weights: available without a download, because the file is in the cache of Keras or flaxtl or part of the "
    "package; full: with the ImageNet top, base: without it. Files are verified when they are loaded."
)
"""Explains the last column of `models_table`."""


def models_table() -> Table:
    """Return the available models as a table."""
    columns = ("model", "parameters", "base", "input", "top-1 %", "top-5 %", "preprocessing", "weights")
    rows = [
        (
            spec.name,
            f"{spec.num_params:,}",
            f"{spec.num_params_no_top:,}",
            f"{spec.input_size} (min {spec.min_input_size})",
            f"{spec.top1:.1f}",
            f"{spec.top5:.1f}" if spec.top5 else "–",
            spec.preprocessing,
            _weights_cell(**local_weights(spec)),
        )
        for spec in registry.MODELS.values()
    ]
    return make_table("Models", columns, rows)


def _weights_cell(top: str | None, base: str | None) -> str:
    if top:
        return f"full ({top})"
    return f"base ({base})" if base else ""


def model_records() -> list[dict[str, Any]]:
    """Return the available models as JSON values; the keys are those of `flaxtl models --json`."""
    return [
        {
            "name": spec.name,
            "parameters_with_top": spec.num_params,
            "parameters_base": spec.num_params_no_top,
            "size": spec.input_size,
            "minimum_size": spec.min_input_size,
            "preprocessing": spec.preprocessing,
            "top1": spec.top1,
            "top5": spec.top5,
            "licence": spec.license,
            "paper": spec.paper,
            "weights": {"top": vars(spec.weights), "base": vars(spec.weights_no_top)},
            "at_hand": local_weights(spec),
        }
        for spec in registry.MODELS.values()
    ]


def local_weights(spec: ModelSpec) -> dict[str, str | None]:
    """Return where weights are available without a download, with the top ('top') and for the base; else None.

    Only file names are compared: hashing 500 MB would take too long for a table.
    """
    top, base = (
        next((cached.source for cached in download.cached_files(file.name)), None)
        for file in (spec.weights, spec.weights_no_top)
    )
    return {"top": top, "base": base or top or ("built in" if spec.builtin else None)}


def pretrained_summary(name: str) -> tuple[Table, str]:
    """Return the layers of a pretrained model with its ImageNet top at its default input size, and its totals."""
    spec = registry.get_spec(name)
    model, size = Classifier(spec), spec.input_size
    shapes = classifier.param_shapes(model, size, size)["backbone"]
    rows = []
    for layer in classifier.list_layers(model, size, size):
        count = sum(math.prod(shape) for shape in shapes.get(layer.name, {}).values())
        rows.append((layer.name, layer.kind, _format_shape(layer.shape), f"{count:,}"))
    table = make_table(f"{spec.name} at {size}x{size}", ("layer", "type", "output", "parameters"), rows)
    return table, _pretrained_totals(spec, shapes)


def _pretrained_totals(spec: ModelSpec, shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Return the number of parameters as Keras counts them, and how many of them are never trained."""
    counts = [(leaf, math.prod(shape)) for leaves in shapes.values() for leaf, shape in leaves.items()]
    num_stats = sum(count for leaf, count in counts if leaf in BATCH_STATS)
    num_preprocessing = spec.num_params - sum(count for _, count in counts)
    parts = [f"{num_stats:,} of them batch norm statistics"] if num_stats else []
    parts += [f"{num_preprocessing} of a preprocessing layer in Keras"] if num_preprocessing else []
    note = f" ({', '.join(parts)})" if parts else ""
    return f"Total: {spec.num_params:,} parameters{note}; {spec.num_params_no_top:,} without the top"


def config_summary(config: Any) -> tuple[Table, str]:
    """Return the layers of a config's model with their param groups and the phases that train them, and totals."""
    check_settings(config)
    data = config.data
    classes = data.classes or open_config_source(data).classes
    model_info = build_model(config, len(classes))
    phases = build_phases(
        config, model_info.model, model_info.layers, model_info.groups, sys.maxsize, model_info.unused_groups
    )
    rows = [
        (
            layer.layer,
            layer.kind,
            _format_shape(layer.shape),
            f"{layer.params:,}",
            layer.group,
            ", ".join(layer.trained_in),
        )
        for layer in layer_records(model_info, phases, "")
    ]
    title = (
        f"{config.model.name} at {config.data.height}x{config.data.width} with a new head for {len(classes)} classes"
    )
    columns = ("layer", "type", "output", "parameters", "group", "trained in")
    return make_table(title, columns, rows), _config_totals(model_info, phases)


def _config_totals(model_info: ModelInfo, phases: Sequence[Phase]) -> str:
    """Return the parameters of base, head and param groups, and how many train in each phase."""
    sizes = {path: math.prod(shape) for path, shape in model_info.shapes.items()}
    lines = [f"Base: {model_info.count('backbone/'):,} parameters; head: {model_info.count('head/'):,}"]
    for group in dict.fromkeys(model_info.groups.values()):
        total = sum(size for path, size in sizes.items() if model_info.groups[path] == group)
        lines.append(f"Group {group}: {total:,}")
    for phase in phases:
        trainable = sum(size for path, size in sizes.items() if phase.param_groups.is_trainable(path))
        lines.append(f"Trainable in phase {phase.name}: {trainable:,} of {sum(sizes.values()):,}")
    return "\n".join(lines)


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def split_table(splits: Sequence[str], counts: Counter[tuple[str, str]]) -> Table:
    """Return the number of images per class and split.

    Args:
      splits: names of the splits.
      counts: number of images by (class, split).
    """

    def row(name: str, numbers: Sequence[int]) -> list[str]:
        return [printable(name), *(f"{n:,}" for n in (*numbers, sum(numbers)))]

    classes = sorted({label for label, _ in counts})
    rows = [row(label, [counts[label, split] for split in splits]) for label in classes]
    totals = row("all", [sum(counts[label, split] for label in classes) for split in splits])
    return make_table("Images", ("class", *splits, "all"), [*truncate_rows(rows, " classes"), totals])
