"""Measure speed next to Keras and PyTorch, in one run on one machine: `python tools/benchmark.py KIND`.

    forward  images per second of a forward pass
    train    images per second of train steps
    layers   processor time of each convolution of a network
    variants  a forward pass beside the same without some of what makes it fast on a CPU
    data     images per second of decoding, and of augmentation
    job      a whole `flaxtl train`, from start-up to report
    accelerator  all of this for a GPU or TPU in 8 minutes: three models, share of its peak, PyTorch, the course

Each measurement runs in a process of its own. Implementations take turns, so that a slow moment of the machine affects
all of them; figures are medians of the turns, and relative speeds medians of the ratios in each turn. --json=FILE also
writes the figures with hardware and versions. Peers that are not installed are left out, and the table says so.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import accelerator, job, layers, variants
from benchmarks.compare import DATA_PEERS, PEERS, Subject, compare, own

from flaxtl.errors import UserError

PACKAGES = ("flaxtl", "jax", "jaxlib", "flax", "numpy", "pillow", "keras", "tensorflow", "tensorflow-cpu", "torch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    options.overrides = [
        argument for argument in rest if options.kind in ("job", "accelerator") and argument.startswith("--config.")
    ]
    if unknown := [argument for argument in rest if argument not in options.overrides]:
        parser.error(f"unknown option: {' '.join(unknown)}")
    try:
        figures = KINDS[options.kind](options)
    except UserError as error:
        parser.error(str(error))
    if options.json:
        figures = {"kind": options.kind, **figures, "environment": environment()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# Each kind gets its own parents: argparse shares the options of a parent, and with them their defaults.
def _common_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--repeats", type=int, default=3, help="number of turns (default: %(default)s)")
    options.add_argument("--json", type=Path, metavar="FILE")
    return options


def _step_options(batch: int = 32, seconds: float = 3.0) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_common_options()])
    options.add_argument("--batch", type=int, default=batch, help="batch size (default: %(default)s)")
    options.add_argument("--size", type=int, default=200, help="height and width of the images (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=seconds, help="of each measurement (default: %(default)g)")
    return options


def _network_options(seconds: float = 3.0) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_step_options(seconds=seconds)])
    options.add_argument("--model", default="vgg16", help="model of the registry (default: %(default)s)")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return options


def _peer_options(default: str = "all") -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    names = f"all, none, or some of {', '.join(PEERS)} (default: %(default)s)"
    options.add_argument("--peers", default=default, metavar="NAMES", help=names)
    return options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    kinds.add_parser(
        "forward", parents=[_network_options(), _peer_options()], help="images per second of a forward pass"
    )
    train = kinds.add_parser(
        "train", parents=[_network_options(), _peer_options()], help="images per second of train steps"
    )
    train.add_argument("--phase", choices=("head", "top"), default="head", help="train the head, or the last block too")
    kinds.add_parser(
        "layers",
        parents=[_network_options(seconds=0.5), _peer_options("keras-tensorflow")],
        help="processor time of each convolution of a network",
    )
    variant = kinds.add_parser(
        "variants", parents=[_network_options()], help="a forward pass with parts of flaxtl replaced"
    )
    variant.add_argument("--layer", metavar="NAME", help="last layer to run (default: all, to the logits)")
    data_parents = [_step_options(), _peer_options()]
    data = kinds.add_parser("data", parents=data_parents, help="images per second of decoding, and of augmentation")
    data.add_argument("--source", default="synthetic", help="as data.source of flaxtl train (default: %(default)s)")
    data.add_argument("--images", type=int, default=512, help="number of images (default: %(default)s)")
    whole = kinds.add_parser(
        "job", parents=[_common_options()], help="a whole `flaxtl train`, which gets all --config.key=value"
    )
    whole.add_argument("--config", default="flowers_vgg16", metavar="NAME|FILE[:VARIANT]")
    whole.add_argument(
        "--peer", nargs="?", const="keras-tensorflow", choices=("keras-tensorflow", "keras-jax"),
        help="also train with the course's Keras script; needs a config with one phase without augmentation",
    )  # fmt: skip
    step_options = _step_options(batch=256, seconds=2.0)
    everything = kinds.add_parser("accelerator", parents=[step_options], help="all figures of a GPU or TPU, in parts")
    everything.add_argument("--models", default="vgg16,resnet50,efficientnet_b0", metavar="NAMES")
    everything.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    everything.add_argument("--steps", type=int, default=20, help="train steps per call (default: %(default)s)")
    everything.add_argument("--minutes", type=float, default=8.0, help="time limit; --json=FILE continues (default: 8)")
    everything.add_argument(
        "--config",
        default="flowers_vgg16",
        metavar="NAME|FILE[:VARIANT]",
        help="trained from start-up to report; '': no",
    )
    return parser


def select_peers(names: str, peers: dict[str, Subject]) -> list[Subject]:
    """Return the peers that an option names."""
    selected = {"all": list(peers), "none": []}.get(names, names.split(","))
    if unknown := set(selected) - set(peers):
        raise UserError(f"Unknown peer {', '.join(sorted(unknown))}; known: {', '.join(peers)}.")
    return [peers[name] for name in selected]


def run_forward(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a forward pass from images to logits."""
    settings = network_settings(options)
    subjects = [own(), *select_peers(options.peers, PEERS)]
    rows = compare(_title("forward", settings), "forward", subjects, settings, options.repeats)
    return {"settings": settings, "rows": rows}


def run_train(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the step of a phase, from images and (as without augmentation or with cached views) from features."""
    settings = network_settings(options) | {"phase": options.phase}
    ours = [own(cached=False), own("flaxtl, cached", cached=True)]
    subjects = [*ours, *select_peers(options.peers, PEERS)]
    title = _title(f"train, phase {options.phase}", settings)
    return {"settings": settings, "rows": compare(title, "train", subjects, settings, options.repeats)}


def run_layers(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the convolutions of a network one by one."""
    settings = network_settings(options)
    peers = {name: peer for name, peer in PEERS.items() if peer.module == "with_keras"}
    subjects = [own(), *select_peers(options.peers, peers)]
    rows = layers.compare_layers(_title("convolutions", settings), subjects, settings, options.repeats)
    return {"settings": settings, "rows": rows}


def run_variants(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a forward pass of flaxtl, and the same with parts of flaxtl replaced."""
    settings = network_settings(options) | {"layer": options.layer}
    title = _title(f"variants, up to {options.layer or 'the logits'}", settings)
    return {"settings": settings, "rows": variants.compare_variants(title, settings, options.repeats)}


def network_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all subjects need; `last_block` is the pattern of the parameters that phase `top` adds."""
    from flaxtl.models import registry

    spec = registry.get_spec(options.model)
    common = {name: getattr(options, name) for name in ("batch", "size", "dtype", "seconds")}
    return {"model": spec.name, "last_block": dict(spec.groups)[spec.last_block], **common}


def _title(name: str, settings: dict[str, Any]) -> str:
    size = settings["size"]
    return f"{name}: {settings['model']}, batch size {settings['batch']}, {size} x {size}, {settings['dtype']}"


def run_data(options: argparse.Namespace) -> dict[str, Any]:
    """Measure decoding, from files, and augmentation, from what is kept between epochs; the peers keep nothing."""
    from flaxtl import fileio
    from flaxtl.data.sources import base

    peers = select_peers(options.peers, DATA_PEERS)
    in_memory = own("flaxtl, in memory", to_file=False, streamed=False)
    on_disk = own("flaxtl, streamed", to_file=True, streamed=True, augment_on="device")
    on_host = own("flaxtl, augmented on the host", ("tensorflow",), to_file=True, streamed=True, augment_on="host")
    images = base.open_source(options.source, fileio.cache_dir("data")).images
    images = images[:: max(1, len(images) // options.images)][: options.images]  # from all classes
    figures: dict[str, Any] = {"images": len(images)}
    with TemporaryDirectory() as parent:
        pairs = ((image.path, "ab"[number % 2]) for number, image in enumerate(images))
        settings = {"folder": str(job.link_images(Path(parent) / "images", pairs))}
        settings |= {name: getattr(options, name) for name in ("batch", "size", "seconds")}
        for function in ("decode", "augment"):
            title = f"{function}: {len(images)} images at {options.size} x {options.size}, batch size {options.batch}"
            ours = [in_memory, on_disk, *([on_host] if function == "augment" else [])]
            figures[function] = compare(title, function, [*ours, *peers], settings, options.repeats)
    return figures | {"settings": settings}


KINDS = {
    "forward": run_forward,
    "train": run_train,
    "layers": run_layers,
    "variants": run_variants,
    "data": run_data,
    "job": job.run,
    "accelerator": accelerator.run,
}


def environment() -> dict[str, object]:
    """Return processor, system, and the versions of Python and of the installed packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Return name -> version of those of PACKAGES that are installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


if __name__ == "__main__":
    main()
