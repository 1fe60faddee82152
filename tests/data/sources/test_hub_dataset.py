"""Datasets of the Hugging Face Hub become class folders, from a server on this machine that answers as the hub does."""

import hashlib
import io
import json
import re
import sys

import pyarrow as pa
import pytest
from helpers.fake_hub import COMMIT, serve_hub, use_hub
from helpers.image_folders import image
from huggingface_hub import constants
from pyarrow import parquet

from flaxtl.data.manifest import collect_examples
from flaxtl.data.sources import hub_dataset
from flaxtl.data.sources.base import inspect_source, open_source
from flaxtl.data.sources.class_folders import NOTES_NAME, read_notes
from flaxtl.data.sources.hub_dataset import HubDataset, export_dataset, parse_location
from flaxtl.errors import UserError

CLASSES = ["tulips", "daisy/white", "roses"]  # not sorted, and not all valid as folder names


def encoded(number, kind="PNG"):
    stream = io.BytesIO()
    image(number, 16).save(stream, kind)
    return stream.getvalue()


def table(numbers, features=None, **labels):
    """Return a parquet file with the images of `numbers` and the columns `labels`."""
    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]
    written = pa.table({"image": images, **labels})
    if features:
        metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}} | features}})}
        written = written.replace_schema_metadata(metadata)
    stream = io.BytesIO()
    parquet.write_table(written, stream)
    return stream.getvalue()


def class_label(names=CLASSES):
    return {"names": list(names), "_type": "ClassLabel"}


FLOWERS = {
    "README.md": b"---\nlicense: mit\n---\n# Flowers",
    "data/train-00000-of-00002.parquet": table([0, 1, 2], {"label": class_label()}, label=[0, 1, 2]),
    "data/train-00001-of-00002.parquet": table([3, 4], {"label": class_label()}, label=[0, -1]),
    "data/test-00000-of-00001.parquet": table([5, 6, 7], {"label": class_label()}, label=[0, 1, 2]),
    "data/extra-00000-of-00001.parquet": table([8], {"label": class_label()}, label=[0]),
}
NAMES_IN_CARD = b"""---
configs:
- config_name: small
  data_files: parts/a*
  default: true
- config_name: large
  data_files:
  - split: train
    path: parts/b*
  - split: val
    path: [parts/c.parquet]
dataset_info:
- config_name: large
  features:
  - {name: photo, dtype: image}
  - {name: kind, dtype: {class_label: {names: {'0': cat, '1': dog}}}}
- config_name: small
  features:
  - {name: kind, dtype: {class_label: {names: {'0': hen, '1': cow}}}}
---
"""
LISTED = {
    "README.md": NAMES_IN_CARD,
    "parts/a.parquet": table([0, 1], kind=[0, 1]),
    "parts/b0.parquet": table([2], kind=[0]),
    "parts/b1.parquet": table([3], kind=[1]),
    "parts/c.parquet": table([4, 5], kind=[1, 0]),
    "parts/b0.zip": b"not needed",
}
NESTED_CARD = b"""---
configs:
- config_name: top
  data_files: "*.parquet"
- config_name: all
  data_files: "**/*.parquet"
- config_name: below
  data_files: a/**
---
"""
NESTED = {
    "README.md": NESTED_CARD,
    "0.parquet": table([0], label=["x"]),
    "a/1.parquet": table([1], label=["x"]),
    "a/b/2.parquet": table([2], label=["x"]),
}
PHOTOS = {
    f"data/{split}/{label}/{n}.{suffix}": encoded(n)
    for split in ("train", "test")
    for label in "ab"
    for n, suffix in enumerate(("JPG", "Jp2"))
}
LISTS = {
    "train/metadata.csv": "file_name,kind,label\na.jpg,x,roses\nsub/b.jpg,y,daisy/white\nc.jpg,x,\n".encode(
        "utf-8-sig"
    ),
    "test/metadata.csv": b"label;file_name\nroses;test_a.jpg\n",
    **{name: encoded(n) for n, name in enumerate(("train/a.jpg", "train/sub/b.jpg", "train/c.jpg", "test/test_a.jpg"))},
}
JSON_LINES = {
    "train/metadata.jsonl": b'{"file_name": "a.jpg", "label": "roses", "objects": {"bbox": []}}\n\n'
    b'{"Label": "daisy", "file_name": "sub/b.jpg", "caption": "two\xe2\x80\xa8lines"}\n'
    b'{"file_name": "c.jpg", "label": null}\n',
    "test/metadata.jsonl": b'{"file_name": "test_a.jpg", "label": "roses", "index": 2}',
    **{name: encoded(n) for n, name in enumerate(("train/a.jpg", "train/sub/b.jpg", "train/c.jpg", "test/test_a.jpg"))},
}
NAMED = {"train.parquet": table([0, 1], {"label": class_label(["a", "b"])}, label=["b", "a"])}
CATEGORIES = {"train.parquet": table([0, 1], kind=pa.array(["b", "a"]).dictionary_encode())}
CONVERTED = {
    "one/train/0000.parquet": table([0, 1], coarse=["a", "b"], fine=["c", "d"]),
    "two/partial-train/0000.parquet": table([2], label=["e"]),
}
INDICES = {
    "parquet": {"train.parquet": table([0, 1, 2], label=[1, -1, 0])},
    "csv": {"metadata.csv": b"file_name,label\n0.png,1\n1.png,-1\n2.png,0\n"},
    "jsonl": {
        "metadata.jsonl": b"\n".join(b'{"file_name": "%d.png", "label": %d}' % row for row in ((0, 1), (1, -1), (2, 0)))
    },
}
FAULTY = {
    "scripts": {"flowers.py": b"", "photos.zip": b""},
    "damaged": {"train.parquet": b"PAR1"},
    "paths": {"train.parquet": table([], label=pa.array([], pa.int64()))},
    "flat": {"a.jpg": encoded(0), "b.jpg": encoded(1)},
    "lost": {"metadata.csv": b"file_name,label\na.jpg,x\nb.jpg,y\n", "a.jpg": encoded(0)},
    "several": {"metadata.csv": b"file_name,label\na.jpg,x\nb.jpg,y\na.jpg,x\na.jpg,y\n", "a.jpg": encoded(0)},
    "cut": {"metadata.jsonl": b'{"file_name": "a.jpg", "label": "x"}\n{"file_name": "b.jp', "a.jpg": encoded(0)},
    "numbers": {"train.parquet": table([0], {"label": class_label(["a"])}, label=[3])},
    "unlabeled": {"train.parquet": table([0], {"label": class_label()}, label=[-1])},
    "text": {"train.parquet": table([0], label=[0.5])},
    "unknown": {"train.parquet": table([0], label=["."])},
    "captions": {"train.parquet": table([0], label=["a" * 256])},
    "parts": {"train-0.parquet": table([0], label=["a"]), "train-1.parquet": table([1], kind=["b"])},
}


@pytest.fixture(scope="module")
def server():
    repos = {
        "flowers": FLOWERS,
        "listed": LISTED,
        "nested": NESTED,
        "photos": PHOTOS,
        "lists": LISTS,
        "lines": JSON_LINES,
        "named": NAMED,
        "categories": CATEGORIES,
        "converted": CONVERTED,
        **{kind: files | {f"{n}.png": encoded(n) for n in range(3)} for kind, files in INDICES.items()},
        **FAULTY,
    }
    with serve_hub({f"datasets/org/{name}": {"main": files} for name, files in repos.items()}) as server:
        yield server


@pytest.fixture
def fake_hub(server, tmp_path, monkeypatch):
    """Return the server, with an empty cache."""
    use_hub(server, str(tmp_path / "hub"), monkeypatch)
    return server


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NOTES_NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("location", "dataset"),
    [
        ("org/flowers", HubDataset("org/flowers")),
        ("flowers", HubDataset("flowers")),
        ("org/flowers/large@v1", HubDataset("org/flowers", "large", "v1")),
        ("org/flowers@refs/convert/parquet:fine", HubDataset("org/flowers", None, "refs/convert/parquet", "fine")),
    ],
)
def test_parse_location(location, dataset):
    assert parse_location(location) == dataset


@pytest.mark.parametrize("location", ["org/", "/flowers", "org/flowers@", "org/flowers:", "org/a/b/c", "a b"])
def test_parse_location_of_another_form_is_refused(location):
    with pytest.raises(UserError, match=rf"'hf:{location}'.*hf:ORG/NAME"):
        parse_location(location)


@pytest.mark.parametrize("package", ["huggingface_hub", "pyarrow"])
def test_export_dataset_without_package_says_what_to_install(package, fake_hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"hf:org/flowers needs {package}.*pip install 'flaxtl\[hub\]'"):
        export_dataset("org/flowers", tmp_path)


def test_export_dataset_of_parquet_writes_encoded_images(fake_hub, tmp_path):
    folder = export_dataset("org/flowers", tmp_path)
    assert folder == tmp_path / "hf" / f"org-flowers@{COMMIT}"
    assert contents(folder) == {
        "train/tulips/train_000000.png": encoded(0),
        "train/daisy-white/train_000001.png": encoded(1),
        "train/roses/train_000002.png": encoded(2),
        "train/tulips/train_000003.png": encoded(3),
        "test/tulips/test_000000.png": encoded(5),
        "test/daisy-white/test_000001.png": encoded(6),
        "test/roses/test_000002.png": encoded(7),
    }
    assert not [request for request in fake_hub.requests if ".zip" in request]


def test_open_hub_dataset_once_per_commit_and_offline(fake_hub, tmp_path, monkeypatch):
    first = open_source("hf:org/flowers", tmp_path)
    assert first.origin == "hf:org/flowers"
    left_out = (
        "hf:org/flowers: 1 image(s) without a label are left out.",
        "hf:org/flowers: 1 file(s) that belong to none of train, validation and test are left out, such as "
        "data/extra-00000-of-00001.parquet.",
    )
    commit = f"hf:org/flowers is at commit {COMMIT[:12]}. To keep it, write @{COMMIT} after the name."
    assert first.notes == (commit, *left_out)
    digests = [example.sha256 for example in collect_examples(first, "test").examples]
    assert digests == [hashlib.sha256(encoded(number)).hexdigest() for number in (6, 7, 5)]
    monkeypatch.setattr(hub_dataset, "ClassFolders", None)  # nothing is written again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fake_hub.requests.clear()
    assert open_source("hf:org/flowers", tmp_path) == first
    assert open_source(f"hf:org/flowers@{COMMIT}", tmp_path).notes == left_out
    assert fake_hub.requests == []
    with pytest.raises(UserError, match=r"hf:org/photos is not in the cache.*\bHF_HUB_OFFLINE\b"):
        open_source("hf:org/photos", tmp_path)


def test_open_hub_dataset_of_new_commit_exports_again(fake_hub, tmp_path, monkeypatch):
    old = export_dataset("org/photos", tmp_path)
    monkeypatch.setitem(fake_hub.commits, "datasets/org/photos", COMMIT[::-1])
    new = export_dataset("org/photos", tmp_path)
    assert (old.name, new.name) == (f"org-photos@{COMMIT}", f"org-photos@{COMMIT[::-1]}")
    assert contents(new) == contents(old) == PHOTOS


def test_open_hub_dataset_of_images_keeps_folders(fake_hub, tmp_path):
    index = open_source("hf:org/photos", tmp_path)
    assert (index.classes, index.splits, len(index.images)) == (("a", "b"), ("train", "test"), 8)


def test_export_dataset_reads_labels_of_metadata_csv(fake_hub, tmp_path):
    folder = export_dataset("org/lists", tmp_path)
    assert contents(folder) == {
        "train/roses/train_000000.png": encoded(0),
        "train/daisy-white/train_000001.png": encoded(1),  # c.jpg has no label
        "test/roses/test_000000.png": encoded(3),
    }
    assert read_notes(folder) == ("hf:org/lists: 1 image(s) without a label are left out.",)
    with pytest.raises(UserError, match=r"'kind'"):  # the test images have none
        export_dataset("org/lists:kind", tmp_path)


def test_export_dataset_reads_labels_of_metadata_jsonl(fake_hub, tmp_path):
    assert contents(export_dataset("org/lines", tmp_path)) == {
        "train/roses/train_000000.png": encoded(0),
        "train/daisy/train_000001.png": encoded(1),  # c.jpg has no label
        "test/roses/test_000000.png": encoded(3),
    }
    with pytest.raises(UserError, match=r"column of metadata\.jsonl of hf:org/lines 'ind'.*'index'"):
        export_dataset("org/lines:ind", tmp_path)


@pytest.mark.parametrize("kind", INDICES)
def test_export_dataset_leaves_out_the_label_minus_1(kind, fake_hub, tmp_path):
    folder = export_dataset(f"org/{kind}", tmp_path)
    labeled = {name.split("/")[0]: content for name, content in contents(folder).items()}
    assert labeled == {"1": encoded(0), "0": encoded(2)}
    assert read_notes(folder) == (f"hf:org/{kind}: 1 image(s) without a label are left out.",)


def test_export_dataset_follows_the_card(fake_hub, tmp_path):
    small, large = export_dataset("org/listed", tmp_path), export_dataset("org/listed/large", tmp_path)
    assert contents(small) == {"hen/train_000000.png": encoded(0), "cow/train_000001.png": encoded(1)}
    assert contents(large) == {
        "train/cat/train_000000.png": encoded(2),
        "train/dog/train_000001.png": encoded(3),
        "validation/dog/validation_000000.png": encoded(4),
        "validation/cat/validation_000001.png": encoded(5),
    }
    assert not [request for request in fake_hub.requests if ".zip" in request]
    with pytest.raises(UserError, match=r"config of hf:org/listed 'lage'.*'large'"):
        export_dataset("org/listed/lage", tmp_path)


def test_export_dataset_reads_names_in_place_of_class_indices(fake_hub, tmp_path):
    folder = export_dataset("org/named", tmp_path)
    assert contents(folder) == {"b/train_000000.png": encoded(0), "a/train_000001.png": encoded(1)}


def test_export_dataset_reads_a_column_of_categories(fake_hub, tmp_path):
    with pytest.raises(UserError, match=r"column is the label, kind\. Write hf:org/categories:COLUMN"):
        export_dataset("org/categories", tmp_path)
    folder = export_dataset("org/categories:kind", tmp_path)
    assert contents(folder) == {"b/train_000000.png": encoded(0), "a/train_000001.png": encoded(1)}


@pytest.mark.parametrize(("config", "numbers"), [("top", [0]), ("all", [0, 1, 2]), ("below", [1, 2])])
def test_export_dataset_matches_patterns_as_the_hub(config, numbers, fake_hub, tmp_path):
    folder = export_dataset(f"org/nested/{config}", tmp_path)
    assert contents(folder) == {f"x/train_{row:06d}.png": encoded(number) for row, number in enumerate(numbers)}


def test_export_dataset_of_several_configs_and_labels_asks(fake_hub, tmp_path):
    with pytest.raises(UserError, match=r"configs one and two\..*hf:org/converted/one"):
        export_dataset("org/converted", tmp_path)
    assert contents(export_dataset("org/converted/two", tmp_path)) == {"e/train_000000.png": encoded(2)}
    with pytest.raises(UserError, match=r"coarse and fine\. Write hf:org/converted/one:COLUMN"):
        export_dataset("org/converted/one", tmp_path)
    with pytest.raises(UserError, match=r"'fin'.*'fine'"):
        export_dataset("org/converted/one:fin", tmp_path)
    folder = export_dataset("org/converted/one:fine", tmp_path)
    assert contents(folder) == {"c/train_000000.png": encoded(0), "d/train_000001.png": encoded(1)}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("none", r"'org/none'"),
        ("secret", r"\borg/secret\b.*\bgated\b.*`hf auth login`"),
        ("flowers@v2", r"\borg/flowers\b.*'v2'"),
        ("scripts", r"no parquet files, labels in a metadata file or images\..*hf:org/scripts@refs/convert/parquet"),
        ("photos/small", r"hf:org/photos/small has no parquet files\..*hf:org/photos/small@refs/convert/parquet"),
        ("photos:kind", r"hf:org/photos has no parquet files or labels in a metadata file\."),
        ("damaged", r"train\.parquet\b.*hf:org/damaged"),
        ("paths", r"no column of images.*\bimage and label\b"),
        ("flat", r"hf:org/flat contains 2 image\(s\) outside.*hf:org/flat@refs/convert/parquet"),
        ("lost", r"hf:org/lost lacks 1 image\(s\) that its metadata lists, such as b\.jpg"),
        ("several", r"hf:org/several has two labels for a\.jpg, 'x' and 'y'"),
        ("lists:species", r"column of metadata\.csv of hf:org/lists 'species'.*\bfile_name\b"),
        ("cut", r"Line 2 of metadata\.jsonl of hf:org/cut is not a JSON object: .*b\.jp"),
        ("numbers", r"hf:org/numbers has the label 3 and only 1 classes"),
        ("unlabeled", r"hf:org/unlabeled has no images with a label\.$"),
        ("text", r"hf:org/text has no column of labels"),
        ("unknown", r"hf:org/unknown has the class '\.'"),
        ("parts", r"train-1\.parquet of hf:org/parts has no column 'label', which other files have"),
        ("captions", r"hf:org/captions has the class 'a{256}', which cannot be a folder"),
    ],
)
def test_open_hub_dataset_error_is_one_sentence(name, facts, fake_hub, tmp_path):
    with pytest.raises(UserError, match=facts) as error:
        open_source(f"hf:org/{name}", tmp_path)
    assert not re.search(r"\n|/cache/", str(error.value))
    assert not list(tmp_path.glob("hf/*@*")) or name == "flat"


def test_inspect_hub_dataset_names_the_dataset(fake_hub, tmp_path):
    assert inspect_source("hf:org/flat", tmp_path).problems[0].startswith("hf:org/flat contains 2 image(s)")
