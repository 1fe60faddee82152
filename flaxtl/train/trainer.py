"""What a phase learns from: images, or what the frozen layers below it make of them."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from rich.console import Console

from flaxtl.config import config_to_json
from flaxtl.data.loaders import HostLoader, Loader
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import devices, processes
from flaxtl.pretrained import backbone
from flaxtl.pretrained.backbone import InitialParams
from flaxtl.train import run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress
from flaxtl.train.datasets import load_splits
from flaxtl.train.epoch_loop import EpochLoop, Leg, Way
from flaxtl.train.feature_cache import ProgressFn, SplitData, param_digests
from flaxtl.train.logger import MetricLogger, layer_records, param_group_table
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import RunSummary, SplitMetrics, WeightsSource
from flaxtl.train.setup import RunSetup, build_manifest, build_setup, check_names, load_manifest
from flaxtl.train.signals import StopSignal
from flaxtl.train.train_step import Ema, StepConfig, TrainState


def initial_state(
    setup: RunSetup, phase: Phase, parameters: FlatParams, transformation: optax.GradientTransformation
) -> TrainState:
    """The state before the phase's first step; copies, which the steps may overwrite."""
    learning, statistics, _ = phase.param_groups.partition(parameters)
    first, classes = transformation.init(learning), len(setup.manifest.classes)
    state = TrainState.create(phase.first_step, learning, statistics, first, classes, use_ema=phase.ema > 0)
    return devices.replicate(state, setup.mesh)


class Material(NamedTuple):
    """A run's decoded images by split; where frozen layers have to be passed, `bar` shows it and `say` tells it."""

    setup: RunSetup
    inputs: Mapping[str, SplitData]
    bar: ProgressFn
    say: Callable[[str], None]

    def way(self, phase: Phase, parameters: FlatParams, transformation: optax.GradientTransformation) -> Way:
        """The steps of a phase that begins with `parameters`; what is frozen in it is passed once, here."""
        setup = self.setup
        fresh = phase.augment and not (phase.cut_layer and setup.config.feature_cache.views)
        start = None if fresh else phase.cut_layer
        views = phase.augment and start
        task = StepConfig(
            setup.model_info.model,
            transformation,
            setup.mesh,
            setup.config.seed,
            start_layer=start,
            augmentation=setup.augmentation if fresh else None,
            class_weights=setup.class_weights,
            label_smoothing=float(setup.config.label_smoothing),
            accum_steps=setup.config.accum_steps,
            ema=Ema(phase.ema, phase.first_step) if phase.ema else None,
        )
        data = self._views(phase, parameters) if views else self.clean("train", start, parameters)
        backbone = tuple(layer.name for layer in setup.model_info.layers if layer.section == "backbone")
        return Way(task, data, phase.param_groups.partition(parameters).frozen, backbone)

    def clean(self, split: str, cut: str | None, parameters: FlatParams) -> Loader:
        """The split's images, or with a cut what the frozen prefix makes of them."""
        inputs = self.inputs[split]
        if cut is None:
            return inputs.image_loader()
        return inputs.feature_loader(cut, parameters, self.bar, reserved_bytes=self._beside(split))

    def _views(self, phase: Phase, parameters: FlatParams) -> Loader:
        """What the frozen prefix makes of a few augmented views of the training images."""
        assert phase.cut_layer is not None, "without a frozen prefix augmentation is fresh"
        views, splits = self.setup.config.feature_cache.views, self.inputs
        data = splits["train"].feature_loader(
            phase.cut_layer, parameters, self.bar, num_views=views, reserved_bytes=self._beside("train")
        )
        place = ", read from a file batch by batch" if isinstance(data, HostLoader) else ""
        self.say(f"{phase.name}: {views} views of each image stand for fresh augmentation{place}")
        return data

    def _beside(self, split: str) -> int:
        """Bytes that the other splits hold on each device."""
        return sum(inputs.device_bytes for name, inputs in self.inputs.items() if name != split)


class Run(NamedTuple):
    """What every phase works with. `begun` is when the run began, monotonic seconds, until it has made a step."""

    setup: RunSetup
    inputs: Mapping[str, SplitData]
    checkpoints: Checkpoints
    log: MetricLogger
    interruption: StopSignal
    begun: float | None


def run_phase(run: Run, phase: Phase, parameters: FlatParams) -> FlatParams:
    """Train one phase, prove its freeze, keep the result. Returns the parameters after it."""
    started = time.monotonic()
    frozen = phase.param_groups.partition(parameters).frozen
    before = param_digests(frozen)
    transformation = phase_optimizer(
        run.setup.config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps
    )
    leg = _leg(run, phase, parameters, transformation)
    featured = time.monotonic()

    state = initial_state(run.setup, phase, parameters, transformation)
    fresh = PhaseProgress(state, devices.replicate(state.updated_params, run.setup.mesh), EarlyStopping(0, None, 0))
    told = len(run.log.phase_epochs(phase.name))
    progress = run.checkpoints.restore_latest(phase.first_step, phase.last_step, told, fresh) or fresh
    earlier = sum(metrics.seconds for metrics in run.log.phase_epochs(phase.name)[: progress.early_stopping.epoch])
    progress = EpochLoop(run.setup, leg, run.checkpoints, run.log, run.interruption, run.begun).run(progress)

    ended = frozen | (progress.best_params if phase.patience else progress.state.eval_params)
    unchanged = _prove_freeze(phase, before, frozen, ended)
    wall = earlier + time.monotonic() - started
    _note(run, leg, ended, progress.early_stopping, frozen_arrays_verified=unchanged, wall_seconds=wall)
    run_dir.update_summary(run.setup.workdir, timings={f"{phase.name}: features": featured - started})
    run.checkpoints.save_phase(run.setup.phases.index(phase) + 1, ended)
    return ended


def _leg(run: Run, phase: Phase, parameters: FlatParams, transformation: Any) -> Leg:
    setup = run.setup
    material = Material(setup, run.inputs, run.log.progress_bar, run.log.info)
    validation = material.clean("validation", phase.cut_layer, parameters)
    way = material.way(phase, parameters, transformation)
    eval_step = train_step.make_eval_step(
        setup.model_info.model, setup.mesh, phase.cut_layer, validation.sharding(setup.mesh)
    )
    return Leg(phase, way, validation, eval_step)


def _prove_freeze(phase: Phase, before: Mapping[str, str], frozen: FlatParams, ended: FlatParams) -> int:
    """Compare every frozen parameter, bit for bit, with what it was; returns how many there are."""
    after = param_digests({path: ended[path] for path in frozen})
    moved = sorted(path for path in before if before[path] != after[path])
    if moved:
        raise RuntimeError(f"frozen parameters changed in phase {phase.name}: {', '.join(moved)}")
    return len(before)


def _note(run: Run, leg: Leg, parameters: FlatParams, memory: EarlyStopping, **facts: Any) -> None:
    """The phase's entry in summary.json, with the measures of the epoch whose parameters the phase hands on."""
    phase = leg.phase
    kept = run.log.phase_epochs(phase.name)[(memory.best_epoch if phase.patience else memory.epoch) - 1]
    seen, n = phase.steps_per_epoch * run.setup.config.batch_size, len(leg.validation)
    run_dir.update_phase_summary(
        run.setup.workdir,
        phase.name,
        epochs=memory.epoch,
        steps=memory.epoch * phase.steps_per_epoch,
        best_epoch=memory.best_epoch,
        trainable_params=sum(value.size for path, value in parameters.items() if phase.param_groups.is_trainable(path)),
        lrs=dict(phase.param_groups.lrs),
        augment=phase.augment,
        train=SplitMetrics(accuracy=kept.train_accuracy, loss=kept.train_loss, n=seen),
        validation=SplitMetrics(
            accuracy=kept.validation_accuracy,
            loss=kept.validation_loss,
            n=n,
            balanced_accuracy=kept.validation_balanced_accuracy,
        ),
        **facts,
    )
    run.log.info(
        f"{phase.name}: validation accuracy {kept.validation_accuracy:.2%} on {n} images; "
        f"{facts['frozen_arrays_verified']} frozen arrays are bit for bit what they were"
    )


class TrainResult(NamedTuple):
    """A finished run: its setup and its decoded images by split; its parameters are in the checkpoints."""

    setup: RunSetup
    inputs: Mapping[str, SplitData]


def train(
    config: Any, workdir: Path, console: Console, command: str, interruption: StopSignal | None = None
) -> TrainResult | None:
    """Run the config's phases in `workdir`, going on from its last checkpoint if there is one.

    Returns None, having said so, for a run that was trained and judged before. Raises Stopped when `interruption` is
    asked to end it.

    DO NOT change the order: whatever can be wrong with the user's input is found before anything is computed, and
    nothing is written before all of it is right.
    """
    started, say = time.monotonic(), _sayer(console)
    # 1. The run directory: new, or of this same config.
    resumes = processes.any_process(run_dir.is_run(workdir))
    if resumes:
        run_dir.check_config(workdir, config_to_json(config))
        if run_dir.read_summary(workdir).complete and (workdir / "predictions.csv").is_file():
            say(f"{workdir} is complete: flaxtl report writes its page again, another --workdir begins anew.")
            return None
    # 2. Which images: the manifest is made once and then belongs to the run. They may be many, and take minutes.
    check_names(config)
    manifest = load_manifest(workdir) if resumes else build_manifest(config, workdir, console)
    # 3. Every setting of the config.
    setup = build_setup(config, workdir, manifest)
    devices.check_batch_size(jax.device_count(), config.batch_size, config.accum_steps)
    with Checkpoints(workdir, say) as checkpoints:
        # 4. Pretrained weights, unless there is a checkpoint.
        last = checkpoints.restore_last_phase(setup.abstract_params()) if resumes else None
        start = None if last else backbone.initial_params(config, setup.model_info.model, say)
        # 5. Every image of every split.
        setup, inputs, skipped = load_splits(setup, manifest.splits, console, may_skip=not resumes)
        _agree(setup, inputs, start)
        # 6. From here on things are written.
        if start is not None:
            last = 0, _begin(setup, start, checkpoints, command, skipped)
        assert last is not None, "either there was a checkpoint or there is one now"
        done, parameters = last
        # 7. What learns, said before it does.
        weights = run_dir.read_summary(workdir).weights
        console.print(param_group_table(setup.model_info, setup.phases, weights.source if weights else ""))
        # 8. The phases, each from the one before.
        try:
            with MetricLogger(workdir, console) as log:
                run = Run(setup, inputs, checkpoints, log, interruption or StopSignal(), started)
                for phase in setup.phases[done:]:
                    parameters = run_phase(run, phase, parameters)
                    run = run._replace(begun=None)
        finally:
            spent = run_dir.read_summary(workdir).wall_seconds
            run_dir.update_summary(workdir, wall_seconds=spent + time.monotonic() - started)
    return TrainResult(setup, inputs)


def _agree(setup: RunSetup, inputs: Mapping[str, SplitData], start: InitialParams | None) -> None:
    """Raise UserError if the processes of a run do not hold the same config, images and weights."""
    if processes.process_count() == 1:
        return
    processes.assert_equal("the config", json.dumps(config_to_json(setup.config)))
    processes.assert_equal("the list of images", repr(setup.manifest.examples))
    processes.assert_equal("what images look like", repr([inputs[split].digest for split in inputs]))
    processes.assert_equal("the pretrained weights", repr(start and param_digests(start.params)))


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False)


def _begin(
    setup: RunSetup, start: InitialParams, checkpoints: Checkpoints, command: str, skipped: Mapping[str, str]
) -> FlatParams:
    """Write the files that make a directory a run, and its first checkpoint; returns the parameters on the mesh."""
    config, workdir = setup.config, setup.workdir
    layers = layer_records(setup.model_info, setup.phases, start.source)
    weights = WeightsSource(path=config.weights.path, source=start.source)
    summary = RunSummary(command=command, weights=weights, skipped=dict(skipped))
    run_dir.create_run_dir(workdir, config_to_json(config), setup.manifest, layers, summary)
    parameters = devices.replicate(start.params, setup.mesh)
    checkpoints.save_phase(0, parameters)
    return parameters
