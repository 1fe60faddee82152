"""Locate the values of tf.train.Example messages in TFRecord files, without TensorFlow and without copies.

All positions are absolute, so that a value can be read from its file again. Sources: the frames of records are
documented in tensorflow/core/lib/io/record_writer.h, the messages in tensorflow/core/example/feature.proto, and their
encoding at protobuf.dev/programming-guides/encoding. All functions raise ValueError for bytes that are not of this
form. Checksums are not verified.
"""

from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

_BYTES_LIST, _INT64_LIST = 1, 3
"""Numbers of the fields of a Feature."""


class Span(NamedTuple):
    """Bytes `first` to `last` (exclusive)."""

    first: int
    last: int


def record_spans(data: bytes | mmap) -> Iterator[Span]:
    """Yield the records of a TFRecord file: length (8 bytes, little-endian), checksum (4), record, checksum (4)."""
    end = 0
    while end < len(data):
        first = end + 12
        last = first + int.from_bytes(data[end : end + 8], "little")
        end = last + 4
        if first > len(data) or end > len(data):
            raise ValueError("a record is longer than the file")
        yield Span(first, last)


def parse_features(data: bytes | mmap, example: Span) -> dict[str, Span]:
    """Return the Feature message of each feature of an Example, by name."""
    features = {}
    for features_message in _values(data, example, 1):
        for entry in _values(data, features_message, 1):
            *_, key = _values(data, entry, 1)
            *_, feature = _values(data, entry, 2)
            features[data[slice(*key)].decode()] = feature
    return features


def bytes_span(data: bytes | mmap, feature: Span) -> Span:
    """Return the only value of a Feature of bytes."""
    (values,) = _values(data, feature, _BYTES_LIST)
    (value,) = _values(data, values, 1)
    return value


def int64_value(data: bytes | mmap, feature: Span) -> int:
    """Return the only value of a Feature of int64, packed or not."""
    (values,) = _values(data, feature, _INT64_LIST)
    (value,) = _values(data, values, 1)
    number, end = _varint(data, value)
    if end != value.last:
        raise ValueError("not one number")
    return number - 2**64 if number >= 2**63 else number


def bytes_field_head(length: int) -> bytes:
    """Return what precedes a value of `length` bytes in a BytesList: tag of field 1, and the length as a varint."""
    head = bytearray([1 << 3 | 2])
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length])


def _values(data: bytes | mmap, message: Span, field: int) -> Iterator[Span]:
    """Yield the values of one field of a message: contents of submessages, strings and bytes, or encoded numbers."""
    first, last = message
    while first < last:
        tag, first = _varint(data, Span(first, last))
        match tag & 7:  # wire type
            case 0:
                end = _varint(data, Span(first, last))[1]
            case 1:
                end = first + 8
            case 2:
                length, first = _varint(data, Span(first, last))
                end = first + length
            case 5:
                end = first + 4
            case other:
                raise ValueError(f"wire type {other}")
        if end > last:
            raise ValueError("a value is longer than its message")
        if tag >> 3 == field:
            yield Span(first, end)
        first = end


def _varint(data: bytes | mmap, span: Span) -> tuple[int, int]:
    """Return the number that begins a span, 7 bits a byte from the lowest on, and the position after it."""
    number = 0
    for shift, position in enumerate(range(span.first, min(span.last, span.first + 10))):
        number |= (data[position] & 127) << 7 * shift
        if data[position] < 128:
            return number, position + 1
    raise ValueError("a number does not end")
