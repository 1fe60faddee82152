"""Image datasets of the Hugging Face Hub, `hf:ORG/NAME[/CONFIG][@REVISION][:COLUMN]`, exported to class folders.

A repository has parquet files, as `datasets` writes them, images in class folders, or images with labels in
metadata.csv or metadata.jsonl. Repositories of other kinds, such as archives or scripts, have been converted to parquet
by the hub itself at the revision refs/convert/parquet.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from flaxtl import fileio
from flaxtl.data.decode import EXTENSIONS
from flaxtl.data.sources import parquet_images
from flaxtl.data.sources.class_folders import ClassFolders, write_notes
from flaxtl.data.sources.image_folder import SPLITS, parse_split_name
from flaxtl.data.sources.metadata_files import METADATA, read_labels
from flaxtl.errors import UserError, join_names, unknown
from flaxtl.hub_access import PREFIX, explained_errors, import_hub

FORM = "hf:ORG/NAME[/CONFIG][@REVISION][:COLUMN]"

CONVERTED = "refs/convert/parquet"
"""Revision at which the hub stores its own conversion of a dataset."""

CARD = "README.md"

_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[^@:/]+))?(?:@(?P<revision>[^:]+))?(?::(?P<label>.+))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
_IMAGES = [
    "*." + "".join(f"[{char}{char.upper()}]" for char in suffix.removeprefix(".")) for suffix in sorted(EXTENSIONS)
]  # '*.[jJ][pP][gG]': suffixes in any case


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the hub.

    Attributes:
      repo: 'ORG/NAME', or 'NAME' for the oldest datasets.
      config: the subset of the dataset; None if it has only one.
      revision: branch, tag or commit.
      label: column of the label in parquet files; None finds it.
    """

    repo: str
    config: str | None = None
    revision: str = "main"
    label: str | None = None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{config}{revision}"


def parse_location(location: str) -> HubDataset:
    """Return the dataset that 'ORG/NAME[/CONFIG][@REVISION][:COLUMN]' names. Raises UserError for another form."""
    match = _REFERENCE.fullmatch(location)
    if not match:
        raise UserError(f"'{PREFIX}{location}' is not a dataset of the Hugging Face Hub. Write {FORM}")
    return HubDataset(match["repo"], match["config"], match["revision"] or "main", match["label"])


def export_dataset(location: str, cache: Path) -> Path:
    """Export the labeled images of a dataset, byte for byte, to a folder in `cache`, once for each commit.

    A dataset with two or more of train, validation and test becomes FOLDER/SPLIT/CLASS/*, another FOLDER/CLASS/*. The
    images of tables are called SPLIT_INDEX, where INDEX is the row in the split, six digits; so names, and with
    them the order of the images, depend on the commit only. Rows without a label, and files of other splits, are left
    out; `class_folders.read_notes` returns how many.

    Args:
      location: the data source without 'hf:'.
      cache: the folder hf/ is created in it.

    Returns:
      The folder; its name ends with '@' and the commit. It appears only when it is complete.

    Raises:
      UserError: a package is missing; the dataset or its revision does not exist, requires an account, is not in the
        cache of huggingface_hub when the hub cannot be reached, or is not an image classification dataset.
    """
    dataset = parse_location(location)
    parquet_images.import_parquet(str(dataset))  # before a long download
    repository = _Repository(dataset)
    commit = repository.commit()
    parts = (dataset.repo, dataset.config, dataset.label)
    name = "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)
    target = cache / "hf" / f"{name}@{commit}"
    if not target.is_dir():
        with fileio.atomic_folder(target) as folder:
            exporters = _exporters(dataset)
            if not any(export(repository, dataset, folder) for export in exporters.values()):
                contents = join_names(exporters, "or")
                raise UserError(f"{dataset} has no {contents}. {_suggest_conversion(dataset, 'Many datasets')}")
    return target


def _exporters(dataset: HubDataset) -> Mapping[str, Callable[["_Repository", HubDataset, Path], bool]]:
    """Return the functions that may export a dataset, by what they read."""
    exporters = {"parquet files": _export_parquet}
    if not dataset.config:  # only parquet files have configs
        exporters["labels in a metadata file"] = _export_labeled
        if not dataset.label:  # images in class folders have no columns
            exporters["images"] = _link_images
    return exporters


def describe_commit(location: str, folder: Path) -> str | None:
    """Return a note on the commit of an exported `folder`; None if `location` names the commit."""
    dataset, commit = parse_location(location), re.findall(r"@([0-9a-f]{40})(?:/|$)", folder.as_posix())[-1]
    if dataset.revision == commit:
        return None
    return f"{dataset} is at commit {commit[:12]}. To keep it, write @{commit} after the name."


def explain_layout(problem: str, location: str, folder: Path) -> str:
    """Return what is wrong with the images of a repository in terms of the dataset, not of its exported `folder`."""
    dataset = parse_location(location)
    text = problem.replace(str(folder.resolve()), str(dataset))
    return f"{text} {_suggest_conversion(dataset, f'Labels are read from {join_names(METADATA)} only; many datasets')}"


def _suggest_conversion(dataset: HubDataset, subject: str) -> str:
    return f"{subject} have been converted by the hub: try {replace(dataset, revision=CONVERTED)}"


class _Repository:
    """The files of a dataset repository at one commit, in the cache of huggingface_hub."""

    def __init__(self, dataset: HubDataset) -> None:
        self._dataset = dataset
        self._hub = import_hub(str(dataset))
        self._revision = dataset.revision

    def commit(self) -> str:
        """Return the commit of the revision; all later downloads are of this commit."""
        if not _COMMIT.fullmatch(self._revision):
            self._revision = self._download([CARD], quiet=True).name
        return self._revision

    def card(self) -> Mapping[str, Any]:
        """Return the metadata at the top of the README; {} if there is none."""
        file = self._download([CARD], quiet=True) / CARD
        try:
            return self._hub.metadata_load(file) or {}
        except Exception:  # no such file, or YAML that cannot be parsed: the other files are enough for most datasets
            return {}

    def files(self, patterns: Sequence[str]) -> list[tuple[PurePosixPath, Path]]:
        """Download the files that match one of the patterns ('*' also matches '/'): (name, local file), sorted."""
        folder = self._download(patterns)
        local = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        names = {PurePosixPath(relative.as_posix()): path for relative, path in local.items()}
        return sorted(item for item in names.items() if any(fnmatchcase(str(item[0]), glob) for glob in patterns))

    def _download(self, patterns: Sequence[str], *, quiet: bool = False) -> Path:
        """Return the folder of the commit, with the files that match the patterns; `quiet` shows no progress bar."""
        dataset = self._dataset
        with explained_errors(dataset.repo, self._revision, str(dataset)):
            folder = self._hub.snapshot_download(
                dataset.repo,
                repo_type="dataset",
                revision=self._revision,
                allow_patterns=list(patterns),
                tqdm_class=partial(self._hub.utils.tqdm, disable=quiet or None),  # None: shown on a terminal only
            )
        return Path(folder)


def _export_parquet(repository: _Repository, dataset: HubDataset, folder: Path) -> bool:
    """Write the images of the parquet files; return False if there are none."""
    card = repository.card()
    config = _choose_config(card, dataset)
    listed = _listed_files(_entry(card.get("configs"), config))
    files = _parquet_files(repository, dataset, [glob for globs in listed.values() for glob in globs])
    if not files:
        return False
    splits, others = _by_split(files, listed)
    fileio.check_disk_space(
        folder,
        sum(file.stat().st_size for parts in splits.values() for file in parts),
        f"The images of {dataset} need",
        "Free some space, or set FLAXTL_CACHE to a folder on another disk.",
    )
    features = parquet_images.card_features(_entry(card.get("dataset_info"), config))
    writer, unlabeled = ClassFolders(str(dataset)), 0
    for split, parts in splits.items():
        parent, index = folder / split if len(splits) > 1 else folder, 0
        columns = parquet_images.find_columns(parts[0], features, dataset.label, str(dataset))
        for part in parts:
            for row in parquet_images.labeled_images(part, columns, str(dataset)):
                if row is None:
                    unlabeled += 1
                else:
                    image, label = row
                    writer.write(parent, label, f"{split}_{index:06d}", image)
                index += 1
    if not any(folder.iterdir()):
        raise UserError(f"{dataset} has no images with a label.")
    write_notes(folder, _describe_left_out(dataset, unlabeled, others))
    return True


def _parquet_files(
    repository: _Repository, dataset: HubDataset, patterns: Sequence[str]
) -> list[tuple[PurePosixPath, Path]]:
    """Download the parquet files that match the patterns of the README, or without any, all of the config."""
    if patterns:  # '**/' may also match no folder
        files = repository.files([glob.replace("**/", "*") for glob in patterns])
        return [(name, file) for name, file in files if any(_matches(name.parts, glob) for glob in patterns)]
    files = repository.files([f"{dataset.config}/*.parquet" if dataset.config else "*.parquet"])
    _check_one_config([name for name, _ in files], dataset)
    return files


def _choose_config(card: Mapping[str, Any], dataset: HubDataset) -> str | None:
    """Return the config of the README to use, the default one if `dataset` names none; None if it lists no configs.

    Raises:
      UserError: the README does not have the config, or has several and `dataset` names none of them.
    """
    configs = card.get("configs")
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    names = [str(entry.get("config_name", "default")) for entry in entries]
    if not entries or dataset.config in names:
        return dataset.config
    default = [name for name, entry in zip(names, entries, strict=True) if entry.get("default") or name == "default"]
    if dataset.config is None and (default or len(names) == 1):
        return (default or names)[0]
    raise _unclear_config(names, dataset)


def _entry(entries: Any, config: str | None) -> Mapping[str, Any]:
    """Return what a part of the README says about a config: an item of a list, or all of it if there is no list."""
    items = entries if isinstance(entries, list) else [entries]
    items = [item for item in items if isinstance(item, dict)]
    return next((item for item in items if len(items) == 1 or item.get("config_name", "default") == config), {})


def _listed_files(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the parquet files that the README lists for a config, as patterns by split; {} if it lists none."""
    data_files = config.get("data_files", [])
    if isinstance(data_files, str) or not all(isinstance(part, dict) for part in data_files):
        data_files = [{"split": "train", "path": data_files}]
    splits: dict[str, list[str]] = {}
    for part in data_files:
        paths = [part["path"]] if isinstance(part["path"], str) else part["path"]
        if patterns := [_only_parquet(glob) for glob in paths if glob.endswith((".parquet", "*"))]:
            splits[str(part["split"])] = patterns
    return splits


def _only_parquet(pattern: str) -> str:
    """Return a pattern of the README that ends with '.parquet' or '*' such that it matches parquet files only."""
    if pattern.endswith(".parquet"):
        return pattern
    return f"{pattern}/*.parquet" if pattern.endswith("**") else f"{pattern}.parquet"


def _matches(name: Sequence[str], pattern: str) -> bool:
    """Return whether a pattern of the README matches a file, by the parts of its name, as the hub matches them.

    '*' matches any part of a name without '/', and '**' any number of folders.
    """
    first, _, rest = pattern.partition("/")
    if not rest:
        return len(name) == 1 and fnmatchcase(name[0], first)
    if first == "**":
        return any(_matches(name[start:], rest) for start in range(len(name)))
    return bool(name) and fnmatchcase(name[0], first) and _matches(name[1:], rest)


def _unclear_config(configs: Sequence[str], dataset: HubDataset) -> UserError:
    if dataset.config:
        return unknown(f"config of {PREFIX}{dataset.repo}", dataset.config, configs)
    return UserError(
        f"{dataset} has the configs {join_names(configs)}. Write one of them: {PREFIX}{dataset.repo}/{configs[0]}"
    )


def _check_one_config(names: Sequence[PurePosixPath], dataset: HubDataset) -> None:
    """Raise UserError if the files, CONFIG/SPLIT/*.parquet, are of several configs and `dataset` names none of them."""
    folders = {name.parts[0] for name in names if len(name.parts) > 1 and _split_of_part(name.parts[0]) is None}
    if len(folders) > 1 and not dataset.config:
        raise _unclear_config(sorted(folders), dataset)


def _by_split(
    files: Sequence[tuple[PurePosixPath, Path]], listed: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of train, validation and test, and the names of others; without any of these, all files.

    The split is the one that the README lists a file for, or the first word in its path that names a split.
    """
    splits: dict[str, list[Path]] = {}
    others: list[str] = []
    for name, file in files:
        published = next((s for s, globs in listed.items() if any(_matches(name.parts, g) for g in globs)), None)
        split = parse_split_name(published) if published else _split_of_name(name)
        splits.setdefault(split or "all", []).append(file)
        others += [] if split else [str(name)]
    used = {split: splits[split] for split in SPLITS if split in splits}
    return (used, others) if used else (splits, [])


def _describe_left_out(dataset: HubDataset, unlabeled: int, others: Sequence[str]) -> list[str]:
    """Return notes on the images that are not used: how many lack a label, and the files of `others` splits."""
    notes = [f"{dataset}: {unlabeled:,} image(s) without a label are left out."] if unlabeled else []
    if others:
        notes.append(
            f"{dataset}: {len(others):,} file(s) that belong to none of {join_names(SPLITS)} are left out, such as "
            f"{others[0]}."
        )
    return notes


def _split_of_name(name: PurePosixPath) -> str | None:
    return next((split for part in reversed(name.parts) if (split := _split_of_part(part))), None)


def _split_of_part(part: str) -> str | None:
    words = re.split("[^A-Za-z]+", part)
    return next((split for word in words if (split := parse_split_name(word))), None)


def _export_labeled(repository: _Repository, dataset: HubDataset, folder: Path) -> bool:
    """Write the images that METADATA files label; return False without any."""
    labels = _labels_by_path(repository, dataset)
    if not labels:
        return False
    files = {str(name): (name.parent, file) for name, file in repository.files(_IMAGES)}
    if missing := sorted(labels.keys() - files.keys()):
        raise UserError(f"{dataset} lacks {len(missing):,} image(s) that its metadata lists, such as {missing[0]}.")
    label_of = {files[name][1]: label for name, label in labels.items()}
    splits, others = _by_split([files[name] for name in sorted(labels)], {})
    writer = ClassFolders(str(dataset))
    for split, images in splits.items():
        parent = folder / split if len(splits) > 1 else folder
        for index, file in enumerate(images):
            writer.write(parent, label_of[file], f"{split}_{index:06d}", file.read_bytes())
    write_notes(folder, _describe_left_out(dataset, len(files) - len(labels), others))
    return True


def _labels_by_path(repository: _Repository, dataset: HubDataset) -> dict[str, str]:
    """Return the label of each image in the repository that METADATA files list."""
    labels: dict[str, str] = {}
    for name, file in repository.files([*METADATA, *(f"*/{name}" for name in METADATA)]):
        for image, label in read_labels(file, dataset.label, str(dataset)):
            path = str(name.parent / image)
            if labels.setdefault(path, label) != label:
                raise UserError(
                    f"{dataset} has two labels for {path}, {labels[path]!r} and {label!r}. An image must have one: use "
                    "another dataset."
                )
    return labels


def _link_images(repository: _Repository, dataset: HubDataset, folder: Path) -> bool:
    """Link the image files of the repository, in their folders; return False if there are none."""
    files = repository.files(_IMAGES)
    for name, file in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, target)
    return bool(files)
