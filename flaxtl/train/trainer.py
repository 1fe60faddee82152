"""Training a run: start-up in numbered steps, the phases in order, and the check that frozen weights did not change.

Continue with epoch_loop.py (`PhaseTrainer`: the epochs of a phase) and train_step.py (`train_step`: one step).
"""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from rich.console import Console

from flaxtl.config import config_to_json
from flaxtl.console import ProgressFn, message
from flaxtl.data.loaders import HostLoader, Loader
from flaxtl.models.classifier import FlatParams, cast_for_compute
from flaxtl.parallel import devices, processes
from flaxtl.pretrained import backbone
from flaxtl.pretrained.backbone import InitialParams
from flaxtl.train import resume, run_dir
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress
from flaxtl.train.datasets import SplitData, load_splits
from flaxtl.train.epoch_loop import PhaseTrainer
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.logger import MetricLogger, param_group_table
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import Phase
from flaxtl.train.rounding import rounded_accuracy
from flaxtl.train.run_records import RunSummary, SplitMetrics, WeightsSource
from flaxtl.train.setup import RunSetup, build_manifest, build_setup
from flaxtl.train.signals import StopSignal
from flaxtl.train.standardization import feature_statistics
from flaxtl.train.train_step import Ema, StepConfig, TrainState


class TrainResult(NamedTuple):
    """A trained run: its setup and the data of its splits. The parameters are in its checkpoints."""

    setup: RunSetup
    splits: Mapping[str, SplitData]


def train(
    config: Any, workdir: Path, console: Console, command: str, stop_signal: StopSignal | None = None
) -> TrainResult | None:
    """Train the phases of a config in `workdir`, or resume from its last checkpoint.

    DO NOT change the order: invalid input is reported before anything is computed, and nothing is written before all
    input was checked.

    Args:
      config: a complete config.
      workdir: the run directory, new or of the same config.
      console: for messages, tables and progress bars.
      command: recorded in summary.json.
      stop_signal: ends the run between two steps.

    Returns:
      The trained run; None, with a message, if it is already complete.

    Raises:
      UserError: for invalid input, or if the loss becomes NaN or inf.
      StopRequested: the stop signal ended the run; everything is saved.
    """
    start_time = time.monotonic()
    config = run_dir.with_canonical_name(config)
    # 1. Run directory: new, or of the same config.
    is_resumed = processes.any_process(run_dir.is_run(workdir))
    if is_resumed:
        resume.check_resumable(workdir, config, partial(message, console))
        if growth := resume.describe_growth(workdir, config.data.source):
            message(console, growth)
        if run_dir.is_complete(workdir):
            message(console, f"{workdir} is already complete. Use a new --workdir to train again.")
            return None
    else:
        run_dir.check_unused(workdir)
    devices.check_batch_size(jax.device_count(), config.batch_size, config.accum_steps)
    message(console, "1/4 Checking images", style="bold")
    # 2. Manifest: images and their splits. It is created once, which may take minutes, and is part of the run.
    if is_resumed:
        manifest = resume.check_images(workdir, run_dir.read_manifest(workdir))
    else:
        manifest = build_manifest(config, workdir, console)
    # 3. Model and phases for these images. Without a manifest, step 2 has checked all settings that need no image.
    setup = build_setup(config, workdir, manifest)
    if note := _describe_repeated_images(config, len(manifest.of_split("train"))):
        message(console, note)
    with Checkpoints(workdir, partial(message, console)) as checkpoints:
        message(console, "2/4 Loading weights and images", style="bold")
        # 4. Weights: of the last finished phase, or pretrained.
        restored = checkpoints.restore_last_phase(setup.abstract_params()) if is_resumed else None
        initial = None
        if restored is None:
            initial = backbone.initial_params(config, setup.model_info.model, partial(message, console))
        # 5. Images of all splits.
        setup, splits, skipped = load_splits(setup, manifest.splits, console, may_skip=not is_resumed)
        _check_processes_agree(setup, splits, initial)
        # 6. Files of the run directory, with the first checkpoint.
        if initial is not None:
            summary = RunSummary(command=command, skipped=skipped, skipped_files=setup.manifest.skipped_files)
            if is_resumed:  # it was killed before its first checkpoint; its manifest lacks what it has skipped
                earlier = run_dir.read_summary(workdir)
                summary = summary.replace(skipped=earlier.skipped, skipped_files=earlier.skipped_files)
            restored = 0, _start_run(setup, initial, checkpoints, summary)
        assert restored is not None, "restored in step 4 or just saved"
        num_done, params = restored
        # 7. Table of parameter groups and learning rates.
        weights = run_dir.read_summary(workdir).weights
        source = weights.source if weights else ""
        console.print(param_group_table(setup.model_info, setup.phases, config.optimizer, source))
        message(console, "3/4 Training", style="bold")
        # 8. Phases.
        try:
            with MetricLogger(workdir, console) as logger:
                if num_done == 0:
                    params = with_feature_statistics(setup, splits, params, logger.progress_bar)
                for index, phase in enumerate(setup.phases[num_done:]):
                    params = train_phase(
                        setup,
                        phase,
                        params,
                        splits,
                        checkpoints,
                        logger,
                        stop_signal or StopSignal(),
                        start_time if index == 0 else None,
                    )
        finally:
            earlier_seconds = run_dir.read_summary(workdir).wall_seconds
            with suppress(OSError):  # if the disk is full, what has ended the run is its error
                run_dir.update_summary(workdir, wall_seconds=earlier_seconds + time.monotonic() - start_time)
    return TrainResult(setup, splits)


def with_feature_statistics(
    setup: RunSetup, splits: Mapping[str, SplitData], params: FlatParams, progress: ProgressFn
) -> FlatParams:
    """Return the initial parameters with the statistics that `head.normalize=standardize` needs.

    They are a function of images and weights, so a resumed run computes the same; no phase changes them. Features that
    the first phase caches are read from there.
    """
    if setup.config.head.normalize != "standardize":
        return params
    first, info = setup.phases[0], setup.model_info
    start_layer = None if first.augment else first.cut_layer
    loader = clean_loader(splits, "train", start_layer, params, progress)
    return params | feature_statistics(info.model, setup.mesh, params, loader, start_layer, setup.config.batch_size)


def train_phase(
    setup: RunSetup,
    phase: Phase,
    params: FlatParams,
    splits: Mapping[str, SplitData],
    checkpoints: Checkpoints,
    logger: MetricLogger,
    stop_signal: StopSignal,
    start_time: float | None = None,
) -> FlatParams:
    """Train one phase, verify that frozen parameters did not change, and save the result.

    Returns the parameters after the phase: the best ones with early stopping, otherwise the last ones.
    """
    phase_start = time.monotonic()
    frozen = phase.param_groups.partition(params).frozen
    frozen_digests = param_digests(frozen)
    optimizer = phase_optimizer(
        setup.config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps, phase.clip_norm
    )
    num_views = setup.config.feature_cache.views
    validation_loader = clean_loader(splits, "validation", phase.cut_layer, params, logger.progress_bar)
    train_loader, start_layer = select_loader(splits, phase, params, num_views, logger.progress_bar)
    if phase.augment and start_layer:
        source = ", read from a file," if isinstance(train_loader, HostLoader) else ""
        logger.info(f"{phase.name}: {num_views} views of each image are cached{source} and replace fresh augmentation.")
    feature_seconds = time.monotonic() - phase_start

    logged = logger.phase_epochs(phase.name)
    progress = _start_or_resume(setup, phase, params, optimizer, checkpoints, len(logged))
    if int(progress.state.step) > phase.first_step or (start_time is not None and phase is not setup.phases[0]):
        logger.info(_describe_resumption(setup, phase, progress.early_stopping.epoch))
    earlier_seconds = sum(epoch.seconds for epoch in logged[: progress.early_stopping.epoch])
    progress = PhaseTrainer(
        setup,
        phase,
        make_step_config(setup, phase, optimizer, start_layer),
        phase.param_groups.partition(cast_for_compute(params, setup.model_info.model)).frozen,
        train_loader,
        validation_loader,
        checkpoints,
        logger,
        stop_signal,
        start_time,
    ).run(progress)

    result = frozen | (progress.best_params if phase.patience else progress.state.eval_params)
    num_verified = verify_frozen(phase, frozen_digests, result)
    wall_seconds = earlier_seconds + time.monotonic() - phase_start
    run_dir.update_summary(setup.workdir, timings={f"{phase.name}: features": feature_seconds})
    _summarize_phase(setup, phase, progress.early_stopping, len(validation_loader), num_verified, wall_seconds, logger)
    checkpoints.save_phase(setup.phases.index(phase) + 1, result)
    return result


def select_loader(
    splits: Mapping[str, SplitData], phase: Phase, params: FlatParams, num_views: int, progress: ProgressFn
) -> tuple[Loader, str | None]:
    """Return the training data of a phase, and the layer at which it enters the model (None: images).

    1. No augmentation, frozen prefix                -> cached features
    2. Augmentation and `feature_cache.views` is set -> cached features of `num_views` augmented copies
    3. Otherwise                                     -> images, augmented inside the train step
    """
    if not phase.augment:
        return clean_loader(splits, "train", phase.cut_layer, params, progress), phase.cut_layer
    if phase.cut_layer and num_views:
        reserved = _other_splits_bytes(splits, "train")
        loader = splits["train"].feature_loader(phase.cut_layer, params, progress, num_views, reserved)
        return loader, phase.cut_layer
    return splits["train"].image_loader(), None


def clean_loader(
    splits: Mapping[str, SplitData], split: str, cut_layer: str | None, params: FlatParams, progress: ProgressFn
) -> Loader:
    """Return a split without augmentation: images, or the cached features of `cut_layer`.

    Features that do not fit into device memory beside the data of the other splits are read from a file.
    """
    if cut_layer is None:
        return splits[split].image_loader()
    reserved = _other_splits_bytes(splits, split)
    return splits[split].feature_loader(cut_layer, params, progress, reserved_bytes=reserved)


def make_step_config(
    setup: RunSetup, phase: Phase, optimizer: optax.GradientTransformation, start_layer: str | None
) -> StepConfig:
    """Return the constants of a phase's training steps."""
    return StepConfig(
        model=setup.model_info.model,
        optimizer=optimizer,
        mesh=setup.mesh,
        seed=setup.config.seed,
        start_layer=start_layer,
        augmentation=setup.augmentation if phase.augment else None,
        class_weights=setup.class_weights,
        label_smoothing=float(setup.config.label_smoothing),
        accum_steps=setup.config.accum_steps,
        ema=Ema(phase.ema, phase.first_step) if phase.ema else None,
        cut_layer=phase.cut_layer,
    )


def _start_or_resume(
    setup: RunSetup,
    phase: Phase,
    params: FlatParams,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    num_logged: int,
) -> PhaseProgress:
    """Return the progress of a phase in its last checkpoint, or that before its first step.

    In a function of its own, so that the state before the first step does not occupy memory beside a restored one.
    """
    state = initial_state(setup, phase, params, optimizer)
    best_params = {path: params[path] for path in state.updated_params}  # never donated, unlike those of the state
    start = PhaseProgress(state, best_params, EarlyStopping(0, None, 0))
    return checkpoints.restore_latest(phase.first_step, phase.last_step, num_logged, start) or start


def initial_state(
    setup: RunSetup, phase: Phase, params: FlatParams, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before a phase's first step; its arrays are copies, which the steps may donate."""
    trainable, batch_stats, _ = phase.param_groups.partition(params)
    opt_state, num_classes = optimizer.init(trainable), len(setup.manifest.classes)
    state = TrainState.create(phase.first_step, trainable, batch_stats, opt_state, num_classes, use_ema=phase.ema > 0)
    return devices.replicate(state, setup.mesh)


def verify_frozen(phase: Phase, digests: Mapping[str, str], params: FlatParams) -> int:
    """Verify, bit for bit, that frozen parameters did not change; return their number.

    Args:
      phase: the phase.
      digests: path -> digest of each frozen parameter before the phase.
      params: all parameters after the phase.
    """
    after = param_digests({path: params[path] for path in digests})
    if changed := sorted(path for path in digests if digests[path] != after[path]):
        raise RuntimeError(f"Frozen parameters changed in phase {phase.name}: {', '.join(changed)}")
    return len(digests)


def _other_splits_bytes(splits: Mapping[str, SplitData], split: str) -> int:
    """Return the memory that all other splits use on each device."""
    return sum(data.device_bytes for name, data in splits.items() if name != split)


def _summarize_phase(
    setup: RunSetup,
    phase: Phase,
    early_stopping: EarlyStopping,
    num_validation: int,
    num_verified: int,
    wall_seconds: float,
    logger: MetricLogger,
) -> None:
    """Write the phase's entry of summary.json, with the metrics of the epoch that is kept."""
    epochs = early_stopping.epoch
    kept = logger.phase_epochs(phase.name)[(early_stopping.best_epoch if phase.patience else epochs) - 1]
    shapes = setup.model_info.shapes
    run_dir.update_phase_summary(
        setup.workdir,
        phase.name,
        epochs=epochs,
        steps=epochs * phase.steps_per_epoch,
        best_epoch=early_stopping.best_epoch,
        lrs=dict(phase.param_groups.lrs),
        augment=phase.augment,
        trainable_params=sum(math.prod(shapes[path]) for path in shapes if phase.param_groups.is_trainable(path)),
        frozen_arrays_verified=num_verified,
        wall_seconds=wall_seconds,
        train=SplitMetrics(
            accuracy=kept.train_accuracy,
            loss=kept.train_loss,
            n=phase.steps_per_epoch * setup.config.batch_size,
        ),
        validation=SplitMetrics(
            accuracy=kept.validation_accuracy,
            loss=kept.validation_loss,
            balanced_accuracy=kept.validation_balanced_accuracy,
            n=num_validation,
        ),
    )
    logger.info(
        f"{phase.name}: validation accuracy {rounded_accuracy(kept.validation_accuracy, num_validation)} "
        f"({num_validation:,} images). "
        f"{num_verified} frozen weight arrays verified unchanged."
    )


def _describe_repeated_images(config: Any, num_train: int) -> str:
    """Return a note if a batch is larger than the training set; '' if it is not."""
    if config.batch_size <= num_train:
        return ""
    divisor = jax.device_count() * config.accum_steps
    smaller = num_train // divisor * divisor
    advice = f"; --config.batch_size={smaller} avoids it" if smaller else ""
    return (
        f"Each batch of {config.batch_size:,} repeats some of the {num_train:,} training images, which works{advice}."
    )


def _describe_resumption(setup: RunSetup, phase: Phase, epochs_done: int) -> str:
    """Return 'Resuming: frozen finished, augmented at epoch 2/3'."""
    finished = [f"{earlier.name} finished" for earlier in setup.phases[: setup.phases.index(phase)]]
    epoch = min(epochs_done + 1, phase.epochs)
    return f"Resuming: {', '.join([*finished, f'{phase.name} at epoch {epoch}/{phase.epochs}'])}"


def _check_processes_agree(setup: RunSetup, splits: Mapping[str, SplitData], initial: InitialParams | None) -> None:
    """Raise UserError if the processes of a run do not have the same config, images and weights."""
    if processes.process_count() == 1:
        return
    processes.assert_equal("The config", json.dumps(config_to_json(setup.config)))
    processes.assert_equal("The list of images", repr(setup.manifest.examples))
    processes.assert_equal("The content of the images", repr([data.digest for data in splits.values()]))
    processes.assert_equal("The pretrained weights", repr(initial and param_digests(initial.params)))


def _start_run(setup: RunSetup, initial: InitialParams, checkpoints: Checkpoints, summary: RunSummary) -> FlatParams:
    """Write the files of a new run directory and the first checkpoint; return the parameters on the mesh."""
    layers = run_dir.layer_records(setup.model_info, setup.phases, initial.source)
    weights = WeightsSource(path=setup.config.weights.path, source=initial.source)
    config = config_to_json(setup.config)
    run_dir.create_run_dir(setup.workdir, config, setup.manifest, layers, summary.replace(weights=weights))
    params = devices.replicate(initial.params, setup.mesh)
    checkpoints.save_phase(0, params)
    return params
