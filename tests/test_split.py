"""`flaxtl split` on the command line: its table, and how it refuses."""

import re
from pathlib import Path

import pytest
from folders import paint

from flaxtl import cli
from flaxtl.data.listing_csv import of_csv


@pytest.fixture
def source(tmp_path: Path) -> str:
    paint(tmp_path / "set" / "ants", range(20))
    paint(tmp_path / "set" / "bees", range(100, 110))
    return f"folder:{tmp_path}/set"


@pytest.fixture
def split(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]):
    """Runs the command; gives its code, the rows of the table and what else was said."""

    def run(*options: str):
        try:
            cli.main(["split", f"--source={source}", f"--output={tmp_path}/out", *options])
            code = 0
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        rows = [re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines() if line.strip()]
        return code, rows, captured.err

    return run


def test_folders(split, tmp_path: Path) -> None:
    code, rows, said = split("--fractions=0.5,0.2,0.3", "--seed=3", "--link")
    assert code == 0
    assert rows[0] == ["Pictures"]
    assert rows[1] == ["class", "train", "validation", "test", "all"]
    assert rows[3:] == [
        ["ants", "10", "4", "6", "20"],
        ["bees", "5", "2", "3", "10"],
        ["all", "15", "6", "9", "30"],
        [f"written: {tmp_path}/out"],
    ]
    assert "60/60" in said
    assert len(of_csv(tmp_path / "out" / "manifest.csv").found) == 30


def test_named_splits_without_near_duplicates(split) -> None:
    code, rows, _ = split("--fractions=train=0.5,holdout=0.5", "--near-duplicates=-1")
    assert (code, rows[1]) == (0, ["class", "train", "holdout", "all"])


def test_folds(split, tmp_path: Path) -> None:
    code, rows, said = split("--kfold=3", "--fractions=0.5,0.5")
    assert code == 0
    assert rows[1] == ["class", "fold 1", "fold 2", "fold 3", "all"]
    assert rows[-2] == ["all", "10", "10", "10", "30"]
    assert "--fractions and --link are not used" in said
    assert len(of_csv(tmp_path / "out" / "fold-3.csv").found) == 30


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "nothing says how to split; give --fractions=0.5,0.2,0.3, or --kfold=5"),
        (["--fractions=0.5,0.4"], "sum to 0.9; make them sum to 1"),
        (["--fractions=0.5,0.5", "--seed=-1"], "seed of the split is -1"),
        (["--fractions=0.5,0.5", "--near-duplicates=99"], "near-duplicates cannot differ by 99 bits"),
        (["--kfold=1"], "1 fold(s) leave nothing"),
        (["--kfold=20"], "the class 'bees' is too small: its 10 picture(s) cannot fill 20 folds"),
        (["--fractions=0.5,0.5", "--config.seed=1"], "does not know '--config.seed=1'"),
    ],
)
def test_refusals(split, tmp_path: Path, options: list[str], sentence: str) -> None:
    code, rows, said = split(*options)
    assert (code, rows) == (2, [])
    assert sentence in said
    assert not (tmp_path / "out").exists()
