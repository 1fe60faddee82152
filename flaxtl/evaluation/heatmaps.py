"""DIR/report/gradcam.json: the heat maps of a run, kept so that its report can be written without the network."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.evaluation.run_files import Record, Shape, is_count, is_text, shape_fault
from flaxtl.fileio import atomic_write_text

Heatmap = npt.NDArray[np.uint8]
"""A heat map, uint8 [rows, columns]: 255 where most speaks for the class, 0 where nothing does."""

RESIZE: dict[str, Shape] = {"height": is_count, "width": is_count, "policy": is_text, "interpolation": is_text}
"""What is kept of how a run decodes images; all else of it is the same in every run."""

SHAPE: Shape = Record(
    {
        "layer": is_text,
        "rows": is_count,
        "columns": is_count,
        "resize": Record(RESIZE),
        "maps": {...: {...: is_text}},
    }
)


@dataclass(frozen=True)
class HeatmapSet:
    """Heat maps at one layer, each over what `resize` leaves of an image: path -> class -> map of rows x columns."""

    layer: str
    rows: int
    columns: int
    resize: Resize
    maps: Mapping[str, Mapping[str, Heatmap]]


def write_heatmaps(workdir: Path, kept: HeatmapSet) -> None:
    """Keep heat maps in the run directory, in the place of any others."""
    file = _file(workdir)
    file.parent.mkdir(exist_ok=True)
    maps = {
        path: {name: base64.b64encode(heat.tobytes()).decode("ascii") for name, heat in heats.items()}
        for path, heats in kept.maps.items()
    }
    resize = {name: getattr(kept.resize, name) for name in RESIZE}
    value = {"layer": kept.layer, "rows": kept.rows, "columns": kept.columns, "resize": resize}
    atomic_write_text(file, json.dumps(value | {"maps": maps}, indent=1) + "\n")


def read_heatmaps(workdir: Path) -> HeatmapSet | None:
    """The heat maps that are kept; None where there are none, or the file is damaged: they can be made again."""
    try:
        found = json.loads(_file(workdir).read_text(encoding="utf-8"))
        if shape_fault(found, SHAPE):
            return None
        size = found["rows"], found["columns"]
        maps = {
            path: {name: _heat(text, *size) for name, text in heats.items()} for path, heats in found["maps"].items()
        }
        return HeatmapSet(found["layer"], *size, Resize(**{name: found["resize"][name] for name in RESIZE}), maps)
    except (OSError, ValueError, RecursionError, UserError):
        return None


def _heat(text: str, rows: int, columns: int) -> Heatmap:
    """Raises ValueError for anything but a map of that size."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(rows, columns)


def _file(workdir: Path) -> Path:
    return workdir / "report" / "gradcam.json"
