"""Train three steps on one and on all simulated devices: python -m helpers.steps_on_devices IMAGES RESULT.npz."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxtl.data.device_dataset import put_dataset
from flaxtl.data.sampler import EpochSampler
from flaxtl.evaluation import predictor
from flaxtl.parallel import devices
from flaxtl.train import train_step
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.train_step import TrainState
from helpers import tiny_run


def train(setup, num_devices):
    """Return name -> array of the trained parameters and metric sums."""
    axis = setup.mesh.axis_names
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), axis)
    setup, phase = replace(setup, mesh=mesh), setup.phases[0]
    params = tiny_run.parameters(setup.model_info, setup.config)
    trainable, batch_stats, frozen = phase.param_groups.partition(params)
    loader = tiny_run.inputs(setup, "train", setup.workdir / str(num_devices), []).image_loader()
    assert loader.data.device_bytes == loader.data.inputs.nbytes // num_devices  # split, and 12 need no padding
    optimizer = phase_optimizer(setup.config.optimizer, phase.param_groups, "constant", 3, 0)
    cfg = train_step.StepConfig(setup.model_info.model, optimizer, mesh, 3)
    step = train_step.make_train_step(cfg, loader.sharding(mesh))
    state = devices.replicate(TrainState.create(0, trainable, batch_stats, optimizer.init(trainable), 3), mesh)
    for batch in loader.train_batches(EpochSampler(3, 4, len(loader)), 0, 3, None):
        state = step(state, frozen, batch)
    assert step._cache_size() == 1
    assert len(state.step.sharding.device_set) == num_devices
    sums = {"loss": state.metrics.loss, "correct": state.metrics.correct, "count": state.metrics.count}
    return {name: np.asarray(value) for name, value in (sums | state.params).items()}


def check_gather(mesh):
    """Rows of an array that is padded and split over the devices have the bits of the original."""
    originals = np.random.default_rng(0).integers(0, 256, (13, 3, 2)) - 128
    for dtype in (np.uint8, jnp.bfloat16, np.float32):
        rows = originals.astype(dtype)
        data, indices = put_dataset(rows, np.zeros(13, np.int32), mesh), np.array([12, 0, 12, 5], np.int32)
        gathered = jax.jit(lambda data, indices: data.gather(indices))(data, indices)
        assert np.asarray(gathered).tobytes() == rows[indices].tobytes()
        assert gathered.sharding.shard_shape(gathered.shape)[0] == 4 // mesh.size


def check_copies(mesh):
    """Donating what `replicate` returns leaves an array valid, wherever it was."""
    originals = [jnp.arange(3.0), *(jax.device_put(jnp.arange(3.0), device) for device in jax.devices())]
    originals.append(jax.device_put(jnp.arange(3.0), devices.replicated_sharding(mesh)))
    copies = devices.replicate(originals, mesh)
    jax.jit(lambda arrays: [-array for array in arrays], donate_argnums=0)(copies)
    assert all(copy.is_deleted() for copy in copies)
    for original in originals:
        assert not original.is_deleted()
        np.testing.assert_array_equal(original + 0, [0, 1, 2])


def check_predict(setup):
    """Five images on all devices, padded to three a device, have the predictions of one device."""
    params = tiny_run.parameters(setup.model_info, setup.config)
    paths, shards, predictions = [Path(example.path) for example in setup.manifest.examples[:5]], [], []
    infer = predictor.infer

    def noting(model, params, images, **options):
        jax.debug.inspect_array_sharding(images, callback=lambda split: shards.append(split.shard_shape(images.shape)))
        return infer(model, params, images, **options)

    predictor.infer = noting
    for num_devices in (1, jax.device_count()):
        mesh = devices.make_mesh(num_devices)
        run = predictor.TrainedRun(replace(setup, mesh=mesh), devices.replicate(params, mesh), "frozen")
        predictions.append(run.predictor().predict(paths))
    one, many = predictions
    assert one.paths == many.paths == tuple(map(str, paths))
    np.testing.assert_allclose(many.probabilities, one.probabilities, rtol=0, atol=1e-6)
    assert [shape[0] for shape in shards] == [5, 3]


if __name__ == "__main__":
    images, result = map(Path, sys.argv[1:])
    setup = tiny_run.setup(images, result.parent)
    arrays = {f"{n} {name}": array for n in (1, jax.device_count()) for name, array in train(setup, n).items()}
    check_gather(setup.mesh)
    check_copies(setup.mesh)
    check_predict(setup)
    np.savez(result, **{name.replace("/", "."): array for name, array in arrays.items()})
