"""tools/benchmark.py: every kind runs where no other framework is installed, and counts what it claims to."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from PIL import Image

from flaxtl.config import load_config
from flaxtl.models import registry

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
DEMO = ROOT / "configs" / "demo.py"
MEASURED = {"way", "device", "images_per_second", "median", "spread", "milliseconds", "note"}
MEASURED |= {"flop_per_image", "flop_per_second", "share_of_peak", "times_faster_than"}

SMALL = {"model": "alexnet", "batch": 2, "size": 96, "dtype": "float32", "classes": 3, "seconds": 0.01}
STEP = SMALL | {"top": False, "phase": "head", "augment": False}


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    """The benchmark's modules can be imported, as `python tools/benchmark.py` has them."""
    monkeypatch.syspath_prepend(str(TOOLS))


def module(name):
    return importlib.import_module(f"benchmarks.{name}")


def benchmark(monkeypatch, tmp_path, *arguments):
    """What the command writes to --json."""
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, f"--json={file}"])
    importlib.import_module("benchmark").main()
    return json.loads(file.read_text())


def border_free_multiply_adds(side, inputs, outputs):
    """Of a 3x3 convolution with border 'same': the outermost rows and columns each lack three products of nine."""
    return (3 * side - 2) ** 2 * inputs * outputs


VGG16 = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256), (56, 256, 256)]
VGG16 += [(28, 256, 512), (28, 512, 512), (28, 512, 512), (14, 512, 512), (14, 512, 512), (14, 512, 512)]
"""Side, inputs and outputs of its convolutions."""
DENSE = 25_088 * 4096 + 4096 * 4096 + 4096 * 1000


def test_operations_of_vgg16_are_the_published_ones():
    counted = module("with_flaxtl").forward_flops(SMALL | {"model": "vgg16", "size": 224, "top": True})
    published = 15.47e9  # multiply-adds, border zeros included
    whole = DENSE + sum(9 * side**2 * inputs * outputs for side, inputs, outputs in VGG16)
    assert whole == pytest.approx(published, rel=1e-3)
    exact = 2 * (DENSE + sum(border_free_multiply_adds(*layer) for layer in VGG16))
    # 13.6 million biases and as many relus, and what preprocessing does, are counted beside the multiply-adds
    assert exact < counted < exact * 1.002
    assert counted == pytest.approx(30.9e9, rel=0.035)


def test_a_step_on_cached_features_takes_fewer_operations():
    train_flops = module("with_flaxtl").train_flops
    images, cached = (train_flops(STEP | {"cached": cached}) for cached in (False, True))
    forward = module("with_flaxtl").forward_flops(SMALL | {"top": False})
    assert cached < 0.1 * forward < forward <= images


def test_fine_tuning_takes_more_operations_than_training_the_head():
    train_flops = module("with_flaxtl").train_flops
    head, top = (train_flops(STEP | {"phase": phase, "cached": False}) for phase in ("head", "top"))
    assert head < top < 3 * head


def test_steps_train(monkeypatch):
    monkeypatch.setitem(module("peak").SIDE, "cpu", 64)
    trial = module("with_flaxtl").train(STEP | {"cached": True})
    assert [int(trial.step()), int(trial.step())] == [1, 2]
    assert trial.facts["device"] == "cpu"


def test_forward_runs_without_peers(monkeypatch, tmp_path, capsys):
    settings = (f"--{name}={SMALL[name]}" for name in ("model", "batch", "size", "seconds"))
    monkeypatch.setattr(module("turns"), "installed", lambda package: False)
    found = benchmark(monkeypatch, tmp_path, "forward", *settings, "--repeats=2", "--peers=keras-tensorflow,torch")
    ours, *others = found["rows"]
    assert set(ours) == MEASURED
    assert len(ours["images_per_second"]) == 2
    assert ours["median"] > 0
    assert ours["flop_per_second"] == pytest.approx(ours["median"] * ours["flop_per_image"])
    assert ours["share_of_peak"] == pytest.approx(ours["flop_per_second"] / found["peak"]["rate"])
    assert [row["note"] for row in others] == ["not installed: keras, tensorflow", "not installed: torch"]
    assert {"kind", "settings", "peak", "rows", "machine", "versions"} == set(found)
    assert "not installed: torch" in capsys.readouterr().out


def test_a_way_that_fails_says_why_and_leaves_the_others_alone():
    turns = module("turns")
    broken = turns.Way("broken", "no_such_module")
    outcome = turns.take_turns([broken], "forward", SMALL, 1)["broken"]
    assert outcome.note == "failed: ModuleNotFoundError: No module named 'benchmarks.no_such_module'"
    assert outcome.rates == []


def test_turns_alternate(monkeypatch):
    turns, order = module("turns"), []

    class Worker:
        facts = {}  # noqa: RUF012

        def __init__(self, way, work, settings):
            self.name = way.name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            order.append(f"end of {self.name}")

        def turn(self):
            order.append(self.name)
            if order[-3:] == ["B", "A", "B"]:
                raise turns.Unavailable("failed: no memory")
            return 1.0

    monkeypatch.setattr(turns, "Worker", Worker)
    found = turns.take_turns([turns.Way("A", "a"), turns.Way("B", "b")], "forward", {}, 3)
    assert order == ["A", "B", "A", "B", "A", "end of B", "end of A"]
    assert [len(found[name].rates) for name in "AB"] == [3, 1]
    assert found["B"].note == "failed: no memory"


def test_a_peak_is_published_or_measured(monkeypatch):
    peak = module("peak")

    class H200:
        device_kind, platform = "NVIDIA H200", "gpu"

    assert peak.of(H200, "bfloat16") == (989e12, "published")
    monkeypatch.setitem(peak.SIDE, "cpu", 64)
    measured = peak.of(jax.devices("cpu")[0], "float32")
    assert measured.source == "measured, a matmul of 64 x 64"
    assert math.isfinite(measured.rate)


def told(workdir, **phases):
    """A finished run as flaxtl train leaves it."""
    workdir.mkdir()
    timings = {"start to first step": 3.0} | {f"{name}: features": 1.0 for name in phases}
    summary = {"wall_seconds": 10.0, "timings": timings, "phases": phases}
    (workdir / "summary.json").write_text(json.dumps(summary))


def test_job_adds_up(monkeypatch, tmp_path, capsys):
    run = module("flaxtl_run")
    phase = {"wall_seconds": 4.0, "validation": {"accuracy": 0.5}}
    commands = []

    def call(command, **_):
        commands.append(command)
        told(next(Path(part.split("=")[1]) for part in command if part.startswith("--workdir=")), frozen=phase)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=call))
    found = benchmark(monkeypatch, tmp_path, "job", f"--config={DEMO}", "--config.seed=3", "--repeats=1")
    assert commands[0][-1] == "--config.seed=3"
    parts = found["runs"][0]["parts"]
    assert found["runs"][0]["first_step"] == 3.0
    assert (parts[run.AROUND], parts["frozen: features"], parts["frozen: steps, validation"]) == (6.0, 1.0, 3.0)
    assert sum(parts.values()) == pytest.approx(found["seconds"])
    assert "50.00%" in capsys.readouterr().out


def test_a_peer_runs_one_phase_only(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "job", f"--config={DEMO}", "--peer"])
    with pytest.raises(SystemExit):
        importlib.import_module("benchmark").main()
    assert "--peer runs one phase without augmentation" in capsys.readouterr().err


def test_a_peers_epochs_are_extrapolated(monkeypatch, tmp_path):
    lecture = module("lecture")
    config = load_config(str(ROOT / "configs" / "flowers_vgg16.py"))

    class Manifest:
        classes = ("a", "b")

        def of_split(self, name):
            return ()

    monkeypatch.setattr(lecture.rundir, "config_of", lambda workdir: config)
    monkeypatch.setattr(lecture.Manifest, "read", lambda file: Manifest())
    monkeypatch.setattr(lecture, "_run", lambda settings, answer: (30.0, {"epoch_seconds": [12.0, 4.0, 6.0]}))
    found = lecture.measure(tmp_path, 3)
    assert found["seconds"] == 30.0 + 97 * 5.0
    assert found["epochs"] == 100


def test_growth_lists_images_of_every_class_and_plots(monkeypatch, tmp_path):
    growth, run = module("growth"), module("flaxtl_run")
    jobs = []

    def train(config, overrides, workdir, environment):
        source = next(each for each in overrides if each.startswith("--config.data.source=csv:"))
        rows = Path(source.split("csv:")[1]).read_text().splitlines()[1:]
        jobs.append((len(rows), len({row.split(",")[1] for row in rows}), environment))
        return run.Run(2.0 * len(jobs), 3.0, 1.0, {"decoding": 1.0}, {}, workdir)

    monkeypatch.setattr(growth.flaxtl_run, "train", train)
    plot, some = f"--plot={tmp_path / 'growth.png'}", ("--side=16", "--images=6", "--repeats=1")
    found = benchmark(monkeypatch, tmp_path, "growth", "--axis=classes", "--sizes=2,3", plot, *some)
    assert jobs == [(6, 2, {}), (6, 3, {})]
    columns = {"from start to end": [2.0, 4.0], "of processor time": [3.0, 3.0], "decoding": [1.0, 1.0]}
    assert found["seconds"] == columns
    assert growth._exponent((2, 4), columns["from start to end"]) == 1
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    benchmark(monkeypatch, tmp_path, "growth", "--axis=devices", "--sizes=4", plot, *some)
    assert jobs[2][2] == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def test_drawn_images_are_kept_and_differ(monkeypatch):
    drawn = module("drawn")
    monkeypatch.setattr(drawn, "BASE", 3)
    five = drawn.images(5, 16)
    written = [file.stat().st_mtime_ns for file in five]
    assert [file.stat().st_mtime_ns for file in drawn.images(6, 16)[:5]] == written
    assert len({file.read_bytes() for file in five}) == 5


def test_drawn_images_blend_every_two_once(monkeypatch):
    drawn = module("drawn")
    monkeypatch.setattr(drawn, "BASE", 7)
    base = [Image.new("L", (1, 1), 2 ** (number + 1)) for number in range(7)]
    seen = [drawn._blended(base, number).getpixel((0, 0)) for number in range(7, 28)]
    assert sorted(seen) == sorted({2**one + 2**two for one in range(7) for two in range(one)})


def test_kinds_need_no_other_framework():
    code = "import sys; sys.argv = ['benchmark.py', '--help']; import benchmark; benchmark.main()"
    absence = "import sys\nfor name in ('tensorflow', 'keras', 'torch'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", absence + code]
    done = subprocess.run(command, cwd=TOOLS, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "growth" in done.stdout


def test_unknown_options_and_settings_are_refused(monkeypatch, capsys):
    for arguments in (
        ("forward", "--peers=caffe"),
        ("job", "--speed"),
        ("train", "--config.seed=1"),
        ("job", f"--config={DEMO}", "--config.nothing=1"),
    ):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module("benchmark").main()
        assert ended.value.code == 2
    assert "no peer caffe" in capsys.readouterr().err


def test_torch_networks_have_the_parameters_of_keras():
    pytest.importorskip("torch")
    networks = module("torch_networks").NETWORKS
    for name in ("vgg16", "vgg19", "resnet50"):
        made = networks[name]()
        learned = sum(parameter.numel() for parameter in made.parameters())
        statistics = sum(value.numel() for key, value in made.named_buffers() if "running" in key)
        assert learned + statistics == registry.get_spec(name).num_params_no_top
