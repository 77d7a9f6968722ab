"""Runs of small random models: what is trained, on any mesh, what is skipped, stopped, kept and validated."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.configs import ModelSpec, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import export
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.lora import LoRAConfig
from cogvx_jax.scripts.tiny_tokenizer import build_tokenizer
from cogvx_jax.train import commands, optim, parts
from cogvx_jax.train import run as runs
from cogvx_jax.train import step as update
from cogvx_jax.train.latents import Shape, digest, open_cache
from cogvx_jax.train.placement import place_state

LORA = runs.RunConfig(lora=LoRAConfig(rank=2, targets=("to_q", "ff")), batch_size=4, warmup=0, learning_rate=1e-2)
FULL = dataclasses.replace(LORA, lora=None, parts=("*",), learning_rate=1e-3)
NORMS = dataclasses.replace(FULL, parts=("blocks/attention/norm_*", "out/bias"))


SPEC = ModelSpec(
    name="small",
    transformer=TransformerConfig(
        layers=2,
        heads=2,
        head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        text_length=8,
        time_dim=16,
        position="rope",
        sample_height=4,
        sample_width=6,
        sample_frames=9,
    ),
    vae=VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7),
    text_encoder=T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=32, vocab=128),
    trained_dtype="bfloat16",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a random model; nothing of it is compiled."""
    folder, rng, params = tmp_path_factory.mktemp("source") / "small", np.random.default_rng(0), {}
    for part in ("transformer", "vae", "text_encoder"):
        shapes = abstract_params(getattr(SPEC, part))
        leaves = {path: np.float32(0.2 * rng.normal(size=p.shape)) for path, p in shapes.items()}
        params[part] = traverse_util.unflatten_dict(leaves, sep="/")
    export(folder, SPEC, params)
    build_tokenizer(folder / "tokenizer", 8)
    return folder


@pytest.fixture(scope="module")
def model(source):
    return cx.load(source)


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory):
    """Six random clips as `cogvx encode` would have made them."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)

    def write(kind, key, array):
        (folder / kind).mkdir(exist_ok=True)
        np.save(folder / kind / f"{key}.npy", np.float32(array))

    for i in range(6):
        mean = rng.normal(size=(3, 4, 6, 4))
        write("moments", f"clip{i}", np.concatenate([mean, np.full_like(mean, -5)], axis=-1))
        write("image", f"clip{i}", np.zeros((32, 48, 3)))
    for text in ("words", "empty"):
        write("text", text, rng.normal(size=(8, 16)))
    made = {part: digest(model.params[part]) for part in ("vae", "text_encoder")}
    facts = made | {"model": "small", "clips": [(f"clip{i}", "words") for i in range(6)], "empty": "empty"}
    shape = Shape(32, 48, 9, 8.0)
    (folder / "cache.json").write_text(json.dumps(facts | {"shape": dataclasses.asdict(shape)}))
    return open_cache(folder)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def mesh_of(sizes):
    return cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def train(source, cache, config, folder, steps, mesh=None, **options):
    model = cx.load(source, mesh=None if mesh is None else mesh_of(mesh))
    return runs.train(model, cache, config, folder, steps=steps, source=str(source), **{"log_every": 1} | options)


def test_a_run_of_parts_moves_them_alone_and_is_exported(source, model, cache, tmp_path):
    after = train(source, cache, NORMS, tmp_path / "run", 2)
    was, now = flat(model.params["transformer"]), flat(after.params["transformer"])
    moved = {path for path in was if not np.array_equal(was[path], now[path])}
    assert moved == {f"blocks/attention/norm_{x}/{y}" for x in "qk" for y in ("scale", "bias")} | {"out/bias"}
    assert model.spec.transformer.logit_bound and runs._start(model, NORMS)[0].transformer.logit_bound is None
    state = update.init(parts.split(model.params["transformer"], NORMS.parts)[0], NORMS.tx)
    assert len(jax.tree.leaves(state.opt)) == 2 * len(moved) + 1  # two moments each, and a count
    commands.export(tmp_path / "run", out=tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, cx.load(tmp_path / "model").params, after.params)
    with pytest.raises(ValueError, match="trained the model itself, not a LoRA"):
        cx.load_lora(model, tmp_path / "run")
    with pytest.raises(ValueError, match="give a new folder"):
        commands.export(tmp_path / "run", out=tmp_path / "model")
    with pytest.raises(ValueError, match=r"parts was \['blocks/attention/norm_\*', 'out/bias'\] and is now \['\*'\]"):
        train(source, cache, FULL, tmp_path / "run", 3)


def test_a_pattern_that_matches_nothing_names_paths(model):
    with pytest.raises(ValueError, match="no parameter matches 'blocks/attn/.'; some of the .* are blocks/attention"):
        parts.split(model.params["transformer"], ["out/*", "blocks/attn/*"])


def test_split_and_join_are_inverse():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    trained, frozen = parts.split(tree, ["*/bias"])
    assert (trained, frozen) == ({"a": {"bias": 2}}, {"a": {"kernel": 1}, "b": 3})
    assert parts.join(frozen, trained) == tree and parts.split(tree, parts.EVERYTHING) == (tree, {})


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
def test_losses_are_the_same_on_a_mesh_and_a_run_moves_between_meshes(source, cache, tmp_path, config):
    alone = train(source, cache, config, tmp_path / "alone", 5)
    train(source, cache, config, tmp_path / "mesh", 3, dict(data=2, fsdp=2))
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone")[:3], rtol=1e-5)
    moved = train(source, cache, config, tmp_path / "mesh", 5, dict(fsdp=2, context=2, tensor=2))
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone"), rtol=1e-5)
    one, two = (flat(after.params["transformer"])["blocks/mlp/up/kernel"] for after in (alone, moved))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)
    assert losses(tmp_path / "alone")[-1] != losses(tmp_path / "alone")[0]


def test_moments_lie_where_their_parameters_do(source):
    model = cx.load(source, mesh=mesh_of(dict(fsdp=4, tensor=2)))
    params = jax.tree.map(jnp.copy, model.params["transformer"])
    up = lambda tree: tree["blocks"]["mlp"]["up"]["kernel"]  # noqa: E731
    state = place_state(update.init(params, optim.constant(1e-3)), model.mesh)
    moments = [x for x in jax.tree.leaves(state.opt) if x.shape == up(params).shape]
    assert len(moments) == 2 and all(x.sharding == up(params).sharding for x in [*moments, up(state.average)])
    assert moments[0].addressable_shards[0].data.nbytes * 8 == moments[0].nbytes
    place_state(update.init(params, optim.adafactor(1e-3)), model.mesh)  # rows and columns have other shapes


def test_a_batch_that_the_mesh_cannot_split_is_refused(source, cache, tmp_path):
    with pytest.raises(ValueError, match="4 clips cannot be split over data=2 x fsdp=2 x 2 parts; .* multiple of 8"):
        train(source, cache, dataclasses.replace(LORA, accumulate=2), tmp_path / "run", 1, dict(data=2, fsdp=2))
    assert not (tmp_path / "run").exists()
    options = dict(data=cache.folder, out=tmp_path / "run", model=str(source))
    with pytest.raises(ValueError, match="6 devices, there are 8"):
        commands.train(**options, mesh="data=6")
    with pytest.raises(ValueError, match="6 clips cannot be split over data=8"):
        commands.train(**options, mesh="data=8", batch_size=6)
    with pytest.raises(ValueError, match="4 clips cannot be computed in 3 equal parts"):
        commands.train(**options, accumulate=3)
