"""The decoded images of the splits of a run."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.data.decode import decode_all
from flaxtl.errors import UserError
from flaxtl.train.datasets import load_splits


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_load_splits_closes_the_gaps_of_unreadable_images(folder, tmp_path, monkeypatch, pipeline):
    data = tiny_run.config(folder).data.to_dict() | {"pipeline": pipeline, "on_error": "skip"}
    setup = tiny_run.setup(shutil.copytree(folder, tmp_path / "images"), tmp_path / "run", data=data)
    damaged = [setup.manifest.of_split("train")[index].path for index in (0, 5)]
    for path in damaged:
        Path(path).write_bytes(b"no image")
    named, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: named.append(target) or replace(path, target))
    setup, splits, skipped = load_splits(setup, setup.manifest.splits, tiny_run.quiet(), may_skip=True)
    assert list(skipped) == damaged
    # Images with gaps never have a final name, under which a run that is killed would find them.
    assert named == ([] if pipeline == "resident" else list((tmp_path / "run" / "images" / "0").iterdir()))
    assert list(map(len, splits.values())) == [10, 6, 6]
    for split, part in splits.items():
        batches = [(jax.tree.map(jnp.asarray, batch), mask) for batch, mask in part.image_loader().eval_batches(4)]
        images = np.concatenate([batch.inputs(0, None)[mask] for batch, mask in batches])
        examples = setup.manifest.of_split(split)
        np.testing.assert_array_equal(images, decode_all([Path(example.path) for example in examples], setup.resize))
        labels = np.concatenate([batch.labels[mask] for batch, mask in batches])
        np.testing.assert_array_equal(labels, setup.manifest.labels(examples))


@pytest.mark.parametrize(
    ("may_skip", "remedy"),
    [
        (True, r"Replace or remove them, or leave them out: --config\.data\.on_error=skip$"),
        (False, r"Replace or remove them\.$"),  # the config of a run that has begun cannot change
    ],
)
def test_load_splits_advises_to_skip_where_it_is_possible(folder, tmp_path, may_skip, remedy):
    setup = tiny_run.setup(shutil.copytree(folder, tmp_path / "images"), tmp_path / "run")
    damaged = setup.manifest.of_split("test")[0].path
    Path(damaged).write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"^Cannot read 1 of 24 images: {damaged} \(not an image.*\)\. {remedy}"):
        load_splits(setup, setup.manifest.splits, tiny_run.quiet(), may_skip=may_skip)
