"""The Python API: a run and its results in a notebook, and a model for a custom training loop."""

import json
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import finished_run
from helpers.train_process import Place

from flaxtl import api
from flaxtl.errors import UserError
from flaxtl.train.signals import StopRequested


@pytest.mark.slow
def test_train_returns_results_and_repeats_nothing(tmp_path):
    place = Place(tmp_path / "user", "epochs=1", "epochs=1")
    config = api.load_config(str(place.folder / "config.py"), f"data.source=folder:{place.folder / 'images'}")
    config.phases = ("frozen",)
    config.frozen.epochs = 2
    run = api.train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"]
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    accuracy = summary["phases"]["frozen"]["test"]["accuracy"]
    assert run.metrics["test"].accuracy == accuracy
    assert f"{100 * accuracy:.2f}" in repr(run)
    assert repr(run).endswith(str(run.report_path))
    rows = [row for row, split in enumerate(run.predictions.splits) if split == "test"]
    again = run.predict([run.predictions.paths[row] for row in rows])
    # predictions.csv has six digits; here without cached features, so float32 sums in another order
    np.testing.assert_allclose(again.probabilities, run.predictions.probabilities[rows], rtol=0, atol=1e-5)
    before = run.report_path.stat().st_mtime_ns
    assert repr(api.train(config, tmp_path / "run")) == repr(run)
    assert run.report_path.stat().st_mtime_ns == before


def test_train_stop_request_interrupts_the_cell(monkeypatch, tmp_path):
    configs = Path(__file__).parents[2] / "configs"

    def stopped(*_):
        raise StopRequested(signal.SIGINT)

    monkeypatch.setattr(api.trainer, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        api.train(api.load_config(str(configs / "demo.py")), tmp_path)


def test_run_result_html_has_phases_curves_and_matrix(tmp_path):
    run = finished_run.write_run(tmp_path)
    shown = finished_run.Page(api.load_run(run)._repr_html_())
    assert shown.tags.count("svg") == 3  # loss, accuracy, confusion matrix
    assert "script" not in shown.tags
    rows = [phase for phase in json.loads((run / "config.json").read_text())["phases"] if phase in shown.text]
    assert len(rows) == 2


def test_run_result_of_unfinished_run_is_empty(tmp_path):
    workdir = finished_run.write_run(tmp_path)
    for name in ("predictions.csv", "metrics.jsonl", "summary.json"):
        (workdir / name).unlink()
    run = api.load_run(workdir)
    assert repr(run).startswith(f"{workdir}: ")
    assert not re.search(r"\d|%", repr(run).removeprefix(f"{workdir}: "))
    assert (run.epochs, run.metrics, run.predictions) == ([], {}, None)
    assert finished_run.Page(run._repr_html_()).tags.count("svg") == 0


def test_load_config_and_load_run_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + r"\b.*\bconfig\.json"):
        api.load_run(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.py"))):
        api.load_config(str(tmp_path / "config.py"))
    Place(tmp_path / "user", "epochs=1", "epochs=1")
    with pytest.raises(UserError, match=r"'frozen\.epoch'.*'frozen\.epochs'"):
        api.load_config(str(tmp_path / "user" / "config.py"), "frozen.epoch=3")


@pytest.fixture(scope="module")
def created():
    """Return a model and its variables."""
    return api.create_model("mobilenet_0.25", 3, "random", image_size=32, units=(8,), dropout=0.5)


def test_create_model_trains_unlisted_groups_stay_frozen(created):
    model, variables = created
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((4, 3), np.float32)
    groups = api.param_groups(variables["params"], model.default_groups)
    assert jax.tree.structure(groups) == jax.tree.structure(variables["params"])
    tx = api.make_optimizer(groups, {"head": 1e-3}, optax.adam)

    @jax.jit
    def updates(params):
        gradients = jax.tree.map(jnp.ones_like, params)
        return tx.update(gradients, tx.init(params), params)[0]

    changed = jax.tree.map(lambda update: bool(np.any(update)), updates(variables["params"]))
    assert all(jax.tree.leaves(changed["head"]))
    assert not any(jax.tree.leaves(changed["backbone"]))


def test_create_model_train_mode_updates_batch_stats_and_drops_out(created):
    model, variables = created
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)

    @jax.jit
    def run(key):
        return model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    (first, changes), (second, _) = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.array_equal(first, second)
    moved = jax.tree.map(np.array_equal, changes["batch_stats"], variables["batch_stats"])
    assert not any(jax.tree.leaves(moved))


def test_list_models_pattern_selects_names():
    assert "vgg16" in api.list_models()
    assert api.list_models("VGG*") == ["vgg16", "vgg19"]
