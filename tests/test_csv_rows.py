"""Rows that read back as they were."""

import csv
import io

import pytest

from flaxtl import fileio


@pytest.mark.parametrize(
    "name", ["a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", " a ", "=cmd|' /C'!A0", "'", "\udcff", "\0", ""]
)
def test_every_name_comes_back(name):
    stream = io.StringIO(newline="")
    fileio.write_csv(stream, [("path", "label"), (name, "x"), ("y", name)])
    assert list(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [["path", "label"], [name, "x"], ["y", name]]


def test_plain_rows_are_not_quoted():
    stream = io.StringIO(newline="")
    fileio.write_csv(stream, [("a", 1), ("b c", 0.5)])
    assert stream.getvalue() == "a,1\nb c,0.5\n"
