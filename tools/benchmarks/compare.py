"""What the kinds `forward` and `train` share: options, peers, and the table of the comparison."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.measure import spread
from benchmarks.subject import Subject

from flaxtl import console
from flaxtl.models import registry

PEERS = {
    "keras-tensorflow": Subject(
        "Keras 3 on TensorFlow", "with_keras", ("keras", "tensorflow"), environment={"KERAS_BACKEND": "tensorflow"}
    ),
    "keras-jax": Subject("Keras 3 on JAX", "with_keras", ("keras", "jax"), environment={"KERAS_BACKEND": "jax"}),
    "torch": Subject("PyTorch", "with_torch", ("torch",), settings={"compile": False}),
    "torch-compiled": Subject("PyTorch, compiled", "with_torch", ("torch",), settings={"compile": True}),
}

REFERENCES = {"TensorFlow": ("keras-tensorflow",), "JAX": ("keras-jax",), "PyTorch": ("torch", "torch-compiled")}
"""Column of speed ratios -> peers, of which the fastest is the reference."""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of both kinds."""
    parser.add_argument("--model", default="vgg16", help="model of the registry (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="batch size (default: %(default)s)")
    parser.add_argument("--size", type=int, default=200, help="height and width of the images (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--classes", type=int, default=5, help="outputs of the new head (default: %(default)s)")
    parser.add_argument(
        "--peers", type=_peers, default=tuple(PEERS), metavar="NAMES", help=f"none, or some of {', '.join(PEERS)}"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)g)")
    parser.set_defaults(repeats=3)


def _peers(names: str) -> tuple[str, ...]:
    peers = () if names == "none" else tuple(names.split(","))
    if unknown := set(peers) - set(PEERS):
        raise argparse.ArgumentTypeError(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    return peers


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of all subjects; `top_block` is the pattern of the parameters that phase `top` adds."""
    spec = registry.get_spec(options.model)
    return {
        "model": spec.name,
        "preprocessing": spec.preprocessing,
        "top_block": dict(spec.groups)[spec.top_group],
        **{name: getattr(options, name) for name in ("batch", "size", "dtype", "classes", "seconds")},
    }


def run(
    function: str,
    options: argparse.Namespace,
    subjects: Sequence[Subject],
    settings: Mapping[str, Any],
    count_flops: Callable[[Subject], float],
) -> dict[str, Any]:
    """Measure flaxtl's subjects and the peers in turns (A B C A B C ...), print a table, and return the figures."""
    subjects = [*subjects, *(PEERS[name] for name in options.peers)]
    results: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in subjects}
    for _ in range(options.repeats):
        for subject in subjects:
            if not any("note" in result for result in results[subject.name]):
                results[subject.name].append(subject.run(function, settings))
    peak = next((result["peak"] for runs in results.values() for result in runs if "peak" in result), None)
    rows = [
        _row(subject.name, results[subject.name], count_flops(subject), options.batch, peak) for subject in subjects
    ]
    _add_ratios(rows)
    _print(function, settings, rows, peak)
    return {"kind": function, "settings": dict(settings), "peak": peak, "rows": rows}


def _row(
    name: str, results: Sequence[Mapping[str, Any]], flops: float, batch: int, peak: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return all figures of one subject."""
    measured = [result for result in results if "note" not in result]
    rates = [result["images_per_second"] for result in measured]
    row: dict[str, Any] = {
        "subject": name,
        "device": measured[0]["device"] if measured else None,
        "images_per_second": rates,
        "flop_per_image": flops,
        "note": next((result["note"] for result in results if "note" in result), ""),
        "median": None,
    }
    if rates:
        rate = median(rates)
        row |= {"median": rate, "spread": spread(rates), "milliseconds": 1000 * batch / rate}
        row |= {"cpu_milliseconds": 1000 * batch * median(result["cpu_seconds_per_image"] for result in measured)}
        row |= {"flop_per_second": rate * flops, "fraction_of_peak": rate * flops / peak["rate"] if peak else None}
    return row


def _add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Add to every row how many times faster it is than each reference."""
    medians = {row["subject"]: row["median"] for row in rows if row["median"]}
    for row in rows:
        row["times_faster_than"] = {}
        for reference, peers in REFERENCES.items():
            rates = [medians[PEERS[peer].name] for peer in peers if PEERS[peer].name in medians]
            if rates and row["median"]:
                row["times_faster_than"][reference] = row["median"] / max(rates)


def _print(
    function: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], peak: Mapping[str, Any] | None
) -> None:
    size = settings["size"]
    title = f"{function}: {settings['model']}, batch size {settings['batch']}, {size} x {size}, {settings['dtype']}"
    columns = ("implementation", "images/s", "spread", "ms/batch", "CPU ms/batch", "GFLOP/image", "TFLOP/s", "of peak")
    columns += tuple(f"x {name}" for name in REFERENCES)
    terminal = console.make_console()
    terminal.print(console.make_table(title, (*columns, "device"), [_cells(row) for row in rows]))
    for row in rows:
        if row["note"]:
            console.message(terminal, f"{row['subject']}: {row['note']}")
    if peak:
        text = f"peak: {peak['rate'] / 1e12:,.3g} TFLOP/s ({peak['source']}); a multiply-add is 2 FLOP"
        console.message(terminal, text)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["median"] is None:
        return (row["subject"], row["note"].split(":")[0], *[""] * (7 + len(REFERENCES)))
    ratios = row["times_faster_than"]
    return (
        row["subject"],
        f"{row['median']:,.1f}",
        f"{row['spread']:.0%}",
        f"{row['milliseconds']:,.1f}",
        f"{row['cpu_milliseconds']:,.1f}",
        f"{row['flop_per_image'] / 1e9:,.2f}",
        f"{row['flop_per_second'] / 1e12:,.3g}",
        f"{row['fraction_of_peak']:.0%}" if row["fraction_of_peak"] else "",
        *(f"{ratios[name]:.2f}" if name in ratios else "" for name in REFERENCES),
        row["device"],
    )
