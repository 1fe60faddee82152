"""`flaxtl train photos/`: which images, which run directory."""

import json
from datetime import date
from types import SimpleNamespace

import pytest

from flaxtl.cli import run_choice
from flaxtl.cli.parser import parse_arguments
from flaxtl.cli.run_choice import choose_workdir, load_train_config
from flaxtl.config import config_to_json
from flaxtl.data.sources.base import with_scheme
from flaxtl.errors import UserError
from flaxtl.train.run_records import with_version

TODAY = "2026-02-03"


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_choice, "date", SimpleNamespace(today=lambda: date.fromisoformat(TODAY)))
    (tmp_path / "my photos").mkdir()
    for name in ("a.zip", "b.csv"):
        (tmp_path / name).touch()
    return tmp_path


def config_of(*arguments):
    return load_train_config(parse_arguments(["train", *arguments]))


def write_run(folder, config, *, complete):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(with_version(config_to_json(config))))
    (folder / "summary.json").write_text(json.dumps(with_version({"complete": complete})))
    (folder / "predictions.csv").touch()
    (folder / "checkpoints" / "phases" / "0").mkdir(parents=True)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("my photos", "folder:my photos"),
        ("a.zip", "archive:a.zip"),
        ("b.csv", "csv:b.csv"),
        ("csv:b.csv", "csv:b.csv"),
        ("synthetic", "synthetic"),
        ("nowhere", "nowhere"),
        ("", ""),
    ],
)
def test_with_scheme_of_a_path_that_exists_adds_its_scheme(path, source):
    assert with_scheme(path) == source


@pytest.mark.parametrize("arguments", [["my photos/"], ["--data=my photos/"], ["--config.seed=3", "my photos/"]])
def test_load_train_config_uses_config_folder(arguments):
    config = config_of(*arguments)
    assert config.data.source == "folder:my photos/"
    assert config.phases == ("frozen", "augmented", "finetune")


@pytest.mark.parametrize("arguments", [[""], ["--data="]])
def test_load_train_config_refuses_an_empty_path(arguments):
    with pytest.raises(UserError, match=r"^A path is empty\."):
        config_of(*arguments)


def test_choose_workdir_takes_the_name_and_the_date():
    assert choose_workdir(config_of("my photos/"), None)[0].as_posix() == f"runs/my-photos-{TODAY}"
    assert choose_workdir(config_of("--config=demo"), "demo")[0].as_posix() == f"runs/demo-{TODAY}"


def test_choose_workdir_shortens_a_long_name(working_directory):
    (working_directory / ("ß" * 127)).mkdir()
    workdir, _ = choose_workdir(config_of("ß" * 127), None)
    assert workdir.as_posix() == f"runs/{'ß' * 60}-{TODAY}"
    workdir, _ = choose_workdir(config_of("--config=demo"), f"{'a' * 59}-{'b' * 180}.py")
    assert workdir.as_posix() == f"runs/{'a' * 59}-{TODAY}"


def test_choose_workdir_resumes_a_run_of_the_same_model_by_another_name(working_directory):
    earlier = working_directory / "runs/my-photos-2001-01-01"
    write_run(earlier, config_of("my photos", "--config.model.name=mobilenet_v2_100"), complete=False)
    assert choose_workdir(config_of("my photos", "--config.model.name=MobileNetV2"), None)[0].name == earlier.name


def test_choose_workdir_resumes_only_an_unfinished_run_of_the_same_config(working_directory):
    config, other = config_of("my photos"), config_of("my photos", "--config.seed=1")
    earlier = working_directory / "runs/my-photos-2001-01-01"
    write_run(earlier, config, complete=False)
    assert choose_workdir(config, None)[0].name == earlier.name
    assert choose_workdir(other, None)[0].name == f"my-photos-{TODAY}"
    newer = working_directory / f"runs/my-photos-{TODAY}"
    write_run(newer, other, complete=True)
    assert choose_workdir(other, None)[0].name == newer.name  # its report is missing
    (newer / "report").mkdir()
    (newer / "report" / "index.html").touch()
    workdir, reason = choose_workdir(other, None)
    assert workdir.name == f"my-photos-{TODAY}-2"
    assert f"my-photos-{TODAY} exists and is kept" in reason


def test_choose_workdir_passes_over_a_link_to_nowhere(working_directory):
    (working_directory / "runs").mkdir()
    for day in ("2001-01-01", TODAY):
        (working_directory / f"runs/my-photos-{day}").symlink_to("/nowhere")
    workdir, reason = choose_workdir(config_of("my photos"), None)
    assert workdir.name == f"my-photos-{TODAY}-2"
    assert f"my-photos-{TODAY} exists and is kept" in reason
