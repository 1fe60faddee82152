"""Find equal files and near-duplicate images, and check that they do not leak from one split into another."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from flaxtl.data.bit_depth import largest_value
from flaxtl.data.decode import raise_unreadable
from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.data.record_files import open_binary
from flaxtl.data.sources.image_folder import SourceImage
from flaxtl.errors import UserError

MAX_THRESHOLD = 16
"""Largest threshold, in bits: beyond it, hashes of unrelated images match by chance in any large dataset."""

_PHASH_BITS = 64
_PHASH_SIDE = 32  # imagehash.phash shrinks an image to this size for a hash of 8 x 8 bits
_DECODE_SIDE = 8 * _PHASH_SIDE  # a JPEG decoded no smaller than this has the hash of the full image
_MIN_CONTRAST = 8  # gray levels of 256; an image that spans fewer has no features, and its hash would be noise
_MAX_NAMED = 3  # maximum number of groups of duplicates listed in a message

Warn = Callable[[str], None]
Groups = Sequence[Sequence[int]]
"""Disjoint sets of two or more images, by index."""

_Ints = NDArray[np.integer]


class Fingerprint(NamedTuple):
    """The SHA-256 of a file in lower-case hex, and facts about its image.

    largest_value is that of `bit_depth.largest_value`; 0 if the image has 8 bits, was not decoded or was scaled.
    phash is `imagehash.phash` of the image as it is trained on: RGB, upright, over white where it is transparent. None
    if the file is not a readable image, is of nearly uniform color, or if the hash was not requested.
    """

    sha256: str
    phash: int | None
    largest_value: int = 0


def fingerprint_files(
    paths: Sequence[Path],
    on_progress: Callable[[int], None] | None = None,
    *,
    perceptual: bool = True,
    bit_depth: int = 0,
    strict: bool = True,
) -> list[Fingerprint]:
    """Compute the fingerprints of files in their order, with threads.

    Args:
      paths: the files.
      on_progress: called in the caller's thread after each file with the number of files done.
      perceptual: if False, no image is decoded, which is many times faster, and every phash is None.
      bit_depth: bits that the values of 16-bit images use, as the setting `data.bit_depth`; 0: all 16.
      strict: if False, a file that cannot be opened gets the SHA-256 of its path, which matches no image; for callers
        that decode the files next and report all bad ones at once.

    Raises:
      UserError: files are empty or cannot be opened; names all of them. A file that is not an image is not an error.
    """

    def fingerprint(path: Path) -> Fingerprint | str:
        try:
            return Fingerprint(_sha256(path), *(_inspect(path, bit_depth) if perceptual else (None, 0)))
        except OSError as error:
            return (error.strerror or str(error)).lower()

    fingerprints: list[Fingerprint] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:  # more than cores: disks wait
        for index, result in enumerate(pool.map(fingerprint, paths)):
            if isinstance(result, str):
                bad[index] = result
                result = Fingerprint(hashlib.sha256(os.fsencode(paths[index])).hexdigest(), None)
            fingerprints.append(result)
            if on_progress is not None:
                on_progress(index + 1)
    if strict:
        raise_unreadable(paths, bad)
    return fingerprints


def _sha256(path: Path) -> str:
    with open_binary(path) as stream:
        if not stream.seek(0, os.SEEK_END):
            raise OSError("the file is empty")  # and not a duplicate of all other empty files
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _inspect(path: Path, bit_depth: int) -> tuple[int | None, int]:
    """Return the perceptual hash and the largest value of an image; see Fingerprint."""
    try:
        with open_image(path, _DECODE_SIDE, bit_depth) as image:
            largest = 0 if bit_depth else largest_value(image)
            gray = to_rgb(apply_exif_orientation(image), bit_depth).convert("L")
            small = gray.resize((_PHASH_SIDE, _PHASH_SIDE), Image.Resampling.LANCZOS)  # as imagehash.phash does
    except UnreadableError:
        return None, 0
    if np.ptp(np.asarray(small)) < _MIN_CONTRAST:
        return None, largest
    return int(str(imagehash.phash(small)), 16), largest


def duplicate_groups(fingerprints: Sequence[Fingerprint], threshold: int) -> list[list[int]]:
    """Return the groups of duplicate images: connected directly or through others.

    Two images are connected if their files are equal, or if their perceptual hashes differ in at most `threshold` bits.

    Args:
      fingerprints: one per image.
      threshold: bits, 0 to 16; -1 compares files only. Up to 8 bits, every match among the 2,570 flower images of a
        test is correct; the first false ones appear at 10.

    Returns:
      Disjoint groups of two or more indices, each sorted, ordered by their first index.

    Raises:
      UserError: the threshold is out of range.
    """
    check_threshold(threshold)
    first_of: dict[str, int] = {}
    component: _Ints = np.fromiter(
        (first_of.setdefault(fingerprint.sha256, i) for i, fingerprint in enumerate(fingerprints)), np.int64
    )
    if threshold >= 0:
        hashed = [i for i, fingerprint in enumerate(fingerprints) if fingerprint.phash is not None]
        phashes = np.array([fingerprints[i].phash for i in hashed], np.uint64)
        hashes, hash_of = np.unique(phashes, return_inverse=True)
        near = _near_components(hashes, threshold)[hash_of]  # of each image in `hashed`
        _, first = np.unique(near, return_index=True)
        anchor = np.array(hashed, np.int64)[first[near]]  # one image of each component
        component = _connect(component, hashed, anchor)
    duplicated = np.flatnonzero(np.bincount(component)[component] > 1)
    order = duplicated[np.argsort(component[duplicated], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group))


def check_threshold(threshold: int) -> None:
    """Raise UserError unless `duplicate_groups` accepts this threshold."""
    if not -1 <= threshold <= MAX_THRESHOLD:
        raise UserError(
            f"Near-duplicates cannot differ by {threshold} bits. Use 0 to {MAX_THRESHOLD}, or -1 for equal files only."
        )


def _near_components(hashes: NDArray[np.uint64], threshold: int) -> _Ints:
    """Return the component of each of n different hashes, [n] in 0..n-1; near hashes are in the same one.

    By the pigeonhole principle, two hashes that differ in at most t bits agree in at least one of t + 1 bands of bits,
    so only hashes that share a band are compared: sorted by the band, each with the next one, the one after that, and
    so on. Runs of equal bands that have become connected are not compared to the end: among the frames of a video all
    pairs are near, and their number is quadratic.
    """
    component: _Ints = np.arange(len(hashes))
    for low, high in pairwise(np.linspace(0, _PHASH_BITS, threshold + 2).astype(int).tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        starts = np.flatnonzero(np.diff(band, prepend=~band[:1]))
        run_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(band)))
        positions, offset = np.arange(len(band)), 1
        while len(positions := positions[positions + offset < len(band)]):
            positions = positions[band[positions] == band[positions + offset]]
            if offset.bit_count() == 1:  # at offsets 1, 2, 4, 8, ... only: the check takes linear time
                sorted_component = component[order]
                lowest = np.minimum.reduceat(sorted_component, starts)
                positions = positions[(lowest < np.maximum.reduceat(sorted_component, starts))[run_of[positions]]]
            left, right = order[positions], order[positions + offset]
            near = np.bitwise_count(hashes[left] ^ hashes[right]) <= threshold
            near &= component[left] != component[right]
            if near.any():
                component = _connect(component, left[near], right[near])
            offset += 1
    return component


def _connect(component: _Ints, left: _Ints | Sequence[int], right: _Ints) -> _Ints:
    """Return the components [n] after connecting item left[i] with item right[i] for every i."""
    n = len(component)
    edges = coo_array((np.ones(len(left), bool), (component[left], component[right])), shape=(n, n))
    labels: _Ints = connected_components(edges, directed=False)[1]
    return labels[component]


def check_split_leakage(
    origin: str, images: Sequence[SourceImage], equal: Groups, similar: Groups, allow: bool, warn: Warn
) -> None:
    """Raise an error, or warn if they are allowed, for equal files in two splits; warn about near-duplicates.

    Args:
      origin: the source, for the messages.
      images: the images with their splits, and with their paths as the messages name them.
      equal: groups of equal files.
      similar: groups of equal files and near-duplicates. These only cause warnings: a perceptual hash can be wrong.
      allow: whether equal files in two splits only cause a warning.
      warn: called with each warning.

    Raises:
      UserError: equal files are in two splits; names some of them and how to proceed.
    """
    leaks = _groups_across(images, equal, "split")
    if leaks:
        text = f"{len(leaks)} image(s) of {origin} are in more than one split: {_describe(images, leaks)}."
        if not allow:
            raise UserError(
                f"{text} flaxtl doctor lists all of them. Remove them from one split, or train anyway with "
                "--config.data.allow_leaks=true"
            )
        warn(f"{text} Metrics on these images are too optimistic.")
    equal_groups = set(map(tuple, leaks))
    near_leaks = [group for group in _groups_across(images, similar, "split") if tuple(group) not in equal_groups]
    if near_leaks:
        warn(
            f"{len(near_leaks)} image(s) of {origin} have near-duplicates in another split: "
            f"{_describe(images, near_leaks)}. flaxtl doctor lists all of them."
        )


def check_label_conflicts(origin: str, images: Sequence[SourceImage], equal: Groups, warn: Warn) -> None:
    """Warn about equal files with different labels; arguments as for `check_split_leakage`."""
    conflicts = _groups_across(images, equal, "label")
    if conflicts:
        warn(
            f"{len(conflicts)} image(s) of {origin} have more than one label: "
            f"{_describe(images, conflicts, 'label')}. flaxtl doctor lists all of them."
        )


_Field = Literal["split", "label"]


def _groups_across(images: Sequence[SourceImage], groups: Groups, field: _Field) -> list[Sequence[int]]:
    """Return the groups whose images differ in `field`."""
    return [group for group in groups if len({getattr(images[index], field) for index in group}) > 1]


def _describe(images: Sequence[SourceImage], groups: Groups, field: _Field = "split") -> str:
    """Name one image of each value of `field` for the first groups: '0.jpg (train) = 1.jpg (test)'."""
    names = []
    for group in groups[:_MAX_NAMED]:
        paths = {getattr(images[index], field): images[index].path for index in group}
        names.append(" = ".join(f"{path} ({value})" for value, path in paths.items()))
    return ", ".join(names) + (f" and {len(groups) - _MAX_NAMED} more" if len(groups) > _MAX_NAMED else "")
