"""What a phase learns from: pictures, or what the frozen layers below it make of them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

from flaxtl.train import mesh as meshes
from flaxtl.train.advance import Way
from flaxtl.train.average import Average
from flaxtl.train.feature_feeds import MappedFeed
from flaxtl.train.features import Bar, Inputs
from flaxtl.train.feeds import Feed
from flaxtl.train.groups import Flat
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup
from flaxtl.train.steps import State, Task


def first_state(setup: Setup, phase: Phase, parameters: Flat, transformation: optax.GradientTransformation) -> State:
    """The state before the phase's first step; copies, which the steps may overwrite."""
    learning, statistics, _ = phase.split.part(parameters)
    first, classes = transformation.init(learning), len(setup.manifest.classes)
    state = State.first(phase.first_step, learning, statistics, first, classes, averages=phase.ema > 0)
    return meshes.place(state, setup.mesh)


class Material(NamedTuple):
    """A run's decoded pictures by split; where frozen layers have to be passed, `bar` shows it and `say` tells it."""

    setup: Setup
    inputs: Mapping[str, Inputs]
    bar: Bar
    say: Callable[[str], None]

    def way(self, phase: Phase, parameters: Flat, transformation: optax.GradientTransformation) -> Way:
        """The steps of a phase that begins with `parameters`; what is frozen in it is passed once, here."""
        setup = self.setup
        fresh = phase.augment and not (phase.cut and setup.config.features.views)
        start = None if fresh else phase.cut
        views = phase.augment and start
        task = Task(
            setup.network.model,
            transformation,
            setup.mesh,
            setup.config.seed,
            start=start,
            augmentation=setup.augmentation if fresh else None,
            class_weights=setup.class_weights,
            smoothing=float(setup.config.label_smoothing),
            accumulate=setup.config.accumulate,
            average=Average(phase.ema, phase.first_step) if phase.ema else None,
        )
        data = self._views(phase, parameters) if views else self.clean("train", start, parameters)
        backbone = tuple(layer.name for layer in setup.network.layers if layer.section == "backbone")
        return Way(task, data, phase.split.part(parameters).frozen, backbone)

    def clean(self, split: str, cut: str | None, parameters: Flat) -> Feed:
        """The split's pictures, or with a cut what the frozen prefix makes of them."""
        inputs = self.inputs[split]
        if cut is None:
            return inputs.pictures()
        return inputs.features(cut, parameters, self._bar(split), self._beside(split))

    def _views(self, phase: Phase, parameters: Flat) -> Feed:
        """What the frozen prefix makes of a few augmented views of the training pictures."""
        assert phase.cut is not None, "without a frozen prefix augmentation is fresh"
        data = self.inputs["train"].views(phase.cut, parameters, self._bar("train"), self._beside("train"))
        place = ", read from a file batch by batch" if isinstance(data, MappedFeed) else ""
        views = self.setup.config.features.views
        self.say(f"{phase.name}: {views} views of each picture stand for fresh augmentation{place}")
        return data

    def _bar(self, split: str) -> Bar:
        return lambda title, n: self.bar(f"{split} pictures {title}", n)

    def _beside(self, split: str) -> int:
        """Bytes that the other splits hold on each device."""
        return sum(inputs.held_bytes for name, inputs in self.inputs.items() if name != split)
