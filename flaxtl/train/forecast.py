"""How long a run will take: the work of its phases in floating-point operations, and the speed of the first steps."""

from dataclasses import dataclass, replace

from flaxtl.models.flops import eval_step_flops, forward_flops, train_step_flops
from flaxtl.train.phases import Phase
from flaxtl.train.setup import RunSetup


@dataclass(frozen=True)
class PhaseWork:
    """The work of one phase.

    Attributes:
      name: of the phase.
      steps: number of train steps, if it does not stop early.
      flops: floating-point operations of all steps, of the validation after each epoch, and of the cached views, which
        the first phase that reads them computes.
      features: floating-point operations for the features of one image, up to the phase's cut layer.
      on_features: whether the steps read cached features instead of images.
      computes_views: whether the cached views that they read are computed first.
    """

    name: str
    steps: int
    flops: float
    features: float
    on_features: bool
    computes_views: bool = False


@dataclass(frozen=True)
class RunWork:
    """The work of a run.

    Attributes:
      phases: of each phase, in order.
      evaluation: floating-point operations of the evaluation of the test images, once.
    """

    phases: tuple[PhaseWork, ...]
    evaluation: float

    def seconds_left(
        self, phase: str, steps_done: int, steps_per_second: float, images_per_second: float | None
    ) -> float | None:
        """Estimate the time from now to the end of the run.

        A phase takes as long as its operations at the measured rate; one on features after another at least as long as
        its steps, which may be too short for the operations to matter. Early stopping may end phases sooner.

        Args:
          phase: name of the current phase.
          steps_done: its steps that are done.
          steps_per_second: their measured speed.
          images_per_second: measured speed of the feature cache; None: nothing had to be computed.

        Returns:
          Seconds; None if the backbone runs in a later phase and its speed is not known yet.
        """
        index = [work.name for work in self.phases].index(phase)
        current, later = self.phases[index], self.phases[index + 1 :]
        step_seconds = 1 / steps_per_second
        rate = current.flops / (current.steps * step_seconds)
        if current.on_features:
            if images_per_second is None and any(work.computes_views or not work.on_features for work in later):
                return None
            rate = images_per_second * current.features if images_per_second else float("inf")
        seconds = (current.steps - steps_done) * step_seconds + self.evaluation / rate
        for work in later:
            least = work.steps * step_seconds if work.on_features and current.on_features else 0.0
            seconds += max(work.flops / rate, least)
        return seconds


def run_work(setup: RunSetup) -> RunWork:
    """Return the work of a run."""
    info, manifest = setup.model_info, setup.manifest
    flops = forward_flops(info.layers, info.shapes)
    num_validation = len(manifest.of_split("validation"))
    phases = [_phase_work(phase, flops, setup, num_validation) for phase in setup.phases]
    readers = [i for i, phase in enumerate(setup.phases) if phase.augment and phases[i].on_features]
    if readers:
        first = phases[readers[0]]
        phases[readers[0]] = replace(first, flops=first.flops + _view_flops(flops, setup), computes_views=True)
    num_test = len(manifest.of_split("test")) if "test" in manifest.splits else 0
    return RunWork(tuple(phases), num_test * eval_step_flops(flops, None))


def forecast(
    setup: RunSetup, phase: Phase, steps_done: int, steps_per_second: float, images_per_second: float | None
) -> str | None:
    """Return a sentence on how long the rest of the run will take; arguments and None as of `RunWork.seconds_left`."""
    seconds = run_work(setup).seconds_left(phase.name, steps_done, steps_per_second, images_per_second)
    left = setup.phases[setup.phases.index(phase) :]
    if seconds is None:
        return None
    may_stop_early = any(0 < phase.patience < phase.epochs - 1 for phase in left)  # at best after epoch 1 + patience
    early = f", less if {'one' if len(left) > 1 else 'it'} stops early" if may_stop_early else ""
    return f"{describe_time(seconds)} for {_count_phases(len(left), len(setup.phases))}{early}."


def describe_time(seconds: float) -> str:
    """Return 'About 12 minutes'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return "About a minute" if seconds > 40 else "Less than a minute"
    return f"About {minutes} minutes" if minutes < 90 else f"About {seconds / 3600:.1f} hours"


def _count_phases(num_left: int, num_phases: int) -> str:
    """Return '3 phases', or 'the last 2 phases' if some have ended."""
    phases = "phase" if num_left == 1 else f"{num_left} phases"
    return f"the last {phases}" if num_left < num_phases else "1 phase" if num_left == 1 else phases


def _phase_work(phase: Phase, flops: dict[str, int], setup: RunSetup, num_validation: int) -> PhaseWork:
    on_features = bool(phase.cut_layer) and (not phase.augment or setup.config.feature_cache.views > 0)
    per_image = train_step_flops(flops, phase.cut_layer if on_features else None, phase.cut_layer)
    validation = eval_step_flops(flops, phase.cut_layer)
    train_flops = phase.steps * setup.config.batch_size * per_image
    return PhaseWork(
        phase.name,
        phase.steps,
        flops=train_flops + phase.epochs * num_validation * validation,
        features=eval_step_flops(flops, None) - validation,
        on_features=on_features,
    )


def _view_flops(flops: dict[str, int], setup: RunSetup) -> int:
    """Return the operations of all cached views, up to the last cut layer of the phases that read them."""
    cut_layers = [phase.cut_layer for phase in setup.phases if phase.augment and phase.cut_layer]
    one_view = eval_step_flops(flops, None) - min(eval_step_flops(flops, layer) for layer in cut_layers)
    num_views: int = len(setup.manifest.of_split("train")) * setup.config.feature_cache.views
    return num_views * one_view
