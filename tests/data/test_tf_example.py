"""Values of tf.train.Example messages are located by position. The messages are encoded here, byte by byte."""

import struct

import pytest

from flaxtl.data.tf_example import (
    Span,
    bytes_field_head,
    bytes_span,
    int64_value,
    parse_features,
    record_spans,
)

BIG = bytes(range(256)) * 80  # 20,480 bytes: lengths of three bytes


def varint(number: int) -> bytes:
    head = b""
    while number >= 128:
        head, number = head + bytes([number % 128 + 128]), number // 128
    return head + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(8 * number + 2) + varint(len(content)) + content


def images(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def packed(*values: int) -> bytes:
    return field(3, field(1, b"".join(varint(value % 2**64) for value in values)))


def unpacked(value: int) -> bytes:
    return field(3, varint(8) + varint(value))


def entry(name: str, feature: bytes) -> tuple[bytes, bytes]:
    return field(1, name.encode()), field(2, feature)


def example(**features: bytes) -> bytes:
    return field(1, b"".join(field(1, b"".join(entry(*item))) for item in features.items()))


def parsed(message: bytes, before: int = 7) -> tuple[bytes, dict[str, Span]]:
    """The message inside other bytes, and its features."""
    data = b"x" * before + message + b"y" * 5
    return data, parse_features(data, Span(before, before + len(message)))


def framed(*records: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(record)) + b"ccccRECORDcccc".replace(b"RECORD", record) for record in records)


def test_parse_features_locates_one_of_several_images() -> None:
    for order in (("image", "label", "mask"), ("mask", "label", "image"), ("label", "mask", "image")):
        features = {"image": images(BIG), "label": packed(3), "mask": images(BIG[:300])}
        data, found = parsed(example(**{name: features[name] for name in order}))
        first, last = bytes_span(data, found["image"])
        assert data[first:last] == BIG
        assert data[slice(*bytes_span(data, found["mask"]))] == BIG[:300]
        assert int64_value(data, found["label"]) == 3


def test_bytes_span_of_equal_images_has_their_own_positions() -> None:
    data, found = parsed(example(mask=images(b"same"), image=images(b"same")))
    mask, image = (bytes_span(data, found[name]) for name in ("mask", "image"))
    assert mask.first == data.index(b"same")
    assert image.first == data.rindex(b"same")


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_bytes_field_head_precedes_the_value(length: int) -> None:
    data, found = parsed(example(image=images(bytes(length))))
    first, last = bytes_span(data, found["image"])
    assert last - first == length
    head = bytes_field_head(length)
    assert data[first - len(head) : first] == head


@pytest.mark.parametrize("label", [0, 1, 127, 128, 2**35, 2**63 - 1, -1, -(2**63)])
def test_int64_value_is_signed(label: int) -> None:
    data, found = parsed(example(label=packed(label)))
    assert int64_value(data, found["label"]) == label


def test_int64_value_may_be_unpacked() -> None:
    data, found = parsed(example(label=unpacked(300)))
    assert int64_value(data, found["label"]) == 300


def test_parse_features_skips_unknown_fields_of_every_type() -> None:
    others = (
        varint(8 * 9) + varint(2**40) + varint(8 * 9 + 1) + bytes(8) + varint(8 * 9 + 5) + bytes(4) + field(9, b"?")
    )
    name, feature = entry("image", images(BIG))
    message = others + field(1, others + field(1, others + feature + others + name) + others) + others
    data, found = parsed(message)
    assert list(found) == ["image"]
    assert data[slice(*bytes_span(data, found["image"]))] == BIG


def test_parse_features_of_an_empty_example_are_none() -> None:
    assert parsed(b"")[1] == {}
    assert parsed(example())[1] == {}


@pytest.mark.parametrize(
    ("feature", "read"),
    [
        (images(), bytes_span),
        (images(b"a", b"b"), bytes_span),
        (packed(1), bytes_span),
        (b"", bytes_span),
        (packed(), int64_value),
        (packed(1, 2), int64_value),
        (images(b"a"), int64_value),
    ],
)
def test_values_other_than_one_are_errors(feature: bytes, read) -> None:
    data, found = parsed(example(value=feature))
    with pytest.raises(ValueError):  # noqa: PT011  # callers report the file
        read(data, found["value"])


def test_parse_features_of_any_part_of_a_message_raises_or_ends() -> None:
    message = example(image=images(BIG[:40]), label=packed(-1))
    for last in range(1, len(message)):
        with pytest.raises(ValueError):  # noqa: PT011  # callers report the file
            parse_features(message, Span(0, last))


@pytest.mark.parametrize("message", [b"\xff" * 12, b"\x0b", b"\x0a\xff\xff\xff\xff\x0f"])
def test_parse_features_of_other_bytes_raises(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # callers report the file
        parse_features(message, Span(0, len(message)))


def test_record_spans_are_those_of_the_records() -> None:
    records = [b"first", b"", BIG]
    data = framed(*records)
    assert [data[slice(*span)] for span in record_spans(data)] == records
    assert list(record_spans(b"")) == []


def test_record_spans_of_a_truncated_file_raise() -> None:
    data = framed(b"first", b"second")
    for last in (*range(1, len(framed(b"first"))), *range(len(framed(b"first")) + 1, len(data))):
        with pytest.raises(ValueError, match="longer than the file"):
            list(record_spans(data[:last]))
