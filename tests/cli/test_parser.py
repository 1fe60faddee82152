"""Options of the command line as Python values."""

import argparse
import re
import shlex

import pytest

from flaxtl.cli.parser import make_parser, parse_arguments
from flaxtl.config import load_config
from flaxtl.errors import UserError
from flaxtl.pretrained.download import find_file


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


def other_arguments(command, option):
    """Return the required arguments of a command beside an option."""
    needs_run = command == "predict" and option not in ("--workdir", "--model")
    return ["--workdir=w", *REQUIRED[command]] if needs_run else REQUIRED[command]


def test_path_options_are_found():
    assert len(set(path_options())) > 20


@pytest.mark.parametrize(("command", "option"), path_options())
def test_path_option_expands_the_home_folder(command, option, monkeypatch, tmp_path):
    """Shells expand `~` at the start of a word only, not behind the `=` of an option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse_arguments([command, *other_arguments(command, option), f"{option}=~/x.py"])
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


@pytest.mark.parametrize(("command", "option"), path_options())
def test_path_option_that_is_too_long_raises(command, option):
    def use():
        options = parse_arguments([command, *other_arguments(command, option), f"{option}={'a' * 256}"])
        return load_config(options.config) if option == "--config" else find_file(options.weights, print)

    with pytest.raises(UserError, match=r"^Cannot use 'a{256}': .* too long|^Config 'a{256}' not found"):
        use()


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        (
            "train photos --epochs=5",
            "--config.frozen.epochs=5, --config.augmented.epochs=5 or --config.finetune.epochs=5",
        ),
        ("train photos --epochs 5 --config.phases=frozen", "--config.frozen.epochs=5"),
        ("train photos --epoch=5 --config.phases=frozen", "--config.frozen.epochs=5"),
        ("train photos --lr --config.phases=frozen", "--config.frozen.lr.head=VALUE"),
        ("train photos --learning-rate=1e-3 --config.phases=frozen", "--config.frozen.lr.head=1e-3"),
        ("train photos --batch-size 8", "--config.batch_size=8"),
        ("train --height=224 photos", "--config.data.height=224"),
        ("train photos --model=resnet50", "--config.model.name=resnet50"),
        ("sweep --config=demo --workdir=w --data=folder:photos", "--config.data.source=folder:photos"),
        ("train photos --weight-decay=0.1", "--config.optimizer.weight_decay=0.1"),
        ("train photos --data.widht=64", "--config.data.width=64"),
        ("train photos --dropout=0.5 --config=nowhere", "--config.head.dropout=0.5"),
        ("sweep --config demo --workdir=w --seed=1", "--config.seed=1"),
        ("train --config=demo --source='my photos'", "'--config.data.source=my photos'"),
        ("train photos --proces=3", "'--process'"),
        ("evaluate --workdri=3", "'--workdir'"),
    ],
)
def test_unknown_option_suggests_the_setting_or_option_of_that_name(line, suggestion):
    with pytest.raises(UserError) as error:
        parse_arguments(shlex.split(line))
    assert str(error.value).endswith(f" Did you mean {suggestion}?")


def test_unknown_option_without_a_similar_setting_lists_the_options():
    with pytest.raises(UserError, match=r"'--pretrained'\. Available: --data, --config"):
        parse_arguments(["train", "photos", "--pretrained"])


def test_parse_arguments_folder_for_a_sweep_names_the_setting(tmp_path):
    (tmp_path / "my photos").mkdir()
    for folder, setting in (
        (tmp_path, f"--config.data.source=folder:{tmp_path}"),
        (tmp_path / "my photos", f"'--config.data.source=folder:{tmp_path}/my photos'"),
    ):
        with pytest.raises(UserError, match=rf"^flaxtl sweep takes images as {re.escape(setting)}$"):
            parse_arguments(["sweep", "--config=folder", "--workdir=w", str(folder)])


def test_parse_arguments_setting_without_equals_sign_is_quoted():
    with pytest.raises(UserError, match=r"needs an equals sign: '--config\.data\.source=folder:my photos'$"):
        parse_arguments(["sweep", "--config=demo", "--workdir=w", "--config.data.source", "folder:my photos"])


def test_parse_arguments_setting_with_spaces_is_an_override():
    setting = "--config.data.source=folder:/my photos/a\nb"
    options = parse_arguments(["train", "--workdir=x", setting])
    assert (options.overrides, options.data) == ([setting], None)
