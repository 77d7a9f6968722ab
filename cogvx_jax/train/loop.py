"""Runs updates over a stream of batches: progress, a log of the curve, checkpoints, resumption."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from cogvx_jax.allocator import give_back_freed_memory
from cogvx_jax.sharding import everywhere
from cogvx_jax.storage import StoragePath
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.curve import Curve
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import HostRows, Placement
from cogvx_jax.train.preemption import sigterm
from cogvx_jax.train.prefetch import Batches, read_ahead
from cogvx_jax.train.progress import Progress, Span, Watch, say
from cogvx_jax.train.step import LossFn, State
from cogvx_jax.train.step import step as update_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Parameters that nobody holds beside the state: `make` is called only where there is no checkpoint."""

    make: Callable[[], Any]
    shapes: Any  # what it makes as shapes, with where they lie


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """The batches of a stage; with `fixed` or `rows` they are dicts."""

    batches: Batches
    rows: HostRows | None = None  # of a batch, that `batches` gives here; None is all of them, on every host
    fixed: Mapping[str, Any] | None = None  # added to each batch, on the devices already


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """An update of the state, see `step.step`."""

    loss: LossFn
    tx: optax.GradientTransformation
    decay: float = 0.999  # of the moving average; 0 has none, which saves its memory: the parameters are exported
    accumulate: int = 1

    def compiled(self, state: State, placement: Placement) -> Callable[..., Any]:
        compute = functools.partial(
            update_state, loss_fn=self.loss, tx=self.tx, decay=self.decay, accumulate=self.accumulate
        )
        mesh = placement.mesh
        where = None if mesh is None else (jax.tree.map(lambda x: x.sharding, state), everywhere(mesh))
        return jax.jit(compute, donate_argnums=0, out_shardings=where)


def run_updates(
    params: Any,
    given: Input,
    update: Update,
    span: Span,
    folder: StoragePath,
    *,
    seed: int,
    pace: Pace = Pace(),  # noqa: B008
    placement: Placement = Placement(),  # noqa: B008
    watch: Watch = Watch(),  # noqa: B008
) -> State:
    """Trains to `span.steps` updates from the newest checkpoint in `folder`, or from `params`.

    Appends a line of JSON to `folder/log.jsonl` every `pace.log_every` updates, and for every validation. On SIGTERM
    it saves a checkpoint and ends the process with status 0. Metrics are read one update late: the devices do not wait.

    Several processes run this together on one mesh, with the same arguments; the first one writes what is not a
    checkpoint, and all stop at the same update. They must see one `folder`.

    Args:
      params: arrays, which the caller keeps, or a `Start`. They and `given.fixed` are where `placement` has them.
      update: its loss is computed on the mesh already, see `Placement.loss`.
    Raises: ValueError after too many updates that are not finite, see `Watch.patience`; OSError where a checkpoint
      cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        stopped = files.enter_context(sigterm())  # first, and so until all files are closed
        checkpoints = files.enter_context(Checkpoints(folder / "checkpoints", pace.keep))
        state = _first_state(params, checkpoints, update, placement)
        curve = files.enter_context(Curve(folder, tensorboard=pace.tensorboard, start=int(state.step)))
        best = files.enter_context(Checkpoints(folder / "best", 1, best=True)) if watch.validate else None
        progress = Progress(folder, curve, span, watch, every=pace.log_every, seed=seed, devices=placement.devices)
        stage = _Stage(span, pace, watch, checkpoints, best, curve, progress)
        step, key = update.compiled(state, placement), jax.random.key(seed)
        for i, batch in read_ahead(given.batches, int(state.step), span.steps, pace.workers):
            placed = placement.batch(batch, given.rows)
            state, metrics = step(state, placed if given.fixed is None else placed | dict(given.fixed), key)
            progress.add(i, batch, metrics)
            if stage.after(i + 1, state, stopped):
                say(f"{folder.name}: SIGTERM came; update {i + 1} is saved, the same command goes on from it")
                raise SystemExit(0)
        progress.catch_up()
    return state


def _first_state(params: Any, checkpoints: Checkpoints, update: Update, placement: Placement) -> State:
    shapes, average = params.shapes if isinstance(params, Start) else params, update.decay > 0
    if checkpoints.latest() is not None:
        return checkpoints.restore(placement.shapes(shapes, update.tx, average=average))
    # Not the caller's buffers: every step donates them.
    made = params.make() if isinstance(params, Start) else params
    return placement.init(made, update.tx, average=average)


@dataclasses.dataclass
class _Stage:
    """What is done between the updates of a stage."""

    span: Span
    pace: Pace
    watch: Watch
    checkpoints: Checkpoints
    best: Checkpoints | None
    curve: Curve
    progress: Progress
    begun: bool = False

    def after(self, done: int, state: State, stopped: Callable[[int], bool]) -> bool:
        """Validates, shows and saves where it is time to; gives whether the run ends here, on a signal."""
        if not self.begun:
            self.begun = True
            jax.block_until_ready(state.step)
            give_back_freed_memory()  # after compiling
        last, leave = done == self.span.steps, stopped(done) and done < self.span.end_of_run
        if not leave and self.watch.validate and (last or done % self.pace.validate_every == 0):
            with self.progress.paused():
                self._validate(done, state)
        if not leave and self.watch.show and (done == self.span.end_of_run or done % self.watch.show_every == 0):
            with self.progress.paused():
                self.watch.show(state.exported, done)
        if last or leave or done % self.pace.save_every == 0:
            self.progress.catch_up()  # or the log might lack updates of which there is a checkpoint
            self.checkpoints.save(state)
        return leave

    def _validate(self, done: int, state: State) -> None:
        assert self.watch.validate and self.best
        losses = self.watch.validate(state.exported)
        mean = losses["loss"] if "loss" in losses else float(np.mean(list(losses.values())))
        self.curve.add(done, {"validation_loss": mean, "validation": losses})
        rest = "".join(f", {name} {value:.5g}" for name, value in losses.items() if "loss" in losses and name != "loss")
        say(f"{self.curve.name} {done} validation loss {mean:.5f}{rest}")
        if not math.isfinite(mean):
            return
        lowest = self.best.loss()
        if lowest is not None and (self.best.latest() or 0) <= self.span.start:  # of an earlier stage
            self.best.forget()
            lowest = None
        if lowest is None or mean < lowest:
            self.best.save(state, mean)
