"""Classes that look alike: which they are, how their difference shows, and who tells."""

import os
from pathlib import Path

import pytest
from helpers.image_folders import fill

from flaxtl.data.class_names import describe_similar, explain_missing, show_difference, similar_classes
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage, find_problems, scan_folder

NFC, NFD = "g\u00e4nse", "ga\u0308nse"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Rose", "rose", "rose "), "'Rose' / 'rose' / 'rose '"),
        ((NFD, NFC), f"'{NFD}' (NFD) / '{NFC}' (NFC)"),
        (("tea rose", "tea  rose"), "'tea  rose' / 'tea rose'"),
        (("tea rose", "tea\u00a0rose"), "'tea rose' / 'tea\\xa0rose'"),
        (("rose", "rose\u200b"), "'rose' / 'rose\\u200b'"),
    ],
)
def test_similar_classes_are_found_and_shown(names, shown):
    (group,) = similar_classes([*names, "other", "roses"])
    assert sorted(group) == sorted(names)
    assert show_difference(group) == shown
    assert shown in describe_similar(names)


def test_similar_classes_of_different_names_is_empty():
    assert similar_classes(["rose", "roses", "r-ose", "R0se", "garden"]) == []
    assert describe_similar(["rose", "roses"]) is None


def test_find_problems_shows_difference_of_missing_class(tmp_path):
    for split, label in (("train", NFC), ("test", NFD), ("train", "b"), ("test", "b")):
        fill(tmp_path / split / label, 1)
    index = scan_folder(tmp_path)
    texts = (*find_problems(index), *index.messages)
    assert len(texts) == 3
    for problem in texts:
        assert f"'{NFD}' (NFD) / '{NFC}' (NFC)" in problem


def test_explain_missing_names_what_looks_alike():
    assert explain_missing(["rose ", "tulip"], ["rose", "daisy"]) == ", but these names look alike: 'rose' / 'rose '"
    assert explain_missing(["tulip"], ["rose"]) == ""


def test_find_problems_of_class_that_is_not_text_names_it():
    labels = (os.fsdecode(b"g\xe4nse"), "b")
    (problem,) = find_problems(DatasetIndex(tuple(SourceImage(Path("/a.jpg"), label) for label in labels), "/set"))
    assert r"'g\udce4nse'" in problem
