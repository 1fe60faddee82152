"""Sources: one string names a source, and its folders are created once."""

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.image_folders import paint

from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources import archive, synthetic
from flaxtl.data.sources.base import inspect_source, open_source
from flaxtl.errors import UserError


def images(root: Path, *classes: str) -> Path:
    for label in classes:
        (root / label).mkdir(parents=True)
        for i in range(10):
            (root / label / f"{i}.jpg").write_bytes(f"{label}{i}".encode())
    return root


def packed(path: Path, root: Path) -> Path:
    """Return an archive of `root` under its own name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as bundle:
            for file in sorted(root.rglob("*.jpg")):
                bundle.write(file, file.relative_to(root.parent))
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(root, root.name)
    return path


def folder_of(source: str, cache: Path) -> Path:
    index = open_source(source, cache)
    assert index.root is not None
    return index.root


def test_open_folder_source_lists_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    root = images(tmp_path / "my: images", "cats", "dogs")
    assert folder_of("folder:~/my: images", tmp_path / "cache") == root.resolve()
    assert open_source("folder:my: images", tmp_path / "cache").classes == ("cats", "dogs")
    assert not (tmp_path / "cache").exists()


def test_open_csv_source_lists_rows(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "cats")
    (tmp_path / "list.csv").write_text("label,path\nold,in/cats/0.jpg\n")
    found = open_source(f"csv:{tmp_path}/list.csv", tmp_path / "cache")
    assert [(each.path, each.label) for each in found.images] == [(root.resolve() / "cats" / "0.jpg", "old")]


def test_inspect_source_reports_where_open_source_raises(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "cats", "dogs")
    (root / "loose.jpg").write_bytes(b"")
    (tmp_path / "list.csv").write_text("label,path\na,in/cats/0.jpg\nb,in/none.jpg\n")
    for source, fault in ((f"folder:{root}", "loose.jpg"), (f"csv:{tmp_path}/list.csv", "row 3")):
        with pytest.raises(UserError, match=fault):
            open_source(source, tmp_path / "cache")
        assert fault in inspect_source(source, tmp_path / "cache").problems[0]


@pytest.mark.parametrize("name", ["flowers.tgz", "flowers.zip"])
def test_open_archive_extracts_once_and_finds_root(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(tmp_path / name, images(tmp_path / "flower_photos", "daisy", "roses"))
    folder = folder_of(f"archive:{file}", tmp_path / "cache")
    assert folder.name == "flower_photos"
    assert folder.parent.parent == tmp_path / "cache" / "archives"
    assert folder.parent.name.startswith("flowers-")
    assert len(open_source(f"archive:{file}", tmp_path / "cache").images) == 20
    monkeypatch.setattr(archive, "extract_archive", None)  # not called again
    assert folder_of(f"archive:{file}", tmp_path / "cache") == folder


def test_open_archive_with_new_content_extracts_again(tmp_path: Path) -> None:
    first = packed(tmp_path / "f.zip", images(tmp_path / "one", "a", "b"))
    old = folder_of(f"archive:{first}", tmp_path / "cache")
    packed(tmp_path / "f.zip", images(tmp_path / "two", "c", "d"))
    new = folder_of(f"archive:{first}", tmp_path / "cache")
    assert (old.name, new.name) == ("one", "two")
    assert old.is_dir()


@pytest.mark.parametrize(
    ("inside", "found"),
    [
        (("a/b/cats", "a/b/dogs"), "b"),  # folders around folders are skipped
        (("a/cats",), "a"),  # but not the only class, so that the manifest can name it
        (("a/train/cats", "a/train/dogs"), "a"),  # nor the only split
        (("train/cats", "validation/cats"), "f"),
        (("__MACOSX/a/cats", "a/cats", "a/dogs"), "a"),
    ],
)
def test_open_archive_descends_to_dataset_root(tmp_path: Path, inside: tuple[str, ...], found: str) -> None:
    root = images(tmp_path / "f", *inside)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as bundle:
        for file in sorted(root.rglob("*.jpg")):
            bundle.write(file, file.relative_to(root))
    folder = folder_of(f"archive:{tmp_path / 'f.zip'}", tmp_path / "cache")
    assert folder.name.split("-")[0] == found


def test_open_archive_counts_images_around_the_dataset_root(tmp_path: Path) -> None:
    root = images(tmp_path / "f", "a/b/cats", "a/b/dogs")
    for name in ("cover.jpg", "a/sample.jpg", "a/notes.txt", ".hidden.jpg"):
        (root / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as bundle:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            bundle.write(file, file.relative_to(root))
    index = open_source(f"archive:{tmp_path / 'f.zip'}", tmp_path / "cache")
    assert len(index.images) == 20
    assert index.notes == ("Left out 2 image(s) outside of the folder b, such as sample.jpg.",)
    assert inspect_source(f"archive:{tmp_path / 'f.zip'}", tmp_path / "cache").index.notes == index.notes


def test_open_archive_with_bad_layout_names_the_archive(tmp_path: Path) -> None:
    root = images(tmp_path / "set", "cats", "dogs")
    (root / "loose.jpg").write_bytes(b"")
    file = packed(tmp_path / "f.zip", root)
    with pytest.raises(UserError) as error:
        open_source(f"archive:{file}", tmp_path / "cache")
    assert f"{file} contains 1 image(s) outside the class folders, such as loose.jpg." in str(error.value)
    assert str(error.value).endswith("Pack the archive again, or extract it yourself and use folder:PATH.")
    assert "cache" not in str(error.value)
    assert inspect_source(f"archive:{file}", tmp_path / "cache").problems[0] == str(error.value)


def test_open_archive_of_archives_gives_no_command_for_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "f.zip"
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr("a.zip", b"x")
        bundle.writestr("b.tar", b"x")
    with pytest.raises(UserError) as error:
        open_source(f"archive:{file}", tmp_path / "cache")
    assert str(error.value) == (
        f"{file} contains no class folders. It contains a.zip and b.tar. Pack the archive again, or extract it "
        "yourself and use folder:PATH."
    )


def test_make_manifest_of_archive_names_files_in_it(tmp_path: Path) -> None:
    paint(tmp_path / "set" / "cats", range(10))
    paint(tmp_path / "set" / "dogs", range(9, 19))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as bundle:
        for path in sorted((tmp_path / "set").rglob("*.png")):
            bundle.write(path, path.relative_to(tmp_path))
    said: list[str] = []
    index = open_source(f"archive:{tmp_path}/f.zip", tmp_path / "cache")
    make_manifest(index, {"train": 0.5, "validation": 0.5}, 0, near_duplicates=-1, warn=said.append)
    assert said == [
        f"1 image(s) of {tmp_path}/f.zip have more than one label: cats/9.png (cats) = dogs/9.png (dogs). flaxtl "
        "doctor lists all of them."
    ]


def test_open_missing_archive_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tgz"):
        folder_of(f"archive:{tmp_path}/none.tgz", tmp_path / "cache")


@pytest.mark.parametrize("location", [".", "..", "/"])
def test_open_folder_as_archive_does_not_open_the_cache(tmp_path: Path, location: str) -> None:
    images(tmp_path / "cache" / "archives", "a", "b")
    with pytest.raises(UserError, match=rf"^{re.escape(location)} is not a file\. .*\bfolder:{re.escape(location)}$"):
        open_source(f"archive:{location}", tmp_path / "cache")


def test_open_synthetic_has_a_folder_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[Path] = []
    monkeypatch.setattr(
        synthetic, "generate_dataset", lambda directory: created.append(directory) or images(directory, "a", "b")
    )
    place = tmp_path / f"synthetic_{synthetic.DATASET_VERSION}"
    assert folder_of("synthetic", tmp_path) == place.resolve()
    assert created == [place]


def test_open_tfds_exports_into_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flaxtl.data.sources import tfds

    monkeypatch.setattr(tfds, "export_tfds", lambda name, into: images(into / name.replace("/", "|"), "a", "b"))
    root = tmp_path.resolve() / "tfds"
    assert folder_of("tfds:tf_flowers", tmp_path) == root / "tf_flowers" / "tf_flowers"
    assert folder_of("tfds:a/b:1.0.0", tmp_path) == root / "a-b-1.0.0" / "a|b:1.0.0"


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("fodler:/x", "'fodler'.*'folder'"),
        ("https://x.org/f.tgz", r"'https'.*\bfolder, \w+, archive, hf, tfds, csv\b"),
        ("flowers", r"'flowers'.*\bfolder:PATH, \w+, archive:FILE, hf:ORG/NAME, tfds:NAME, csv:FILE\b"),
        ("s3://bucket/photos", r"s3://bucket/photos.*: aws s3 sync s3://bucket/photos photos$"),
        ("folder:gs://bucket/a/", r"gs://bucket/a/ .*: gcloud storage rsync -r gs://bucket/a/ a$"),
        ("", "''.*folder:PATH"),
        ("folder:", "'folder:'.*folder:PATH$"),
        ("tfds", "'tfds'.*tfds:NAME$"),
        ("synthetic:/x", r"'synthetic:/x'.*\bsynthetic$"),
        ("s3://bucket/my photos/", r": aws s3 sync 's3://bucket/my photos/' 'my photos'$"),
        ("C:\\flowers", r"'folder:C:\\flowers'$"),
    ],
)
def test_open_source_unknown_scheme_raises(
    tmp_path: Path, source: str, facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=facts):
        folder_of(source, tmp_path / "cache")


def test_open_source_bare_path_suggests_scheme(tmp_path: Path) -> None:
    (tmp_path / "f.tgz").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"folder:{tmp_path}") + "$"):
        folder_of(str(tmp_path), tmp_path / "cache")
    with pytest.raises(UserError, match=re.escape(f"archive:{tmp_path}/f.tgz") + "$"):
        folder_of(f"{tmp_path}/f.tgz", tmp_path / "cache")
    (tmp_path / "my photos").mkdir()
    with pytest.raises(UserError, match=re.escape(f"'folder:{tmp_path}/my photos'") + "$"):
        folder_of(f"{tmp_path}/my photos", tmp_path / "cache")
    (tmp_path / "f.csv").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"csv:{tmp_path}/f.csv") + "$"):
        folder_of(f"{tmp_path}/f.csv", tmp_path / "cache")


@pytest.mark.parametrize("scheme", ["folder", "csv", "archive"])
def test_open_source_in_an_unknown_home_folder_is_an_error(tmp_path, scheme):
    with pytest.raises(UserError, match=r"~no-such-user\b.*\bhome folder\b"):
        open_source(f"{scheme}:~no-such-user/x", tmp_path)
