"""The VGG16 base that ships in the package, and the tool that makes it."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from flaxtl.pretrained import safetensors_io
from flaxtl.pretrained.loader import load_weights

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/make_builtin_weights.py"
VGG16 = ROOT.parent / "shared/weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
BUILTIN = Path(str(files("flaxtl.pretrained") / "builtin" / "vgg16_notop.safetensors"))
CHANNELS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
LAYERS = [f"block{block}_conv{i + 1}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(count)]
EXPECTED = {
    layer: {"kernel": (3, 3, CHANNELS[i], CHANNELS[i + 1]), "bias": (CHANNELS[i + 1],)}
    for i, layer in enumerate(LAYERS)
}


def test_builtin_file_has_vgg16_shapes_and_is_small():
    loaded = load_weights(BUILTIN, EXPECTED)
    assert loaded.format == "safetensors (int8)"
    assert sum(leaf.size for leaves in loaded.params.values() for leaf in leaves.values()) == 14_714_688
    assert BUILTIN.stat().st_size < 15_000_000


def test_builtin_file_has_its_metadata():
    metadata = safetensors_io.read_safetensors(BUILTIN).metadata
    assert metadata["architecture"] == "vgg16"
    assert metadata["precision"] == "int8"
    assert "CC BY 4.0" in metadata["license"]
    assert "Simonyan" in metadata["license"]
    assert "Zisserman" in metadata["license"]


@pytest.mark.skipif(not VGG16.exists(), reason="needs the real VGG16 file")
def test_builtin_file_rounds_the_published_weights():
    exact = load_weights(VGG16, EXPECTED).params
    builtin = load_weights(BUILTIN, EXPECTED).params
    for layer, leaves in exact.items():
        np.testing.assert_array_equal(builtin[layer]["bias"], leaves["bias"])
        # symmetric int8: at most half a step of largest / 127 in each channel; 1e-5 of a step is float32's rounding
        step = np.abs(leaves["kernel"]).max(axis=(0, 1, 2)) / 127
        assert (np.abs(builtin[layer]["kernel"] - leaves["kernel"]) <= step * 0.50001).all()


@pytest.mark.slow
@pytest.mark.skipif(not VGG16.exists(), reason="needs the real VGG16 file")
def test_tool_reproduces_the_builtin_file(tmp_path):
    output = tmp_path / "made.safetensors"
    command = [sys.executable, TOOL, f"--weights={VGG16}", f"--output={output}", "--precision=int8"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    made, kept = safetensors_io.read_safetensors(output), safetensors_io.read_safetensors(BUILTIN)
    assert made.metadata == kept.metadata  # safetensors writes metadata in random order
    for layer, leaves in EXPECTED.items():
        for leaf in leaves:
            np.testing.assert_array_equal(made.layers[layer][leaf].values, kept.layers[layer][leaf].values)
    assert f"{BUILTIN.stat().st_size:,} bytes" in printed
