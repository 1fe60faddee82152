"""Checkpoints by orbax, of two kinds under checkpoints/.

`phases/K`  all parameters after K phases: where phase K starts; the highest is the run's result.
`latest/S`  within a phase, after step S: what learns, the optimizer's state, what was best so far and
            the memory of early stopping. The frozen parameters are those of phases/K and are not written again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from flaxtl.errors import UserError
from flaxtl.train.groups import Flat
from flaxtl.train.steps import State


class Memory(NamedTuple):
    """Of early stopping: epochs done in this phase, the best value of its metric, and the epoch that had it."""

    epoch: int
    best_value: float | None
    best_epoch: int


class Progress(NamedTuple):
    """Everything that a phase changes."""

    state: State
    best: Flat
    memory: Memory


class Checkpoints:
    """The checkpoints of one run directory; a context manager that waits for what is being written."""

    def __init__(self, workdir: Path) -> None:
        """The checkpoints below workdir/checkpoints; nothing is created before the first of them is saved."""
        self._root = workdir.resolve() / "checkpoints"

    @cached_property
    def _phases(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._root / "phases")

    @cached_property
    def _latest(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._root / "latest", options=ocp.CheckpointManagerOptions(max_to_keep=1))

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish writing."""
        for name in ("_phases", "_latest"):
            if name in vars(self):
                # After an error the first one counts, not that of a write which it interrupted.
                with suppress(Exception) if error else self._writing():
                    getattr(self, name).close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell a failed write in one sentence; orbax and TensorStore raise whatever the disk made them meet."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"cannot write a checkpoint to {self._root} ({_first_line(error)}); if the disk is full, free some "
                "space, and start the same command again"
            ) from error

    def phases_done(self) -> int | None:
        """How many phases have ended; None before the run's first checkpoint."""
        step: int | None = self._phases.latest_step()
        return step

    def save_phase(self, done: int, parameters: Flat) -> None:
        """Keep all parameters after `done` phases; returns when they are on disk."""
        with self._writing():
            self._phases.save(done, args=ocp.args.StandardSave(parameters), force=True)
            self._phases.wait_until_finished()

    def restore_phase(self, done: int, like: Mapping[str, jax.ShapeDtypeStruct]) -> Flat:
        """All parameters after `done` phases; `like` gives shapes and shardings."""
        parameters: Flat = _restore(self._phases, done, ocp.args.StandardRestore(dict(like)))
        return parameters

    def save_latest(self, step: int, progress: Progress) -> None:
        """Keep the progress of a phase after global step `step`, written in the background."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(progress.state),
            best=ocp.args.StandardSave(progress.best),
            memory=ocp.args.JsonSave(progress.memory._asdict()),
        )
        with self._writing():
            self._latest.save(step, args=arguments, force=True)

    def restore_latest(self, first_step: int, last_step: int, like: Progress) -> Progress | None:
        """The progress saved within a phase's steps, or None; `like` gives structure, shapes and shardings."""
        step = self._latest.latest_step()
        if step is None or not first_step < step <= last_step:
            return None
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like.state)),
            best=ocp.args.StandardRestore(_abstract(like.best)),
            memory=ocp.args.JsonRestore(),
        )
        found = _restore(self._latest, step, arguments)
        return Progress(found.state, found.best, Memory(**found.memory))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _restore(manager: ocp.CheckpointManager, step: int, arguments: Any) -> Any:
    try:
        return manager.restore(step, args=arguments)
    except Exception as error:  # orbax and TensorStore raise many kinds for a damaged file
        place = manager.directory / str(step)
        raise UserError(
            f"the checkpoint {place} is damaged or of another run; delete it to go on from the one before"
        ) from error
