"""Weight files on the Hugging Face Hub: `hf:ORG/REPO[/FILE][@REVISION]`, safetensors only."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flaxtl.errors import UserError, join_names
from flaxtl.hub_access import PREFIX, explained_errors, import_hub

DEFAULT_FILE = "model.safetensors"
"""File of a repository with one model, as timm and transformers name it."""

_REFERENCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")


@dataclass(frozen=True)
class HubFile:
    """A file on the hub.

    Attributes:
      repo: 'ORG/REPO'.
      name: path of the file in the repository; ends with '.safetensors'.
      revision: branch, tag or commit.
    """

    repo: str
    name: str = DEFAULT_FILE
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.name} of {self.repo}@{self.revision}"


def is_hub_reference(weights: str) -> bool:
    """Return whether `weights` names a file on the hub, and not one on this machine."""
    return weights.startswith(PREFIX)


def parse_reference(reference: str) -> HubFile:
    """Return the file that 'hf:ORG/REPO[/FILE][@REVISION]' names; by default model.safetensors of 'main'.

    Raises:
      UserError: the reference has another form, or names a file of another format.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UserError(f"{reference!r} is not a file on the Hugging Face Hub. Write hf:ORG/REPO[/FILE][@REVISION].")
    file = HubFile(match["repo"], match["file"] or DEFAULT_FILE, match["revision"] or "main")
    if not file.name.endswith(".safetensors"):
        raise UserError(f"Only .safetensors files are loaded from the Hugging Face Hub, not {file}.")
    return file


def download_file(reference: str, notify: Callable[[str], None]) -> Path:
    """Return the local copy of a file on the hub, in the cache of huggingface_hub, downloaded if it is not there.

    Args:
      reference: 'hf:ORG/REPO[/FILE][@REVISION]'.
      notify: receives a message before a download.

    Raises:
      UserError: huggingface_hub is missing; the file, its repository or the revision does not exist; it requires an
        account; or it is not in the cache and the hub cannot be reached.
    """
    file, hub = parse_reference(reference), import_hub(reference)
    try:
        with explained_errors(file.repo, file.revision, str(file)):
            if not isinstance(hub.try_to_load_from_cache(file.repo, file.name, revision=file.revision), str):
                notify(f"Downloading {file} from the Hugging Face Hub.")
            return Path(hub.hf_hub_download(file.repo, file.name, revision=file.revision))
    except hub.errors.EntryNotFoundError as error:
        raise UserError(_missing_file(file, _safetensors_names(file))) from error


def _missing_file(file: HubFile, available: list[str]) -> str:
    if not available:
        return f"{file.repo}@{file.revision} has no file {file.name!r}, and no other .safetensors file."
    return f"{file.repo}@{file.revision} has no file {file.name!r}. It has {join_names(available)}."


def _safetensors_names(file: HubFile) -> list[str]:
    from huggingface_hub import HfApi

    with explained_errors(file.repo, file.revision, f"the list of the files of {file.repo}@{file.revision}"):
        names = HfApi().list_repo_files(file.repo, revision=file.revision)
    return sorted(name for name in names if name.endswith(".safetensors"))
