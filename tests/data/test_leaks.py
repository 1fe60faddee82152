"""Leaks between given splits: what is refused, and what is only said."""

import re
from pathlib import Path

import pytest

from flaxtl.data.duplicates import DuplicatePair, across, check_label_conflicts, check_split_leakage
from flaxtl.data.sources.image_folder import SourceImage
from flaxtl.errors import UserError


def found(*splits: str) -> list[SourceImage]:
    return [SourceImage(Path(f"/set/{i}.jpg"), "a", split) for i, split in enumerate(splits)]


def nothing(sentence: str) -> None:
    raise AssertionError(sentence)


def test_like_images_within_a_split_are_no_leak() -> None:
    check_split_leakage("/set", found("train", "train", "test"), [DuplicatePair(0, 1, 0, True)], False, nothing)


def test_sets_across_splits_go_through_others() -> None:
    images = found("train", "train", "test", "validation", "test")
    assert across(
        images, [DuplicatePair(0, 1, 0, True), DuplicatePair(1, 2, 4, False), DuplicatePair(3, 4, 2, False)]
    ) == [[0, 1, 2], [3, 4]]


def test_equal_files_in_three_splits_are_named_once() -> None:
    pairs = [DuplicatePair(0, 1, 0, True), DuplicatePair(0, 2, 0, True)]
    named = r"0\.jpg \(train\) = 1\.jpg \(validation\) = 2\.jpg \(test\)"
    with pytest.raises(UserError, match=rf"\b1 .*{named}.*flaxtl doctor\b.*--config\.data\.allow_leaks=true"):
        check_split_leakage("/set", found("train", "validation", "test"), pairs, False, nothing)
    told: list[str] = []
    check_split_leakage("/set", found("train", "validation", "test"), pairs, True, told.append)
    assert len(told) == 1
    assert re.search(named, told[0])


def test_many_leaks_are_counted() -> None:
    images = found(*["train", "test"] * 10)
    pairs = [DuplicatePair(i, i + 1, 0, True) for i in range(0, 20, 2)]
    with pytest.raises(UserError) as caught:
        check_split_leakage("list.csv", images, pairs, False, nothing)
    assert re.search(r"\b10 .*list\.csv\b.* /set/0\.jpg \(train\) = /set/1\.jpg \(test\)", str(caught.value))
    assert re.search(r"/set/5\.jpg \(test\).*\b7\b", str(caught.value))
    assert "/set/6.jpg" not in str(caught.value)


def test_near_duplicates_across_splits_are_said() -> None:
    told: list[str] = []
    check_split_leakage("/set", found("train", "validation"), [DuplicatePair(0, 1, 4, False)], False, told.append)
    (sentence,) = told
    assert re.search(r"\b1 .*/set\b.* 0\.jpg \(train\) = 1\.jpg \(validation\).*flaxtl doctor\b", sentence)


def test_equal_files_with_two_labels_are_said() -> None:
    images = [SourceImage(Path(f"/set/{label}/{i}.jpg"), label, None) for i, label in enumerate("aabb")]
    told: list[str] = []
    check_label_conflicts(
        "/set",
        images,
        [DuplicatePair(0, 2, 0, True), DuplicatePair(2, 3, 0, True), DuplicatePair(1, 3, 4, False)],
        told.append,
    )
    (sentence,) = told
    assert re.search(r"\b1 .*/set\b.* a/0\.jpg \(a\) = b/3\.jpg \(b\).*flaxtl doctor\b", sentence)
    check_label_conflicts("/set", images, [DuplicatePair(0, 1, 0, True), DuplicatePair(0, 2, 3, False)], nothing)
