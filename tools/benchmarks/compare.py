"""What the kinds `forward` and `train` share: their options, their peers, and how a comparison is told."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measure import median, spread
from benchmarks.turns import Outcome, Way, take_turns
from flaxtl.console import make_console, make_table
from flaxtl.models import registry

PEERS = {
    "keras-tensorflow": Way(
        "Keras 3 on TensorFlow", "with_keras", ("keras", "tensorflow"), environment={"KERAS_BACKEND": "tensorflow"}
    ),
    "keras-jax": Way("Keras 3 on JAX", "with_keras", ("keras", "jax"), environment={"KERAS_BACKEND": "jax"}),
    "torch": Way("PyTorch", "with_torch", ("torch",), settings={"compile": False}),
    "torch-compiled": Way("PyTorch, compiled", "with_torch", ("torch",), settings={"compile": True}),
}


REFERENCES = {
    "TensorFlow": ("keras-tensorflow",),
    "JAX": ("keras-jax",),
    "PyTorch": ("torch", "torch-compiled"),
}
"""What every way is compared with: the fastest of these peers."""


def define(parser: argparse.ArgumentParser) -> None:
    """The options that both kinds have."""
    parser.add_argument("--model", default="vgg16", help="a network of the catalog")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=200, help="pixels of a side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--classes", type=int, default=5, help="of the new head")
    parser.add_argument(
        "--peers", type=_peers, default=tuple(PEERS), metavar="NAMES", help=f"none, or some of {', '.join(PEERS)}"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="that a turn shall take")
    parser.set_defaults(repeats=5)


def _peers(names: str) -> tuple[str, ...]:
    wanted = () if names == "none" else tuple(names.split(","))
    if strange := set(wanted) - set(PEERS):
        raise argparse.ArgumentTypeError(f"no peer {', '.join(sorted(strange))}; known: {', '.join(PEERS)}")
    return wanted


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What every process is told; `learning` matches the parameters of the base's top block."""
    architecture = registry.get_spec(options.model)
    return {
        "model": architecture.name,
        "preprocessing": architecture.preprocessing,
        "learning": architecture.groups[1][1],
        **{name: getattr(options, name) for name in ("batch", "size", "dtype", "classes", "seconds")},
    }


def run(
    work: str, options: argparse.Namespace, ours: Sequence[Way], settings: dict[str, Any], count: Callable[[Way], float]
) -> dict[str, Any]:
    """Measure our ways and the peers, print, and return the figures; `count` counts one way's operations an image."""
    ways = [*ours, *(PEERS[name] for name in options.peers)]
    flops = {way.name: count(way) for way in ways}
    outcomes = take_turns(ways, work, settings, options.repeats)
    peak = next((outcome.facts["peak"] for outcome in outcomes.values() if "peak" in outcome.facts), None)
    rows = [_row(way.name, outcomes[way.name], flops[way.name], options.batch, peak) for way in ways]
    _relate(rows)
    _print(work, settings, rows, peak)
    return {"kind": work, "settings": settings, "peak": peak, "rows": rows}


def _row(name: str, outcome: Outcome, flops: float, batch: int, peak: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every figure of one way."""
    row: dict[str, Any] = {
        "way": name,
        "device": outcome.facts.get("device"),
        "images_per_second": outcome.rates,
        "flop_per_image": flops,
        "note": outcome.note,
        "median": None,
    }
    if outcome.rates:
        rate = median(outcome.rates)
        row |= {"median": rate, "spread": spread(outcome.rates), "milliseconds": 1000 * batch / rate}
        row |= {"flop_per_second": rate * flops, "share_of_peak": rate * flops / peak["rate"] if peak else None}
    return row


def _relate(rows: Sequence[dict[str, Any]]) -> None:
    """Tell every row how many times faster it is than each reference."""
    medians = {row["way"]: row["median"] for row in rows if row["median"]}
    for row in rows:
        row["times_faster_than"] = {}
        for reference, peers in REFERENCES.items():
            theirs = [medians[PEERS[peer].name] for peer in peers if PEERS[peer].name in medians]
            if theirs and row["median"]:
                row["times_faster_than"][reference] = row["median"] / max(theirs)


def _print(
    work: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], peak: Mapping[str, Any] | None
) -> None:
    side = settings["size"]
    title = f"{work}: {settings['model']}, batches of {settings['batch']} at {side} x {side}, {settings['dtype']}"
    columns = ("way", "images/s", "spread", "ms a batch", "GFLOP/image", "TFLOP/s", "of peak")
    columns += tuple(f"x {name}" for name in REFERENCES)
    make_console().print(make_table(title, (*columns, "on"), [_cells(row) for row in rows]))
    sentences = [f"{row['way']}: {row['note']}" for row in rows if row["note"]]
    if peak:
        sentences.append(f"peak: {peak['rate'] / 1e12:,.3g} TFLOP/s ({peak['source']}); a multiply-add is 2 FLOP")
    make_console().print(*sentences, sep="\n", highlight=False, markup=False, soft_wrap=True)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["median"] is None:
        return (row["way"], row["note"].split(":")[0], *[""] * (6 + len(REFERENCES)))
    times = row["times_faster_than"]
    return (
        row["way"],
        f"{row['median']:,.1f}",
        f"{row['spread']:.0%}",
        f"{row['milliseconds']:,.1f}",
        f"{row['flop_per_image'] / 1e9:,.2f}",
        f"{row['flop_per_second'] / 1e12:,.3g}",
        f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "",
        *(f"{times[name]:.2f}" if name in times else "" for name in REFERENCES),
        row["device"],
    )
