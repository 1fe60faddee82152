import re

import pytest

from flaxtl.errors import UserError, unknown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blok5_conv1", ["block5_conv1"]),
        ("vgg_16", ["vgg16"]),
        ("zzz", ["block5_conv1", "block5_conv2", "vgg16"]),
    ],
)
def test_unknown_suggests_or_lists(name, hint):
    known = ["vgg16", "block5_conv1", "block5_conv2"]
    error = unknown("layer", name, known)
    assert isinstance(error, UserError)
    assert re.search(rf"\blayer\b.*'{name}'", str(error))
    assert [word for word in re.findall(r"\w+", str(error)) if word in known] == hint


def test_a_long_list_is_cut_off():
    names = [f"{number:02}" for number in range(13)]
    whole, cut = (str(unknown("number", "none", known)) for known in (names[:12], names))
    assert re.findall(r"\d+", whole) == re.findall(r"\d+", cut) == names[:12]
    assert not re.search(r"\.\.\.|…", whole)
    assert re.search(r"\b11\b.*(\.\.\.|…)", cut)


def test_a_notebook_shows_the_sentence_alone():
    assert UserError("no folder 'flowers'; give another")._render_traceback_() == [
        "flaxtl: no folder 'flowers'; give another"
    ]
