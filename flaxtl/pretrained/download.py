"""Where the weights come from: an explicit path, a local cache, a download with a hash, or the file in the package."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from flaxtl import fileio
from flaxtl.errors import UserError

CONNECT_SECONDS = 3.0  # an offline machine learns it soon
READ_SECONDS = 30.0  # between two pieces of the download

_HASHES = {32: "md5", 64: "sha256"}  # the kind of a hash by its length, as Keras tells them apart


@dataclass(frozen=True)
class ResolvedWeights:
    """A weight file on this machine; in words, where it came from; whether it is known to be the published one."""

    path: Path
    origin: str
    trusted: bool = False


def resolve_weights(
    request: str,
    *,
    filename: str,
    url: str,
    hash: str,
    builtin: Path | None,
    say: Callable[[str], None],
    option: str = "--config.weights.path",
) -> ResolvedWeights:
    """Find the weight file for `request`: 'imagenet', 'builtin', or the path of a file.

    'imagenet' is the first of: `filename` with the `hash` (MD5 or SHA-256; '' where none is published, and nothing is
    checked) in Keras' cache or in flaxtl's own, the download from `url` into flaxtl's own cache, `builtin` (the file in
    the package, None where there is none). `say` is told, in whole sentences, of each file that is passed over, of a
    download, and of falling back. `option` is what the request was given by.
    Raises UserError where nothing is found.
    """
    if request == "imagenet":
        return _imagenet(filename, url, hash, builtin, say, option)
    if request == "builtin":
        if builtin is None:
            raise UserError(f"no weights for {filename} ship with flaxtl; use {option}=imagenet or the path of a file")
        return ResolvedWeights(builtin, "built into flaxtl", trusted=True)
    path = Path(request).expanduser()
    if not path.exists():
        raise UserError(f"no weight file {request!r}; give the path of a file, 'imagenet' or 'builtin'")
    return ResolvedWeights(path, "given path")


def is_cached(filename: str) -> list[ResolvedWeights]:
    """The files of that name in Keras' cache and in flaxtl's own, in this order; what is in them is not looked at."""
    keras = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"  # keras.utils.get_file
    places = ((keras, "Keras' cache"), (fileio.cache_dir("weights"), "flaxtl's cache"))
    return [ResolvedWeights(folder / filename, owner) for folder, owner in places if (folder / filename).is_file()]


def _imagenet(
    filename: str, url: str, hash: str, builtin: Path | None, say: Callable[[str], None], option: str
) -> ResolvedWeights:
    kind = _HASHES[len(hash)] if hash else ""
    for found in is_cached(filename):
        if not hash or _digest(found.path, kind) == hash:
            return replace(found, trusted=bool(hash))
        say(f"{found.path} is passed over: its {kind} is not {hash}, so it is another file or a half one.")
    unchecked = "" if hash else " No hash of this file is published, so what arrives is not checked."
    say(f"Downloading {url} into {fileio.cache_dir('weights')}.{unchecked}")
    try:
        known_hash = f"{kind}:{hash}" if hash else None
        path = _download(filename, url, known_hash)
        return ResolvedWeights(path, f"downloaded from {urlsplit(url).netloc}", trusted=bool(hash))
    except (OSError, ValueError) as error:  # the network, HTTP and the disk raise OSError, a wrong hash ValueError
        reason = _reason(error, url)
    if builtin is None:
        raise UserError(
            f"{filename} could not be downloaded: {reason}; get {url} on another machine "
            f"and give the copy with {option}=FILE"
        )
    say(f"The download failed: {reason}. The weights built into flaxtl, {builtin.name}, are used in their place.")
    return ResolvedWeights(builtin, "built into flaxtl", trusted=True)


def _download(filename: str, url: str, known_hash: str | None) -> Path:
    """Download into flaxtl's cache; the file appears there only once it is whole and its hash, if known, is right."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # `say` has told it already
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    return Path(
        pooch.retrieve(url, known_hash, fname=filename, path=fileio.cache_dir("weights"), downloader=downloader)
    )


def _reason(error: OSError | ValueError, url: str) -> str:
    host = urlsplit(url).netloc
    if isinstance(error, ValueError):
        return "what arrived has another hash than the published one"
    if not hasattr(error, "response"):  # which every error of the HTTP client has: this one is the disk's
        return str(error)
    if error.response is None:
        return f"the connection to {host} failed"
    return f"{host} answered with HTTP status {error.response.status_code}"


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
