"""The folder where flaxtl keeps what it has downloaded, extracted or drawn."""

import os
from pathlib import Path


def directory(name: str) -> Path:
    """The cache folder called `name`: in $FLAXTL_CACHE, or where this system keeps programs' caches."""
    root = os.environ.get("FLAXTL_CACHE")
    if root:
        return Path(root).expanduser() / name
    import pooch  # here, because it loads an HTTP client that most runs never need

    return Path(pooch.os_cache("flaxtl")) / name
