"""Orbax checkpoints of a run, in two folders below checkpoints/.

phases/K  all parameters after K phases: where phase K starts. The highest is the result of the run.
latest/N  the N-th save of the progress within a phase: train state, best parameters, early stopping. Frozen parameters
          are those of phases/K and not saved again.

Each checkpoint has a hash of all its arrays. A damaged one, such as after a power loss, is reported and moved to
checkpoints/damaged, and the run continues from the one before. Each is read back once, right after it is written.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import numpy.typing as npt
import orbax.checkpoint as ocp

from flaxtl import fileio
from flaxtl.errors import UserError, first_line, is_out_of_memory
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import processes
from flaxtl.train.run_records import Count, Record
from flaxtl.train.train_step import TrainState

MAX_LATEST = 2
"""Number of progress checkpoints that are kept: if the last one is damaged, the one before is used."""

RETRY = "Free some disk space and run the same command again."

PLAIN_PATH = re.compile(r"(?!/(gs|s3|az|hf)/)[\w/.,+=@#%~ -]*")
"""Paths that orbax, etils and TensorStore take literally: others contain patterns, escapes or the schemes of URLs."""


class EarlyStopping(NamedTuple):
    """Epochs done in the phase, and the best value of its monitored metric, with its epoch."""

    epoch: int
    best_value: float | None
    best_epoch: int


class PhaseProgress(NamedTuple):
    """Everything that changes during a phase."""

    state: TrainState
    best_params: FlatParams
    early_stopping: EarlyStopping


class ParamsMetadata(Record, frozen=True):
    """Metadata of a checkpoint of parameters."""

    sha256: str


class ProgressMetadata(Record, frozen=True):
    """Metadata of a checkpoint of progress: the train step, and the fields of EarlyStopping."""

    sha256: str
    step: Count
    epoch: Count
    best_value: float | None
    best_epoch: Count


Metadata = TypeVar("Metadata", ParamsMetadata, ProgressMetadata)


class Checkpoints:
    """The checkpoints of one run directory; a context manager that closes them.

    Args:
      workdir: the run directory. Nothing is created before the first checkpoint is saved.
      report: called with a message for each damaged checkpoint.
    """

    def __init__(self, workdir: Path, report: Callable[[str], None] = lambda text: None) -> None:
        self._root = workdir.resolve() / "checkpoints"
        self._report = report
        self._link: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name in ("_phases", "_latest"):
            if name in vars(self):
                # After an error, that error is raised, not one of a write that it interrupted.
                with suppress(Exception) if error else self._write_errors():
                    getattr(self, name).close()
        if self._link:
            self._link.cleanup()

    def num_phases(self) -> int | None:
        """Return the number of phases that have ended; None if the run has no checkpoint."""
        step: int | None = self._phases.latest_step()
        return step

    def save_phase(self, num_phases: int, params: FlatParams) -> None:
        """Save all parameters after `num_phases` phases; returns when they are on disk and can be read."""
        self._save(self._phases, num_phases, {"params": params}, ParamsMetadata(sha256=_hash((params,))))

    def restore_phase(
        self, num_phases: int, abstract_params: Mapping[str, jax.ShapeDtypeStruct | npt.NDArray[Any]]
    ) -> FlatParams:
        """Return all parameters after `num_phases` phases.

        Args:
          num_phases: number of phases that have ended.
          abstract_params: shapes and shardings; NumPy arrays for arrays in the memory of the host.
        """
        metadata = _read_metadata(self._phases, num_phases, ParamsMetadata)
        items = {"params": ocp.args.StandardRestore(dict(abstract_params))}
        params: FlatParams = _restore(self._phases, num_phases, metadata.sha256, items).params
        return params

    def restore_last_phase(self, abstract_params: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[int, FlatParams] | None:
        """Return the number of ended phases and the parameters after them, from the last undamaged checkpoint."""
        while (num_phases := self.num_phases()) is not None:
            try:
                return num_phases, self.restore_phase(num_phases, abstract_params)
            except UserError as error:
                self._discard(self._phases, num_phases, str(error))
        return None

    def save_latest(self, progress: PhaseProgress) -> None:
        """Save the progress of a phase; returns when it is on disk and can be read."""
        number = (self._latest.latest_step() or 0) + 1
        trees = {"state": progress.state, "best_params": progress.best_params}
        metadata = ProgressMetadata(
            sha256=_hash(tuple(trees.values())), step=int(progress.state.step), **progress.early_stopping._asdict()
        )
        self._save(self._latest, number, trees, metadata)

    def restore_latest(
        self, first_step: int, last_step: int, logged_epochs: int, like: PhaseProgress
    ) -> PhaseProgress | None:
        """Return the last undamaged progress of a phase; None if there is none.

        Args:
          first_step: train step at which the phase starts; `last_step` is where it ends.
          last_step: see `first_step`.
          logged_epochs: epochs of the phase in metrics.jsonl. Progress after more epochs is discarded.
          like: structure, shapes and shardings.
        """
        items = {
            "state": ocp.args.StandardRestore(_abstract(like.state)),
            "best_params": ocp.args.StandardRestore(_abstract(like.best_params)),
        }
        while (number := self._latest.latest_step()) is not None:
            try:
                metadata = _read_metadata(self._latest, number, ProgressMetadata)
                if not first_step < metadata.step <= last_step:
                    return None
                restored = _restore(self._latest, number, metadata.sha256, items)
            except UserError as error:
                self._discard(self._latest, number, str(error))
                continue
            if metadata.epoch <= logged_epochs:
                early_stopping = EarlyStopping(metadata.epoch, metadata.best_value, metadata.best_epoch)
                return PhaseProgress(restored.state, restored.best_params, early_stopping)
            self._discard(self._latest, number, f"metrics.jsonl lacks epochs before checkpoint {number}.")
        return None

    @cached_property
    def _phases(self) -> "_Manager":
        return self._manager("phases", None)

    @cached_property
    def _latest(self) -> "_Manager":
        return self._manager("latest", MAX_LATEST)

    def _manager(self, name: str, max_to_keep: int | None) -> "_Manager":
        # Synchronous, so that a failed write is reported where it was requested, and no thread outlives the run.
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, enable_async_checkpointing=False)
        try:
            manager = _Manager(self._literal_root() / name, self._root / name, options)
            manager.latest_step()  # reads the folder
        except Exception as error:  # orbax raises many types for damaged files
            if processes.is_connection_error(error):
                raise
            raise UserError(
                f"Cannot read the checkpoints in {self._root / name} ({_reason(error)}). Move the newest of them away "
                "and run the same command again."
            ) from error
        return manager

    def _literal_root(self) -> Path:
        """Return the folder of the checkpoints as orbax finds it: through a link if its path has special characters."""
        if PLAIN_PATH.fullmatch(str(self._root)):
            return self._root
        if self._link is None:
            self._link = tempfile.TemporaryDirectory(prefix="flaxtl-")
            Path(self._link.name, "run").symlink_to(self._root.parent)
        return Path(self._link.name, "run", self._root.name)

    def _save(
        self, manager: "_Manager", number: int, trees: dict[str, Any], metadata: ParamsMetadata | ProgressMetadata
    ) -> None:
        """Write a checkpoint, read it back into the memory of the host, and compare it with what was saved."""
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        fileio.check_disk_space(self._root.parent, num_bytes, "A checkpoint needs", RETRY)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["metadata"] = ocp.args.JsonSave(metadata.to_json())
        with self._write_errors():
            manager.save(number, args=ocp.args.Composite(**items), force=True)
        try:
            like = {name: ocp.args.StandardRestore(jax.tree.map(_host_array, tree)) for name, tree in trees.items()}
            _restore(manager, number, metadata.sha256, like)
        except UserError as error:
            raise UserError(
                f"Checkpoint {_path(manager, number)} was written, but cannot be read back. Check the disk, "
                "or use a --workdir on another one."
            ) from error

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and TensorStore raise many types for a full disk
            raise UserError(f"Cannot write a checkpoint to {self._root} ({_reason(error)}). {RETRY}") from error

    def _discard(self, manager: "_Manager", number: int, reason: str) -> None:
        """Move a checkpoint to checkpoints/damaged."""
        source = _path(manager, number)
        target = self._root / "damaged" / f"{source.parent.name}-{number}"
        self._report(f"{reason} Moved it to {target}; continuing from the checkpoint before.")
        if processes.is_main_process():
            _quarantine(source, target)
        processes.barrier(f"{target.name} is moved")
        manager.reload()


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # orbax is not typed
    """A checkpoint manager of `directory`, which messages call `shown`."""

    def __init__(self, directory: Path, shown: Path, options: ocp.CheckpointManagerOptions) -> None:
        self.shown = shown
        super().__init__(directory, options=options)

    def reached_preemption(self, step: int) -> bool:
        """Return False: the epoch loop asks `processes.should_stop` with its own step numbers."""
        return False


def _read_metadata(manager: _Manager, number: int, kind: type[Metadata]) -> Metadata:
    values = _read(manager, number, {"metadata": ocp.args.JsonRestore()}).metadata
    try:
        return kind.from_json(values, _path(manager, number))
    except UserError as error:
        raise _damaged(manager, number) from error


def _restore(manager: _Manager, number: int, sha256: str, items: dict[str, Any]) -> Any:
    """Return the items, after checking that their arrays are those that were saved."""
    restored = _read(manager, number, items)
    if processes.any_process(_hash(tuple(restored[name] for name in items)) != sha256):
        raise _damaged(manager, number)
    return restored


def _read(manager: _Manager, number: int, items: dict[str, Any]) -> Any:
    restored, problem = None, None
    try:
        restored = manager.restore(number, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax and TensorStore raise many types for damaged files
        if processes.is_connection_error(error) or is_out_of_memory(error):
            raise
        problem = error
    if processes.any_process(problem is not None):
        raise _damaged(manager, number) from problem
    return restored


def _quarantine(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "-again")
        source.rename(target)
    except OSError as error:
        raise UserError(f"Cannot move the damaged checkpoint {source} ({error.strerror}). Delete it.") from error


def _damaged(manager: _Manager, number: int) -> UserError:
    return UserError(
        f"Checkpoint {_path(manager, number)} is damaged, or belongs to another run. "
        "Delete it and run flaxtl train again."
    )


def _path(manager: _Manager, number: int) -> Path:
    return manager.shown / str(number)


def _host_array(leaf: Any) -> npt.NDArray[Any]:
    """Return a stand-in without memory of its own, for which orbax restores an array on the host."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def _hash(trees: tuple[Any, ...]) -> str:
    """Return the SHA-256 of each array's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return the operating system's message, which TensorStore embeds in its own, or the first line."""
    system_message = re.search(r"([^:]+) \[os_error_code=", str(error))
    if system_message:
        return system_message[1].strip()
    return first_line(error)
