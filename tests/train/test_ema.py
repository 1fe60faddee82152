import jax
import jax.numpy as jnp
import numpy as np

from flaxtl.train.train_step import Ema

SHAPES = {"head/out/kernel": (5, 3), "head/out/bias": (3,)}
DECAY = 0.7


def test_ema_update_matches_keras():
    """A dense layer trained by Keras on ten batches; ours follows the weights that it had after each."""
    import keras

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    rate = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=DECAY)
    model.compile(rate, loss="sparse_categorical_crossentropy", jit_compile=False)
    random, paths = np.random.default_rng(0), list(SHAPES)
    average, after = dict.fromkeys(paths, jnp.zeros(())), jax.jit(Ema(DECAY, first_step=20).update)
    for step in range(20, 30):
        model.train_on_batch(random.normal(size=(4, 5)), random.integers(0, 3, 4))
        weights = dict(zip(paths, map(jnp.asarray, model.get_weights()), strict=True))
        average = after(jnp.int32(step), average, weights)
        if step == 20:
            assert all(np.array_equal(average[path], weights[path]) for path in paths)
    rate.finalize_variable_values(model.trainable_variables)  # what `fit` does in the end
    for path, kept in zip(paths, model.get_weights(), strict=True):
        assert not np.allclose(average[path], weights[path], atol=1e-3)
        # Two products and a sum a step of values below 2, each step's error shrinking by DECAY: 3 * 2**-24 / 0.3
        np.testing.assert_allclose(average[path], kept, rtol=0, atol=6e-7)


def test_ema_update_weight_of_first_step():
    average = {"w": jnp.zeros(())}
    for step in range(5):
        average = Ema(0.5, 0).update(jnp.int32(step), average, {"w": jnp.float32(step == 0)})
    assert float(average["w"]) == 0.5**4
