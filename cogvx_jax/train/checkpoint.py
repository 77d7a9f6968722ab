"""Checkpoints of a run's state: atomic, the newest few kept, resumed from where they stand."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from cogvx_jax.train.step import State


class Checkpoints:
    """The checkpoints below one folder.

    Args:
      keep: how many; the newest, or with `best` those of the lowest loss.
    """

    def __init__(self, folder: str | Path, keep: int = 2, *, best: bool = False):
        by_loss: dict[str, Any] = {"best_fn": lambda metrics: metrics["loss"], "best_mode": "min"} if best else {}
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, **by_loss)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def latest(self) -> int | None:
        """Updates done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def restore(self, state: State) -> State:
        """The newest saved state, or `state`, where there is none.

        It goes to the devices of `state`, whose shapes it must have; those it was saved from do not matter.
        """
        step = self.latest()
        if step is None:
            return state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def restore_average(self, like: Any) -> Any:
        """The moving average of the newest checkpoint, which must exist, and nothing else of it, on one device.

        Args:
          like: a tree of its shapes.
        """
        here = SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
        item = {"average": shapes}
        restore = ocp.args.PyTreeRestore(
            item, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        return self._manager.restore(self.latest(), args=restore)["average"]

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
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
