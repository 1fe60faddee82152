"""The statistics of head.normalize=standardize: compared with NumPy, and in a run."""

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.data.device_dataset import put_dataset
from flaxtl.data.loaders import DeviceLoader
from flaxtl.evaluation.predictor import load_run
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.parallel import devices
from flaxtl.train import trainer
from flaxtl.train.standardization import Moments, feature_statistics


def test_feature_statistics_equal_numpy_over_padded_batches():
    """Seven images in batches of four; deviations that are small beside the mean keep their digits."""
    features = np.random.default_rng(0).normal(100, 0.1, (7, 2, 1, 512)).astype(np.float32)
    mesh = devices.make_mesh(4)
    model = Classifier(registry.get_spec("vgg16"), Head(3, "none", normalize="standardize"))
    loader = DeviceLoader(put_dataset(features, np.zeros(7, np.int32), mesh))
    statistics = feature_statistics(model, mesh, {}, loader, "block5_pool", 4)
    flat = features.reshape(7, -1).astype(np.float64)
    assert list(statistics) == ["head/normalize/mean", "head/normalize/var"]
    np.testing.assert_allclose(statistics["head/normalize/mean"], flat.mean(0), rtol=2e-7)  # float32 means of a batch
    np.testing.assert_allclose(statistics["head/normalize/var"], flat.var(0), rtol=2e-4)  # those are off by 8e-6 of 0.1


def test_moments_merge_equals_moments_of_all():
    values = np.random.default_rng(1).normal(1e6, 1, 10)
    parts = [Moments(np.array(len(part)), part.mean(), part.var() * len(part)) for part in (values[:3], values[3:])]
    count, mean, squares = parts[0].merge(parts[1])
    assert count == 10
    np.testing.assert_allclose([mean, squares / count], [values.mean(), values.var()], rtol=1e-9)


@pytest.mark.slow
def test_train_standardize_statistics_are_those_of_the_training_images(folder, tmp_path, monkeypatch):
    """After an interruption, too."""
    head = {"pooling": "global_average", "normalize": "standardize"}
    config = tiny_run.config(folder, head=head, phases=("frozen",))
    monkeypatch.setattr(trainer.PhaseTrainer, "_save_is_due", lambda self: True)
    with monkeypatch.context() as patch:
        tiny_run.stop_at(patch, trainer.PhaseTrainer, "_end_epoch", 2)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(config, tmp_path / "run", tiny_run.quiet(), "flaxtl train")
    result = trainer.train(config, tmp_path / "run", tiny_run.quiet(), "flaxtl train")
    run = load_run(tmp_path / "run")
    paths = [Path(example.path) for example in result.setup.manifest.of_split("train")]
    features = run.predictor().predict(paths, taps=("flatten",)).taps["flatten"]
    np.testing.assert_allclose(run.params["head/normalize/mean"], features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(run.params["head/normalize/var"], features.var(0), rtol=1e-4)
    normalized = run.predictor().predict(paths, taps=("normalize",)).taps["normalize"]
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-4)
