"""Reach the Hugging Face Hub through huggingface_hub, and explain in one sentence what went wrong.

The package downloads files and caches them. Its own settings apply: HF_HOME (where its cache is), HF_TOKEN or `hf auth
login` (for gated and private repositories), HF_HUB_OFFLINE=1 (the cache only) and HF_ENDPOINT (another host).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flaxtl.errors import UserError, first_line, missing_package

PREFIX = "hf:"


def import_hub(reference: str) -> Any:
    """Return the module huggingface_hub. Raises UserError if it is not installed; `reference` needs it."""
    try:
        import huggingface_hub  # an optional dependency
    except ImportError as error:
        raise missing_package(reference, "huggingface_hub", "hub") from error
    return huggingface_hub


@contextmanager
def explained_errors(repo: str, revision: str, what: str) -> Iterator[None]:
    """Raise the errors of huggingface_hub in the block as UserErrors; files that do not exist are left to the caller.

    Args:
      repo: 'ORG/NAME'.
      revision: branch, tag or commit.
      what: the files that are downloaded, such as 'model.safetensors of org/net@main'.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:  # before RepositoryNotFoundError, its base class
        raise UserError(
            f"{repo} is gated. Accept its terms on its page on the Hugging Face Hub, and log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hugging Face Hub has no repository {repo!r}, or it is private. Check the name, or log in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r}. Give a branch, tag or commit.") from error
    except errors.LocalEntryNotFoundError as error:  # before EntryNotFoundError, its base class
        raise UserError(_unreachable(what)) from error
    except errors.EntryNotFoundError:
        raise
    except Exception as error:  # of the HTTP client or the disk; a name that the hub does not allow
        raise UserError(f"Cannot download {what} from the Hugging Face Hub: {first_line(error)}") from error


def _unreachable(what: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{what} is not in the cache, and HF_HUB_OFFLINE forbids to download it. Unset it, or use local files."
    return (
        f"{what} is not in the cache, and {constants.ENDPOINT} cannot be reached. Check the connection, or use local "
        "files."
    )
