"""What a user is told about each of the data sets of tools/awkward_inputs.py."""

import unicodedata

import pytest
from awkward_inputs import INPUTS, UMLAUTS, main

from flaxtl.cli.main import main as flaxtl

CLEAN, ERROR = 0, 1
NFD = unicodedata.normalize("NFD", UMLAUTS)
FORMS = f"separate classes: '{NFD}' (NFD) / '{UMLAUTS}' (NFC)"
EXPECTED = {
    "odd_suffixes": (CLEAN, ("17 images", "rose 11", "new.jxl: a JPEG XL", "notes.txt")),
    "png_metadata": (CLEAN, ("12 images",)),
    "jpeg_12_bits": (ERROR, ("12bit.jpg", "cannot handle 12-bit layers", "--config.data.on_error=skip")),
    "deep_gray": (CLEAN, ("up to 1020 use 10 of 16 bits", "--config.data.bit_depth=10")),
    "deep_colors": (CLEAN, ("stored as RGB;16", "up to 4095 use 12 of 16 bits", "--config.data.bit_depth=12")),
    "infrared_band": (CLEAN, ("Converted pixels 12", "stored as RGBA, read as RGB")),
    "float_tiff": (ERROR, ("float.tif", "float values have no fixed range")),
    "zero_alpha": (CLEAN, ("Converted pixels 12",)),
    "linked_folders": (CLEAN, ("12 images", "rose 6")),
    "csv_semicolons": (CLEAN, ("read as Windows-1252", "gänseblümchen 6")),
    "csv_unicode_text": (CLEAN, ("12 images", "gänseblümchen 6")),
    "csv_columns": (CLEAN, ("ignored the columns id", "12 images")),
    "look_alike_classes": (CLEAN, ("separate classes: 'Rose' / 'rose '", FORMS)),
    "unicode_forms_of_splits": (ERROR, (f"lack the class(es) {NFD}", FORMS)),
    "rare_class": (CLEAN, ("test images", "none of the class(es) rose")),
    "column_names": (CLEAN, ("label 6", "path 6")),
    "backslash_zip": (CLEAN, ("12 images", "daisy 6")),
}
"""Name -> exit code of flaxtl doctor, and what it prints."""


@pytest.mark.parametrize("name", EXPECTED)
def test_doctor_of_awkward_input_says_what_matters(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "400")
    code, facts = CLEAN, EXPECTED[name][1]
    try:
        flaxtl(["doctor", f"--data={INPUTS[name](tmp_path / 'set')}"])
    except SystemExit as end:
        code = end.code
    shown = " ".join(capsys.readouterr().out.split())
    assert (code, [fact for fact in facts if fact not in shown]) == (EXPECTED[name][0], [])


def test_awkward_inputs_are_all_expected_and_described(tmp_path, capsys):
    assert list(EXPECTED) == list(INPUTS)
    main([str(tmp_path / "all")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(INPUTS) + 1
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(INPUTS)
