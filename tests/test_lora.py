"""Adapters: what they add, how they stack, what is trained, and the files they are kept in."""

import dataclasses
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from cogvx_jax import presets
from cogvx_jax.configs import TARGETS, LoRAConfig, ModelSpec, TransformerConfig
from cogvx_jax.convert import expected_shapes, read_lora, write_lora
from cogvx_jax.convert.lora_file import METADATA
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.lora import load_lora
from cogvx_jax.pipelines.model import Model
from cogvx_jax.train import step as update

CFG = TransformerConfig(layers=2, heads=2, head_dim=16, in_channels=4, out_channels=4, text_dim=8, time_dim=16)
CFG = dataclasses.replace(CFG, text_length=4, position="rope", sample_height=4, sample_width=4, sample_frames=5)
SPEC = ModelSpec(name="small", transformer=CFG)
INPUTS = jnp.ones((1, 2, 4, 4, 4)), jnp.ones((1, 4, 8)), jnp.array([500])
QK = LoRAConfig(rank=2, alpha=1.0, targets=("to_q", "to_k"))


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(Transformer(CFG), *INPUTS)


def random_lora(params, cfg, seed=0):
    rng = np.random.default_rng(seed)
    adapters = loras.init(jax.random.key(seed), params, cfg)
    for ab in adapters.values():
        ab["b"] = jnp.asarray(rng.normal(size=ab["b"].shape), jnp.float32)
    return LoRA(adapters=adapters, rank=cfg.rank, alpha=cfg.alpha)


def same(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def test_fresh_adapters_change_nothing_and_are_bounded(params):
    adapters = loras.init(jax.random.key(0), params, LoRAConfig(rank=4, targets=("to_q", "ff")))
    assert set(adapters) == {"blocks/attention/q/kernel", "blocks/mlp/up/kernel", "blocks/mlp/down/kernel"}
    a = adapters["blocks/mlp/down/kernel"]["a"]
    assert a.shape == (2, 128, 4) and 0.8 * 128**-0.5 < float(jnp.abs(a).max()) <= 128**-0.5
    jax.tree.map(np.testing.assert_array_equal, loras.merge(params, adapters, 1.0), params)


def test_merge_adds_and_unmerge_takes_back(params):
    lora = random_lora(params, QK)
    merged = loras.merge(params, lora.adapters, lora.scale)
    q, ab = params["blocks"]["attention"]["q"]["kernel"], lora.adapters["blocks/attention/q/kernel"]
    expected = np.stack([q[i] + 0.5 * np.float64(ab["a"][i]) @ np.float64(ab["b"][i]) for i in range(2)])
    np.testing.assert_allclose(merged["blocks"]["attention"]["q"]["kernel"], expected, atol=1e-5)
    assert merged["blocks"]["attention"]["v"]["kernel"] is params["blocks"]["attention"]["v"]["kernel"]
    same(loras.unmerge(merged, lora.adapters, lora.scale), params)


def test_stacked_adapters_add_up(params):
    one, two = random_lora(params, QK), random_lora(params, LoRAConfig(rank=3, alpha=6.0, targets=("to_k", "ff")), 1)
    both = loras.stack([one, two], [0.5, -2.0])
    in_turn = loras.merge(loras.merge(params, one.adapters, 0.5 * one.scale), two.adapters, -2.0 * two.scale)
    same(loras.merge(params, both.adapters, both.scale), in_turn, 1e-5)
    assert both.rank == 5 and both.adapters["blocks/attention/q/kernel"]["a"].shape == (2, 32, 5)


def test_bfloat16_parameters_stay_so(params):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    merged = loras.merge(half, random_lora(params, QK).adapters, 1.0)
    assert merged["blocks"]["attention"]["q"]["kernel"].dtype == jnp.bfloat16


def test_swapping_adapters_does_not_compile_again(params):
    apply = jax.jit(lambda p: Transformer(CFG).apply({"params": p}, *INPUTS))
    before = apply(params)
    changed = [apply(loras.merge(params, random_lora(params, QK, seed).adapters, 0.3 + seed)) for seed in range(2)]
    assert apply._cache_size() <= 2  # numpy parameters of the file, jax arrays of a merge
    assert not np.allclose(before, changed[0], atol=1e-3) and not np.allclose(*changed, atol=1e-3)
    sizes = loras.add._cache_size()
    loras.merge(params, random_lora(params, QK, 5).adapters, 0.1)
    assert loras.add._cache_size() == sizes


def test_training_moves_the_adapters_alone(params):
    adapters = loras.init(jax.random.key(0), params, LoRAConfig(rank=4))
    target = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4, 4, 4)), jnp.float32)

    def loss(adapters, batch, key):
        merged = loras.merge(batch["base"], adapters, 1.0)
        return jnp.mean(jnp.square(Transformer(CFG).apply({"params": merged}, *INPUTS) - target))

    tx = optax.adam(1e-2)
    step = jax.jit(lambda s, b, k: update.step(s, b, k, loss_fn=loss, tx=tx, decay=0.9))
    state, losses = update.init(adapters, tx), []
    for _ in range(30):
        state, metrics = step(state, {"base": params}, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), state.params, adapters)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(rank=0), "at least 1"),
        (dict(alpha=0.0), "positive"),
        (dict(targets=("to_x",)), "known ones are to_q"),
        (dict(targets=()), "needs a target"),
    ],
)
def test_a_bad_config_is_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        LoRAConfig(**options)


def test_a_rank_beyond_the_kernel_is_refused(params):
    with pytest.raises(ValueError, match="only 32 x 32"):
        loras.init(jax.random.key(0), params, LoRAConfig(rank=33))


def theirs(params=None, cfg=QK, layers=2, width=32, prefix="transformer.", middle=""):
    """The tensors of a file as diffusers would write it, {key: array}."""
    rng = np.random.default_rng(3)
    tensors = {}
    for i in range(layers):
        for target in cfg.targets:
            key = f"{prefix}transformer_blocks.{i}.attn1.{target}"
            tensors[f"{key}.lora_A{middle}.weight"] = rng.normal(size=(cfg.rank, width)).astype(np.float32)
            tensors[f"{key}.lora_B{middle}.weight"] = rng.normal(size=(width, cfg.rank)).astype(np.float32)
    return tensors


def save(path, tensors, metadata=None):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata)
    return path


def test_write_and_read(tmp_path, params):
    lora = random_lora(params, LoRAConfig(rank=3, alpha=1.5, targets=("to_q", "to_out.0", "ff")))
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, SPEC)
    back = read_lora(path, SPEC)
    assert (back.rank, back.alpha) == (3, 1.5)
    jax.tree.map(np.testing.assert_array_equal, back.adapters, lora.adapters)
    stored = safetensors.numpy.load_file(path)
    assert len(stored) == 2 * 4 * 2
    assert stored["transformer.transformer_blocks.1.ff.net.0.proj.lora_B.weight"].shape == (128, 3)
    with pytest.raises(FileExistsError):
        write_lora(path, lora, SPEC)
    with pytest.raises(ValueError, match="not adapters of CogVideoX-2b"):
        write_lora(tmp_path / "other.safetensors", lora, presets.PRESETS["2b"])
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


def test_equal_weights_are_equal_files(tmp_path, params):
    lora, files = random_lora(params, QK), set()
    for i in range(8):  # the package writes metadata in an order of its own each time
        write_lora(tmp_path / f"{i}.safetensors", lora, SPEC)
        files.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(files) == 1
    with safetensors.safe_open(tmp_path / "0.safetensors", "np") as opened:
        assert opened.metadata()["format"] == "pt" and opened.metadata().keys() == {"format", METADATA}


@pytest.mark.parametrize(
    "prefix, middle",
    [
        ("transformer.", ""),
        ("transformer.", ".default"),
        ("base_model.model.", ""),
        ("transformer.base_model.model.", ".panda"),
        ("", ""),
    ],
)
def test_names_in_use_are_read(tmp_path, params, prefix, middle):
    tensors = theirs(params, prefix=prefix, middle=middle)
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), SPEC)
    assert (lora.rank, lora.scale) == (2, 1.0)
    a = tensors[f"{prefix}transformer_blocks.1.attn1.to_k.lora_A{middle}.weight"]
    np.testing.assert_array_equal(lora.adapters["blocks/attention/k/kernel"]["a"][1], a.T)


def test_alpha_of_metadata_of_tensors_and_of_peft(tmp_path, params):
    tensors = theirs(params)
    config = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_k": 2}})
    lora = read_lora(save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config}), SPEC)
    b = tensors["transformer.transformer_blocks.0.attn1.to_k.lora_B.weight"].T
    np.testing.assert_allclose(lora.scale * lora.adapters["blocks/attention/k/kernel"]["b"][0], b, rtol=1e-6)
    b = tensors["transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"].T
    np.testing.assert_allclose(lora.scale * lora.adapters["blocks/attention/q/kernel"]["b"][0], 4 * b, rtol=1e-6)

    assert read_lora(save(tmp_path / "b.safetensors", tensors, {"rank": "2", "alpha": "1"}), SPEC).scale == 0.5
    alphas = {key.replace("lora_A.weight", "alpha"): np.float32(1) for key in tensors if "lora_A" in key}
    assert read_lora(save(tmp_path / "c.safetensors", tensors | alphas), SPEC).scale == 0.5
    folder = tmp_path / "peft"
    folder.mkdir()
    save(folder / "adapter_model.safetensors", theirs(params, prefix="base_model.model."))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 16, "use_rslora": True}))
    assert read_lora(folder, SPEC).scale == pytest.approx(16 / 2**0.5)
    assert read_lora(folder, SPEC, 8).scale == pytest.approx(8 / 2**0.5)


def test_mixed_ranks_and_missing_layers(tmp_path, params):
    tensors = {k: v for k, v in theirs(params).items() if "blocks.0.attn1.to_k" not in k}
    key = "transformer.transformer_blocks.1.attn1.to_q"
    tensors[f"{key}.lora_A.weight"] = np.ones((5, 32), np.float32)
    tensors[f"{key}.lora_B.weight"] = np.ones((32, 5), np.float32)
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), SPEC)
    q, k = (lora.adapters[f"blocks/attention/{n}/kernel"] for n in "qk")
    assert lora.rank == 5
    np.testing.assert_allclose(lora.scale * (q["a"][1] @ q["b"][1]), np.full((32, 32), 5.0))
    assert not np.any(k["a"][0] @ k["b"][0]) and np.any(k["a"][1] @ k["b"][1])


def test_a_lora_of_another_model_is_named(tmp_path, params):
    def message(tensors, spec=SPEC, metadata=None):
        with pytest.raises(ValueError) as raised:
            read_lora(save(tmp_path / "x.safetensors", tensors, metadata), spec)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    two_b = dataclasses.replace(SPEC, name="CogVideoX-2b", transformer=dataclasses.replace(CFG, layers=30, heads=120))
    assert two_b.transformer.width == presets.PRESETS["2b"].transformer.width
    q = LoRAConfig(rank=1, targets=("to_q",))
    five = theirs(params, q, layers=42, width=3072)
    assert "42 layers" in message(five) and "CogVideoX-5b or CogVideoX-5b-I2V" in message(five)
    assert "does not fit CogVideoX-2b: its transformer_blocks.0" in message(theirs(params, q, 30, 3072), two_b)
    assert "made for CogVideoX-2b (width 1920" in message(theirs(params, q, layers=30, width=1920))
    assert "30.attn1.to_q, which CogVideoX-2b of 30" in message(theirs(params, q, 42, 1920), two_b)
    assert "does not fit small: its transformer_blocks.0.attn1.to_k is 24 x 24" in message(theirs(params, QK, 2, 24))
    other = {"unet.down.0.lora_A.weight": np.ones((2, 8)), "unet.down.0.lora_B.weight": np.ones((8, 2))}
    assert "matches no module" in message(other) and "no CogVideoX model" in message(other)
    assert "holds no LoRA" in message({"x": np.ones(3)})
    key = "transformer.transformer_blocks.0.attn1.to_q.lora_A"
    assert "ranks" in message(theirs(params) | {f"{key}.weight": np.ones((3, 32), np.float32)})
    assert "only one of" in message({f"{key}.weight": np.ones((3, 32), np.float32)})
    assert "2 adapters" in message(theirs(params) | theirs(params, middle=".a") | theirs(params, q, middle=".b"))
    assert "DoRA" in message(theirs(params), metadata={"lora_adapter_metadata": '{"transformer.use_dora": true}'})
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="cannot be read as a LoRA"):
        read_lora(tmp_path / "broken.safetensors", SPEC)
    with pytest.raises(FileNotFoundError, match="there is no LoRA"):
        read_lora(tmp_path / "none.safetensors", SPEC)


def refusal(path):
    """The one sentence that reading a file ends with; it names the file and is short."""
    began = time.monotonic()
    with pytest.raises(ValueError) as raised:
        read_lora(path, SPEC)
    said = str(raised.value)
    assert time.monotonic() - began < 5 and "\n" not in said and str(path) in said and len(said) < 600
    return said


@pytest.mark.parametrize(
    "config, words",
    [
        ({"lora_alpha": 0}, "its lora_alpha is 0, not a positive number"),
        ({"lora_alpha": -1}, "its lora_alpha is -1, not a positive number"),
        ({"lora_alpha": 1e30}, "its lora_alpha is 1e+30, not a positive number of at most 1,000,000"),
        ({"lora_alpha": True}, "its lora_alpha is True"),
        ({"lora_alpha": [1]}, "its lora_alpha is [1]"),
        ({"lora_alpha": "many"}, "its lora_alpha is 'many'"),
        ({"lora_alpha": "nan"}, "its lora_alpha is 'nan'"),
        ({"alpha_pattern": ["to_q"]}, "its alpha_pattern is ['to_q'], not an object"),
        ({"alpha_pattern": {"to_q": "x"}}, "its alpha of 'to_q' is 'x'"),
        ({"alpha_pattern": {"(.*)*x": 1}}, "its alpha_pattern '(.*)*x' is more than names of modules"),
        ({"alpha_pattern": {"(" * 10**5: 1}}, "is more than names of modules"),
        ({"rank_pattern": [1]}, "its rank_pattern is [1], not an object"),
        ({"use_rslora": 5}, "its use_rslora is 5, not true or false"),
        ({"use_dora": [True]}, "its use_dora is [True]"),
        ({"peft_type": "LOHA"}, "it is of PEFT's type 'LOHA', which is not supported"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "it began with 'pissa_niter_4', which changes the model's own",
        ),
        ({"layer_replication": [[0, 2]]}, "it repeats layers of the model"),
    ],
)
def test_settings_that_are_wrong_are_one_sentence(tmp_path, config, words):
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    assert words in refusal(save(tmp_path / "x.safetensors", theirs(), metadata))


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"transformer.lora_alpha": 1%s}' % ("0" * 400), "a number in it has 401 digits"),
        ('{"transformer.lora_alpha": NaN}', "the number NaN in it is not finite"),
        ("[" * 10**5, "nested too deep"),
        ("[]", "not a JSON object"),
        ("", "not JSON"),
    ],
)
def test_metadata_that_are_wrong_are_one_sentence(tmp_path, text, words):
    assert words in refusal(save(tmp_path / "x.safetensors", theirs(), {"lora_adapter_metadata": text}))
    folder = tmp_path / "peft"
    folder.mkdir()
    save(folder / "adapter_model.safetensors", theirs())
    (folder / "adapter_config.json").write_text(text)
    assert words in refusal(folder)


def test_patterns_of_alpha_are_names(tmp_path):
    def scales(patterns):
        config = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": patterns}
        path = save(tmp_path / "x.safetensors", theirs(), {"lora_adapter_metadata": json.dumps(config)})
        lora = read_lora(path, SPEC)
        found = {}
        for name in "qk":
            b = lora.scale * np.asarray(lora.adapters[f"blocks/attention/{name}/kernel"]["b"])
            for i in range(2):
                key = f"transformer.transformer_blocks.{i}.attn1.to_{name}.lora_B.weight"
                found[f"{i}{name}"] = round(float((b[i] / theirs()[key].T).mean()), 3)
        return found

    one = {"0q": 1.0, "1q": 1.0, "0k": 1.0, "1k": 1.0}
    assert scales({}) == scales({"unknown": 6}) == scales({"o_q": 6}) == scales({"^to_q": 6}) == one
    q = one | {"0q": 3.0, "1q": 3.0}
    assert scales({"to_q": 6}) == scales({"to_q$": 6}) == scales({r"attn1\.to_q": 6}) == scales({"attn1.to_q": 6}) == q
    assert scales({"transformer_blocks.1.attn1.to_k": 6}) == scales({"^transformer_blocks.1.attn1.to_k": 6})
    assert scales({"1.attn1.to_k|to_q": 6}) == q | {"1k": 3.0}
    assert scales({"1.attn1.to_q": 8, "to_q": 6}) == q | {"1q": 4.0}  # the first that fits counts
    assert scales({"to_q": 6, "1.attn1.to_q": 8}) == q


def test_tensors_that_are_wrong_are_one_sentence(tmp_path):
    module = "transformer.transformer_blocks.0.attn1.to_q"
    half = f"{module}.lora_A.weight"

    def said(tensors):
        return refusal(save(tmp_path / "x.safetensors", theirs() | tensors))

    for alpha in (0, np.nan, np.inf, -1):
        assert "transformer_blocks.0.attn1.to_q" in said({f"{module}.alpha": np.float32(alpha)})
    assert "has the shape (3,), and must be one number" in said({f"{module}.alpha": np.ones(3, np.float32)})
    assert "has the shape (0,)" in said({f"{module}.alpha": np.ones(0, np.float32)})
    assert f"{half} holds numbers that are not finite" in said({half: np.full((2, 32), np.inf, np.float32)})
    assert "not finite" in said({half: np.full((2, 32), 1e300)})  # beyond float32
    none = {half: np.ones((0, 32), np.float32), f"{module}.lora_B.weight": np.ones((32, 0), np.float32)}
    assert "to_q has no numbers, lora_A is (0, 32)" in said(none)
    wide = {half: np.ones((33, 32), np.float32), f"{module}.lora_B.weight": np.ones((32, 33), np.float32)}
    assert "the rank 33 of transformer_blocks.0.attn1.to_q is above its smaller side" in said(wide)


def test_pointers_and_what_is_no_file(tmp_path):
    pointer = tmp_path / "x.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "a git-lfs pointer, not the file itself; run `git lfs pull`" in refusal(pointer)
    os.mkfifo(tmp_path / "fifo.safetensors")
    with pytest.raises(FileNotFoundError, match=r"fifo.safetensors' is a FIFO, not a LoRA"):
        read_lora(tmp_path / "fifo.safetensors", SPEC)
    with pytest.raises(FileNotFoundError, match="'/dev/zero' is a device, not a LoRA"):
        read_lora("/dev/zero", SPEC)


def test_equal_loras_are_equal_to_the_byte(tmp_path, params):
    one = random_lora(params, QK)
    for name in "ab":
        write_lora(tmp_path / f"{name}.safetensors", one, SPEC)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_model_with_a_lora(tmp_path, params):
    model = Model(spec=SPEC, params={"transformer": params, "vae": {}}, tokenizer=None)
    one = random_lora(params, QK)
    write_lora(tmp_path / "one.safetensors", one, SPEC)
    half = load_lora(model, tmp_path / "one.safetensors", 0.5)
    assert model.params["transformer"] is params and half.spec is SPEC
    expected = loras.merge(params, one.adapters, 0.5 * one.scale)
    jax.tree.map(np.testing.assert_array_equal, half.params["transformer"], expected)
    same(load_lora(half, one, -0.5).params["transformer"], params)
    with pytest.raises(ValueError, match="finite number"):
        load_lora(model, one, float("nan"))
    tensors = theirs(params) | {"transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": np.full((32, 2), np.nan)}
    with pytest.raises(ValueError, match="diverged"):
        load_lora(model, save(tmp_path / "nan.safetensors", tensors))


def test_the_names_of_targets_are_those_of_the_table():
    assert {path for paths in TARGETS.values() for path in paths} <= set(expected_shapes(SPEC, "transformer"))
