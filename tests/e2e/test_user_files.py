"""Commands keep the user's own files, wherever they are."""

import re

import pytest
from helpers import tiny_run
from helpers.tiny_run import images

from flaxtl.cli.main import main


@pytest.fixture
def train(tmp_path, capsys):
    """Return a function that trains on a folder in a run directory, and returns the exit code and the errors."""
    settings = {"data": tiny_run.DATA | {"pipeline": "stream"}, "weights": {"path": "builtin"}}
    tiny_run.write_config(tmp_path, **settings, phases=("frozen",), frozen={"epochs": 1})

    def run(source, workdir):
        return run_command(
            capsys,
            "train",
            f"--config={tmp_path / 'config.py'}",
            f"--config.data.source={source}",
            f"--workdir={workdir}",
        )

    return run


def run_command(capsys, *arguments):
    code = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().err


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["images", "features"])
def test_train_in_the_folder_around_the_images_keeps_them(train, tmp_path, name):
    """Files of a run are also in WORKDIR/images/0 and WORKDIR/features."""
    source = images(tmp_path / name)
    (source / "red").rename(source / "0")
    before = content(source)
    assert train(f"folder:{source}", tmp_path) == (0, "")
    assert content(source) == before


@pytest.mark.parametrize("name", ["manifest.csv", "predictions.csv", "summary.json", "report/index.html"])
def test_train_in_a_folder_with_files_of_those_names_is_refused(train, tmp_path, name):
    source, workdir = images(tmp_path / "images"), tmp_path / "project"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).write_text("{}")
    code, error = train(f"folder:{source}", workdir)
    assert code == 2
    assert re.search(rf"{re.escape(str(workdir))}\b.*\b{name}\b.*--workdir", error)
    assert content(workdir) == {workdir / name: b"{}"}


def test_train_inside_the_folder_of_the_images_is_refused(train, tmp_path):
    source = images(tmp_path / "images")
    before = content(source)
    (tmp_path / "link").symlink_to(source)
    for workdir in (source / "run", tmp_path / "link" / "runs" / "first"):
        code, error = train(f"folder:{source}", workdir)
        assert code == 2
        assert f"--workdir={workdir} is inside the data source {source}" in error
    assert content(source) == before


@pytest.mark.parametrize("option", ["csv", "json", "npz"])
def test_predict_into_an_image_or_a_file_of_the_run_is_refused(tmp_path, capsys, option):
    source, workdir = images(tmp_path / "images"), tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "predictions.csv"):
        (workdir / name).write_text("kept")
    before = content(tmp_path)
    command = ["predict", f"--workdir={workdir}", f"--input={source}", *(["--tap=pool"] if option == "npz" else [])]
    outputs = {source / "red" / "0.png": "one of the images"}
    outputs |= {workdir / name: "a file of the run" for name in ("config.json", "predictions.csv")}
    for file, what in outputs.items():
        code, error = run_command(capsys, *command, f"--{option}={file}")
        assert code == 2
        assert re.search(rf"--{option}={re.escape(str(file))} is .*{what}", error)
    assert content(tmp_path) == before


def test_predict_of_two_outputs_into_one_file_is_refused(tmp_path, capsys):
    file = tmp_path / "new"
    code, error = run_command(
        capsys, "predict", "--model=vgg16", f"--input={images(tmp_path / 'images')}", f"--csv={file}", f"--json={file}"
    )
    assert (code, error) == (2, f"flaxtl: --json={file} is the file of --csv, too. Choose another file.\n")


def test_convert_into_its_input_is_refused(tmp_path, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "same.safetensors").symlink_to(tmp_path / "w.safetensors")
    files = f"--weights={tmp_path / 'w.safetensors'}", f"--output={tmp_path / 'same.safetensors'}"
    code, error = run_command(capsys, "convert", "--model=vgg16", *files)
    assert code == 2
    assert f"{tmp_path / 'same.safetensors'} is the file that is read" in error
    assert (tmp_path / "w.safetensors").read_bytes() == b"weights"


def test_doctor_finds_nothing_wrong_with_what_split_has_written(tmp_path, capsys):
    source = images(tmp_path / "images")
    main(["split", f"--source={source}", "--fractions=0.5,0.5", f"--output={tmp_path / 'out'}"])
    capsys.readouterr()
    main(["doctor", f"--data={tmp_path / 'out'}"])
    assert "manifest.csv" not in capsys.readouterr().out
