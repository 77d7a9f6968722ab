"""The training step and loop: they learn, resume exactly, and start from nothing but their arguments."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.train import optim
from cogvx_jax.train import step as update
from cogvx_jax.train.loop import fit


def loss(params, batch, key):
    return jnp.mean(jnp.square(batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"] - batch["y"]))


def start():
    return {"dense": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}}


def batches(step):
    rng = np.random.default_rng(step)
    x = rng.standard_normal((16, 8)).astype(np.float32)
    return {"x": x, "y": x[:, :4] * 2 + 1}


@pytest.mark.parametrize("make", [optim.adamw, optim.muon])
def test_fit_learns(tmp_path, make):
    state = fit(
        start(), batches, loss, make(0.05, 200, warmup=5), steps=200, folder=tmp_path / "run", seed=0, decay=0.9
    )
    assert float(loss(state.params, batches(999), None)) < 0.01
    assert float(loss(state.average, batches(999), None)) < 0.01
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150, 200] and rows[0]["loss"] > rows[-1]["loss"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    run = functools.partial(fit, start(), batches, loss, optim.adamw(0.05, 40, warmup=5), seed=0, log_every=10)
    whole = run(steps=40, folder=tmp_path / "whole")
    run(steps=20, folder=tmp_path / "parts")
    parts = run(steps=40, folder=tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_caller_keeps_its_parameters(tmp_path):
    params = start()
    fit(params, batches, loss, optim.adamw(0.05, 3, warmup=1), steps=3, folder=tmp_path, seed=0)
    assert float(jnp.sum(params["dense"]["kernel"])) == 0  # readable: not donated


def test_the_average_follows_slowly():
    tx = optim.adamw(0.1, 100, warmup=1)
    state = update.init(start(), tx)
    for i in range(20):
        state, metrics = update.step(state, batches(i), jax.random.key(0), loss_fn=loss, tx=tx, decay=0.99)
    ahead = jnp.abs(state.params["dense"]["bias"]).mean()
    behind = jnp.abs(state.average["dense"]["bias"]).mean()
    assert 0 < behind < ahead
    assert int(state.step) == 20 and np.isfinite(metrics["grad_norm"])


def test_muon_takes_each_layer_of_a_stack_as_its_own_matrix():
    params = {
        "blocks": {"up": {"kernel": jnp.zeros((3, 8, 16)), "bias": jnp.zeros((3, 16))}},
        "embedding": jnp.zeros((5, 8)),
    }
    numbers = optim._matrices(params)
    assert numbers["blocks"]["up"]["kernel"].reduction_axis == (1,)
    assert numbers["blocks"]["up"]["kernel"].output_axis == (2,)
    assert numbers["blocks"]["up"]["bias"] is None and numbers["embedding"] is None
