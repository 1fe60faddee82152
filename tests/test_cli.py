"""The command line, as far as nothing is trained: what it prints, and how it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxtl import __version__, cache, cli
from flaxtl.errors import UserError
from flaxtl.models import catalog
from flaxtl.weights import safetensors_file

ROOT = Path(__file__).parents[1]
DEMO = str(ROOT / "configs/demo.py")
BUILTIN = ROOT / "flaxtl/weights/builtin/vgg16_notop.safetensors"


@pytest.fixture
def flaxtl(capsys):
    """Runs a command; gives what it printed."""

    def run(*arguments):
        cli.main(list(arguments))
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.fixture
def refuses(capsys):
    """Runs a command that must end with code 2, nothing on stdout and no traceback; gives its lines on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err.splitlines()

    return run


def cells(table):
    """The rows of a printed table, without white space around the cells."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]


def test_a_process_of_its_own():
    code = "from flaxtl.cli import main; main()"
    for arguments, status, out, error in (
        (["--version"], 0, f"flaxtl {__version__}\n", ""),
        (["summary", "--model=vgg61"], 2, "", "flaxtl: no network 'vgg61'; did you mean 'vgg19'?\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, out, error)


def test_models(flaxtl):
    rows = cells(flaxtl("models"))
    assert rows[0] == ["Networks"]
    assert ["vgg16", "138,357,544", "14,714,688", "224 (min 32)", "71.3", "90.0", "caffe", "base (built in)"] in rows
    assert ["vgg19", "143,667,240", "20,024,384", "224 (min 32)", "71.3", "90.0", "caffe"] in rows
    assert {row[0] for row in rows} >= catalog.ARCHITECTURES.keys()


def test_models_tells_what_is_at_hand(flaxtl):
    """A file of that name is enough: nothing is read."""
    keras, own = Path(os.environ["KERAS_HOME"]) / "models", cache.directory("weights")
    vgg16, vgg19, resnet50 = map(catalog.find, ("vgg16", "vgg19", "resnet50"))
    for file in (keras / vgg16.file_with_top.name, own / vgg19.file_base.name):
        file.parent.mkdir(parents=True)
        file.touch()
    told = {row[0]: row[-1] for row in cells(flaxtl("models"))}
    assert told["vgg16"] == "whole (Keras' cache)"
    assert told["vgg19"] == "base (flaxtl's cache)"
    at_hand = {row["name"]: row["at_hand"] for row in json.loads(flaxtl("models", "--json"))}
    assert at_hand[vgg16.name] == {"top": "Keras' cache", "base": "Keras' cache"}
    assert at_hand[vgg19.name] == {"top": None, "base": "flaxtl's cache"}
    assert at_hand[resnet50.name] == {"top": None, "base": None}


def test_models_as_json(flaxtl):
    rows = {row["name"]: row for row in json.loads(flaxtl("models", "--json"))}
    assert list(rows) == list(catalog.ARCHITECTURES)
    assert rows["vgg16"] == {
        "name": "vgg16",
        "parameters_with_top": 138_357_544,
        "parameters_base": 14_714_688,
        "size": 224,
        "minimum_size": 32,
        "preprocessing": "caffe",
        "top1": 71.268,
        "top5": 90.05,
        "licence": "CC BY 4.0 (K. Simonyan, A. Zisserman)",
        "paper": "arXiv:1409.1556",
        "weights": rows["vgg16"]["weights"],
        "at_hand": {"top": None, "base": "built in"},
    }
    assert rows["vgg16"]["weights"]["base"]["hash"] == "6d6bbae143d832006294945121d1f1fc"


def test_summary_of_a_published_network(flaxtl):
    """Layers, shapes and counts as Keras' model.summary() has them."""
    rows = cells(flaxtl("summary", "--model=vgg16"))
    assert rows[0] == ["vgg16 at 224x224"]
    assert ["block1_conv1", "conv", "224x224x64", "1,792"] in rows
    assert ["block5_pool", "max pool", "7x7x512", "0"] in rows
    assert ["fc1", "dense", "4096", "102,764,544"] in rows
    assert ["predictions", "dense", "1000", "4,097,000"] in rows
    assert rows[-1] == ["Total: 138,357,544 parameters; 14,714,688 without the top"]


@pytest.mark.parametrize(
    ("name", "layer", "total"),
    [
        (
            "mobilenet_0.25",
            ["conv1_bn", "batch norm", "112x112x8", "32"],
            "Total: 475,544 parameters (5,472 of them statistics of batch norms); 218,544 without the top",
        ),
        (
            "EfficientNet-B0",
            ["stem_bn", "batch norm", "112x112x32", "128"],
            "Total: 5,330,571 parameters (42,016 of them statistics of batch norms, 7 of a layer that is preprocessing "
            "here); 4,049,571 without the top",
        ),
    ],
)
def test_summary_counts_as_keras_does(flaxtl, name, layer, total):
    """Keras' model.summary(): total parameters, and the non-trainable ones (42,023 = 42,016 + 7 of EfficientNetB0)."""
    rows = cells(flaxtl("summary", f"--model={name}"))
    assert rows[0] == [f"{catalog.find(name).name} at 224x224"]
    assert layer in rows
    assert rows[-1] == [total]


def test_summary_of_a_recipe(flaxtl):
    printed = flaxtl("summary", "--config", DEMO)
    rows = cells(printed)
    assert rows[0] == ["vgg16 at 96x96 under a new head of 5 classes"]
    assert ["block4_conv3", "conv", "12x12x512", "2,359,808", "base"] in rows
    assert ["block5_conv3", "conv", "6x6x512", "2,359,808", "block5", "finetune"] in rows
    assert ["predictions", "dense", "5", "645", "head", "frozen, augmented, finetune"] in rows
    for total in (
        "Base: 14,714,688 parameters; head: 66,309",
        "Group base: 7,635,264",
        "Group block5: 7,079,424",
        "Group head: 66,309",
        "Learning in phase frozen: 66,309 of 14,780,997",
        "Learning in phase finetune: 7,145,733 of 14,780,997",
    ):
        assert total in printed.splitlines()


def test_summary_follows_overrides(flaxtl):
    printed = flaxtl(
        "summary", f"--config={DEMO}", "--config.head.units=(8, 4)", "--config.phases=('frozen',)", "--config.seed=3"
    )
    assert ["dense_2", "dense", "4", "36", "head", "frozen"] in cells(printed)
    assert "finetune" not in printed


def test_convert_writes_what_it_read(flaxtl, tmp_path):
    output = tmp_path / "new folder" / "vgg16.safetensors"
    printed = flaxtl("convert", "--model=vgg16", f"--weights={BUILTIN}", f"--output={output}")
    assert "14,714,688 parameters" in printed
    assert ["block5_conv3", "kernel", "3x3x512x512", "block5_conv3/kernel", "int8"] in cells(printed)
    written, metadata = safetensors_file.read(output)
    source, _ = safetensors_file.read(BUILTIN)
    assert metadata["architecture"] == "vgg16"
    assert metadata["source"] == BUILTIN.name
    assert written.keys() == source.keys()
    for layer, leaves in source.items():
        for leaf, found in leaves.items():
            np.testing.assert_array_equal(written[layer][leaf].values, found.values, err_msg=f"{layer}/{leaf}")


def convert(weights, output="unwritten.safetensors", model="vgg16"):
    return ["convert", f"--model={model}", f"--weights={weights}", f"--output={output}"]


def test_convert_refuses_what_is_no_weight_file(refuses, tmp_path):
    page = tmp_path / "page.h5"
    page.write_text("<!DOCTYPE html><html></html>")
    for weights, sentence in (
        (tmp_path / "none.h5", f"flaxtl: no weight file {tmp_path / 'none.h5'}; check the path"),
        (tmp_path, f"flaxtl: {tmp_path} is a directory; give the weight file in it"),
        (page, f"flaxtl: {page} is a web page (the download link led to a page, not to the file), not a weight file;"),
    ):
        (line,) = refuses(*convert(weights))
        assert line.startswith(sentence)
    assert not Path("unwritten.safetensors").exists()


def test_convert_refuses_another_networks_weights_and_lists_what_is_missing(refuses, tmp_path):
    sentence, *listed = refuses(*convert(BUILTIN, tmp_path / "out", model="vgg19"))
    assert sentence.startswith(f"flaxtl: {BUILTIN} does not fit the network")
    missing = [f"block{block}_conv4/{leaf}" for block in (3, 4, 5) for leaf in ("kernel", "bias")]
    assert [line.split()[:2] for line in listed] == [["-", name] for name in missing]
    assert list(tmp_path.iterdir()) == []


def test_convert_says_where_it_cannot_write(refuses, tmp_path):
    (line,) = refuses(*convert(BUILTIN, tmp_path))
    assert line == f"flaxtl: cannot write {tmp_path} (Is a directory); choose another --output"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models", "--jsn"], "the command does not know '--jsn'; see flaxtl --help, or COMMAND --help"),
        (["models", "vgg16"], "the command does not know 'vgg16'; see flaxtl --help, or COMMAND --help"),
        (["models", "--config.seed=1"], "the command does not know '--config.seed=1'; see flaxtl --help, or COMMAND"),
        (["summary", "--model=vgg"], "no network 'vgg'; did you mean 'vgg19'?"),
        (["summary", "--model=vgg16", "--config.seed=1"], "no option '--config.seed=1'; did you mean '--config'?"),
        (["summary", "--config=no.py"], "there is no recipe 'no.py'; give a config file, such as --config=configs/"),
        (["summary", f"--config={DEMO}", "--config.sed=1"], "no setting 'sed'; did you mean 'seed'?"),
        (
            ["summary", f"--config={DEMO}", "--config.seed=x"],
            "an override does not fit the recipe: flag --config.seed=",
        ),
        (
            ["summary", f"--config={DEMO}", "--config.model.stop=block5"],
            "no layer 'block5'; did you mean 'block5_pool'?",
        ),
        (
            ["summary", f"--config={DEMO}", "--config.phases=late"],
            "phases names 'late', but the recipe has no settings",
        ),
        (["convert", "--model=vgg61", "--weights=x", "--output=y"], "no network 'vgg61'; did you mean 'vgg19'?"),
        (["predict", "--workdir=x", "--input=y", "--tap=fc1"], "--tap=LAYER and --npz=FILE go together"),
        (["predict", "--workdir=x", "--input=y", "--npz=z"], "--tap=LAYER and --npz=FILE go together"),
        (
            ["predict", "--workdir=x", "--input=y", "--weights=z"],
            "--weights=FILE goes with --model=NAME; a run has its",
        ),
        (
            ["predict", "--model=vgg16", "--input=y", "--calibrated"],
            "--calibrated goes with --workdir=DIR; a published",
        ),
        (["predict", "--model=vgg61", f"--input={DEMO}"], "no network 'vgg61'; did you mean 'vgg19'?"),
        (["predict", "--model=vgg16", f"--input={DEMO}", "--weights=random"], "random weights know no classes; leave"),
        (["predict", "--model=vgg16", f"--input={DEMO}", "--weights=x.h5"], "no weight file 'x.h5'; give the path of"),
        (["predict", "--model=vgg16", f"--input={DEMO}", "--weights=builtin"], "no weights for vgg16_weights_tf_dim_"),
        (["predict", "--workdir=x", "--input=y", "--top=0"], "--top=0 shows nothing; give 1 or more"),
        (["evaluate", "--workdir=nowhere"], "nowhere is no run directory (it has no config.json); give the --workdir"),
        (["report", "--workdir=nowhere"], "nowhere is no run directory (it has no config.json); give the --workdir of"),
    ],
)
def test_a_mistake_is_told_in_one_line(refuses, arguments, sentence):
    (line,) = refuses(*arguments)
    assert line.startswith(f"flaxtl: {sentence}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "flaxtl: the following arguments are required: COMMAND"),
        (["modls"], "flaxtl: argument COMMAND: invalid choice: 'modls'"),
        (["summary"], "flaxtl: one of the arguments --model --config is required"),
        (["summary", "--model=a", "--config=b"], "flaxtl: argument --config: not allowed with argument"),
        (
            ["convert", "--model=vgg16"],
            "flaxtl: the following arguments are required: --weights, --output",
        ),
        (
            ["evaluate", "--workdir=x", "--split=tset"],
            "flaxtl: argument --split: invalid choice: 'tset'",
        ),
        (["train", f"--config={DEMO}"], "flaxtl: the following arguments are required: --workdir"),
        (["predict", "--input=x"], "flaxtl: one of the arguments --workdir --model is required"),
        (["predict", "--workdir=x", "--model=y", "--input=z"], "flaxtl: argument --model: not allowed with argument"),
    ],
)
def test_a_malformed_command_is_told_in_one_sentence(refuses, arguments, sentence):
    (line,) = refuses(*arguments)
    assert line.startswith(sentence)


def test_debug_shows_the_traceback_before_the_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["summary", "--model=vgg61", "--debug"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "flaxtl.errors.UserError: no network 'vgg61'; did you mean 'vgg19'?"
    assert lines[-1] == "flaxtl: no network 'vgg61'; did you mean 'vgg19'?"


def test_a_sentence_is_neither_wrapped_nor_taken_for_markup(refuses, monkeypatch):
    sentence = "a [red]long[/red] sentence " * 20

    def fail(options):
        raise UserError(sentence)

    monkeypatch.setattr(cli, "models", fail)
    assert refuses("models") == [f"flaxtl: {sentence}"]


def test_an_error_of_ours_is_no_users_mistake(capsys, monkeypatch):
    monkeypatch.setattr(cli, "models", lambda options: {}["missing"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["models"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "flaxtl: a fault in flaxtl itself (KeyError: 'missing'); --debug shows where\n"
    with pytest.raises(SystemExit):
        cli.main(["models", "--debug"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/x"), "cannot read or write /x (Permission denied)"),
        (MemoryError(), "too little memory; lower batch"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the device has too little memory; lower batch"),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_sentence(capsys, monkeypatch, error, sentence):
    def fail(options):
        raise error

    monkeypatch.setattr(cli, "models", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["models"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "--config=x", "--workdir=y"], "stopped; the same flaxtl train goes on from where it was"),
        (["models"], "stopped"),
    ],
)
def test_ctrl_c_ends_as_in_a_shell(capsys, monkeypatch, command, told):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, command[0], interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"flaxtl: {told}\n"
