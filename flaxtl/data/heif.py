"""HEIC, the format of iPhone photos: read through pillow-heif, which the extra `heif` installs."""

from functools import cache

FORMAT = "HEIF"
"""pillow-heif's name of the format."""

SUFFIX = ".heic"
"""Suffix of its files."""

MISSING_READER = "HEIC, an iPhone format: pip install 'flaxtl[heif]'"

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
"""Brands of images and sequences coded in HEVC: ISO/IEC 23008-12, annex B.4."""

_GENERAL_BRANDS = (b"mif1", b"msf1")  # of any coding; the compatible brands after it name the coding


def is_heic(start: bytes) -> bool:
    """Return whether a file with these first bytes, 32 or more, is a HEIC image."""
    if start[4:8] != b"ftyp":
        return False
    return start[8:12] in _BRANDS or (start[8:12] in _GENERAL_BRANDS and any(brand in start for brand in _BRANDS))


@cache
def register_reader() -> bool:
    """Let Pillow read HEIC files; return False if pillow-heif is not installed.

    Called for the first HEIC file, so that libheif is loaded only where there is one. Images are returned upright, and
    their EXIF orientation is 1: they are not rotated again.
    """
    try:
        from pillow_heif import register_heif_opener  # an optional dependency
    except ImportError:
        return False
    register_heif_opener()
    return True
