"""Originals beside their augmented samples, for the report."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from flaxtl.data.apply import augment
from flaxtl.data.augment import keys
from flaxtl.data.decode import decode
from flaxtl.errors import UserError
from flaxtl.train.setup import Setup

Sample = tuple[Image.Image, list[Image.Image]]


def augmented_samples(setup: Setup, pictures: int = 5, each: int = 5) -> list[Sample]:
    """The first training picture of up to `pictures` classes, each as the first `each` passes would augment it.

    Empty if no phase augments. What can no longer be read is left out: a report outlives its pictures.
    """
    if not any(phase.augment for phase in setup.phases):
        return []
    examples = setup.manifest.of_split("train")
    firsts = {example.label: number for number, example in reversed(list(enumerate(examples)))}
    samples = (
        _sample(setup, Path(examples[firsts[label]].path), firsts[label], each) for label in sorted(firsts)[:pictures]
    )
    return [sample for sample in samples if sample]


def _sample(setup: Setup, path: Path, index: int, each: int) -> Sample | None:
    try:
        original = decode(path, setup.resize)
    except UserError:
        return None
    passes = jnp.arange(each, dtype=jnp.int32)
    random = keys(setup.config.seed, passes, jnp.full(each, index, jnp.int32))
    changed = jax.jit(augment, static_argnums=2)(
        random, jnp.broadcast_to(original, (each, *original.shape)), setup.augmentation
    )
    pixels = np.asarray(changed.round().clip(0, 255), np.uint8)
    return Image.fromarray(original), [Image.fromarray(picture) for picture in pixels]
