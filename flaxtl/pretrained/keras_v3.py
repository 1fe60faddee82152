"""Keras 3 files: `.weights.h5`, and the `.keras` archive that holds one.

Layout (keras/src/saving/saving_lib.py): one group a layer, named after its class (`layers/conv2d_12`), holding its
arrays as `vars/0`, `vars/1`, ...; the layer's own name is the attribute `name` of `vars`, which older files lack.
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
from flaxtl.pretrained.hdf5 import MAX_BYTES, SafeFile
from flaxtl.pretrained.merge import ExpectedShapes, StoredLayers, StoredTensor

MEMBER = "model.weights.h5"  # the one member of a `.keras` archive that is read; its config is never interpreted
MAX_ZIP_EXPANSION = 100  # Keras stores members uncompressed

# State that lies beside the layers: optimizer moments, metric counters, random seeds.
_NOT_LAYERS = re.compile(r"(optimizer|metrics|compile_metrics|seed_generator)(_\d+)?")
_SLOT = re.compile(r"(?P<kind>.+?)(_(?P<index>\d+))?")


@dataclass(frozen=True)
class _Slot:
    """One `vars` group: the path of its layer, the layer's name where the file tells it, the arrays in order."""

    path: str
    name: str | None
    arrays: list[StoredTensor]

    @property
    def kind(self) -> str:
        """The layer's class in snake case: 'conv2d' for 'layers/conv2d_12'."""
        return _split(self.path.rpartition("/")[2])[0]

    @property
    def order(self) -> list[tuple[str, int]]:
        """Sorts slots by their numbers: conv2d, conv2d_1, conv2d_2, conv2d_10."""
        return [_split(part) for part in self.path.split("/")]


def is_keras_v3(file: SafeFile) -> bool:
    """Whether the file has the layout of Keras 3."""
    return any(group in file.root for group in ("layers", "_layer_checkpoint_dependencies", "vars"))


def read_keras_v3(file: SafeFile, expected: ExpectedShapes) -> StoredLayers:
    """Every array of the file, by layer, in the order in which the layer made them.

    Layers whose name the file does not tell are matched by rank: the third `conv2d` is the third expected convolution.
    Past the last such layer a group keeps the name that it has in the file.
    """
    layers: StoredLayers = {}
    nameless = defaultdict(list)
    for slot in sorted(_slots(file, file.root, "", set()), key=lambda slot: slot.order):
        if slot.name is None:
            nameless[slot.kind].append(slot)
        else:
            layers.setdefault(slot.name, []).extend(slot.arrays)
    for kind, slots in nameless.items():
        names = [layer for layer, leaves in expected.items() if _kind(leaves) == kind]
        names += [slot.path.lstrip("/") for slot in slots[len(names) :]]
        for name, slot in zip(names, slots, strict=False):
            layers.setdefault(name, []).extend(slot.arrays)
    return layers


def _kind(leaves: Mapping[str, tuple[int, ...]]) -> str:
    """The class, in snake case, of a layer with these leaves."""
    if "mean" in leaves:
        return "batch_normalization"
    if "depthwise_kernel" in leaves:
        return "separable_conv2d"
    kernel = leaves.get("kernel", ())
    if len(kernel) == 2:
        return "dense"
    return "depthwise_conv2d" if len(kernel) == 4 and kernel[2] == 1 < kernel[3] else "conv2d"


def weights_of_archive(path: Path) -> BytesIO:
    """The `.weights.h5` inside the `.keras` archive at `path`, in memory. Nothing else of it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            if MEMBER not in archive.namelist():
                raise UserError(f"{path} is a zip archive without {MEMBER!r}; save the model again with Keras 3")
            member = archive.getinfo(MEMBER)
            if member.file_size > MAX_BYTES:
                raise UserError(
                    f"{path} holds {member.file_size:,} bytes, more than any network needs; save its weights alone, "
                    "without the optimizer's state, by model.save_weights('NAME.weights.h5')"
                )
            if member.file_size > MAX_ZIP_EXPANSION * member.compress_size:
                raise UserError(
                    f"{path} is refused: {MEMBER!r} would unpack {member.compress_size:,} bytes to "
                    f"{member.file_size:,}; take the file from its original source"
                )
            return BytesIO(archive.read(member))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise UserError(f"{path} is cut short or damaged ({error}); copy or download it again") from error


def _slots(file: SafeFile, group: h5py.Group, path: str, visited: set[h5py.Group]) -> Iterator[_Slot]:
    """Every layer with arrays at or below `group`."""
    if group in visited:
        raise file.refused(f"the group {group.name!r} is linked twice")
    visited.add(group)
    for name in group:
        child = file.member(group, name)
        if _NOT_LAYERS.fullmatch(name) or not isinstance(child, h5py.Group):
            continue
        if name != "vars":
            yield from _slots(file, child, f"{path}/{name}", visited)
        elif len(child):
            yield _Slot(path, _name_of(child), _arrays(file, child))


def _arrays(file: SafeFile, group: h5py.Group) -> list[StoredTensor]:
    return [file.array(group, key) for key in sorted(group, key=lambda key: (len(key), key))]


def _name_of(group: h5py.Group) -> str | None:
    name = group.attrs.get("name")
    return name.decode() if isinstance(name, bytes) else name


def _split(part: str) -> tuple[str, int]:
    """('conv2d', 12) for 'conv2d_12', ('conv2d', 0) for 'conv2d'."""
    match = _SLOT.fullmatch(part)
    return (match["kind"], int(match["index"] or 0)) if match else (part, 0)
