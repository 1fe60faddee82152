"""Read Keras 3 files: `.weights.h5`, and the `.keras` archive that contains one.

Layout (keras/src/saving/saving_lib.py): one group per layer, named after its class (`layers/conv2d_12`), with its
arrays as `vars/0`, `vars/1`, ... The layer's own name is the attribute `name` of `vars`, which older files lack.
"""

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import h5py

from flaxtl.errors import UserError
from flaxtl.pretrained.hdf5 import SafeFile
from flaxtl.pretrained.merge import MAX_BYTES, ExpectedShapes, StoredLayers, StoredTensor, damaged_file

ARCHIVE_MEMBER = "model.weights.h5"
"""The only member of a `.keras` archive that is read. Its config is never interpreted."""

MAX_ZIP_EXPANSION = 100  # unpacked bytes per packed byte; Keras stores members uncompressed

_NOT_LAYERS = re.compile(r"(optimizer|metrics|compile_metrics|seed_generator)(_\d+)?")
_NUMBERED_NAME = re.compile(r"(?P<kind>.+?)(_(?P<number>\d+))?")


@dataclass(frozen=True)
class _LayerVars:
    """The `vars` group of one layer: the layer's path, its name if the file has it, and its arrays in order."""

    path: str
    name: str | None
    tensors: list[StoredTensor]

    @property
    def kind(self) -> str:
        """The layer's class in snake case: 'conv2d' for 'layers/conv2d_12'."""
        return _split_number(self.path.rpartition("/")[2])[0]

    @property
    def sort_key(self) -> list[tuple[str, int]]:
        """Sorts by number: conv2d, conv2d_1, conv2d_2, conv2d_10."""
        return [_split_number(part) for part in self.path.split("/")]


def is_keras_v3(file: SafeFile) -> bool:
    """Return whether the file has the layout of Keras 3."""
    return any(group in file.root for group in ("layers", "_layer_checkpoint_dependencies", "vars"))


def read_keras_v3(file: SafeFile, expected: ExpectedShapes) -> StoredLayers:
    """Read every array of the file, by layer, in the order in which the layer created them.

    Layers without a name in the file are matched by rank within their class: the third `conv2d` is the third expected
    convolution. Those beyond the expected layers keep the name of their group.
    """
    layers: StoredLayers = {}
    unnamed = defaultdict(list)
    for layer_vars in sorted(_find_vars(file, file.root, "", set()), key=lambda layer_vars: layer_vars.sort_key):
        if layer_vars.name is None:
            unnamed[layer_vars.kind].append(layer_vars)
        else:
            layers.setdefault(layer_vars.name, []).extend(layer_vars.tensors)
    for kind, group in unnamed.items():
        names = [layer for layer, leaves in expected.items() if _layer_kind(leaves) == kind]
        names += [layer_vars.path.lstrip("/") for layer_vars in group[len(names) :]]
        for name, layer_vars in zip(names, group, strict=False):
            layers.setdefault(name, []).extend(layer_vars.tensors)
    return layers


def open_archive(path: Path) -> BytesIO:
    """Return the `.weights.h5` inside the `.keras` archive at `path`, in memory. Nothing else of it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            if ARCHIVE_MEMBER not in archive.namelist():
                raise UserError(f"{path} is a zip archive without {ARCHIVE_MEMBER!r}. Save the model with Keras 3.")
            member = archive.getinfo(ARCHIVE_MEMBER)
            if member.file_size > MAX_BYTES:
                raise UserError(
                    f"{path} holds {member.file_size:,} bytes, more than any supported model needs. Save only the "
                    "weights, without the optimizer state: model.save_weights('NAME.weights.h5')."
                )
            if member.file_size > MAX_ZIP_EXPANSION * member.compress_size:
                raise UserError(
                    f"Refused to read {path}: {ARCHIVE_MEMBER!r} would unpack {member.compress_size:,} bytes to "
                    f"{member.file_size:,}. Get the file from its original source."
                )
            return BytesIO(archive.read(member))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, zlib.error) as error:
        raise damaged_file(path, error) from error


def _layer_kind(leaves: Mapping[str, tuple[int, ...]]) -> str:
    """Return the class, in snake case, of a layer with these leaves."""
    if "mean" in leaves:
        return "batch_normalization"
    if "depthwise_kernel" in leaves:
        return "separable_conv2d"
    kernel = leaves.get("kernel", ())
    if len(kernel) == 2:
        return "dense"
    return "depthwise_conv2d" if len(kernel) == 4 and kernel[2] == 1 < kernel[3] else "conv2d"


def _find_vars(file: SafeFile, group: h5py.Group, path: str, visited: set[h5py.Group]) -> Iterator[_LayerVars]:
    """Yield every layer with arrays at or below `group`."""
    if group in visited:
        raise file.refused(f"the group {group.name!r} is linked twice")
    visited.add(group)
    for name in group:
        child = file.member(group, name)
        if _NOT_LAYERS.fullmatch(name) or not isinstance(child, h5py.Group):
            continue
        if name != "vars":
            yield from _find_vars(file, child, f"{path}/{name}", visited)
        elif len(child):
            yield _LayerVars(path, _layer_name(child), _read_tensors(file, child))


def _read_tensors(file: SafeFile, group: h5py.Group) -> list[StoredTensor]:
    return [file.array(group, key) for key in sorted(group, key=lambda key: (len(key), key))]


def _layer_name(group: h5py.Group) -> str | None:
    name = group.attrs.get("name")
    return name.decode() if isinstance(name, bytes) else name


def _split_number(name: str) -> tuple[str, int]:
    """Return ('conv2d', 12) for 'conv2d_12', and ('conv2d', 0) for 'conv2d'."""
    match = _NUMBERED_NAME.fullmatch(name)
    return (match["kind"], int(match["number"] or 0)) if match else (name, 0)
