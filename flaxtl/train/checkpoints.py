"""Checkpoints by orbax, of two kinds under checkpoints/.

`phases/K`  all parameters after K phases: where phase K starts; the highest is the run's result.
`latest/N`  the N-th time that progress within a phase was kept: what learns, the optimizer's state, what was best so
            far and the memory of early stopping. The frozen parameters are those of phases/K, not written again.

Each holds a hash of all its arrays. One that cannot be read as it was written, as a loss of power can leave it, is
said, put aside under `damaged/`, and the run goes on from the one before.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import processes
from flaxtl.train.train_step import TrainState

_KEPT = 2  # of latest: the one before is there if the last one is damaged


class EarlyStopping(NamedTuple):
    """Of early stopping: epochs done in this phase, the best value of its metric, and the epoch that had it."""

    epoch: int
    best_value: float | None
    best_epoch: int


_MEMORY = {"epoch": int, "best_value": float | None, "best_epoch": int}
"""The fields of Memory as JSON has them."""


class PhaseProgress(NamedTuple):
    """Everything that a phase changes."""

    state: TrainState
    best_params: FlatParams
    early_stopping: EarlyStopping


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # orbax is not typed
    """Leaves the agreement on a step to stop at to the loop: orbax would ask for its own numbers."""

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        return False


class Checkpoints:
    """The checkpoints of one run directory; a context manager that closes them."""

    def __init__(self, workdir: Path, say: Callable[[str], None] = lambda sentence: None) -> None:
        """The checkpoints below workdir/checkpoints; nothing is created before the first of them is saved."""
        self._root = workdir.resolve() / "checkpoints"
        self._say = say

    @cached_property
    def _phases(self) -> ocp.CheckpointManager:
        return self._manager("phases", None)

    @cached_property
    def _latest(self) -> ocp.CheckpointManager:
        return self._manager("latest", _KEPT)

    def _manager(self, name: str, kept: int | None) -> ocp.CheckpointManager:
        # Not in the background: a write that fails is told where it was asked for, and nothing outlives the run.
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=False)
        try:
            manager = _Manager(self._root / name, options=options)
            manager.latest_step()  # reads what others left there
        except Exception as error:  # orbax raises many kinds for damaged files
            if processes.is_connection_error(error):
                raise
            raise UserError(
                f"the checkpoints in {self._root / name} are damaged ({_reason(error)}); move away the newest of them, "
                "and start the same command again"
            ) from error
        return manager

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close what was opened."""
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
                f"cannot write a checkpoint to {self._root} ({_reason(error)}); if the disk is full, free some space, "
                "and start the same command again"
            ) from error

    def _find_room(self, trees: Any) -> None:
        """Before a full disk would be met half way."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        cure = "free some space, and start the same command again"
        fileio.check_disk_space(self._root.parent, needed, "a checkpoint needs", cure)

    def phases_done(self) -> int | None:
        """How many phases have ended; None before the run's first checkpoint."""
        step: int | None = self._phases.latest_step()
        return step

    def save_phase(self, done: int, parameters: FlatParams) -> None:
        """Keep all parameters after `done` phases; returns when they are on disk."""
        facts = {"sha256": _hash((parameters,))}
        items = {"parameters": ocp.args.StandardSave(parameters), "facts": ocp.args.JsonSave(facts)}
        self._find_room(parameters)
        with self._writing():
            self._phases.save(done, args=ocp.args.Composite(**items), force=True)

    def restore_phase(self, done: int, like: Mapping[str, jax.ShapeDtypeStruct]) -> FlatParams:
        """All parameters after `done` phases; `like` gives shapes and shardings."""
        found = _restore(self._phases, done, parameters=ocp.args.StandardRestore(dict(like)))
        parameters: FlatParams = found.parameters
        return parameters

    def restore_last_phase(self, like: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[int, FlatParams] | None:
        """How many phases have ended, and the parameters after them, of the last checkpoint that is whole."""
        while (done := self.phases_done()) is not None:
            try:
                return done, self.restore_phase(done, like)
            except UserError as error:
                self._put_aside(self._phases, done, str(error))
        return None

    def save_latest(self, progress: PhaseProgress) -> None:
        """Keep the progress of a phase; returns when it is on disk."""
        number = (self._latest.latest_step() or 0) + 1
        facts = {"sha256": _hash((progress.state, progress.best_params)), "step": int(progress.state.step)}
        items = {
            "state": ocp.args.StandardSave(progress.state),
            "best": ocp.args.StandardSave(progress.best_params),
            "facts": ocp.args.JsonSave(facts | progress.early_stopping._asdict()),
        }
        self._find_room((progress.state, progress.best_params))
        with self._writing():
            self._latest.save(number, args=ocp.args.Composite(**items), force=True)

    def restore_latest(self, first_step: int, last_step: int, epochs: int, like: PhaseProgress) -> PhaseProgress | None:
        """The last progress that was saved within a phase's steps and is whole; `like` gives structure and shardings.

        Not one after more than `epochs` epochs of the phase, of which no measures are left.
        """
        items = {
            "state": ocp.args.StandardRestore(_abstract(like.state)),
            "best": ocp.args.StandardRestore(_abstract(like.best_params)),
        }
        while (number := self._latest.latest_step()) is not None:
            try:
                facts = _metadata(self._latest, number, step=int, **_MEMORY)
                if not first_step < facts["step"] <= last_step:
                    return None
                found = _restore(self._latest, number, **items)
            except UserError as error:
                self._put_aside(self._latest, number, str(error))
                continue
            if facts["epoch"] <= epochs:
                return PhaseProgress(found.state, found.best, EarlyStopping(*(facts[name] for name in _MEMORY)))
            self._put_aside(self._latest, number, f"metrics.jsonl has lost epochs before checkpoint {number}")
        return None

    def _put_aside(self, manager: ocp.CheckpointManager, number: int, why: str) -> None:
        """Out of the way, but not lost."""
        source = Path(manager.directory) / str(number)
        target = self._root / "damaged" / f"{source.parent.name}-{number}"
        self._say(f"{why}: it is put aside as {target}, and the run goes on from the one before")
        if processes.is_main_process():
            _quarantine(source, target)
        processes.barrier(f"{target.name} is put aside")
        manager.reload()


def _quarantine(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "-again")
        source.rename(target)
    except OSError as error:
        raise UserError(f"cannot move the damaged checkpoint {source} ({error.strerror}); delete it") from error


def _reason(error: Exception) -> str:
    """The system's word for it, which TensorStore puts between many of its own."""
    told = re.search(r"([^:]+) \[os_error_code=", str(error))
    return told[1].strip() if told else (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _hash(trees: tuple[Any, ...]) -> str:
    """SHA-256 of every array's path, kind, shape and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _metadata(manager: ocp.CheckpointManager, number: int, **kinds: Any) -> dict[str, Any]:
    """What was noted beside the arrays: their hash, and the named facts of those kinds."""
    facts = _read(manager, number, facts=ocp.args.JsonRestore()).facts
    kinds["sha256"] = str
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name, ...), kinds[name]) for name in kinds):
        raise _damaged(manager, number)
    return facts


def _restore(manager: ocp.CheckpointManager, number: int, **items: Any) -> Any:
    """The items, if their arrays are what they were when they were saved."""
    facts = _metadata(manager, number)
    found = _read(manager, number, **items)
    arrays = tuple(found[name] for name in items)
    if processes.any_process(_hash(arrays) != facts["sha256"]):
        raise _damaged(manager, number)
    return found


def _read(manager: ocp.CheckpointManager, number: int, **items: Any) -> Any:
    found, problem = None, None
    try:
        found = manager.restore(number, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax and TensorStore raise many kinds for a damaged file
        if processes.is_connection_error(error):
            raise
        problem = error
    if processes.any_process(problem is not None):
        raise _damaged(manager, number) from problem
    return found


def _damaged(manager: ocp.CheckpointManager, number: int) -> UserError:
    place = Path(manager.directory) / str(number)
    return UserError(f"the checkpoint {place} is damaged or of another run; the same flaxtl train makes it anew")
