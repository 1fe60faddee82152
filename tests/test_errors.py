import re

import pytest

from flaxtl.errors import UserError, join_names, missing_package, unknown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blok5_conv1", ["block5_conv1"]),
        ("vgg_16", ["vgg16"]),
        ("VGG", ["vgg16"]),
        ("zzz", ["vgg16", "block5_conv2", "block5_conv1"]),
    ],
)
def test_unknown_suggests_a_similar_name_or_lists_all_in_order(name, hint):
    known = ["vgg16", "block5_conv2", "block5_conv1"]
    error = unknown("layer", name, known)
    assert isinstance(error, UserError)
    assert re.search(rf"\blayer\b.*'{name}'", str(error))
    assert [word for word in re.findall(r"\w+", str(error)) if word in known] == hint


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("vgg61", "'vgg16' or 'vgg19'"), ("block5_conv", "'block5_conv2' or 'block5_conv1'")],
)
def test_unknown_suggests_all_names_that_are_equally_similar(name, suggested):
    error = unknown("layer", name, ["block5_conv2", "block5_conv1", "vgg16", "vgg19"])
    assert str(error) == f"Unknown layer {name!r}. Did you mean {suggested}?"


def test_unknown_with_a_set_lists_it_sorted():
    assert re.findall(r"\b\w\b", str(unknown("letter", "none", {"c", "a", "b"}))) == ["a", "b", "c"]


def test_unknown_with_many_names_lists_twelve():
    names = [f"{number:02}" for number in range(13)]
    whole, cut = (str(unknown("number", "none", known)) for known in (names[:12], names))
    assert re.findall(r"\d+", whole) == re.findall(r"\d+", cut) == names[:12]
    assert not re.search(r"\.\.\.|…", whole)
    assert re.search(r"\b11\b.*(\.\.\.|…)", cut)


def test_unknown_lists_names_that_contain_it_first():
    known = [*(f"network{number}" for number in range(12)), "vit_tiny_patch16", "vit_base_patch16"]
    listed = str(unknown("model", "ViT", known)).partition("Available: ")[2]
    assert listed.startswith("vit_tiny_patch16, vit_base_patch16, network0, network1, ")


def test_join_names_counts_what_it_leaves_out():
    assert [join_names("abcdefgh"[:n]) for n in (1, 2, 3, 6, 7)] == [
        "a",
        "a and b",
        "a, b and c",
        "a, b, c, d, e and f",
        "a, b, c, d, e and 2 more",
    ]


def test_user_error_in_a_notebook_shows_its_message_only():
    assert UserError("no folder 'flowers'; give another")._render_traceback_() == [
        "flaxtl: no folder 'flowers'; give another"
    ]


def test_missing_package_gives_the_command_that_installs_it():
    assert str(missing_package("hf:a/b", "pyarrow", "hub")) == "hf:a/b needs pyarrow: pip install 'flaxtl[hub]'"
