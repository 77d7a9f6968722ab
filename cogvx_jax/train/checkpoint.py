"""Checkpoints of a run's state: atomic, the newest few kept, resumed from where they stand."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from cogvx_jax.storage import StoragePath, is_bucket, storage_path
from cogvx_jax.train.step import State


class Checkpoints:
    """The checkpoints below one folder.

    Args:
      keep: how many; the newest, or with `best` those of the lowest loss.
    """

    def __init__(self, folder: str | StoragePath, keep: int = 2, *, best: bool = False):
        by_loss: dict[str, Any] = {"best_fn": lambda metrics: metrics["loss"], "best_mode": "min"} if best else {}
        where = storage_path(folder)
        # Two of these may save the same update at a time; processes must not take one's barriers for the other's.
        apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=where.name)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, multiprocessing_options=apart, **by_loss)
        self._manager = ocp.CheckpointManager(
            where if is_bucket(where) else where.absolute(),
            options=options,
            item_handlers=ocp.PyTreeCheckpointHandler(),
        )

    def latest(self) -> int | None:
        """Updates done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def restore(self, like: State) -> State:
        """The newest saved state; there must be one.

        It goes to the devices of `like`, arrays or shapes, which it must fit; those it was saved from do not matter.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(self.latest(), args=_restore(shapes))

    def restore_exported(self, like: Any) -> Any:
        """What the newest checkpoint, which must exist, has for use: its `State.exported`, on one device.

        Args:
          like: a tree of its shapes.
        """
        here = SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
        step = self.latest()
        saved = self._manager.item_metadata(step)
        part = "params" if saved["average"] is None else "average"
        return self._manager.restore(step, args=_restore({part: shapes}, partial_restore=True))[part]

    def loss(self) -> float | None:
        """The loss that the newest checkpoint was saved with; None where there is none."""
        self._manager.wait_until_finished()  # or its metrics may not be there yet
        step = self.latest()
        return None if step is None else float(self._manager.metrics(step)["loss"])

    def forget(self) -> None:
        """Deletes the newest checkpoint."""
        self._manager.wait_until_finished()
        self._manager.delete(self.latest())

    def save(self, state: State, loss: float | None = None) -> None:
        """Saves in the background, once for each step; a checkpoint appears under its name only when whole."""
        step = int(state.step)
        if step != self.latest():
            metrics = None if loss is None else {"loss": loss}
            self._manager.save(step, args=ocp.args.PyTreeSave(state), metrics=metrics, force=True)

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _restore(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **options)


def read_exported(run: StoragePath, like: Any, best: bool) -> Any:
    """What a run's newest checkpoint has for use, or its best by validation loss; `like` as above.

    Raises: ValueError where there is no such checkpoint.
    """
    checkpoints = Checkpoints(run / ("best" if best else "checkpoints"))
    try:
        if checkpoints.latest() is None:
            which = "of the best validation loss; train with --validation" if best else "yet; train it first"
            raise ValueError(f"{run} has no checkpoint {which}")
        return checkpoints.restore_exported(like)
    finally:
        checkpoints.close()
