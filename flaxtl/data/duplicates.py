"""What an image file is known by: its bytes, and what it looks like."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flaxtl.data.decode import raise_unreadable
from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.data.sources.image_folder import SourceImage
from flaxtl.errors import UserError

PHASH_BITS = 64
"""Of a perceptual hash."""

_SIDE = 32  # to which imagehash.phash shrinks an image whose hash has 8 x 8 bits
_ENOUGH = 8 * _SIDE  # a JPEG unpacked no smaller than this hashes like the whole image
_FLAT = 8  # grey levels of 256; an image that spans fewer has no features to be known by, and hashes to its noise


class Fingerprint(NamedTuple):
    """The SHA-256 of a file in lower-case hex, and the perceptual hash, 64 bits, of its image.

    phash is `imagehash.phash` of the image as a run sees it: RGB, upright, over white where it is transparent. None
    where the file gives no image, where that is of one shade all over, or where it was not asked for.
    """

    sha256: str
    phash: int | None


def fingerprint_files(
    paths: Sequence[Path],
    on_progress: Callable[[int], None] | None = None,
    *,
    perceptual: bool = True,
    strict: bool = True,
) -> list[Fingerprint]:
    """The fingerprints of files, in their order, by threads.

    `on_progress` is called in the caller's thread after each file with the number of files done. Without `perceptual`
    no image is unpacked, which is many times quicker, and every phash is None.

    Raises one UserError for all the files that are empty or cannot be opened, if `strict`; that a file gives no image
    is no error. For who decodes the files next, and tells of all bad ones at once, `strict` can be left out: such files
    then have the SHA-256 of their path, which is that of no image.
    """

    def one(path: Path) -> Fingerprint | str:
        try:
            return Fingerprint(_sha256(path), _phash(path) if perceptual else None)
        except OSError as error:
            return (error.strerror or str(error)).lower()

    found: list[Fingerprint] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:  # more than cores: disks wait
        for index, print_or_reason in enumerate(pool.map(one, paths)):
            if isinstance(print_or_reason, str):
                bad[index] = print_or_reason
                found.append(Fingerprint(hashlib.sha256(os.fsencode(paths[index])).hexdigest(), None))
            else:
                found.append(print_or_reason)
            if on_progress is not None:
                on_progress(index + 1)
    if strict:
        raise_unreadable(paths, bad)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise OSError("the file is empty")  # and no copy of all the other empty ones
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _phash(path: Path) -> int | None:
    try:
        with open_image(path, _ENOUGH) as image:
            grey = to_rgb(apply_exif_orientation(image)).convert("L")
            small = grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)  # as imagehash.phash would do
    except UnreadableError:
        return None
    if np.ptp(np.asarray(small)) < _FLAT:
        return None
    return int(str(imagehash.phash(small)), 16)


MAX_THRESHOLD = 16
"""The largest threshold: beyond it, hashes of images that have nothing in common meet by chance in any large set."""


class DuplicatePair(NamedTuple):
    """Two images that are alike, by index, first < second.

    distance: the number of bits by which their perceptual hashes differ; `exact`: their files are equal, and the
    distance is 0.
    """

    first: int
    second: int
    distance: int
    exact: bool


def near_duplicate_pairs(fingerprints: Sequence[Fingerprint], threshold: int) -> list[DuplicatePair]:
    """Enough pairs of like images to connect all that are alike, sorted.

    Of images with equal files, and of those with equal hashes, the first is paired with each of the others (n equal
    ones give n - 1 pairs). Different hashes, by the first image of each, are paired where they differ by at most
    `threshold` bits and are not connected yet, so that there are never more pairs than images.

    Args:
      fingerprints: of all images.
      threshold: bits, 0 to 16; -1 pairs equal files only. Up to 8 bits every pair of the 2,570 flowers that this was
        tried on is truly one image; at 10 the first false ones appear.

    Raises:
      UserError: the threshold is out of its range.
    """
    check_threshold(threshold)
    files: dict[str, int] = {}
    found = [
        DuplicatePair(first, index, 0, True)
        for index, fingerprint in enumerate(fingerprints)
        if (first := files.setdefault(fingerprint.sha256, index)) != index
    ]
    if threshold >= 0:
        hashes: dict[int, int] = {}
        for index in files.values():
            phash = fingerprints[index].phash
            if phash is not None and (first := hashes.setdefault(phash, index)) != index:
                found.append(DuplicatePair(first, index, 0, False))
        found += _near(hashes, threshold)
    return sorted(found)


def check_threshold(threshold: int) -> None:
    """Raises UserError unless it is one that `pairs` takes."""
    if not -1 <= threshold <= MAX_THRESHOLD:
        raise UserError(
            f"near-duplicates cannot differ by {threshold} bits; give 0 to {MAX_THRESHOLD}, or -1 for equal files only"
        )


def duplicate_groups(n: int, pairs: Sequence[DuplicatePair]) -> list[list[int]]:
    """The sets of two and more of n images that `pairs` connect, directly or through others; all sorted."""
    forest = _Forest(n)
    forest.join([pair.first for pair in pairs], [pair.second for pair in pairs])
    members: dict[int, list[int]] = {}
    for index in sorted({index for pair in pairs for index in pair[:2]}):
        members.setdefault(int(forest.roots[index]), []).append(index)
    return list(members.values())


class _Forest:
    """Which of n places are connected: `roots`, int64 [n], is the smallest place of the tree that each is in."""

    def __init__(self, n: int) -> None:
        self.roots = np.arange(n)

    def join(self, left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int]]:
        """Connect left[i] with right[i] for every i; returns the pairs that were not connected before."""
        joined = []
        for pair in zip(left, right, strict=True):
            first, second = sorted(map(self._root, pair))
            if first < second:
                self.roots[second] = first
                joined.append(pair)
        while joined and (self.roots != (higher := self.roots[self.roots])).any():
            self.roots = higher
        return joined

    def _root(self, place: int) -> int:
        while (higher := int(self.roots[place])) != place:
            self.roots[place] = self.roots[higher]  # halves the way for the next one
            place = higher
        return place


def _near(hashes: dict[int, int], threshold: int) -> Iterator[DuplicatePair]:
    """Pairs of different hashes (hash -> image), as few as connect all that are near.

    By the pigeonhole principle two hashes that differ by at most t bits agree in at least one of t + 1 bands of bits,
    so only hashes that share a band are compared.
    """
    values = np.fromiter(hashes.keys(), np.uint64, len(hashes))
    images = list(hashes.values())
    edges = np.linspace(0, PHASH_BITS, threshold + 2).astype(int).tolist()
    forest = _Forest(len(values))
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for left, right in _equal(band, forest):
            new = np.bitwise_count(values[left] ^ values[right]) <= threshold
            new &= forest.roots[left] != forest.roots[right]
            for one, other in forest.join(left[new].tolist(), right[new].tolist()):
                first, second = sorted((images[one], images[other]))
                yield DuplicatePair(first, second, int(np.bitwise_count(values[one] ^ values[other])), False)


def _equal(keys: NDArray[np.uint64], forest: _Forest) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The places of every two equal keys, the lesser first, in portions no longer than `keys`.

    Equal keys whose places have all become connected are not gone through to the end: among the frames of a film every
    two are alike, and their number is squared.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    places = np.arange(len(keys))
    apart = 1
    while len(places := places[places + apart < len(keys)]):
        places = places[ordered[places] == ordered[places + apart]]  # equal at a distance is equal at every lesser one
        if apart.bit_count() == 1:  # a look at 1, 2, 4, 8, ... costs little
            roots = forest.roots[order]
            divided = np.minimum.reduceat(roots, starts) < np.maximum.reduceat(roots, starts)
            places = places[divided[run[places]]]
        yield order[places], order[places + apart]
        apart += 1


_LISTED = 3  # sets of like images that a sentence names before it only counts


def check_split_leakage(
    origin: str, found: Sequence[SourceImage], pairs: Sequence[DuplicatePair], allow: bool, warn: Callable[[str], None]
) -> None:
    """Refuses equal files in two splits, or warns of them if they are to be allowed; warns of near-duplicates.

    Args:
      origin: the source, for the sentences.
      found: the images with their splits.
      pairs: from `duplicates.pairs`.
      allow: whether equal files are only warned of. A perceptual hash can err, so near-duplicates always are.
      warn: is told the warnings.

    Raises:
      UserError: equal files lie in two splits; the sentence names some and says how to go on.
    """
    equal = across(found, [pair for pair in pairs if pair.exact])
    if equal:
        sentence = f"{len(equal)} image(s) of {origin} lie in more than one split: {_named(origin, found, equal)}"
        if not allow:
            raise UserError(
                f"{sentence}; flaxtl doctor shows them all: remove them from one split, or train all the same with"
                " --config.data.allow_leaks=true"
            )
        warn(f"{sentence}; measures on these are flattered")
    similar = [group for group in across(found, pairs) if group not in equal]
    if similar:
        warn(
            f"{len(similar)} image(s) of {origin} look nearly the same in more than one split:"
            f" {_named(origin, found, similar)}; flaxtl doctor shows them all"
        )


def check_label_conflicts(
    origin: str, found: Sequence[SourceImage], pairs: Sequence[DuplicatePair], warn: Callable[[str], None]
) -> None:
    """Warns of equal files that have different labels; arguments as of `check`."""
    torn = across(found, [pair for pair in pairs if pair.exact], "label")
    if torn:
        warn(
            f"{len(torn)} image(s) of {origin} have more than one label: {_named(origin, found, torn, 'label')};"
            " flaxtl doctor shows them all"
        )


def across(found: Sequence[SourceImage], pairs: Sequence[DuplicatePair], differing: str = "split") -> list[list[int]]:
    """The sets of like images, by index, that have more than one value of the field `differing`."""
    groups = duplicate_groups(len(found), pairs)
    return [group for group in groups if len({getattr(found[index], differing) for index in group}) > 1]


def _named(origin: str, found: Sequence[SourceImage], groups: Sequence[Sequence[int]], differing: str = "split") -> str:
    """Of each group one image for each value of the field `differing`."""
    first = ([found[index] for index in group] for group in groups[:_LISTED])
    told = [" = ".join(_one_of_each(origin, alike, differing)) for alike in first]
    return ", ".join(told) + (f" and {len(groups) - _LISTED} more" if len(groups) > _LISTED else "")


def _one_of_each(origin: str, alike: Sequence[SourceImage], differing: str) -> list[str]:
    paths = {getattr(image, differing): image.path for image in alike}
    return [
        f"{path.relative_to(origin) if path.is_relative_to(origin) else path} ({where})"
        for where, path in paths.items()
    ]
