"""The chunks of PNG files: leave out the metadata that a decoder stumbles over."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Ancillary chunks (their names begin with a small letter) that change how an image looks: transparency, orientation.
_KEPT = frozenset((b"tRNS", b"eXIf"))


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG file without its metadata: text, color profile, gamma, animation; None for another file.

    All critical chunks are kept, damaged or not. Transparency and orientation are kept unless their checksum is wrong:
    libpng drops any ancillary chunk with a wrong checksum, too.
    """
    if not content.startswith(SIGNATURE):
        return None
    view, start = memoryview(content), len(SIGNATURE)
    parts = [view[:start]]
    while start + 12 <= len(view):
        size = int.from_bytes(view[start : start + 4], "big")
        name, end = bytes(view[start + 4 : start + 8]), start + 12 + size
        if not name.isalpha():  # not a chunk: the decoder says what is wrong
            break
        if name[:1].isupper() or (name in _KEPT and _has_valid_checksum(view[start:end])):
            parts.append(view[start:end])
        start = end
    return b"".join([*parts, view[start:]])


def _has_valid_checksum(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
