"""Commands that train nothing: output, errors and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxtl import __version__, fileio
from flaxtl.cli import commands, main
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.parallel import devices
from flaxtl.pretrained import safetensors_io

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs/demo.py")
BUILTIN = ROOT / "flaxtl/pretrained/builtin/vgg16_notop.safetensors"


@pytest.fixture
def flaxtl(capsys):
    """Return a function that runs a command and gives its output."""

    def run(*arguments):
        main.main(list(arguments))
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.fixture
def error_lines(capsys):
    """Return a function that runs a command, which must exit with code 2, and gives its lines on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main.main(list(arguments))
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err.splitlines()

    return run


def numbers(text):
    """Return the numbers in a text, as they are written: '1,792'."""
    return re.findall(r"(?<![\w.])\d[\d,]*(?![\w.])", text)


def cells(table):
    """Return the cells of a printed table, row by row."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]


def test_main_in_a_new_process_exits_with_the_code():
    code = "from flaxtl.cli.main import main; main()"
    for arguments, status, out, error in (
        (["--version"], 0, f"flaxtl {__version__}\n", ""),
        (["summary", "--model=vgg61"], 2, "", r"flaxtl: .*'vgg61'.*'vgg19'.*\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (status, out)
        assert re.fullmatch(error, done.stderr)


def test_flaxtl_without_command_prints_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == 0
    assert "flaxtl train photos/" in capsys.readouterr().out


def test_models(flaxtl):
    rows = cells(flaxtl("models"))
    assert len(rows[0]) == 1  # the title
    (vgg16,) = (row for row in rows if row[0] == "vgg16")
    assert vgg16[1:-1] == ["138,357,544", "14,714,688", "224 (min 32)", "71.3", "90.0", "caffe"]
    assert re.search("base.*built", vgg16[-1])
    assert ["vgg19", "143,667,240", "20,024,384", "224 (min 32)", "71.3", "90.0", "caffe"] in rows
    assert {row[0] for row in rows} >= registry.MODELS.keys()


def test_models_tells_what_is_at_hand(flaxtl):
    """A file of that name is enough: nothing is read."""
    keras, own = Path(os.environ["KERAS_HOME"]) / "models", fileio.cache_dir("weights")
    vgg16, vgg19, resnet50 = map(registry.get_spec, ("vgg16", "vgg19", "resnet50"))
    for file in (keras / vgg16.weights.name, own / vgg19.weights_no_top.name):
        file.parent.mkdir(parents=True)
        file.touch()
    weights = {row[0]: row[-1] for row in cells(flaxtl("models"))}
    assert "Keras" in weights["vgg16"]
    assert re.search("base.*flaxtl", weights["vgg19"])
    assert weights["vgg16"].split("(")[0] != weights["vgg19"].split("(")[0]  # with the top, and without
    at_hand = {row["name"]: row["at_hand"] for row in json.loads(flaxtl("models", "--json"))}
    assert at_hand[vgg16.name] == {"top": "Keras' cache", "base": "Keras' cache"}
    assert at_hand[vgg19.name] == {"top": None, "base": "flaxtl's cache"}
    assert at_hand[resnet50.name] == {"top": None, "base": None}


def test_models_as_json(flaxtl):
    rows = {row["name"]: row for row in json.loads(flaxtl("models", "--json"))}
    assert list(rows) == list(registry.MODELS)
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


def test_summary_of_a_pretrained_model(flaxtl):
    """Layers, shapes and counts as Keras' model.summary() has them."""
    rows = cells(flaxtl("summary", "--model=vgg16"))
    assert re.search(r"\bvgg16\b.*\b224x224\b", " ".join(rows[0]))
    assert ["block1_conv1", "conv", "224x224x64", "1,792"] in rows
    assert ["block5_pool", "max pool", "7x7x512", "0"] in rows
    assert ["fc1", "dense", "4096", "102,764,544"] in rows
    assert ["predictions", "dense", "1000", "4,097,000"] in rows
    assert numbers(" ".join(rows[-1])) == ["138,357,544", "14,714,688"]


@pytest.mark.parametrize(
    ("name", "layer", "totals"),
    [
        (
            "mobilenet_025",
            ["conv1_bn", "batch norm", "112x112x8", "32"],
            ["475,544", "5,472", "218,544"],
        ),
        pytest.param(
            "EfficientNet-B0",
            ["stem_bn", "batch norm", "112x112x32", "128"],
            ["5,330,571", "42,016", "7", "4,049,571"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_summary_counts_parameters_as_keras_does(flaxtl, name, layer, totals):
    """Keras' model.summary(): total parameters, and the non-trainable ones (42,023 = 42,016 + 7 of EfficientNetB0)."""
    rows = cells(flaxtl("summary", f"--model={name}"))
    assert re.search(rf"{re.escape(registry.get_spec(name).name)}\b.*\b224x224\b", " ".join(rows[0]))
    assert layer in rows
    assert numbers(" ".join(rows[-1])) == totals


def test_summary_of_a_config(flaxtl):
    printed = flaxtl("summary", "--config", DEMO)
    rows = cells(printed)
    assert re.search(r"\bvgg16\b.*\b96x96\b.*\b5\b", " ".join(rows[0]))
    assert ["block4_conv3", "conv", "12x12x512", "2,359,808", "base"] in rows
    assert ["block5_conv3", "conv", "6x6x512", "2,359,808", "block5", "finetune"] in rows
    assert ["predictions", "dense", "5", "645", "head", "frozen, augmented, finetune"] in rows
    for name, *totals in (
        ("(?i)base", "14,714,688", "66,309"),
        ("base", "7,635,264"),
        ("block5", "7,079,424"),
        ("head", "66,309"),
        ("frozen", "66,309", "14,780,997"),
        ("finetune", "7,145,733", "14,780,997"),
    ):
        assert any(re.search(rf"{name}\b", line) and numbers(line) == totals for line in printed.splitlines())


def test_summary_with_overrides(flaxtl):
    printed = flaxtl(
        "summary", f"--config={DEMO}", "--config.head.units=(8, 4)", "--config.phases=('frozen',)", "--config.seed=3"
    )
    assert ["dense_2", "dense", "4", "36", "head", "frozen"] in cells(printed)
    assert "finetune" not in printed


def test_convert_keeps_all_values(flaxtl, tmp_path):
    output = tmp_path / "new folder" / "vgg16.safetensors"
    printed = flaxtl("convert", "--model=vgg16", f"--weights={BUILTIN}", f"--output={output}")
    assert "14,714,688" in printed
    assert ["block5_conv3", "kernel", "3x3x512x512", "block5_conv3/kernel", "int8"] in cells(printed)
    written, metadata = safetensors_io.read_safetensors(output)
    source, _ = safetensors_io.read_safetensors(BUILTIN)
    assert metadata["architecture"] == "vgg16"
    assert metadata["source"] == BUILTIN.name
    assert written.keys() == source.keys()
    for layer, leaves in source.items():
        for leaf, tensor in leaves.items():
            np.testing.assert_array_equal(written[layer][leaf].values, tensor.values, err_msg=f"{layer}/{leaf}")


def convert(weights, output="unwritten.safetensors", model="vgg16"):
    return ["convert", f"--model={model}", f"--weights={weights}", f"--output={output}"]


def test_convert_of_a_file_without_weights_names_it(error_lines, tmp_path):
    page = tmp_path / "page.h5"
    page.write_text("<!DOCTYPE html><html></html>")
    for weights, reason in (
        (tmp_path / "none.h5", ""),
        (tmp_path, "directory|folder"),
        (page, "web ?page|HTML"),
    ):
        (line,) = error_lines(*convert(weights))
        assert line.startswith("flaxtl: ")
        assert re.search(rf"{re.escape(str(weights))}(?!/)", line)
        assert re.search(f"(?i){reason}", line.replace(str(weights), ""))
    assert not Path("unwritten.safetensors").exists()


def test_convert_of_another_models_weights_lists_missing_layers(error_lines, tmp_path):
    sentence, *listed = error_lines(*convert(BUILTIN, tmp_path / "out.safetensors", model="vgg19"))
    assert sentence.startswith("flaxtl: ")
    assert str(BUILTIN) in sentence
    missing = [f"block{block}_conv4/{leaf}" for block in (3, 4, 5) for leaf in ("kernel", "bias")]
    assert [line.split()[:2] for line in listed] == [["-", name] for name in missing]
    assert list(tmp_path.iterdir()) == []


def test_convert_to_an_unwritable_path_names_it(error_lines, tmp_path):
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    (line,) = error_lines(*convert(BUILTIN, folder))
    assert re.fullmatch(rf"flaxtl: .*{re.escape(str(folder))} .*Is a directory.*--output.*", line)
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["models", "--jsn"], ["'--jsn'", "'--json'"]),
        (["evaluate", "--workdri=x"], ["flaxtl evaluate", "'--workdri'", "'--workdir'"]),
        (["lr-find", "--config=demo", "--workdir=x", "--steps=ten"], ["--steps", "not a whole number: 'ten'"]),
        (["models", "vgg16"], ["'vgg16'", "--help"]),
        (["doctor"], ["flaxtl doctor photos/"]),
        (["doctor", "a", "--data=b"], ["once"]),
        (["models", "--config.seed=1"], ["'--config.seed=1'", "--help"]),
        (["summary", "--model=vgg"], ["'vgg'", "'vgg19'"]),
        (["summary", "--model=vgg16", "--config.seed=1"], ["'--config.seed=1'", "--config=FILE"]),
        (["summary", "--config=no.py"], ["'no.py'", "--config=demo|"]),
        (["summary", f"--config={DEMO}", "--config.sed=1"], ["'sed'", "'seed'"]),
        (["summary", f"--config={DEMO}", "--config.seed=x"], ["--config.seed=", "'x'"]),
        (["summary", f"--config={DEMO}", "--config.model.output_layer=block5"], ["'block5'", "'block5_pool'"]),
        (
            ["summary", f"--config={DEMO}", "--config.late=3"],
            ["phase or setting 'late'", "augmented, finetune, frozen"],
        ),
        (["summary", f"--config={DEMO}", "--config.frozn=3"], ["'frozn'. Did you mean 'frozen'?"]),
        (["summary", f"--config={DEMO}", "--config.phases=late"], ["'late'", "augmented, finetune, frozen"]),
        (["convert", "--model=vgg61", "--weights=x", "--output=y"], ["'vgg61'", "'vgg19'"]),
        (convert(BUILTIN, "vgg.h5"), ["--output=vgg.h5", ".safetensors"]),
        (["predict", "--workdir=x", "--input=y", "--tap=fc1"], ["--tap=LAYER", "--npz=FILE"]),
        (["predict", "--workdir=x", "--input=y", "--npz=z"], ["--tap=LAYER", "--npz=FILE"]),
        (["predict", "--workdir=x", "--input=y", "--weights=z"], ["--weights=FILE", "--model=NAME"]),
        (["predict", "--model=vgg16", "--input=y", "--calibrated"], ["--calibrated", "--workdir=DIR"]),
        (["predict", "--workdir=x", "--input=y", "--calibrated", "--raw"], ["--calibrated", "--raw"]),
        (["predict", "--model=vgg16", "--input=y", "--skip-layers=a"], ["--skip-layers", "--weights=FILE"]),
        (["predict", "--model=vgg61", f"--input={DEMO}"], ["'vgg61'", "'vgg19'"]),
        (["predict", "--model=vgg16", f"--input={DEMO}", "--weights=random"], ["Random", "--weights"]),
        (["predict", "--model=vgg16", f"--input={DEMO}", "--weights=x.h5"], ["'x.h5'", "'imagenet'", "'builtin'"]),
        (
            ["predict", "--model=vgg16", f"--input={DEMO}", "--weights=builtin"],
            ["vgg16_weights_tf_dim_", "--weights=imagenet"],
        ),
        (["predict", "--workdir=x", "--input=y", "--top=0"], ["--top=0", "1"]),
        (["evaluate", "--workdir=nowhere"], ["nowhere", "config.json", "--workdir"]),
        (["evaluate", f"--workdir={ROOT}", f"--json={ROOT}/summary.json"], ["--json=", "is a file of the run"]),
        (
            ["sweep", "--config=demo", "--workdir=x", "--seeds=0,1", "--collect", "--shard=1/2"],
            ["--collect trains nothing", "Leave out --shard=1/2."],
        ),
        (["report", "--workdir=nowhere"], ["nowhere", "config.json", "--workdir"]),
    ],
)
def test_invalid_input_exits_with_one_line(error_lines, arguments, facts):
    (line,) = error_lines(*arguments)
    assert line.startswith("flaxtl: ")
    assert [fact for fact in facts if fact not in line] == []


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["modls"], ["command 'modls'", "'models'"]),
        (["summary"], ["required", "--model", "--config"]),
        (["summary", "--model=a", "--config=b"], ["not allowed", "--config", "--model"]),
        (["convert", "--model=vgg16"], ["required", "--weights", "--output"]),
        (["evaluate", "--workdir=x", "--split=tset"], ["--split", "'tset'"]),
        (["train"], ["flaxtl train photos/"]),
        (["train", "nowhere"], ["nowhere does not exist"]),
        (["train", "a" * 256], ["aaa'", "too long"]),
        (["doctor", "a" * 256], ["aaa'", "too long"]),
        (["split", f"--source={'a' * 256}", "--output=x", "--kfold=2"], ["aaa'", "too long"]),
        (["sweep", "--config=demo", "--workdir=x", "a" * 256], ["aaa'", "too long"]),
        (["train", "nowhere", "--data=photos"], ["more than once", "--data"]),
        (["train", "--config=demo", "--distributed"], ["--workdir=DIR"]),
        (["predict", "--input=x"], ["required", "--workdir", "--model"]),
        (["predict", "--workdir=x", "--model=y", "--input=z"], ["not allowed", "--model", "--workdir"]),
    ],
)
def test_malformed_command_exits_with_one_line(error_lines, arguments, facts):
    """Most of these messages are argparse's."""
    (line,) = error_lines(*arguments)
    assert line.startswith("flaxtl: ")
    assert [fact for fact in facts if fact not in line] == []


def test_debug_shows_the_traceback_before_the_message(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["summary", "--model=vgg61", "--debug"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    sentence = lines[-2].removeprefix("flaxtl.errors.UserError: ")
    assert re.search("'vgg61'.*'vgg19'", sentence)
    assert lines[-2:] == [f"flaxtl.errors.UserError: {sentence}", f"flaxtl: {sentence}"]


def test_error_message_is_neither_wrapped_nor_markup(error_lines, monkeypatch):
    sentence = "a [red]long[/red] sentence " * 20

    def fail(options):
        raise UserError(sentence)

    monkeypatch.setitem(commands.COMMANDS, "models", fail)
    assert error_lines("models") == [f"flaxtl: {sentence}"]


def test_internal_error_exits_with_code_1(capsys, monkeypatch):
    monkeypatch.setitem(commands.COMMANDS, "models", lambda options: {}["missing"])
    with pytest.raises(SystemExit) as ended:
        main.main(["models"])
    assert ended.value.code == 1
    assert re.fullmatch(r"flaxtl: .*KeyError: 'missing'.*--debug.*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main.main(["models", "--debug"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (PermissionError(13, "Permission denied", "/x"), ["/x", "Permission denied"]),
        (MemoryError(), ["memory", "batch", "data.pipeline=stream"]),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ["device", "memory", "batch", "accum"]),
        (RuntimeError("INTERNAL: YNNPACK operation failed: 2"), ["device", "memory", "batch", "accum"]),
    ],
)
def test_error_of_the_machine_exits_with_one_line(capsys, monkeypatch, error, facts):
    def fail(options):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "models", fail)
    with pytest.raises(SystemExit) as ended:
        main.main(["models"])
    assert ended.value.code == 2
    error_output = capsys.readouterr().err
    assert error_output.startswith("flaxtl: ")
    assert [fact for fact in facts if fact not in error_output] == []
    assert error_output.count("\n") == 1


@pytest.mark.slow
def test_platform_that_jax_cannot_use_exits_with_one_line():
    code, environment = "from flaxtl.cli.main import main; main()", os.environ | {"JAX_PLATFORMS": "typo"}
    done = subprocess.run(
        [sys.executable, "-c", code, "summary", "--model=vgg16"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"flaxtl: JAX_PLATFORMS=typo\b.*\bunset\b.*\n", done.stderr)


def test_error_of_jax_itself_asks_for_the_platform(error_lines, monkeypatch):
    def fail(options):
        raise AssertionError  # what jax raises without the plugin of the platform

    def check_backend():
        raise UserError("JAX_PLATFORMS=cuda, but ...")

    monkeypatch.setitem(commands.COMMANDS, "models", fail)
    monkeypatch.setattr(devices, "check_backend", check_backend)
    assert error_lines("models") == ["flaxtl: JAX_PLATFORMS=cuda, but ..."]
