"""What is particular about InceptionV3: its automatic names. It is compared with Keras in test_keras_parity.py."""

import keras
import numpy as np
import pytest
from helpers import keras_zoo


@pytest.mark.slow
def test_network_built_after_others_loads_by_layer_order(tmp_path, monkeypatch):
    """The automatic names of a network count on from those of the networks before it in the same process."""
    first = keras_zoo.keras_network("inception_v3", 107, include_top=False)
    monkeypatch.setattr(keras.backend, "clear_session", lambda: None)
    keras_zoo.keras_network("xception", 107, include_top=False)
    later = keras_zoo.keras_network("inception_v3", 107, include_top=False)
    assert {"conv2d_98", "batch_normalization_98"} <= set(keras_zoo.keras_layer_names(later)[:3])
    trees = [
        keras_zoo.load_params("inception_v3", save(network, tmp_path / "x.h5"), 107, include_top=False)
        for network in (first, later)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    ]
    for tree in trees[1:]:
        np.testing.assert_equal(tree, trees[0])  # the same random weights: those of `first` are compared with Keras
