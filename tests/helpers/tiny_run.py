"""The smallest run with all features: 24 synthetic images, two blocks of VGG16, frozen, then fine-tuned."""

import io
from contextlib import contextmanager

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from flaxtl.config import complete_config, config_to_json
from flaxtl.data.loaders import ImageSet
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.pretrained import backbone
from flaxtl.train import run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import SplitData
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.run_records import RunSummary, read_metrics
from flaxtl.train.setup import build_setup

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
EACH = 8
SIDE = 32

DATA = {"height": SIDE, "width": SIDE, "fractions": {"train": 0.5, "validation": 0.25, "test": 0.25}}
GROUPS = (("head", "head/.*"), ("block2", "backbone/block2_.*"), ("base", "backbone/.*"))
FROZEN = {"head": 1e-2, "block2": 0.0, "base": 0.0}
FINETUNE = {"head": 1e-3, "block2": 1e-4, "base": 0.0}


def patch(colour, number):
    """uint8 [32, 32, 3]: noise around a color, so that no two images are similar."""
    noise = np.random.default_rng([*colour, number]).integers(-40, 41, (SIDE, SIDE, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def images(folder):
    """FOLDER/{blue,green,red}/N.png, 8 of each; returns `folder`."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            Image.fromarray(patch(colour, number)).save(folder / name / f"{number}.png")
    return folder


def config(folder, **changes):
    """A complete config of `settings` for the images of a folder."""
    values = settings(**changes)
    values["data"] = {"source": f"folder:{folder}"} | values["data"]
    return complete_config(ConfigDict(values))


def write_config(folder, **changes):
    """Write `settings` to FOLDER/config.py."""
    function = f"def get_config():\n    return ConfigDict({settings(**changes)})\n"
    (folder / "config.py").write_text(f"from ml_collections import ConfigDict\n\n{function}")


def settings(**changes):
    """Settings without data.source: batch 4, 12 training and 6 validation and test images, 2 + 2 epochs of 3 steps.

    `changes` replace settings: batch_size=2, or phase settings such as frozen={...} merged into the phase's own.
    """
    phases = {
        "frozen": {"epochs": 2, "augment": False, "lr": FROZEN},
        "finetune": {"epochs": 2, "augment": True, "lr": FINETUNE},
    }
    values = {
        "seed": 3,
        "batch_size": 4,
        "data": DATA,
        "weights": {"path": "random"},
        "model": {"name": "vgg16", "output_layer": "block2_pool"},
        "head": {"pooling": "global_average", "units": (8,), "dropout": 0.4},
        "augmentation": {"rotation": 20.0, "horizontal_flip": True},
        "optimizer": {"name": "nadam", "b1": 0.9, "b2": 0.99},
        "param_groups": GROUPS,
        "phases": tuple(phases),
        "checkpoint": {"every_seconds": 3600.0},
    }
    for key, value in changes.items():
        if key in phases:
            phases[key] = phases[key] | value
        else:
            values[key] = value
    return values | {name: phases[name] for name in values["phases"]}


def setup(folder, workdir, **changes):
    """Return the setup of `config`."""
    made = config(folder, **changes)
    return build_setup(made, workdir, make_manifest(scan_folder(folder), made.data.fractions.to_dict(), made.seed))


def parameters(network, settings):
    """Return new parameters of the whole model."""
    return backbone.initial_params(settings, network.model, notify=lambda text: None).params


def untrained(folder, workdir, **changes):
    """Write a run directory as after its phases, but with random parameters; returns `workdir`.

    NumPy draws the parameters: nothing is compiled.
    """
    prepared = setup(folder, workdir, **changes)
    records = run_dir.layer_records(prepared.model_info, prepared.phases, weights_source="")
    settings, summary = config_to_json(prepared.config), RunSummary(command="flaxtl train")
    run_dir.create_run_dir(workdir, settings, prepared.manifest, records, summary)
    rng, params = np.random.default_rng(prepared.config.seed), {}
    for path, leaf in prepared.abstract_params().items():
        deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if len(leaf.shape) > 1 else 0.0
        params[path] = rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_phase(len(prepared.phases), params)
    return workdir


def inputs(prepared, split, directory, cuts):
    """Return the images of one split, as the epoch loop uses them."""
    examples = prepared.manifest.of_split(split)
    decoded = np.stack([np.asarray(Image.open(example.path)) for example in examples])
    return SplitData(
        split=split,
        model=prepared.feature_model,
        layers=prepared.model_info.layers,
        mesh=prepared.mesh,
        images=ImageSet(decoded, prepared.manifest.labels(examples)),
        cut_layers=cuts,
        cache_dir=directory,
        batch_size=prepared.config.batch_size,
    )


def quiet():
    """Return a console whose output is only recorded."""
    return Console(file=io.StringIO(), width=200)


def texts(console):
    """Return the output of a `quiet` console."""
    return console.file.getvalue()


def digests(outcome):
    """path -> SHA-256 of the parameters before and after each phase of a run that has ended."""
    prepared = outcome.setup
    with Checkpoints(prepared.workdir) as checkpoints:
        assert checkpoints.num_phases() == len(prepared.phases)
        done = range(len(prepared.phases) + 1)
        return [param_digests(checkpoints.restore_phase(number, prepared.abstract_params())) for number in done]


def results(workdir):
    """Return the metrics of all epochs, and the phases of summary.json, without timings."""
    epochs = [{key: value for key, value in row.items() if key != "seconds"} for row in metrics(workdir)]
    phases = run_dir.read_summary(workdir).to_json()["phases"]
    for phase in phases.values():
        del phase["wall_seconds"]
    return epochs, phases


def metrics(workdir):
    """The lines of metrics.jsonl as dicts."""
    return [epoch.to_json() for epoch in read_metrics(workdir)]


def stop_at(monkeypatch, owner, name, call, *, after=False):
    """Make the call-th call (from 1) of owner.name raise KeyboardInterrupt, before or after it did its work."""
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **named):
        calls.append(name)
        if len(calls) == call and not after:
            raise KeyboardInterrupt
        result = original(*arguments, **named)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


@contextmanager
def bar(title, total):
    """A progress bar without output."""
    yield lambda done: None
