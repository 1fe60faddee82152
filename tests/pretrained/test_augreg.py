"""Weight files of ViT: .npz archives and timm's safetensors."""

import zipfile

import numpy as np
import pytest
from helpers import numpy_vit
from safetensors.numpy import save_file
from scipy import ndimage

from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.pretrained.augreg import read_npz
from flaxtl.pretrained.backbone import convert_weights_file, expected_shapes
from flaxtl.pretrained.loader import load_weights

NETWORK = Classifier(numpy_vit.SPEC)
BASE = Classifier(numpy_vit.SPEC, Head(1, "global_average"))


def save(path, **settings):
    arrays = numpy_vit.random_arrays(**settings)
    np.savez(path, **arrays)
    return arrays


def timm_tensors(arrays):
    """The same weights as timm has them: channels first, and query, key and value as one matrix."""
    channels = arrays["cls"].shape[-1]
    tensors = {
        "cls_token": arrays["cls"],
        "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays["embedding/bias"],
        "norm.weight": arrays["Transformer/encoder_norm/scale"],
        "norm.bias": arrays["Transformer/encoder_norm/bias"],
        "head.weight": arrays["head/kernel"].T,
        "head.bias": arrays["head/bias"],
    }
    for block in range(numpy_vit.DEPTH):
        ours, theirs = f"Transformer/encoderblock_{block}", f"blocks.{block}"
        attention = f"{ours}/MultiHeadDotProductAttention_1"
        parts = [arrays[f"{attention}/{part}/kernel"].reshape(channels, -1) for part in ("query", "key", "value")]
        biases = [arrays[f"{attention}/{part}/bias"].ravel() for part in ("query", "key", "value")]
        tensors |= {f"{theirs}.attn.qkv.weight": np.concatenate([part.T for part in parts])}
        tensors |= {f"{theirs}.attn.qkv.bias": np.concatenate(biases)}
        tensors |= {f"{theirs}.attn.proj.weight": arrays[f"{attention}/out/kernel"].reshape(-1, channels).T}
        tensors |= {f"{theirs}.attn.proj.bias": arrays[f"{attention}/out/bias"]}
        for norm, number in (("norm1", 0), ("norm2", 2)):
            tensors |= {f"{theirs}.{norm}.weight": arrays[f"{ours}/LayerNorm_{number}/scale"]}
            tensors |= {f"{theirs}.{norm}.bias": arrays[f"{ours}/LayerNorm_{number}/bias"]}
        for dense, number in (("fc1", 0), ("fc2", 1)):
            tensors |= {f"{theirs}.mlp.{dense}.weight": arrays[f"{ours}/MlpBlock_3/Dense_{number}/kernel"].T}
            tensors |= {f"{theirs}.mlp.{dense}.bias": arrays[f"{ours}/MlpBlock_3/Dense_{number}/bias"]}
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}


def test_convert_timm_equals_npz(tmp_path, monkeypatch):
    """The pixels are in [-1, 1] in both, so that no kernel changes."""
    monkeypatch.setitem(registry.MODELS, "vit_short", numpy_vit.SPEC)
    arrays = save(tmp_path / "x.npz")
    save_file(timm_tensors(arrays), tmp_path / "timm")
    expected = load_weights(tmp_path / "x.npz", expected_shapes(NETWORK)).params
    convert_weights_file("vit_short", tmp_path / "timm", tmp_path / "ours.safetensors", timm=True)
    np.testing.assert_equal(load_weights(tmp_path / "ours.safetensors", expected_shapes(NETWORK)).params, expected)


def test_imagenet_21k_file_gives_the_base(tmp_path):
    save(tmp_path / "x.npz", classes=21_843)
    loaded = load_weights(tmp_path / "x.npz", expected_shapes(BASE), expected_shapes(NETWORK))
    assert loaded.format == "NumPy .npz"
    assert {row.layer for row in loaded.rows if row.status == "skipped"} == {"head"}


def test_embeddings_of_another_size_are_resampled_as_by_scipy(tmp_path):
    arrays = save(tmp_path / "x.npz", side=24)
    params = load_weights(tmp_path / "x.npz", expected_shapes(NETWORK)).params
    stored = arrays["Transformer/posembed_input/pos_embedding"].astype(np.float64)
    grid = ndimage.zoom(stored[0, 1:].reshape(24, 24, -1), (14 / 24, 14 / 24, 1), order=1)
    resampled = params["posembed_input"]["pos_embedding"]
    np.testing.assert_array_equal(resampled[:, 0], stored[:, 0].astype(np.float32))
    np.testing.assert_allclose(resampled[0, 1:], grid.reshape(196, -1), rtol=0, atol=1e-6)


def test_pre_logits_of_older_files_are_listed(tmp_path):
    arrays = numpy_vit.random_arrays() | {"pre_logits/bias": np.zeros(12, np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=r"\+ pre_logits/bias \(12,\)"):
        load_weights(tmp_path / "x.npz", expected_shapes(NETWORK))


def test_npz_of_another_model_is_named(tmp_path):
    save(tmp_path / "x.npz")
    vgg16 = expected_shapes(Classifier(registry.get_spec("vgg16"), BASE.head))
    with pytest.raises(UserError, match="it looks like a ViT"):
        load_weights(tmp_path / "x.npz", vgg16)


def test_damaged_npz_is_refused(tmp_path):
    save(tmp_path / "x.npz")
    payload = (tmp_path / "x.npz").read_bytes()
    for damaged in (payload[:5000], payload[:200] + b"\0" * 100 + payload[300:]):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_weights(tmp_path / "x.npz", {})


@pytest.mark.parametrize(("flag", "method"), [(1, 0), (0, 99)], ids=["encrypted", "unknown compression"])
def test_npz_that_cannot_be_unpacked_is_refused(tmp_path, flag, method):
    np.savez(tmp_path / "x.npz", cls=np.zeros(3))
    payload = bytearray((tmp_path / "x.npz").read_bytes())
    for start in (6, payload.index(b"PK\1\2") + 8):  # flags and method, in both headers of the member
        payload[start], payload[start + 2] = flag, method
    (tmp_path / "x.npz").write_bytes(payload)
    with pytest.raises(UserError, match="damaged"):
        read_npz(tmp_path / "x.npz", {})


@pytest.mark.parametrize("values", [np.array(["text"]), np.array([1j]), None], ids=["text", "complex", "no array"])
def test_npz_with_other_values_names_them(tmp_path, values):
    np.savez(tmp_path / "x.npz", cls=np.zeros(3), **({} if values is None else {"other": values}))
    if values is None:
        with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
            archive.writestr("other", "text")
    with pytest.raises(UserError, match="'other' is not a numeric array"):
        read_npz(tmp_path / "x.npz", {})


@pytest.mark.parametrize(("leaf", "shape"), [("pos_embedding", (1, 0, 4)), ("kernel", (0, 2, 2))])
def test_npz_with_empty_array_does_not_fit(tmp_path, leaf, shape):
    np.savez(tmp_path / "x.npz", **{f"layer/{leaf}": np.zeros(shape, np.float32)})
    with pytest.raises(UserError, match=f"! layer/{leaf} is "):
        load_weights(tmp_path / "x.npz", {"layer": {leaf: (1, 5, 4)}})


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", cls=np.array([{}], object))
    with pytest.raises(UserError, match="allow_pickle=False"):
        read_npz(tmp_path / "x.npz", {})
