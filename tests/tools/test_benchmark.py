"""tools/benchmark.py: every kind runs without other frameworks, and counts operations correctly."""

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
ROW = {"subject", "device", "images_per_second", "median", "spread", "milliseconds", "cpu_milliseconds", "note"}
ROW |= {"flop_per_image", "flop_per_second", "fraction_of_peak", "times_faster_than"}

SMALL = {"model": "alexnet", "batch": 2, "size": 96, "dtype": "float32", "classes": 3, "seconds": 0.01}
STEP = SMALL | {"top": False, "phase": "head", "augment": False}


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    """Make the benchmark's modules importable, like `python tools/benchmark.py` does."""
    monkeypatch.syspath_prepend(str(TOOLS))


def module(name):
    return importlib.import_module(f"benchmarks.{name}")


def benchmark(monkeypatch, tmp_path, *arguments):
    """Run the command and return what it writes to --json."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, f"--json={file}"])
    importlib.import_module("benchmark").main()
    return json.loads(file.read_text())


def unpadded_multiply_adds(side, inputs, outputs):
    """Count those of a 3x3 convolution with padding 'same', without products with padding."""
    return (3 * side - 2) ** 2 * inputs * outputs


VGG16 = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256), (56, 256, 256)]
VGG16 += [(28, 256, 512), (28, 512, 512), (28, 512, 512), (14, 512, 512), (14, 512, 512), (14, 512, 512)]
"""Side, input channels and output channels of the convolutions."""
DENSE = 25_088 * 4096 + 4096 * 4096 + 4096 * 1000


def test_forward_flops_of_vgg16_match_published_count():
    counted = module("with_flaxtl").forward_flops(SMALL | {"model": "vgg16", "size": 224, "top": True})
    published = 15.47e9  # multiply-adds, including padding
    whole = DENSE + sum(9 * side**2 * inputs * outputs for side, inputs, outputs in VGG16)
    assert whole == pytest.approx(published, rel=1e-3)
    exact = 2 * (DENSE + sum(unpadded_multiply_adds(*layer) for layer in VGG16))
    # 13.6 million biases, as many relus, and preprocessing are counted in addition to the multiply-adds
    assert exact < counted < exact * 1.002
    assert counted == pytest.approx(30.9e9, rel=0.035)


def test_train_flops_on_cached_features_are_fewer():
    train_flops = module("with_flaxtl").train_flops
    images, cached = (train_flops(STEP | {"cached": cached}) for cached in (False, True))
    forward = module("with_flaxtl").forward_flops(SMALL | {"top": False})
    assert cached < 0.1 * forward < forward <= images


def test_train_flops_of_fine_tuning_exceed_head_only():
    train_flops = module("with_flaxtl").train_flops
    head, top = (train_flops(STEP | {"phase": phase, "cached": False}) for phase in ("head", "top"))
    assert head < top < 3 * head


def test_train_trial_updates_state(monkeypatch):
    monkeypatch.setattr(module("peak"), "CPU_MATMUL_SIDE", 64)
    trial = module("with_flaxtl").train(STEP | {"cached": True})
    assert [int(trial.step()), int(trial.step())] == [1, 2]
    assert trial.facts["device"] == "cpu"


def test_forward_runs_without_peers(monkeypatch, tmp_path, capsys):
    settings = (f"--{name}={SMALL[name]}" for name in ("model", "batch", "size", "seconds"))
    monkeypatch.setattr(module("subject"), "is_installed", lambda package: False)
    figures = benchmark(monkeypatch, tmp_path, "forward", *settings, "--repeats=2", "--peers=keras-tensorflow,torch")
    ours, *others = figures["rows"]
    assert set(ours) == ROW
    assert len(ours["images_per_second"]) == 2
    assert ours["median"] > 0
    assert ours["flop_per_second"] == pytest.approx(ours["median"] * ours["flop_per_image"])
    assert ours["fraction_of_peak"] == pytest.approx(ours["flop_per_second"] / figures["peak"]["rate"])
    assert [row["note"] for row in others] == ["not installed: keras, tensorflow", "not installed: torch"]
    assert {"kind", "settings", "peak", "rows", "machine", "versions"} == set(figures)
    assert "not installed: torch" in capsys.readouterr().out


def test_subject_that_fails_reports_last_line_of_stderr():
    result = module("subject").Subject("broken", "no_such_module").run("forward", SMALL)
    assert result == {"note": "failed: ModuleNotFoundError: No module named 'benchmarks.no_such_module'"}


def test_compare_takes_turns_until_a_subject_fails(monkeypatch):
    compare, Subject, order = module("compare"), module("subject").Subject, []

    def run(self, function, settings):
        order.append(self.name)
        if order[-3:] == ["B", "A", "B"]:
            return {"note": "failed: no memory"}
        return {"images_per_second": 1.0, "cpu_seconds_per_image": 0.5, "device": "cpu"}

    monkeypatch.setattr(Subject, "run", run)
    options = SimpleNamespace(peers=(), repeats=3, batch=2)
    figures = compare.run("forward", options, [Subject("A", "a"), Subject("B", "b")], SMALL, lambda subject: 1.0)
    assert order == ["A", "B", "A", "B", "A"]
    assert [len(row["images_per_second"]) for row in figures["rows"]] == [3, 1]
    assert [row["cpu_milliseconds"] for row in figures["rows"]] == [1000.0, 1000.0]
    assert figures["rows"][1]["note"] == "failed: no memory"


def test_peak_flops_are_published_or_measured(monkeypatch):
    peak = module("peak")

    class H200:
        device_kind, platform = "NVIDIA H200", "gpu"

    assert peak.peak_flops(H200, "bfloat16") == (989e12, "published")
    monkeypatch.setattr(peak, "CPU_MATMUL_SIDE", 64)
    measured = peak.peak_flops(jax.devices("cpu")[0], "float32")
    assert measured.source == "measured, a matmul of 64 x 64"
    assert math.isfinite(measured.rate)


def write_summary(workdir, **phases):
    """Write the summary of a finished run."""
    workdir.mkdir()
    timings = {"start to first step": 3.0} | {f"{name}: features": 1.0 for name in phases}
    summary = {"wall_seconds": 10.0, "timings": timings, "phases": phases}
    (workdir / "summary.json").write_text(json.dumps(summary))


def test_job_parts_add_up(monkeypatch, tmp_path, capsys):
    job = module("job")
    phase = {"wall_seconds": 4.0, "validation": {"accuracy": 0.5}}
    commands = []

    def call(command, **_):
        commands.append(command)
        write_summary(next(Path(part.split("=")[1]) for part in command if part.startswith("--workdir=")), frozen=phase)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(job, "subprocess", SimpleNamespace(run=call))
    figures = benchmark(monkeypatch, tmp_path, "job", f"--config={DEMO}", "--config.seed=3", "--repeats=1")
    assert commands[0][-1] == "--config.seed=3"
    parts = figures["runs"][0]["parts"]
    assert figures["runs"][0]["first_step"] == 3.0
    assert (parts[job.STARTUP], parts["frozen: features"], parts["frozen: steps, validation"]) == (6.0, 1.0, 3.0)
    assert sum(parts.values()) == pytest.approx(figures["seconds"])
    assert "50.00%" in capsys.readouterr().out


def test_job_peer_with_several_phases_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "job", f"--config={DEMO}", "--peer"])
    with pytest.raises(SystemExit):
        importlib.import_module("benchmark").main()
    assert "one phase without augmentation" in capsys.readouterr().err


def test_measure_peer_extrapolates_epochs(monkeypatch, tmp_path):
    job = module("job")
    config = load_config(str(ROOT / "configs" / "flowers_vgg16.py"))

    class Manifest:
        classes = ("a", "b")

        def of_split(self, name):
            return ()

    monkeypatch.setattr(job.run_dir, "load_config", lambda workdir: config)
    monkeypatch.setattr(job.Manifest, "read", lambda file: Manifest())
    monkeypatch.setattr(module("subject").Subject, "run", lambda *_: {"epoch_seconds": [12.0, 4.0, 6.0]})
    result = job.measure_peer(tmp_path, 3)
    assert result["seconds"] == pytest.approx(97 * 5.0, abs=1)
    assert result["epochs"] == 100


def test_growth_lists_images_of_every_class_and_plots(monkeypatch, tmp_path):
    growth, job = module("growth"), module("job")
    jobs = []

    def run_train(config, overrides, workdir, environment):
        source = next(each for each in overrides if each.startswith("--config.data.source=csv:"))
        rows = Path(source.split("csv:")[1]).read_text().splitlines()[1:]
        jobs.append((len(rows), len({row.split(",")[1] for row in rows}), environment))
        return job.Run(2.0 * len(jobs), 3.0, 1.0, {"decoding": 1.0}, {})

    monkeypatch.setattr(job, "run_train", run_train)
    plot, small = f"--plot={tmp_path / 'growth.png'}", ("--side=16", "--images=6", "--repeats=1")
    figures = benchmark(monkeypatch, tmp_path, "growth", "--axis=classes", "--sizes=2,3", plot, *small)
    assert jobs == [(6, 2, {}), (6, 3, {})]
    columns = {"total": [2.0, 4.0], "processor time": [3.0, 3.0], "decoding": [1.0, 1.0]}
    assert figures["seconds"] == columns
    assert growth.growth_exponent((2, 4), columns["total"]) == 1
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    benchmark(monkeypatch, tmp_path, "growth", "--axis=devices", "--sizes=4", plot, *small)
    assert jobs[2][2] == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def test_synthetic_images_are_cached_and_differ(monkeypatch):
    growth = module("growth")
    monkeypatch.setattr(growth, "DRAWN_IMAGES", 4)
    five = growth.synthetic_images(5, 16)
    written = [file.stat().st_mtime_ns for file in five]
    assert [file.stat().st_mtime_ns for file in growth.synthetic_images(6, 16)[:5]] == written
    assert len({file.read_bytes() for file in five}) == 5


def test_blend_pair_gives_every_pair_once():
    base = [Image.new("L", (1, 1), 2 ** (number + 1)) for number in range(7)]
    values = [module("growth").blend_pair(base, number).getpixel((0, 0)) for number in range(7, 28)]
    assert sorted(values) == sorted({2**a + 2**b for a in range(7) for b in range(a)})


def test_benchmark_help_needs_no_other_framework():
    code = "import sys; sys.argv = ['benchmark.py', '--help']; import benchmark; benchmark.main()"
    absence = "import sys\nfor name in ('tensorflow', 'keras', 'torch'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", absence + code]
    done = subprocess.run(command, cwd=TOOLS, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "growth" in done.stdout


def test_benchmark_unknown_option_is_refused(monkeypatch, capsys):
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
    assert "unknown peer caffe" in capsys.readouterr().err


def test_torch_networks_have_as_many_params_as_keras():
    pytest.importorskip("torch")
    networks = module("torch_networks").NETWORKS
    for name in ("vgg16", "vgg19", "resnet50"):
        network = networks[name]()
        trainable = sum(parameter.numel() for parameter in network.parameters())
        statistics = sum(value.numel() for key, value in network.named_buffers() if "running" in key)
        assert trainable + statistics == registry.get_spec(name).num_params_no_top
