"""Runs updates over a stream of batches: progress, a log of the curve, checkpoints, resumption."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.placement import names, place_batch, place_init
from cogvx_jax.train.preemption import sigterm

AHEAD = 2  # batches that are read at once, and held beside the one in use
Batches = Callable[[int], Any]  # step -> batch; a function of the step alone, so that a run resumes exactly
Validate = Callable[[Any], dict[str, float]]  # moving average -> losses by name


def fit(
    params: Any,
    batches: Batches,
    loss_fn: update.LossFn,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    folder: Path,
    seed: int,
    decay: float = 0.999,
    accumulate: int = 1,
    fixed: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    tokens: int = 0,
    validate: Validate | None = None,
    validate_every: int = 200,
    save_every: int = 200,
    log_every: int = 50,
    keep: int = 2,
    patience: int = 10,
    start: int = 0,
    end: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> update.State:
    """Trains to `steps` updates from the newest checkpoint in `folder`, or from `params`.

    Appends a line of JSON to `folder/log.jsonl` every `log_every` updates, and for every validation. On
    SIGTERM it saves a checkpoint and ends the process with status 0.

    Args:
      accumulate: parts that a batch is computed in; see `step.step`.
      fixed: what is added to each batch, on the devices already; batches are then dicts.
      mesh: what the state and batches are spread over; `params`, `fixed` and `loss_fn` are on it already.
      tokens: of a batch, for the progress line.
      validate: its mean loss is logged every `validate_every` updates, and the best state kept in `folder/best`.
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
    state = checkpoints.restore(place_init(params, tx, mesh))  # not the caller's buffers: every step donates them
    compute = functools.partial(update.step, loss_fn=loss_fn, tx=tx, decay=decay, accumulate=accumulate)
    where = None if mesh is None else (jax.tree.map(lambda x: x.sharding, state), None)
    step = jax.jit(compute, donate_argnums=0, out_shardings=where)
    end = steps if end is None else end
    key, rows, since, unsound = jax.random.key(seed), [], time.monotonic(), 0
    leave = False
    try:
        with sigterm() as stopped:
            for i, batch in _ahead(batches, int(state.step), steps):
                placed = place_batch(batch, mesh)
                state, metrics = step(state, placed if fixed is None else placed | dict(fixed), key)
                rows.append({name: float(value) for name, value in metrics.items()})
                unsound = 0 if rows[-1]["sound"] else unsound + 1
                if unsound == patience:
                    raise ValueError(_unsound(folder, batch, i, seed, patience))
                done, leave = i + 1, stopped() and i + 1 < end
                if done % log_every == 0 or done == steps:
                    seconds = (time.monotonic() - since) / len(rows)
                    pace = {"seconds_per_step": round(seconds, 4)}
                    _log(folder, {"step": done} | _summary(rows) | pace | dict(about or {}))
                    print(progress(folder.name, done, end, rows, seconds, tokens), flush=True)
                    rows, since = [], time.monotonic()
                if validate and best and not leave and (done % validate_every == 0 or done == steps):
                    began = time.monotonic()
                    _validate(folder, state, validate, best, start)
                    since += time.monotonic() - began
                if done % save_every == 0 or done == steps or leave:
                    checkpoints.save(state)
                if leave:
                    break
    finally:
        checkpoints.close()
        if best:
            best.close()
    if leave:
        print(f"{folder.name}: SIGTERM came; update {done} is saved, the same command goes on from it", flush=True)
        raise SystemExit(0)
    return state


def progress(name: str, done: int, steps: int, rows: list[dict[str, float]], seconds: float, tokens: int) -> str:
    """A line on the updates in `rows`, each of which took `seconds`."""
    summary = _summary(rows)
    loss = "not finite" if summary["loss"] is None else f"{summary['loss']:.5f}"
    line = f"{name} {done}/{steps} loss {loss}, {1 / seconds:.3g} steps/s"
    line += f", {tokens / seconds:,.0f} tokens/s" if tokens else ""
    left = round((steps - done) * seconds)
    line += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    return line + (f"; {summary['skipped']} updates skipped, not finite" if "skipped" in summary else "")


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean loss and last gradient norm of the sound updates, None where there is none; the number of others."""
    sound = [row for row in rows if row["sound"]]
    loss = float(np.mean([row["loss"] for row in sound])) if sound else None
    summary = {"loss": loss, "grad_norm": sound[-1]["grad_norm"] if sound else None}
    return summary | ({"skipped": len(rows) - len(sound)} if len(sound) < len(rows) else {})


def _validate(folder: Path, state: update.State, validate: Validate, best: Checkpoints, start: int) -> None:
    losses = validate(state.average)
    mean = float(np.mean(list(losses.values())))
    _log(folder, {"step": int(state.step), "validation_loss": mean, "validation": losses})
    print(f"{folder.name} {int(state.step)} validation loss {mean:.5f}", flush=True)
    if not math.isfinite(mean):
        return
    lowest = best.loss()
    if lowest is not None and (best.latest() or 0) <= start:  # of an earlier stage
        best.forget()
        lowest = None
    if lowest is None or mean < lowest:
        best.save(state, mean)


def _log(folder: Path, row: dict[str, Any]) -> None:
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")


def _unsound(folder: Path, batch: Any, step: int, seed: int, patience: int) -> str:
    """Saves the batch of a step; the sentence that says so."""
    file = folder / f"batch-{step}.npz"
    leaves: dict[str, Any] = {"/".join(names(path)) or "batch": x for path, x in jax.tree.leaves_with_path(batch)}
    np.savez(file, **leaves | {"step": step, "seed": seed})
    return (
        f"{folder}: {patience} updates in a row had a loss or gradient that is not finite; the batch of the last is in "
        f"{file.name}, its step and seed give the key: check the data, or begin in another folder with a lower rate"
    )


def _ahead(batches: Batches, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Reads the next batches in threads while the current one is used; the place in the data is the step alone."""
    steps = grain.MapDataset.range(start, stop).map(lambda step: (step, batches(step)))
    ahead = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)))
    with contextlib.closing(ahead):
        yield from ahead
