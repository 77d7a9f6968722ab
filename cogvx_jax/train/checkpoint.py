"""Checkpoints of a run's state: atomic, the newest two kept, resumed from where they stand."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from cogvx_jax.train.step import State


class Checkpoints:
    """The checkpoints below one folder."""

    def __init__(self, folder: str | Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def latest(self) -> int | None:
        """Updates done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def restore(self, state: State) -> State:
        """The newest saved state, or `state`, whose shapes it must have, where there is none."""
        step = self.latest()
        if step is None:
            return state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def save(self, state: State) -> None:
        """Saves in the background; a checkpoint appears under its name only when whole."""
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state))

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
