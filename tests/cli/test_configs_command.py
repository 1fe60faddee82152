"""`flaxtl configs`: the configs that come with flaxtl, and a copy to change."""

import re
from pathlib import Path

import pytest

from flaxtl.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def test_configs_lists_each_config_with_its_description(capsys):
    main.main(["configs"])
    printed = " ".join(capsys.readouterr().out.split())
    for file in CONFIGS.glob("*.py"):
        assert re.search(rf"\b{file.stem}\b", printed)
    assert "Your own images: a folder with one subfolder per class." in printed


def test_configs_copy_writes_the_file_and_never_overwrites(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.main(["configs", "--copy=folder"])
    copy = tmp_path / "folder.py"
    assert "--config=folder.py" in capsys.readouterr().out
    assert copy.read_bytes() == (CONFIGS / "folder.py").read_bytes()
    copy.write_text("mine")
    for name, fact in (("folder", "folder.py"), ("foldr", "'folder'")):
        with pytest.raises(SystemExit) as ended:
            main.main(["configs", f"--copy={name}"])
        assert ended.value.code == 2
        assert fact in capsys.readouterr().err
    assert copy.read_text() == "mine"
