"""Find a weight file: a path, a local cache, a download with a hash check, the hub, or the file in the package."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.pretrained import hub

CONNECT_TIMEOUT = 3.0  # seconds; short, so that an offline machine fails soon
READ_TIMEOUT = 30.0  # seconds between two chunks of the download

_HASH_ALGORITHMS = {32: "md5", 64: "sha256"}  # by the number of hex digits, as in Keras


@dataclass(frozen=True)
class ResolvedWeights:
    """A weight file on this machine.

    Attributes:
      path: the file.
      source: where it came from, for messages.
      trusted: whether it is known to be the published file.
    """

    path: Path
    source: str
    trusted: bool = False


def resolve_weights(
    weights: str,
    *,
    filename: str,
    url: str,
    hash: str,
    builtin: Path | None,
    notify: Callable[[str], None],
    option: str = "--config.weights.path",
) -> ResolvedWeights:
    """Find the file for `weights`.

    'imagenet' is the first of these: `filename` with the expected hash in Keras' cache or in flaxtl's, the download
    from `url` into flaxtl's cache, `builtin`.

    Args:
      weights: 'imagenet', 'builtin', a file on the Hugging Face Hub (see `hub`) or the path of a file.
      filename: name of the published file in the caches.
      url: where the published file can be downloaded.
      hash: MD5 or SHA-256 of the published file. Empty if none is published: then nothing is checked.
      builtin: the file in the package, if there is one.
      notify: receives a message for every skipped file, for a download, and for the fallback to `builtin`.
      option: the command-line option that `weights` comes from, for error messages.

    Raises:
      UserError: there is no such file.
    """
    if weights == "imagenet":
        return _find_published(filename, url, hash, builtin, notify, option)
    if weights == "builtin":
        if builtin is None:
            raise UserError(f"flaxtl does not include {filename}. Use {option}=imagenet or the path of a file.")
        return ResolvedWeights(builtin, "built into flaxtl", trusted=True)
    return find_file(weights, notify, "Use the path of a file, hf:ORG/REPO, 'imagenet' or 'builtin'.")


def find_file(weights: str, notify: Callable[[str], None], advice: str = "Correct the path.") -> ResolvedWeights:
    """Find a file on the Hugging Face Hub, which is downloaded, or by its path.

    Raises:
      UserError: there is no such file; the message ends with `advice`.
    """
    if hub.is_hub_reference(weights):
        path = hub.download_file(weights, notify)
        return ResolvedWeights(path, f"{weights} on the Hugging Face Hub")
    path = fileio.user_path(weights)
    if not path.exists():
        raise UserError(f"Weight file '{path}' does not exist. {advice}")
    return ResolvedWeights(path, "given path")


def cached_files(filename: str) -> list[ResolvedWeights]:
    """Return the files of that name in Keras' cache and in flaxtl's, in this order. Their content is not checked."""
    caches = [(fileio.cache_dir("weights"), "flaxtl's cache")]
    with suppress(UserError):  # there is no home folder
        keras_home = fileio.user_path(os.environ.get("KERAS_HOME") or "~/.keras")  # as keras.utils.get_file
        caches.insert(0, (keras_home / "models", "Keras' cache"))
    return [ResolvedWeights(folder / filename, name) for folder, name in caches if (folder / filename).is_file()]


def _find_published(
    filename: str, url: str, hash: str, builtin: Path | None, notify: Callable[[str], None], option: str
) -> ResolvedWeights:
    algorithm = _HASH_ALGORITHMS[len(hash)] if hash else ""
    for cached in cached_files(filename):
        if not hash or _file_hash(cached.path, algorithm) == hash:
            return replace(cached, trusted=bool(hash))
        notify(f"Skipped {cached.path}: its {algorithm} is not {hash}, so it is another file or incomplete.")
    remark = "" if hash else " No hash of this file is published, so the download is not checked."
    notify(f"Downloading {url} to {fileio.cache_dir('weights')}.{remark}")
    try:
        path = _download(filename, url, f"{algorithm}:{hash}" if hash else None)
        return ResolvedWeights(path, f"downloaded from {urlsplit(url).netloc}", trusted=bool(hash))
    except (OSError, ValueError) as error:  # network, HTTP and disk errors are OSErrors, a wrong hash is a ValueError
        reason = _failure_reason(error, url)
    if builtin is None:
        raise UserError(
            f"Cannot download {filename}: {reason}. Download {url} on another machine and pass the file with "
            f"{option}=FILE."
        )
    notify(f"Download failed: {reason}. Using the weights built into flaxtl instead: {builtin.name}.")
    return ResolvedWeights(builtin, "built into flaxtl", trusted=True)


def _download(filename: str, url: str, known_hash: str | None) -> Path:
    """Download into flaxtl's cache. The file appears there only when it is complete and its hash, if known, matches."""
    import pooch  # here, because it loads an HTTP client that most commands never need

    pooch.get_logger().setLevel("WARNING")  # the download is already logged
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
    return Path(
        pooch.retrieve(url, known_hash, fname=filename, path=fileio.cache_dir("weights"), downloader=downloader)
    )


def _failure_reason(error: OSError | ValueError, url: str) -> str:
    host = urlsplit(url).netloc
    if isinstance(error, ValueError):
        return "the hash of the downloaded file does not match the published one"
    if not hasattr(error, "response"):  # errors of the HTTP client have it, errors of the disk do not
        return str(error)
    if error.response is None:
        return f"the connection to {host} failed"
    return f"{host} returned HTTP status {error.response.status_code}"


def _file_hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
