"""Image files that Pillow cannot write: 16 bits per color, and TIFF files with any extra samples."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def save_png16(path: Path, values: np.ndarray, color_type: int = 2) -> Path:
    """Write RGB (2) or RGBA (6) with 16 bits, which Pillow cannot."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def save_tiff(path: Path, values: np.ndarray, extra_samples: Sequence[int] = (), order: str = "<") -> Path:
    """Write an uncompressed RGB TIFF with these samples of 8 or 16 bits and any ExtraSamples."""
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    mark = b"II" if order == "<" else b"MM"
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = struct.pack(f"{order}{channels}H", *[bits] * channels)
    tags = [(256, 3, [width]), (257, 3, [height]), (258, 3, None), (259, 3, [1]), (262, 3, [2]), (273, 4, None)]
    tags += [(277, 3, [channels]), (278, 3, [height]), (279, 4, [len(pixels)])]
    tags += [(338, 3, list(extra_samples))] if extra_samples else []
    start = 8 + 2 + 12 * len(tags) + 4
    content = mark + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, kind, numbers in tags:
        if tag == 258:
            content += struct.pack(f"{order}HHII", tag, kind, channels, start)
        else:
            number = start + len(data) if tag == 273 else numbers[0]
            value = struct.pack(f"{order}HH", number, 0) if kind == 3 else struct.pack(f"{order}I", number)
            content += struct.pack(f"{order}HHI", tag, kind, 1) + value
    path.write_bytes(content + bytes(4) + data + pixels)
    return path
