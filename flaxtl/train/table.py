"""What learns, as tables: groups at the start of a run, layers for `flaxtl summary` and the report."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from flaxtl.terminal import table
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Network


def group_table(network: Network, phases: Sequence[Phase], origin: str) -> Table:
    """A row a group: its parameters, its learning rate in every phase, and where its values come from.

    Layer decay makes a rate two, of the group's highest and its lowest layer. The last row tells how rates change.
    """
    columns = ("group", "layers", "parameters", *(phase.name for phase in phases), "values from")
    cells = []
    for group in dict.fromkeys(network.groups.values()):
        paths = [path for path, name in network.groups.items() if name == group]
        count = sum(math.prod(network.shapes[path]) for path in paths)
        sections = {path.split("/")[0] for path in paths}
        rates = (_rates(phase, group) for phase in phases)
        source = origin if "backbone" in sections else "fresh (Glorot)"
        cells.append((group, str(len({path.split("/")[1] for path in paths})), f"{count:,}", *rates, source))
    cells.append(("schedule", "", "", *(_schedule(phase) for phase in phases), ""))
    return table("What learns, and how fast", columns, cells)


def _rates(phase: Phase, group: str) -> str:
    highest, lowest = phase.split.span(group)
    return "frozen" if not highest else f"{highest:.3g}" if highest == lowest else f"{highest:.3g} - {lowest:.3g}"


def _schedule(phase: Phase) -> str:
    plateau = f" ({phase.plateau_factor:g} after {phase.plateau_patience} epochs)"
    warm_up = f", {phase.warmup_steps} steps of warm-up" if phase.warmup_steps else ""
    ema = f", ema {phase.ema:g}" if phase.ema else ""
    return phase.schedule + (plateau if phase.schedule == "plateau" else "") + warm_up + ema


def layer_rows(network: Network, phases: Sequence[Phase], origin: str) -> list[dict[str, Any]]:
    """A row a layer, as layers.json has it: layer, kind, shape, parameters, group, learns (phases) and origin."""
    rows = []
    for layer in network.layers:
        prefix = f"{layer.section}/{layer.name}/"
        paths = [path for path in network.shapes if path.startswith(prefix)]
        source = "" if not paths else origin if layer.section == "backbone" else "fresh"
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "parameters": network.count(prefix),
                "group": network.groups[paths[0]] if paths else "",
                "learns": [phase.name for phase in phases if any(phase.split.learns(path) for path in paths)],
                "origin": source,
            }
        )
    return rows
