"""Leaks between given splits: what is refused, and what is only said."""

from pathlib import Path

import pytest

from flaxtl.data.duplicates import Pair
from flaxtl.data.leaks import across, check, check_labels
from flaxtl.data.listing import Found
from flaxtl.errors import UserError


def found(*splits: str) -> list[Found]:
    return [Found(Path(f"/set/{i}.jpg"), "a", split) for i, split in enumerate(splits)]


def nothing(sentence: str) -> None:
    raise AssertionError(sentence)


def test_like_pictures_within_a_split_are_no_leak() -> None:
    check("/set", found("train", "train", "test"), [Pair(0, 1, 0, True)], False, nothing)


def test_sets_across_splits_go_through_others() -> None:
    pictures = found("train", "train", "test", "validation", "test")
    assert across(pictures, [Pair(0, 1, 0, True), Pair(1, 2, 4, False), Pair(3, 4, 2, False)]) == [[0, 1, 2], [3, 4]]


def test_equal_files_in_three_splits_are_named_once() -> None:
    pairs = [Pair(0, 1, 0, True), Pair(0, 2, 0, True)]
    named = r"0\.jpg \(train\) = 1\.jpg \(validation\) = 2\.jpg \(test\)"
    with pytest.raises(UserError, match=rf"^1 picture.* split: {named}; flaxtl doctor"):
        check("/set", found("train", "validation", "test"), pairs, False, nothing)
    told: list[str] = []
    check("/set", found("train", "validation", "test"), pairs, True, told.append)
    assert len(told) == 1


def test_many_leaks_are_counted() -> None:
    pictures = found(*["train", "test"] * 10)
    pairs = [Pair(i, i + 1, 0, True) for i in range(0, 20, 2)]
    with pytest.raises(UserError) as caught:
        check("list.csv", pictures, pairs, False, nothing)
    assert str(caught.value).startswith("10 picture(s) of list.csv lie in more than one split: /set/0.jpg (train) = ")
    assert "/set/5.jpg (test) and 7 more; " in str(caught.value)


def test_near_duplicates_across_splits_are_said() -> None:
    told: list[str] = []
    check("/set", found("train", "validation"), [Pair(0, 1, 4, False)], False, told.append)
    assert told == [
        "1 picture(s) of /set look nearly the same in more than one split: 0.jpg (train) = 1.jpg (validation);"
        " flaxtl doctor shows them all"
    ]


def test_equal_files_with_two_labels_are_said() -> None:
    pictures = [Found(Path(f"/set/{label}/{i}.jpg"), label, None) for i, label in enumerate("aabb")]
    told: list[str] = []
    check_labels("/set", pictures, [Pair(0, 2, 0, True), Pair(2, 3, 0, True), Pair(1, 3, 4, False)], told.append)
    assert told == [
        "1 picture(s) of /set have more than one label: a/0.jpg (a) = b/3.jpg (b); flaxtl doctor shows them all"
    ]
    check_labels("/set", pictures, [Pair(0, 1, 0, True), Pair(0, 2, 3, False)], nothing)
