"""Checkpoints of a run's state: atomic, the newest few kept, resumed from where they stand."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from cogvx_jax.convert.orbax_writes import threads_hushed
from cogvx_jax.convert.runs import newest_update as newest_update  # the trainers take it from here
from cogvx_jax.storage import StoragePath, is_bucket, storage_path
from cogvx_jax.train.step import State

FULL = "No space left on device"


class Checkpoints:
    """The checkpoints below one folder.

    Args:
      keep: how many; the newest, or with `best` those of the lowest loss.
    Raises: OSError where one cannot be written, at the next call after that was found.
    """

    def __init__(self, folder: str | StoragePath, keep: int = 2, *, best: bool = False):
        by_loss: dict[str, Any] = {"best_fn": lambda metrics: metrics["loss"], "best_mode": "min"} if best else {}
        self._folder = where = storage_path(folder)
        self._hushed = contextlib.ExitStack()
        # Two of these may save the same update at a time; processes must not take one's barriers for the other's.
        apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=where.name)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, multiprocessing_options=apart, **by_loss)
        with self._writing():
            self._manager = ocp.CheckpointManager(
                where if is_bucket(where) else where.absolute(),
                options=options,
                item_handlers=ocp.PyTreeCheckpointHandler(),
            )

    def __enter__(self) -> "Checkpoints":
        self._hushed.enter_context(threads_hushed())
        return self

    def __exit__(self, *_: object) -> None:
        with self._hushed:
            self.close()

    def latest(self) -> int | None:
        """Updates done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def restore(self, like: State) -> State:
        """The newest saved state; there must be one.

        It goes to the devices of `like`, arrays or shapes, which it must fit; those it was saved from do not matter.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(self.latest(), args=_restore(shapes))

    def loss(self) -> float | None:
        """The loss that the newest checkpoint was saved with; None where there is none."""
        with self._writing():
            self._manager.wait_until_finished()  # or its metrics may not be there yet
        step = self.latest()
        return None if step is None else float(self._manager.metrics(step)["loss"])

    def forget(self) -> None:
        """Deletes the newest checkpoint."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.delete(self.latest())

    def save(self, state: State, loss: float | None = None) -> None:
        """Saves in the background, once for each step; a checkpoint appears under its name only when whole."""
        step = int(state.step)
        if step != self.latest():
            metrics = None if loss is None else {"loss": loss}
            with self._writing():
                self._manager.save(step, args=ocp.args.PyTreeSave(state), metrics=metrics, force=True)

    def close(self) -> None:
        try:
            with self._writing():
                self._manager.wait_until_finished()
        finally:
            with contextlib.suppress(Exception):  # the same once more
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What Orbax and tensorstore raise, of whatever kind, as one sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            text = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            reason = FULL if FULL in text else text[:300]
            raise OSError(f"cannot write {self._folder}: {reason}; the checkpoints before are whole") from None


def _restore(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **options)
