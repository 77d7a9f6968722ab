"""ControlNets: against recorded numbers, their files, and in whole runs."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small

from cogvx_jax.configs import Compute, ControlNetConfig
from cogvx_jax.convert import load_params
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.controlnet import controlnet_parameters, open_controlnet, write_controlnet
from cogvx_jax.models.controlnet import ControlBranch, weighted_sum
from cogvx_jax.models.per_block import PerBlock, States
from cogvx_jax.models.transformer import Transformer

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SEEDS, BLOCKS = {"5b": 100, "2b": 110}, {"5b": [0.7, 0.7], "2b": [0.5, 1.5]}


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert np.isfinite(a).all() and np.abs(a - b).max() <= tolerance * np.abs(b).max()


def drawn_controlnet(folder, cfg, seed):
    """A folder in TheDenk's layout whose numbers are drawn from the names."""
    shapes = {key: parameter.their_shape for parameter in controlnet_parameters(cfg) for key in parameter.keys}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "CogVideoXControlnet"}))
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, seed).items()}, folder / WEIGHTS)
    return folder


# The recorded runs of TheDenk's code.


@pytest.fixture(scope="module", params=["5b", "2b"])
def recorded(request, tmp_path_factory):
    """Kind, base and its parameters, ControlNet and its parameters, and arrays of golden/controlnet.md."""
    kind, folder = request.param, tmp_path_factory.mktemp("controlnet")
    base = small_spec(kind)
    sizes = dict(layers=3, heads=2, in_channels=16, out_channels=16, text_dim=24, text_length=226)
    transformer = dataclasses.replace(base.transformer, **sizes, sample_height=60, sample_width=90)
    spec = dataclasses.replace(
        base,
        transformer=transformer,
        vae=dataclasses.replace(base.vae, latent_channels=16),
        text_encoder=dataclasses.replace(base.text_encoder, width=24),
    )
    write_small(folder / "model", spec)
    (file,) = (folder / "model" / "transformer").glob("*.safetensors")
    shapes = {key: entry.shape for key, entry in open_tensors(file).items()}
    assert len(shapes) == 88
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, SEEDS[kind]).items()}, file)
    cfg = ControlNetConfig(layers=2, heads=2, head_dim=16, text_dim=24, time_dim=16)
    stored = open_controlnet(drawn_controlnet(folder / "controlnet", cfg, SEEDS[kind] + 1))
    assert stored.cfg == cfg
    with np.load(GOLDEN / f"controlnet_{kind}_like.npz") as arrays:
        golden = dict(arrays)
    for name in ("latents", "v", "v_without"):
        golden[name] = golden[name].transpose(0, 1, 3, 4, 2)
    golden["frames"] = np.float32(golden["frames"].transpose(0, 1, 3, 4, 2)) / 127.5 - 1
    params = load_params(folder / "model", spec, "transformer")
    return kind, Transformer(transformer), params, ControlBranch(cfg, transformer), stored.read(), golden


def predict(recorded, per_block=None, **how):
    _, transformer, params, _, _, golden = recorded
    transformer = Transformer(transformer.cfg, Compute(**how))
    run = jax.jit(
        lambda p, x, w, per_block: transformer.apply({"params": p}, x, w, jnp.full(2, 499), per_block=per_block)
    )
    return run(params, golden["latents"], golden["text"], per_block)


@pytest.fixture(scope="module")
def states(recorded):
    _, _, _, branch, params, golden = recorded
    inputs = golden["latents"], golden["frames"], golden["text"], jnp.full(2, 499)
    return jax.jit(lambda p, *x: branch.apply({"params": p}, *x))(params, *inputs)


def added(kind, states):
    values = weighted_sum([states], [np.float32(BLOCKS[kind])])
    return PerBlock(states=States.of(values, 3))


def test_it_is_that_of_thedenk(recorded, states):
    kind, *_, golden = recorded
    np.testing.assert_allclose(predict(recorded), golden["v_without"], rtol=0, atol=1e-4)
    assert states.shape == (2, 2, 244, 32) and not np.any(states[:, :, :226])
    for i in range(2):
        np.testing.assert_allclose(states[i, :, 226:], golden[f"state_{i}"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(predict(recorded, added(kind, states)), golden["v"], rtol=0, atol=1e-4)
    assert np.abs(golden["v"] - golden["v_without"]).max() > 0.1


@pytest.mark.parametrize("how", [dict(rows_apart=True), dict(rows_apart=True, mlp_tokens=8)])
def test_memory_modes_have_it_too(recorded, states, how):
    kind, *_, golden = recorded
    if kind == "5b":
        np.testing.assert_allclose(predict(recorded, added(kind, states), **how), golden["v"], rtol=0, atol=1e-4)


def test_nothing_is_added_after_its_last_block(recorded, states):
    values = weighted_sum([states, states[:1]], [np.float32([0, 0]), np.float32([0])])
    assert values.shape == states.shape
    close(predict(recorded, PerBlock(states=States.of(values, 3))), recorded[-1]["v_without"], 1e-4)
    once = weighted_sum([states, states[:1]], [np.float32([1, 2]), np.float32([3])])
    np.testing.assert_allclose(once, np.stack([4 * states[0], 2 * states[1]]), rtol=1e-5, atol=1e-5)


# Files.

SMALL = ControlNetConfig(layers=2, heads=2, head_dim=16, text_dim=24, time_dim=16)


def test_what_is_written_is_read_again(tmp_path):
    cfg = dataclasses.replace(SMALL, out_dim=48, adds_positions=False, latent_channels=4, norm_eps=1e-6)
    drawn = open_controlnet(drawn_controlnet(tmp_path / "drawn", cfg, 0)).read()
    write_controlnet(tmp_path / "written", cfg, drawn)
    again = open_controlnet(tmp_path / "written")
    assert again.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, again.read(), drawn)
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("drawn", "written"))
    assert theirs.keys() == ours.keys() and "out_projectors.1.weight" in ours
    assert all(np.array_equal(theirs[key], ours[key]) for key in ours)
    alone = open_controlnet(tmp_path / "written" / WEIGHTS)  # what shapes do not tell is as it is trained
    assert alone.cfg == dataclasses.replace(cfg, adds_positions=True, norm_eps=1e-5)
    save_file({f"module.{key}": array for key, array in ours.items()}, tmp_path / "module.safetensors")
    assert open_controlnet(tmp_path / "module.safetensors").cfg == alone.cfg


def test_its_sizes_are_those_of_the_published_ones():
    """Numbers and tensors of TheDenk's class, as it makes them for both widths."""
    for cfg, numbers, tensors in (
        (ControlNetConfig(), 458_281_648, 208),
        (ControlNetConfig(out_dim=1920), 487_788_208, 224),
        (ControlNetConfig(heads=48, layers=6), 808_420_784, 160),
        (ControlNetConfig(heads=48, out_dim=3072), 1_148_338_096, 224),
    ):
        parameters = controlnet_parameters(cfg)
        assert sum(int(np.prod(p.shape)) for p in parameters) == numbers
        assert sum(len(p.keys) for p in parameters) == tensors


def rewrite(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


WRONG_FILES = {
    "num_layers 0 is not supported, only 1 to 1024 is": dict(num_layers=0),
    "num_attention_heads 'x' is not supported": dict(num_attention_heads="x"),
    "use_learned_positional_embeddings True is not supported, only False is": dict(
        use_learned_positional_embeddings=True
    ),
    "_class_name 'SD3ControlNetModel' is not supported": dict(_class_name="SD3ControlNetModel"),
    "use_rotary_positional_embeddings 1 is not supported, only true and false are": dict(
        use_rotary_positional_embeddings=1
    ),
    "does not hold a ControlNet of 3 blocks of 2 x 16:\n  missing: transformer_blocks.2.": dict(num_layers=3),
    "does not hold a ControlNet of 2 blocks of 3 x 16:\n  misshapen: patch_embed.proj.": dict(num_attention_heads=3),
    "missing: out_projectors.0.weight (48, 32)": dict(out_proj_dim=48),
}


@pytest.mark.parametrize("said", WRONG_FILES)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, said):
    folder = drawn_controlnet(tmp_path / "net", SMALL, 0)
    rewrite(folder, **WRONG_FILES[said])
    with pytest.raises(ValueError) as error:
        open_controlnet(folder)
    assert said.replace("'", '"') in str(error.value).replace("'", '"') and str(folder) in str(error.value)


def test_what_is_no_controlnet_is_refused(tmp_path):
    save_file({"x.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no ControlNet of TheDenk's: it has no controlnet_en"):
        open_controlnet(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no ControlNet: there is no config.json beside diffusion_pyt"):
        open_controlnet(tmp_path)
    folder = drawn_controlnet(tmp_path / "net", SMALL, 0)
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {key: x for key, x in tensors.items() if "norm2" not in key} | {"y": tensors["patch_embed.proj.bias"]},
        folder / WEIGHTS,
    )
    with pytest.raises(ValueError) as error:
        open_controlnet(folder)
    assert "missing: transformer_blocks.0.norm2.linear.weight" in str(error.value) and "spare: y" in str(error.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: "):
        open_controlnet(folder)
