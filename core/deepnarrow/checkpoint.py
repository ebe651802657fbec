"""Checkpoints of one run, by Orbax: saved in the background, compared strictly, restored whole.

Beside Orbax's files each step has our manifest, written last: sizes and hashes of all files, and
every array's path, shape and dtype. A step without one, or that differs from it, is moved to
`quarantine` beside the directory, and the step before it is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path

from deepnarrow.environment import versions
from deepnarrow.errors import InputError, shorten
from deepnarrow.manifest import Damaged, has_manifest, quarantine, verify, write_manifest

# What TensorStore says where it has no OSError to raise: a full disk, a quota, a limit on sizes.
_STORAGE = ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "No space left", "Disk quota", "File too large",
            "Input/output error", "Read-only file system")
_MAX_NAMED = 5  # differing arrays that an error names


class Checkpointer:
    """Saves and restores the state of one run; one directory a run, one folder a step.

    A checkpoint is a pytree of arrays (`state`) and a small JSON document (`extra`), committed
    together. Saving returns once the arrays are copied and writes in the background; `wait` or the
    next `save` ends it. What a killed process left half-written is ignored and cleared away; what
    it had committed but not yet described by a manifest is put into quarantine.

    Args:
      directory: made if it does not exist.
      keep: how many of the newest checkpoints stay; older ones go once a newer one is committed.

    Raises:
      InputError: the directory cannot be made or written.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise InputError("checkpoint", "keep is out of range", got=keep, expected=">= 1")
        # Orbax logs every phase of every save, and half of it as warnings.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.directory, self.keep = Path(directory).resolve(), keep
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"checkpoint directory {self.directory}", "cannot be made",
                             got=error.strerror, expected="a writable directory") from error
        # Before the manager opens: it would count a step that was never known to be whole.
        for step in _steps(self.directory):
            if not has_manifest(self.directory / str(step)):
                self._set_aside(step, "it has no manifest: its writer was killed")
        _together("checkpoints opened")
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Orbax would prune before the new step is known to be whole; `_after_commit` does it.
            options=ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=True),
            item_handlers={"state": ocp.StandardCheckpointHandler(),
                           "extra": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Begins to save `state` and `extra` (JSON-able) as `step`.

        Raises:
          InputError: the step was saved already.
        """
        self.wait()
        with self._storage():
            saved = self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                extra=ocp.args.JsonSave(dict(extra or {})),
            ))
        if not saved:
            raise InputError(
                f"checkpoint directory {self.directory}", "step cannot be saved", got=step,
                expected=f"a step after {self.latest_step()}",
                hint="another run may be using this directory; give each run its own")

    def latest_step(self) -> int | None:
        """Returns the newest saved step, or None."""
        return self._manager.latest_step()

    def newest_whole(self) -> int | None:
        """Returns the newest step that is as it was written, or None; sets newer ones aside."""
        while (step := self.latest_step()) is not None:
            damage = None
            try:
                verify(self.directory / str(step))
            except Damaged as error:
                damage = str(error)
            _together("checkpoint verified")  # before anybody moves it
            if damage is None:
                return step
            self._set_aside(step, damage)
            _together("checkpoint set aside")
            self._manager.reload()
        return None

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns (state, extra) of `step`, or of the newest that is as it was written.

        Args:
          like: arrays or abstract arrays (`jax.eval_shape`) with the structure, shapes and dtypes
            the state must have. Arrays are put where `like`'s are, on the first device where it
            does not say.
          step: this one and no other.

        Raises:
          InputError: there is no such step, it is damaged, or an array differs from `like` in path,
            shape or dtype; the message names the first.
        """
        self.wait()
        found = self.newest_whole() if step is None else step
        if found is None or found not in self._manager.all_steps():
            raise InputError(f"checkpoint directory {self.directory}", "no such checkpoint",
                             got=found, expected=f"one of {self._manager.all_steps()}")
        if step is not None:
            _check_whole(self.directory, step)
        metadata = self._manager.item_metadata(found)
        check_like(f"checkpoint {self.directory / str(found)}", metadata["state"].tree, like)
        restored = self._manager.restore(found, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_placed(like)),
            extra=ocp.args.JsonRestore(),
        ))
        return restored["state"], restored["extra"]

    def wait(self) -> None:
        """Returns when the save under way is committed and described."""
        with self._storage():
            self._manager.wait_until_finished()
            self._after_commit()

    def close(self) -> None:
        """Ends the save under way and the manager's threads; the newest step is read once more."""
        self.wait()
        self.newest_whole()
        self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _after_commit(self) -> None:
        """Describes what has been committed, then drops the steps that newer ones replace."""
        for step in self._manager.all_steps() if jax.process_index() == 0 else ():
            folder = self.directory / str(step)
            if not has_manifest(folder):
                tree = self._manager.item_metadata(step)["state"].tree
                write_manifest(folder, {"step": step, "arrays": _describe(tree),
                                        "versions": versions()})
        _together("checkpoints described")
        for step in sorted(self._manager.all_steps())[: -self.keep]:
            self._manager.delete(step)

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Says in one line that the disk is full or cannot be written, with what is free."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            text = str(error)
            if not isinstance(error, OSError) and not any(word in text for word in _STORAGE):
                raise
            free = shutil.disk_usage(self.directory).free
            raise InputError(
                f"checkpoint directory {self.directory}", "a checkpoint cannot be written",
                got=f"{free:,} bytes free; {shorten(text.splitlines()[0] if text else error)}",
                expected="room for two checkpoints; what was saved before is whole",
                hint="free some space and run the same command again") from error

    def _set_aside(self, step: int, reason: str) -> None:
        if jax.process_index() != 0:
            return
        place = quarantine(self.directory / str(step), self.directory.parent / "quarantine")
        warnings.warn(f"checkpoint {self.directory / str(step)} is damaged: {reason}; it is now in "
                      f"{place}, and the one before it is used", stacklevel=3)


def _together(what: str) -> None:
    """Waits for all processes of a run: the first one alone changes what lies in the directory."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _check_whole(directory: Path, step: int) -> None:
    try:
        verify(directory / str(step))
    except Damaged as error:
        raise InputError(f"checkpoint {directory / str(step)}", f"is damaged: {error}",
                         hint="use another step, or run again what made it") from error


def restore_params(directory: str | os.PathLike[str], step: int, like: Any) -> Any:
    """Returns the params of a run's checkpoint, whatever else its state holds.

    Where the state has a moving average (`ema`), it is that, as in `TrainState.eval_params`.
    Nothing in the directory is changed: the run may still be under way.

    Args:
      directory: of a `Checkpointer` whose states have a field or key `params`.
      step: whose.
      like: abstract arrays with the structure, shapes and dtypes that the params must have.

    Raises:
      InputError: there is no such checkpoint, or an array differs from `like`.
    """
    path = Path(directory).resolve()
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.CheckpointManager(
        path, options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers={"state": ocp.PyTreeCheckpointHandler()},
    ) as manager:
        if step not in manager.all_steps():
            raise InputError(f"checkpoint directory {path}", "no such checkpoint", got=step,
                             expected=f"one of {manager.all_steps()}")
        _check_whole(path, step)
        saved = manager.item_metadata(step)["state"].tree
        name = "ema" if saved.get("ema") else "params"
        check_like(f"checkpoint {path / str(step)}", saved.get(name, {}), like)
        wanted = {name: _placed(like)}
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True)))
    return restored["state"][name]


def check_like(where: str, saved: Any, like: Any) -> None:
    """Raises `InputError` unless both trees have the same paths, shapes and dtypes.

    Orbax itself casts dtypes and fills in shapes without a word.
    """
    have, want = _describe(saved), _describe(like)
    different = [path for path in sorted(have.keys() | want.keys())
                 if have.get(path) != want.get(path)]
    if not different:
        return
    path = different[0]
    more = ", ".join(different[1:_MAX_NAMED])
    more += ", ..." if len(different) > _MAX_NAMED else ""
    raise InputError(
        where, f"{len(different)} arrays differ from the model's, first {path}",
        got=have.get(path, "nothing"), expected=want.get(path, "nothing"),
        hint=(f"also {more}; " if more else "") + "was it saved with another shape or optimiser?")


def _describe(tree: Any) -> dict[str, str]:
    """Returns `float32[3, 4]` and the like by path."""
    return {keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in tree_leaves_with_path(tree)}


def _placed(like: Any) -> Any:
    """Returns abstract arrays that all say where they are to be put."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype,
                                       sharding=getattr(x, "sharding", None) or default), like)
