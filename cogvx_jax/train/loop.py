"""Runs updates over a stream of batches: progress, a log of the curve, checkpoints, resumption."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from cogvx_jax.allocator import give_back_freed_memory
from cogvx_jax.sharding import everywhere
from cogvx_jax.storage import StoragePath
from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.curve import Curve
from cogvx_jax.train.placement import HostRows, place_batch, place_init, state_shapes
from cogvx_jax.train.preemption import sigterm
from cogvx_jax.train.prefetch import Batches, read_ahead
from cogvx_jax.train.progress import Progress, say

# what is exported -> losses by name; where one is named "loss", it is the one that counts, else their mean
Validate = Callable[[Any], dict[str, float]]


def run_updates(
    params: Any,
    batches: Batches,
    loss_fn: update.LossFn,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    folder: StoragePath,
    seed: int,
    decay: float = 0.999,
    accumulate: int = 1,
    fixed: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    rows: HostRows | None = None,
    workers: int = 0,
    tokens: int = 0,
    flops: int = 0,
    rate: optax.Schedule | None = None,
    validate: Validate | None = None,
    validate_every: int = 200,
    show: Callable[[Any, int], None] | None = None,
    show_every: int = 1000,
    save_every: int = 200,
    log_every: int = 50,
    tensorboard: bool = False,
    keep: int = 2,
    patience: int = 10,
    start: int = 0,
    end: int | None = None,
    shapes: Any = None,
    about: Mapping[str, Any] | None = None,
) -> update.State:
    """Trains to `steps` updates from the newest checkpoint in `folder`, or from what `params` gives.

    Appends a line of JSON to `folder/log.jsonl` every `log_every` updates, and for every validation. On
    SIGTERM it saves a checkpoint and ends the process with status 0.

    Several processes run this together on one mesh, with the same arguments; the first one writes what is not a
    checkpoint, and all stop at the same update. They must see one `folder`.

    Args:
      params: arrays; or, so that nobody holds them beside the state, a function that makes them, which is called only
        where there is no checkpoint. It has `shapes` then.
      shapes: those arrays as shapes, with where they lie.
      decay: of the moving average; 0 has none, which saves its memory: the parameters themselves are exported.
      accumulate: parts that a batch is computed in; see `step.step`.
      fixed: what is added to each batch, on the devices already; batches are then dicts.
      mesh: what the state and batches are spread over; `params`, `fixed` and `loss_fn` are on it already.
      rows: of a batch, that `batches` gives here; None is all of them, on every host.
      workers: processes that read batches; see `read_ahead`.
      tokens, flops, rate: for the progress line and the log, see `Progress`.
      validate: its mean loss is logged every `validate_every` updates, and the best state kept in `folder/best`.
      show: called with what is exported and the updates done, every `show_every` updates and after the last.
      tensorboard: log to `folder/tensorboard`, too.
      keep: checkpoints to keep, the newest.
      patience: updates in a row without a finite loss and gradient, after which training ends.
      start, end: updates at which this stage of a run begins, and at which the last one ends; None is `steps`. The
        best state is the best of this stage: on other clips, losses cannot be compared.
      about: what each line of the log says, too.
    Raises: ValueError then; the last batch lies in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    best = Checkpoints(folder / "best", 1, best=True) if validate else None
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state_shapes(params if shapes is None else shapes, tx, mesh, average=decay > 0))
    else:  # not the caller's buffers: every step donates them
        state = place_init(params() if callable(params) else params, tx, mesh, average=decay > 0)
    compute = functools.partial(update.step, loss_fn=loss_fn, tx=tx, decay=decay, accumulate=accumulate)
    where = None if mesh is None else (jax.tree.map(lambda x: x.sharding, state), everywhere(mesh))
    step = jax.jit(compute, donate_argnums=0, out_shardings=where)
    end = steps if end is None else end
    key, first, leave = jax.random.key(seed), int(state.step), False
    done = first
    curve = Curve(folder, tensorboard=tensorboard, start=done)
    progress = Progress(
        folder,
        curve,
        steps=end,
        stop=steps,
        every=log_every,
        patience=patience,
        seed=seed,
        tokens=tokens,
        flops=flops,
        devices=1 if mesh is None else mesh.size,
        rate=rate,
        about=about,
    )
    try:
        with sigterm() as stopped:
            for i, batch in read_ahead(batches, done, steps, workers):
                placed = place_batch(batch, mesh, rows)
                state, metrics = step(state, placed if fixed is None else placed | dict(fixed), key)
                progress.add(i, batch, metrics)
                if done == first:
                    jax.block_until_ready(metrics)
                    give_back_freed_memory()
                done = i + 1
                last, leave = done == steps, stopped(done) and done < end
                if validate and best and not leave and (last or done % validate_every == 0):
                    with progress.paused():
                        _validate(folder, curve, state, validate, best, start)
                if show and not leave and (done == end or done % show_every == 0):
                    with progress.paused():
                        show(state.exported, done)
                if last or leave or done % save_every == 0:
                    checkpoints.save(state)
                if leave:
                    break
            progress.catch_up()
    finally:
        checkpoints.close()
        if best:
            best.close()
        curve.close()
    if leave:
        say(f"{folder.name}: SIGTERM came; update {done} is saved, the same command goes on from it")
        raise SystemExit(0)
    return state


def _validate(
    folder: StoragePath, curve: Curve, state: update.State, validate: Validate, best: Checkpoints, start: int
) -> None:
    losses, done = validate(state.exported), int(state.step)
    mean = losses["loss"] if "loss" in losses else float(np.mean(list(losses.values())))
    curve.add(done, {"validation_loss": mean, "validation": losses})
    rest = "".join(f", {name} {value:.5g}" for name, value in losses.items() if "loss" in losses and name != "loss")
    say(f"{folder.name} {done} validation loss {mean:.5f}{rest}")
    if not math.isfinite(mean):
        return
    lowest = best.loss()
    if lowest is not None and (best.latest() or 0) <= start:  # of an earlier stage
        best.forget()
        lowest = None
    if lowest is None or mean < lowest:
        best.save(state, mean)
