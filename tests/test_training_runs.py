"""Runs of small random models: what is trained, on any mesh, what is skipped, stopped, kept and validated."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.models.lora import LoRAConfig
from cogvx_jax.train import commands, optim, parts
from cogvx_jax.train import run as runs
from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.latents import Cache, Shape, digest
from cogvx_jax.train.loop import fit, progress
from cogvx_jax.train.placement import place_state
from cogvx_jax.train.validation import hold_out

LORA = runs.RunConfig(lora=LoRAConfig(rank=2, targets=("to_q", "ff")), batch_size=4, warmup=0, learning_rate=1e-2)
FULL = dataclasses.replace(LORA, lora=None, parts=("*",), learning_rate=1e-3)
NORMS = dataclasses.replace(FULL, parts=("blocks/attention/norm_*", "out/bias"))


@pytest.fixture
def cache(small, tmp_path):
    """Six random clips as `cogvx encode` would have made them for the small 5B model."""
    _, model = small("5b")
    folder, rng, cfg = tmp_path / "cache", np.random.default_rng(0), model.spec.transformer

    def write(kind, key, array):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / kind / f"{key}.npy", np.float32(array))

    for i in range(6):
        mean = rng.normal(size=(3, 4, 6, 4))
        write("moments", f"clip{i}", np.concatenate([mean, np.full_like(mean, -5)], axis=-1))
        write("image", f"clip{i}", np.zeros((32, 48, 3)))
    for text in ("words", "empty"):
        write("text", text, rng.normal(size=(cfg.text_length, cfg.text_dim)))
    made = {part: digest(model.params[part]) for part in ("vae", "text_encoder")}
    clips = tuple((f"clip{i}", "words") for i in range(6))
    facts = made | {"model": "small-5b", "clips": clips, "empty": "empty"}
    (folder / "cache.json").write_text(json.dumps(facts | {"shape": dataclasses.asdict(Shape(32, 48, 9, 8.0))}))
    return Cache(folder=folder, shape=Shape(32, 48, 9, 8.0), **facts)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def train(small, cache, config, folder, steps, mesh=None, **options):
    source, _ = small("5b")
    devices = None
    if mesh is not None:
        devices = cx.make_mesh(**mesh, devices=jax.devices()[: int(np.prod(list(mesh.values())))])
    model = cx.load(source, mesh=devices)
    return runs.train(model, cache, config, folder, steps=steps, source=str(source), **{"log_every": 1} | options)


def test_a_run_of_parts_moves_them_alone_and_is_exported(small, cache, tmp_path):
    source, before = small("5b")
    after = train(small, cache, NORMS, tmp_path / "run", 2)
    was, now = flat(before.params["transformer"]), flat(after.params["transformer"])
    moved = {path for path in was if not np.array_equal(was[path], now[path])}
    assert moved == {f"blocks/attention/norm_{x}/{y}" for x in "qk" for y in ("scale", "bias")} | {"out/bias"}
    assert after.params["vae"]["decoder"] is not None and after.spec.transformer.logit_bound is not None
    state = update.init(parts.split(before.params["transformer"], NORMS.parts)[0], NORMS.tx)
    assert len(jax.tree.leaves(state.opt)) == 2 * len(moved) + 1  # two moments each, and a count
    commands.export(tmp_path / "run", out=tmp_path / "model")
    again = cx.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, again.params, after.params)
    with pytest.raises(ValueError, match="trained the model itself, not a LoRA"):
        cx.load_lora(before, tmp_path / "run")
    with pytest.raises(ValueError, match="give a new folder"):
        commands.export(tmp_path / "run", out=tmp_path / "model")
    with pytest.raises(ValueError, match=r"parts was \['blocks/attention/norm_\*', 'out/bias'\] and is now \['\*'\]"):
        train(small, cache, FULL, tmp_path / "run", 3)


def test_a_pattern_that_matches_nothing_names_paths(small):
    _, model = small("5b")
    with pytest.raises(ValueError, match="no parameter matches 'blocks/attn/.'; some of the .* are blocks/attention"):
        parts.split(model.params["transformer"], ["out/*", "blocks/attn/*"])


def test_split_and_join_are_inverse():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    trained, frozen = parts.split(tree, ["*/bias"])
    assert (trained, frozen) == ({"a": {"bias": 2}}, {"a": {"kernel": 1}, "b": 3})
    assert parts.join(frozen, trained) == tree and parts.split(tree, parts.EVERYTHING) == (tree, {})
