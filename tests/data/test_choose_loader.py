import re

import pytest

from flaxtl.data.loaders import PIPELINES, choose_loader


@pytest.mark.parametrize(
    ("images", "memory", "expected"),
    [
        (2 * 10**9, 4 * 10**9, "resident"),
        (2 * 10**9 + 1, 4 * 10**9, "stream"),
        (0, 1, "resident"),
        (10**13, 10**11, "stream"),
    ],
)
def test_half_of_the_memory_may_hold_images(images, memory, expected):
    way, _ = choose_loader(images, memory, "the device's memory")
    assert way == expected
    assert way in PIPELINES


def test_the_reason_has_the_numbers():
    for size, written in ((440_400_000, "440.4 MB"), (60 * 10**9, "60.0 GB")):
        _, reason = choose_loader(size, 24 * 10**9, "this machine's memory")
        assert re.search(rf"\b{written}\b.*\b50%.*\b24\.0 GB\b.*\bthis machine's memory\b", reason)
