"""Small pictures that a page carries inside itself, as JPEG data URIs."""

import base64
import io
from pathlib import Path

from PIL import Image

from flaxtl.data.unpack import rgb, unpacked, upright


def of_file(path: Path, side: int, quality: int) -> str:
    """A picture file as a run sees it, upright and over white, at most `side` pixels long; raises UnreadableError."""
    with unpacked(path, side) as image:
        return data_uri(rgb(upright(image)), side, quality)


def data_uri(image: Image.Image, side: int, quality: int) -> str:
    """An RGB picture, which is shrunk in place to at most `side` pixels; `quality` is the JPEG's, up to 95."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
