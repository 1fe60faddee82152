"""Weight files on the Hugging Face Hub: `hf:ORG/REPO[/FILE][@REVISION]`, safetensors only.

huggingface_hub downloads and caches them. Its own settings apply: HF_HOME (where its cache is), HF_TOKEN or `hf auth
login` (for gated and private repositories), HF_HUB_OFFLINE=1 (the cache only) and HF_ENDPOINT (another host).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flaxtl.errors import UserError, join_names

PREFIX = "hf:"

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
    file = parse_reference(reference)
    try:
        import huggingface_hub as hub  # an optional dependency
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{reference} needs huggingface_hub. Install it with: pip install 'flaxtl[hub]'") from error
    try:
        if not isinstance(hub.try_to_load_from_cache(file.repo, file.name, revision=file.revision), str):
            notify(f"Downloading {file} from the Hugging Face Hub.")
        return Path(hub.hf_hub_download(file.repo, file.name, revision=file.revision))
    except errors.GatedRepoError as error:  # before RepositoryNotFoundError, its base class
        raise UserError(
            f"{file.repo} is gated. Accept its terms on its page on the Hugging Face Hub, and log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hugging Face Hub has no repository {file.repo!r}, or it is private. Check the name, or log in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{file.repo} has no revision {file.revision!r}. Give a branch, tag or commit.") from error
    except errors.LocalEntryNotFoundError as error:  # before EntryNotFoundError, its base class
        raise UserError(_unreachable(file)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(_missing_file(file, _safetensors_names(file))) from error
    except (OSError, ValueError) as error:  # HTTP and disk errors; a name that the hub does not allow
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"Cannot download {file} from the Hugging Face Hub: {first_line}") from error


def _unreachable(file: HubFile) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{file} is not in the cache, and HF_HUB_OFFLINE forbids to download it. Unset it, or give a local file."
    return (
        f"{file} is not in the cache, and {constants.ENDPOINT} cannot be reached. Check the connection, or give a "
        "local file."
    )


def _missing_file(file: HubFile, available: list[str]) -> str:
    if not available:
        return f"{file.repo}@{file.revision} has no file {file.name!r}, and no other .safetensors file."
    return f"{file.repo}@{file.revision} has no file {file.name!r}. It has {join_names(available)}."


def _safetensors_names(file: HubFile) -> list[str]:
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(file.repo, revision=file.revision)
    return sorted(name for name in names if name.endswith(".safetensors"))
