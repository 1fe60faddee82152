"""`flaxtl split`: its table and its errors."""

import re
from pathlib import Path

import pytest
from helpers.image_folders import paint

from flaxtl.cli import main
from flaxtl.data.sources.csv_file import scan_csv


@pytest.fixture
def source(tmp_path: Path) -> str:
    paint(tmp_path / "set" / "ants", range(20))
    paint(tmp_path / "set" / "bees", range(100, 110))
    return f"folder:{tmp_path}/set"


@pytest.fixture
def split(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command and gives its exit code, the rows of its table, and stderr."""

    def run(*options: str):
        try:
            main.main(["split", f"--source={source}", f"--output={tmp_path}/out", *options])
            code = 0
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        rows = [re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines() if line.strip()]
        return code, rows, captured.err

    return run


def test_split_with_fractions_writes_folders(split, tmp_path: Path) -> None:
    code, rows, err = split("--fractions=0.5,0.2,0.3", "--seed=3", "--link")
    assert code == 0
    assert len(rows[0]) == 1  # the title
    assert rows[1][1:4] == ["train", "validation", "test"]
    assert rows[3:5] == [["ants", "10", "4", "6", "20"], ["bees", "5", "2", "3", "10"]]
    assert rows[5][1:] == ["15", "6", "9", "30"]
    ((written,),) = rows[6:]
    assert written.endswith(f"{tmp_path}/out")
    assert re.search(r"^Splitting images: 30 in \d", err, re.MULTILINE)
    assert len(scan_csv(tmp_path / "out" / "manifest.csv").images) == 30


def test_split_with_named_splits_without_near_duplicates(split) -> None:
    code, rows, _ = split("--fractions=train=0.5,holdout=0.5", "--near-duplicates=-1")
    assert (code, len(rows[1]), rows[1][1:3]) == (0, 4, ["train", "holdout"])


def test_split_with_kfold_writes_lists(split, tmp_path: Path) -> None:
    code, rows, err = split("--kfold=3", "--fractions=0.5,0.5")
    assert code == 0
    assert rows[1][1:4] == ["fold 1", "fold 2", "fold 3"]
    assert rows[-2][1:] == ["10", "10", "10", "30"]
    assert all(flag in err for flag in ("--kfold", "--fractions", "--link"))
    assert len(scan_csv(tmp_path / "out" / "fold-3.csv").images) == 30


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ([], r"--fractions=0\.5,0\.2,0\.3\b.*--kfold=5\b"),
        (["--fractions=0.5,0.4"], r"\b0\.9\b"),
        (["--fractions=0.5,0.5", "--seed=-1"], r"seed\b.*-1\b"),
        (["--fractions=0.5,0.5", "--near-duplicates=99"], r"(?i)near-duplicate.*\b99\b"),
        (["--kfold=1"], r"\b1\b.*\bfold.*\b2\b"),
        (["--kfold=20"], r"'bees'.*\b10\b.*\b20\b"),
        (["--fractions=0.5,0.5", "--config.seed=1"], r"'--config\.seed=1'"),
    ],
)
def test_split_with_invalid_input_writes_nothing(split, tmp_path: Path, options: list[str], facts: str) -> None:
    code, rows, err = split(*options)
    assert (code, rows) == (2, [])
    assert re.search(facts, err)
    assert not (tmp_path / "out").exists()
