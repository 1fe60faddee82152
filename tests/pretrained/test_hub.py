"""Files on the Hugging Face Hub, from a server on this machine that answers as the hub does."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.fake_hub import COMMIT, serve_hub, use_hub
from huggingface_hub import HfApi, constants
from safetensors.numpy import save

from flaxtl.errors import UserError
from flaxtl.pretrained import download, hub
from flaxtl.pretrained.hub import HubFile

CONTENT = save({"conv/kernel": np.ones((1, 1, 3, 2), np.float32)})
FILES = {"model.safetensors": CONTENT, "old/vgg.safetensors": CONTENT[:], "README.md": b"text"}


@pytest.fixture(scope="module")
def server():
    with serve_hub({"org/net": {"main": FILES, "v1": FILES}}) as server:
        yield server


@pytest.fixture
def fake_hub(server, tmp_path, monkeypatch):
    """Return the server, with an empty cache."""
    use_hub(server, str(tmp_path / "hub"), monkeypatch)
    return server


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("hf:org/net", HubFile("org/net", "model.safetensors", "main")),
        ("hf:org/net@v1", HubFile("org/net", "model.safetensors", "v1")),
        ("hf:org/net-1.0/old/vgg.safetensors", HubFile("org/net-1.0", "old/vgg.safetensors", "main")),
        ("hf:org/net/a.safetensors@refs/pr/3", HubFile("org/net", "a.safetensors", "refs/pr/3")),
    ],
)
def test_parse_reference(reference, file):
    assert hub.parse_reference(reference) == file


@pytest.mark.parametrize("reference", ["hf:", "hf:net", "hf:org/", "hf:org/net@", "hf:/net/a.safetensors"])
def test_parse_reference_of_another_form_is_refused(reference):
    with pytest.raises(UserError, match=rf"'{reference}'.*hf:ORG/REPO"):
        hub.parse_reference(reference)


def test_parse_reference_of_a_pickle_is_refused():
    with pytest.raises(UserError, match=r"\.safetensors\b.*\bpytorch_model\.bin\b.*\borg/net\b"):
        hub.parse_reference("hf:org/net/pytorch_model.bin")


def test_download_file_without_huggingface_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'flaxtl\[hub\]'"):
        hub.download_file("hf:org/net", print)


def test_download_file_is_cached_and_works_offline(fake_hub, monkeypatch):
    messages = []
    path = hub.download_file("hf:org/net/old/vgg.safetensors@v1", messages.append)
    assert path.read_bytes() == CONTENT
    assert path.parts[-3:] == (COMMIT, "old", "vgg.safetensors")
    assert len(messages) == 1
    assert re.search(r"old/vgg\.safetensors.*org/net@v1", messages[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fake_hub.requests.clear()
    assert hub.download_file("hf:org/net/old/vgg.safetensors@v1", messages.append) == path
    assert (len(messages), fake_hub.requests) == (1, [])
    with pytest.raises(UserError, match=r"model\.safetensors.*org/net@main.*\bHF_HUB_OFFLINE\b"):
        hub.download_file("hf:org/net", messages.append)


def test_resolve_weights_of_the_hub_names_the_source(fake_hub):
    ignored = {"filename": "", "url": "", "hash": "", "builtin": None, "notify": lambda message: None}
    resolved = download.resolve_weights("hf:org/net", **ignored)
    assert resolved.path.read_bytes() == CONTENT
    assert not resolved.trusted
    assert "hf:org/net" in resolved.source


@pytest.mark.parametrize(
    ("reference", "facts"),
    [
        ("hf:org/none", r"'org/none'"),
        ("hf:org/secret", r"\borg/secret\b.*\bgated\b.*`hf auth login`"),
        ("hf:org/net@v2", r"\borg/net\b.*'v2'"),
        ("hf:org/net/x.safetensors", r"'x\.safetensors'.*\bmodel\.safetensors and old/vgg\.safetensors\."),
        ("hf:org/-net", r"\borg/-net\b"),
    ],
)
def test_download_file_error_is_one_sentence(reference, facts, fake_hub):
    with pytest.raises(UserError, match=facts) as error:
        hub.download_file(reference, lambda message: None)
    assert "\n" not in str(error.value)


def test_download_file_without_a_list_of_files_is_one_sentence(fake_hub, monkeypatch):
    """The hub limits the rate of other requests than downloads."""

    def limited(*arguments, **options):
        raise OSError("429 Client Error: Too Many Requests")

    monkeypatch.setattr(HfApi, "list_repo_files", limited)
    with pytest.raises(UserError, match=r"the list of the files of org/net@main from .*: 429 Client Error"):
        hub.download_file("hf:org/net/x.safetensors", lambda message: None)


@pytest.mark.slow  # the library tries again for 20 seconds
def test_download_file_without_a_connection_names_the_host(fake_hub, monkeypatch):
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(str(fake_hub.server_port), "9"))
    with pytest.raises(UserError, match=r"model\.safetensors.*http://127\.0\.0\.1:9\b"):
        hub.download_file("hf:org/net", lambda message: None)


def test_convert_command_reads_from_hf_endpoint(fake_hub, tmp_path):
    """In a process of its own, as users set it. The file is not of this model, which names its local copy."""
    environment = {
        **{"HF_ENDPOINT": f"http://127.0.0.1:{fake_hub.server_port}", "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ},
    }
    command = [sys.executable, "-m", "flaxtl", "convert", "--model=vgg16", "--weights=hf:org/net"]
    command.append(f"--output={tmp_path}/converted.safetensors")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"(?s){COMMIT}.*model\.safetensors.*\bconv/kernel\b", done.stderr)
