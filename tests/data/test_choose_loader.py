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


def test_choose_loader_reason_names_sizes_and_memory():
    _, reason = choose_loader(440_400_000, 24 * 10**9, "device memory")
    assert re.search(r"\b440\.4 MB\b.*\bdevice memory\b", reason)
    _, reason = choose_loader(60 * 10**9, 24 * 10**9, "device memory")
    assert re.search(r"\b60\.0 GB\b.*\b50%.*\b24\.0 GB\b.*\bdevice memory\b", reason)
