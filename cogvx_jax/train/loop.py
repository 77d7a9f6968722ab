"""Runs updates over a stream of batches: progress, a log of the curve, checkpoints, resumption."""

import functools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints

Batches = Callable[[int], Any]  # step -> batch; a function of the step alone, so that a run resumes exactly


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
    save_every: int = 200,
    log_every: int = 50,
) -> update.State:
    """Trains to `steps` updates from the newest checkpoint in `folder`, or from `params`.

    Appends a line of JSON to `folder/log.jsonl` every `log_every` updates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    # Its own copy, since the state is donated to every step.
    state = checkpoints.restore(update.init(jax.tree.map(jnp.copy, params), tx))
    step = jax.jit(functools.partial(update.step, loss_fn=loss_fn, tx=tx, decay=decay), donate_argnums=0)
    key, losses, since = jax.random.key(seed), [], time.monotonic()
    try:
        for i, batch in _ahead(batches, int(state.step), steps):
            state, metrics = step(state, batch, key)
            losses.append(float(metrics["loss"]))
            if (i + 1) % log_every == 0 or i + 1 == steps:
                seconds = (time.monotonic() - since) / len(losses)
                row = {"step": i + 1, "loss": float(np.mean(losses)), "grad_norm": float(metrics["grad_norm"])}
                row |= {"seconds_per_step": round(seconds, 4)}
                with open(folder / "log.jsonl", "a") as log:
                    log.write(json.dumps(row) + "\n")
                print(f"{folder.name} {i + 1}/{steps} loss {row['loss']:.5f} {seconds:.2f} s/step", flush=True)
                losses, since = [], time.monotonic()
            if (i + 1) % save_every == 0 or i + 1 == steps:
                checkpoints.save(state)
    finally:
        checkpoints.close()
    return state


def _ahead(batches: Batches, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Draws the next batch in a thread while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(batches, start)
        for i in range(start, stop):
            batch = following.result()
            following = pool.submit(batches, i + 1)
            yield i, batch
