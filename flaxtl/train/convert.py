"""`flaxtl convert`: a weight file of any known layout, checked against its network, written as safetensors."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from flaxtl.errors import UserError
from flaxtl.models import catalog
from flaxtl.models.classifier import Classifier
from flaxtl.terminal import table
from flaxtl.train.pretrained import base_of, expected_shapes, optional_layers
from flaxtl.train.recolour import recoloured
from flaxtl.weights import safetensors_file
from flaxtl.weights.load import Loaded, load, load_timm
from flaxtl.weights.tree import Expected


def convert(name: str, source: Path, output: Path, *, timm: bool = False) -> Table:
    """Write `source` to `output`, with the network's own top if the file holds it; returns what went where.

    With `timm` it is a file of PyTorch's, made for its preprocessing: the first layer takes on the difference.
    """
    architecture = catalog.find(name)

    def read(expected: Expected, optional: Collection[str] = frozenset()) -> Loaded:
        if not timm:
            return load(source, expected, optional)
        loaded = load_timm(source, architecture.name, expected, optional)
        return replace(loaded, tree=recoloured(loaded.tree, "torch", architecture.preprocessing))

    whole = Classifier(architecture)
    loaded = read(expected_shapes(base_of(architecture)), optional_layers(architecture))
    if any(row.fate == "skipped" for row in loaded.rows):
        loaded = read(expected_shapes(whole))
    _write(output, loaded, {"architecture": name, "source": source.name, "licence": architecture.licence})
    columns = ("layer", "weight", "shape", "in the file as", "type")
    cells = [(row.layer, row.leaf, "x".join(map(str, row.shape)), row.stored_as, row.dtype) for row in loaded.rows]
    count = sum(array.size for leaves in loaded.tree.values() for array in leaves.values())
    return table(f"{source} ({loaded.origin}) -> {output}: {count:,} parameters", columns, cells)


def _write(output: Path, loaded: Loaded, metadata: dict[str, str]) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(output, loaded.tree, metadata)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}); choose another --output") from error
