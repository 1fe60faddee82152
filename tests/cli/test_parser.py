"""Options of the command line as Python values."""

import argparse

import pytest

from flaxtl.cli.parser import make_parser, parse_arguments
from flaxtl.config import load_config


def path_options():
    """Yield (command, option) for every option that takes a file or folder."""
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if action.metavar and ("FILE" in action.metavar or "DIR" in action.metavar):
                yield command, action.option_strings[0]


REQUIRED = {
    "train": ["--config=demo", "--workdir=w"],
    "lr-find": ["--config=demo", "--workdir=w"],
    "sweep": ["--config=demo", "--workdir=w"],
    "evaluate": ["--workdir=w"],
    "predict": ["--input", "i"],
    "report": ["--workdir=w"],
    "summary": [],
    "split": ["--source=synthetic", "--output=o"],
    "doctor": ["--data=synthetic"],
    "convert": ["--model=m", "--weights=w", "--output=o"],
    "export": ["--workdir=w", "--format=onnx"],
}


def test_path_options_are_found():
    assert len(set(path_options())) > 20


@pytest.mark.parametrize(("command", "option"), path_options())
def test_path_option_expands_the_home_folder(command, option, monkeypatch, tmp_path):
    """Shells expand `~` at the start of a word only, not behind the `=` of an option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    others = REQUIRED[command]
    if command == "predict" and option not in ("--workdir", "--model"):
        others = ["--workdir=w", *others]
    options = parse_arguments([command, *others, f"{option}=~/x.py"])
    value = getattr(options, option.removeprefix("--").replace("-", "_"))
    if option == "--config":  # a name or a file
        (tmp_path / "x.py").write_text(
            "from ml_collections import ConfigDict as C\ndef get_config(): return C(dict(seed=3, frozen=dict(lr={})))\n"
        )
        assert load_config(value).seed == 3
    elif option == "--weights":  # a word, a repository or a file
        assert value == "~/x.py"
    else:
        assert (value[-1] if isinstance(value, list) else value) == tmp_path / "x.py"
