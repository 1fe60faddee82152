import pytest

from flaxtl.errors import UserError, unknown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blok5_conv1", "did you mean 'block5_conv1'?"),
        ("vgg_16", "did you mean 'vgg16'?"),
        ("zzz", "known: block5_conv1, block5_conv2, vgg16"),
    ],
)
def test_unknown_suggests_or_lists(name, hint):
    error = unknown("layer", name, ["vgg16", "block5_conv1", "block5_conv2"])
    assert isinstance(error, UserError)
    assert str(error) == f"no layer {name!r}; {hint}"


def test_a_long_list_is_cut_off():
    names = [f"{number:02}" for number in range(13)]
    assert str(unknown("number", "none", names[:12])).endswith("10, 11")
    assert str(unknown("number", "none", names)).endswith("10, 11, ...")


def test_a_notebook_shows_the_sentence_alone():
    assert UserError("no folder 'flowers'; give another")._render_traceback_() == [
        "flaxtl: no folder 'flowers'; give another"
    ]
