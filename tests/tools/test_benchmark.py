"""tools/benchmark.py: kinds run without other frameworks, count operations correctly, and compare fairly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark
import pytest
from benchmarks import accelerator, compare, job, with_flaxtl
from benchmarks.compare import Subject
from fresh_process import Measured, ProcessError

from flaxtl.config import load_config
from flaxtl.data.sources import synthetic

ROOT = Path(__file__).parents[2]
SMALL = {"model": "alexnet", "batch": 2, "size": 96, "dtype": "float32", "seconds": 0.01}


@pytest.fixture(autouse=True)
def _small_matmul(monkeypatch):
    monkeypatch.setattr(with_flaxtl, "CPU_MATMUL_SIDE", 64)


def run_benchmark(tmp_path, *arguments):
    """Run the command and return what it writes to --json."""
    file = tmp_path / "figures.json"
    benchmark.main([*arguments, f"--json={file}"])
    return json.loads(file.read_text())


def unpadded_multiply_adds(side, inputs, outputs):
    """Count those of a 3x3 convolution with padding 'same', without products with padding."""
    return (3 * side - 2) ** 2 * inputs * outputs


VGG16 = [(64, 3, 64), (64, 64, 64), (32, 64, 128), (32, 128, 128), (16, 128, 256), (16, 256, 256), (16, 256, 256)]
VGG16 += [(8, 256, 512), (8, 512, 512), (8, 512, 512), (4, 512, 512), (4, 512, 512), (4, 512, 512)]
"""Side, input channels and output channels of the convolutions at 64x64."""
HEAD = 512 * 128 + 128 * 5


def test_forward_flops_of_vgg16_match_its_layers():
    trial = with_flaxtl.forward(SMALL | {"model": "vgg16", "size": 64})
    exact = 2 * (HEAD + sum(unpadded_multiply_adds(*layer) for layer in VGG16))
    # biases, relus, pooling and preprocessing are counted in addition to the multiply-adds
    assert exact < trial.facts["flop_per_image"] < exact * 1.002


@pytest.mark.slow
def test_train_trial_on_cached_features_updates_state_with_fewer_flops():
    images, cached = (with_flaxtl.train(SMALL | {"phase": "head", "cached": cached}) for cached in (False, True))
    assert cached.facts["flop_per_image"] < 0.1 * images.facts["flop_per_image"]
    assert [int(cached.step()), int(cached.step())] == [1, 2]
    assert cached.facts["device"] == "cpu"


def figures(rate, cpu_seconds=0.5, **more):
    return {"images_per_second": rate, "cpu_seconds_per_image": cpu_seconds, "peak_mebibytes": 100.0, **more}


def test_forward_reports_peers_that_are_not_installed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "find_spec", lambda package: None)
    facts = {"flop_per_image": 10.0, "matmul_flop_per_second": 100.0, "device": "cpu"}
    monkeypatch.setattr(compare, "call", lambda *_, **__: figures(5.0, **facts))
    result = run_benchmark(tmp_path, "forward", "--model=alexnet", "--repeats=2", "--peers=keras-tensorflow,torch")
    ours, *others = result["rows"]
    assert (len(ours["turns"]), ours["images_per_second"]) == (2, 5.0)
    assert [row["note"] for row in others] == ["not installed: keras, tensorflow", "not installed: torch, torchvision"]
    assert {"kind", "settings", "rows", "environment"} == set(result)
    printed = capsys.readouterr().out
    assert "50%" in printed  # of the operations per second of a matrix product
    assert "not installed: torch, torchvision" in printed


def test_versions_are_those_of_packages_however_a_wheel_writes_the_name(monkeypatch, tmp_path):
    (tmp_path / "tensorflow_cpu-9.8.dist-info").mkdir()
    (tmp_path / "tensorflow_cpu-9.8.dist-info" / "METADATA").write_text("Name: tensorflow_cpu\nVersion: 9.8\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert benchmark.installed_versions()["tensorflow-cpu"] == "9.8"


def test_compare_takes_turns_until_a_subject_fails(monkeypatch):
    order = []

    def measure(self, function, settings):
        order.append(self.name)
        return {"note": "failed: no memory"} if order[-3:] == ["B", "A", "B"] else figures(len(order) * 1.0)

    monkeypatch.setattr(Subject, "measure", measure)
    rows = compare.compare("title", "forward", [Subject("A"), Subject("B")], SMALL, 3)
    assert order == ["A", "B", "A", "B", "A"]
    assert [row["images_per_second"] for row in rows] == [3.0, 2.0]
    assert rows[1]["note"] == "failed: no memory"
    assert rows[0]["times"] == {"A": 1.0, "B": 0.5}  # in the turns of both


def write_summary(workdir, **phases):
    """Write the summary of a finished run."""
    workdir.mkdir()
    timings = {"start to first step": 3.0} | {f"{name}: features": 1.0 for name in phases}
    summary = {"wall_seconds": 10.0, "timings": timings, "phases": phases}
    (workdir / "summary.json").write_text(json.dumps(summary))


def test_job_parts_add_up(monkeypatch, tmp_path, capsys):
    phase = {"wall_seconds": 4.0, "validation": {"accuracy": 0.5}}
    commands = []

    def run_command(command, **_):
        commands.append(command)
        write_summary(next(Path(part.split("=")[1]) for part in command if part.startswith("--workdir=")), frozen=phase)
        return Measured(0, 12.0, 20.0, 500.0)

    monkeypatch.setattr(job, "run_command", run_command)
    result = run_benchmark(tmp_path, "job", "--config=demo", "--config.seed=3", "--repeats=1")
    assert commands[0][-1] == "--config.seed=3"
    (run,) = result["runs"]
    assert (run["seconds"], run["cpu_seconds"], run["mebibytes"], run["first_step"]) == (12.0, 20.0, 500.0, 3.0)
    assert list(run["parts"].values()) == [6.0, 1.0, 3.0, 2.0]
    assert "50.00%" in capsys.readouterr().out


def test_accelerator_measures_missing_parts_and_continues(monkeypatch, tmp_path, capsys):
    rate = figures(20_000.0, flop_per_image=10.0, matmul_flop_per_second=1e6, images=256)
    device = {"kind": "H200", "count": 1, "matmul": {"bfloat16": 8e14}, "bytes_per_second": 4e12}
    called, failing = [], ["with_torch"]

    def stream(target, settings, *, environment, timeout):
        module = target.split(".")[1].split(":")[0]
        for work in settings["work"]:
            if module in failing and work == "finetune":
                raise ProcessError("stopped after 9 s")
            called.append((module, work))
            yield work, rate if module == "with_flaxtl" else figures(8_000.0)

    run = job.Run(52.0, 60.0, 900.0, 14.0, {"steps": 30.0}, {"frozen": {}})
    monkeypatch.setattr(accelerator, "call", lambda *_, **__: device)
    monkeypatch.setattr(accelerator, "stream", stream)
    monkeypatch.setattr(compare, "find_spec", lambda package: package)
    monkeypatch.setattr(job, "run_train", lambda config, overrides, *_: called.append(overrides) or run)
    first = run_benchmark(tmp_path, "accelerator", "--models=vgg16")
    assert first["parts"]["PyTorch: vgg16"]["note"] == "failed: stopped after 9 s"
    assert first["bars"] == {"finetune_images_per_second": 20_000.0, "course_seconds": 52.0}
    assert called[-1] == ["--config.dtype=bfloat16", *accelerator.NO_DOWNLOADS]
    failing.clear()
    called.clear()
    second = run_benchmark(tmp_path, "accelerator", "--models=vgg16")
    assert called == [("with_torch", "finetune")]  # only what failed
    assert "note" not in second["parts"]["PyTorch: vgg16"]
    assert second["bars"] == first["bars"] | {"times_torch": 2.5}
    printed = capsys.readouterr().out
    assert "800.0 TFLOP/s" in printed
    assert "20%" in printed  # of a matrix product: 20,000 x 10 of 1e6
    with pytest.raises(SystemExit):
        run_benchmark(tmp_path, "accelerator", "--models=vgg16", "--batch=8")
    assert "--json" in capsys.readouterr().err


def test_accelerator_misspelt_model_is_refused_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(accelerator, "call", None)
    with pytest.raises(SystemExit):
        run_benchmark(tmp_path, "accelerator", "--models=vgg61", "--config=")
    assert "vgg61" in capsys.readouterr().err


@pytest.mark.exhaustive("runs")
@pytest.mark.usefixtures("quick_processes")
def test_accelerator_killed_run_continues_with_what_is_missing(tmp_path):
    images = synthetic.generate_dataset(tmp_path / "flowers", per_class=8, size=64)
    course = ["--config=flowers_vgg16:smoke", f"--config.data.source=folder:{images}", "--config.weights.path=builtin"]
    course += ["--config.data.height=64", "--config.data.width=64"]
    options = ["--models=alexnet", "--batch=2", "--size=96", "--seconds=0.01", "--steps=2", *course]
    file = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "accelerator", *options, f"--json={file}"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while not (file.exists() and "forward" in file.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    earlier = json.loads(file.read_text())["parts"]
    assert "finetune" not in earlier["flaxtl: alexnet"]
    parts = run_benchmark(tmp_path, "accelerator", *options)["parts"]
    assert parts["device"] == earlier["device"]
    assert parts["flaxtl: alexnet"]["forward"] == earlier["flaxtl: alexnet"]["forward"]
    assert set(accelerator.WORK) < set(parts["flaxtl: alexnet"])
    (name,) = (name for name in parts if name.startswith("course: flowers_vgg16:smoke"))
    assert list(parts[name]["phases"]) == ["frozen", "augmented", "finetune"]


def test_accelerator_without_time_starts_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(accelerator, "call", None)
    assert run_benchmark(tmp_path, "accelerator", "--minutes=0", "--config=")["parts"] == {}
    assert "flaxtl: efficientnet_b0" in capsys.readouterr().out


@pytest.mark.slow
def test_phases_of_flaxtl_measure_every_kind_of_work():
    measured = dict(with_flaxtl.measure_work(SMALL | {"steps": 2, "work": list(accelerator.WORK)}))
    assert list(measured) == list(accelerator.WORK)
    assert measured["frozen"]["flop_per_image"] < 0.1 * measured["augmented"]["flop_per_image"]


def test_measure_peer_extrapolates_epochs(monkeypatch, tmp_path):
    class Manifest:
        classes = ("a", "b")

        def of_split(self, name):
            return ()

    monkeypatch.setattr("flaxtl.train.run_dir.load_config", lambda workdir: load_config("flowers_vgg16"))
    monkeypatch.setattr("flaxtl.train.run_dir.read_manifest", lambda workdir: Manifest())
    monkeypatch.setattr(compare, "find_spec", lambda package: package)
    epochs = {"epoch_seconds": [12.0, 4.0, 6.0], "epoch_cpu_seconds": [20.0, 8.0, 8.0], "cpu_seconds": 40.0}
    monkeypatch.setattr(job, "call", lambda *_, **__: epochs)
    result = job.measure_peer(tmp_path, "keras-tensorflow")
    assert result["seconds"] == pytest.approx(97 * 5.0, abs=1)
    assert result["cpu_seconds"] == 40.0 + 97 * 8.0
    assert result["epochs"] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("forward", "--peers=caffe"), "Unknown peer caffe"),
        (("job", "--speed"), "--speed"),
        (("train", "--config.seed=1"), "--config.seed=1"),
        (("job", "--config=demo", "--peer"), "one phase without augmentation"),
        (("job", "--config=demo", "--peer", "--config.nothing=1"), "nothing"),
    ],
)
def test_benchmark_invalid_option_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_defaults_of_layers_are_not_those_of_other_kinds():
    kinds = ("forward", "train", "variants", "data", "layers")
    parsed = [benchmark.make_parser().parse_args([kind]) for kind in kinds]
    assert [options.seconds for options in parsed] == [3.0, 3.0, 3.0, 3.0, 0.5]
    assert [getattr(options, "peers", None) for options in parsed] == ["all", "all", None, "all", "keras-tensorflow"]


def test_benchmark_help_needs_no_other_framework():
    code = "import sys; sys.argv = ['benchmark.py', '--help']; import benchmark; benchmark.main()"
    absence = "import sys\nfor name in ('jax', 'tensorflow', 'keras', 'torch'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", absence + code]
    done = subprocess.run(command, cwd=ROOT / "tools", env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "forward" in done.stdout
