"""flaxtl beside itself with a part replaced: what chunks, large tiles, fast convolutions and huge pages gain on a CPU.

The parts are replaced inside the process that is measured, by `with_variant`; flaxtl has no options for them.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from benchmarks.compare import Subject, measure_in_turns, own, print_rows, spread
from benchmarks.trial import CLASSES

from flaxtl.cli import huge_pages
from flaxtl.errors import unknown

FLAXTL, XLA = "flaxtl", "XLA's convolutions"


def variant(name: str) -> Subject:
    """Return flaxtl with what `with_variant.REPLACED` has for a name."""
    return own(name, variant=name)._replace(module="with_variant")


VARIANTS = (
    variant(FLAXTL),
    variant("whole batches"),
    variant("small tiles"),
    variant(XLA),
    variant("without huge pages")._replace(environment={huge_pages.VARIABLE: "glibc.malloc.hugetlb=0"}),
)


def compare_variants(title: str, settings: Mapping[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Measure all variants in turns, print a table, and return its rows.

    The `differences` of a row are the largest from the outputs of another, relative to the largest of these.

    Raises:
      UserError: the network does not have the `layer`, or not for images of that size.
    """
    _check_layer(settings)
    with TemporaryDirectory() as folder:
        rows = measure_in_turns("forward", VARIANTS, {**settings, "folder": folder}, repeats)
        outputs = {path.stem: np.load(path, mmap_mode="r") for path in Path(folder).glob("*.npy")}
        for row in rows:
            names = [name for name in (FLAXTL, XLA) if {name, row["subject"]} <= outputs.keys()]
            row["differences"] = {name: _difference(outputs[row["subject"]], outputs[name]) for name in names}
    print_rows(title, rows, [_cells(row) for row in rows])
    return rows


def _check_layer(settings: Mapping[str, Any]) -> None:
    from flaxtl.models import classifier, registry
    from flaxtl.models.head import Head

    model = classifier.Classifier(registry.get_spec(settings["model"]), Head(CLASSES))
    layers = [layer.name for layer in classifier.list_layers(model, settings["size"], settings["size"])]
    if settings["layer"] not in (None, *layers):
        raise unknown("layer", settings["layer"], layers)


def _difference(output: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    if not row["turns"]:
        return {"variant": row["subject"], "ms/image": row["note"].split(":")[0]}
    return {
        "variant": row["subject"],
        "ms/image": f"{1000 / row['images_per_second']:,.2f}",
        "spread": f"{spread([turn['images_per_second'] for turn in row['turns']]):.0%}",
        "CPU ms/image": f"{1000 * row['cpu_seconds_per_image']:,.2f}",
        "MiB": f"{row['peak_mebibytes']:,.0f}",
        "temporary MiB": f"{row['temporary_mebibytes']:,.0f}",
        **{f"x {name}": f"{row['times'][name]:.2f}" for name in (FLAXTL,) if name in row["times"]},
        **{f"difference from {name}": f"{value:.1e}" for name, value in row["differences"].items()},
    }
