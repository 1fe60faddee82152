"""A weight file of any kind to a checked tree; the kind is told by what the file holds, never by its name."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flaxtl.errors import UserError
from flaxtl.weights import autonames, convert, h5_layers, h5_trial, normalization, onnx, safetensors_file, timm
from flaxtl.weights.h5_safety import MAX_BYTES
from flaxtl.weights.merge import Row, merge
from flaxtl.weights.tree import Expected, Found, Layers, Tree


@dataclass(frozen=True)
class Loaded:
    """A tree of exactly the expected leaves in float32; what became of each array; what kind of file it was."""

    tree: Tree
    rows: list[Row]
    origin: str


def load(
    path: Path, expected: Expected, optional: Collection[str] = frozenset(), *, trusted: bool = False
) -> Loaded:  # fmt: skip
    """Read the weight file at `path` and fit it to `expected`; layers named in `optional` are skipped.

    `optional` may name the layers of the whole network: layers that Keras named itself are known by their order in it.
    A file that is not `trusted` to be a published one may be anything: see h5_trial.
    Reads Keras' HDF5 files of every vintage, `.keras` archives, flaxtl's safetensors files, and ONNX.
    Raises UserError for a file that is none of these, is damaged or unsafe, or does not fit.
    """
    found, origin = _read(path, expected, dict.fromkeys((*optional, *expected)), trusted)
    return _fit(path, expected, found, optional, origin)


def load_timm(path: Path, network: str, expected: Expected, optional: Collection[str] = frozenset()) -> Loaded:
    """`load` for a safetensors file of PyTorch's `network` under the names of timm or torchvision (see timm.read)."""
    _first_bytes(path)  # tells what is wrong with a path
    _check_size(path)
    found = timm.read(path, network, {*expected, *optional}, expected)
    return _fit(path, expected, found, optional, "PyTorch safetensors")


def _fit(path: Path, expected: Expected, found: Found, optional: Collection[str], origin: str) -> Loaded:
    merged = merge(expected, found, optional=optional, source=str(path))
    return Loaded(merged.tree, merged.rows, origin)


def _read(path: Path, expected: Expected, known: Collection[str], trusted: bool) -> tuple[Found, str]:
    start = _first_bytes(path)
    if h5_layers.recognises(path, start):
        if not trusted:
            h5_trial.run(path)
        layers, origin = h5_layers.read(path, known, expected)
        return _leaves(normalization.without(layers, path), path, expected, known), origin
    _check_size(path)
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        leaves, metadata = safetensors_file.read(path)
        return leaves, f"safetensors ({metadata.get('precision', 'precision not told')})"
    if onnx.recognises(start):
        return onnx.read(path), "ONNX"
    raise UserError(
        f"{path} is {_guess(start)}, not a weight file; give a Keras .h5, .keras, flaxtl .safetensors or .onnx file"
    )


def _leaves(layers: Layers, path: Path, expected: Expected, known: Collection[str]) -> Found:
    return convert.to_leaves(autonames.rename(layers, (known, expected), path), expected)


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the weight file in it")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"no weight file {path}; check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not start:
        raise UserError(f"{path} is empty; copy or download it again")
    return start


def _check_size(path: Path) -> None:
    """Refuse a file that is no HDF5 file, and so is read whole, if no network needs so much."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than any network needs; give the file of the weights alone")


def _guess(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (the download link led to a page, not to the file)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    return "of an unknown kind"
