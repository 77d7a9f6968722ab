"""LoRA files of every dialect: read, written, refused, and told about."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from test_strangers import mutate

from cogvx_jax.configs import ModelSpec, TransformerConfig
from cogvx_jax.convert import convert_lora, expected_shapes, open_lora, read_lora, write_lora
from cogvx_jax.convert.dialects import open_component
from cogvx_jax.convert.lora_file import METADATA
from cogvx_jax.convert.lora_formats import FORMATS, LINEAR, WRITTEN
from cogvx_jax.convert.lora_models import describe, doubts, fits, kernels, made_for, parameters
from cogvx_jax.given import NOTHING
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA
from cogvx_jax.presets import PRESETS

DATA = Path(__file__).parent / "data" / "lora_formats"
GOLDEN = {
    "peft_metadata": ("diffusers and PEFT", 0.5),
    "peft_folded": ("diffusers and PEFT", 1.0),
    "peft_default": ("raw PEFT", 1.0),
    "kohya": ("kohya", 0.5),
    "videox_fun": ("VideoX-Fun", 0.5),
    "comfyui": ("ComfyUI", 0.5),
}
SMALL = dict(heads=1, head_dim=16, in_channels=4, out_channels=4, text_dim=12, time_dim=8, text_length=4)
SMALL |= dict(position="rope", sample_height=4, sample_width=4, sample_frames=5)
SPEC = ModelSpec(name="small", transformer=TransformerConfig(layers=1, **SMALL))
TWO = ModelSpec(name="two", transformer=TransformerConfig(layers=2, **SMALL))  # 1.0: its patches are a convolution
D = 16


def save(path, tensors, metadata=None):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata)
    return path


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def deltas(lora, spec, weight=1.0):
    """What a LoRA adds, by published names and in published shapes; only what is not zero."""
    zeros = {path: np.zeros(shape, np.float32) for path, shape in expected_shapes(spec, "transformer").items()}
    added = traverse_util.flatten_dict(loras.apply(traverse_util.unflatten_dict(zeros, sep="/"), lora, weight), sep="/")
    found = {}
    for name, (parameter, block) in parameters(spec).items():
        ours = np.asarray(added[parameter.path][block] if parameter.stacked else added[parameter.path])
        if ours.any():
            found[name] = parameter.change.write(ours)
    return found


def assert_same(one, two, atol=1e-6):
    assert one.keys() == two.keys()
    for name in one:
        largest = max(np.abs(two[name]).max(), 1)
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=atol * largest, err_msg=name)


def random_lora(spec, modules=None, rank=2, alpha=1.0, seed=0):
    """Adapters of linear layers by their published names without numbers; None is all of them."""
    rng, adapters = np.random.default_rng(seed), {}
    for name, (parameter, _) in kernels(spec).items():
        if modules is None or any(name.endswith(module) for module in modules):
            *layers, features, out = parameter.shape
            a, b = rng.normal(size=(*layers, features, rank)), rng.normal(size=(*layers, rank, out))
            adapters[parameter.path] = {"a": np.float32(a), "b": np.float32(b)}
    return LoRA(adapters=adapters, rank=rank, alpha=alpha)


@pytest.mark.parametrize("name", GOLDEN)
def test_one_update_in_six_files(name):
    file = open_lora(DATA / f"{name}.safetensors")
    expected = {f"{module}.weight": delta for module, delta in np.load(DATA / "delta.npz").items()}
    dialect, scale = GOLDEN[name]
    assert (file.format.name, len(file.modules), file.rank, file.ignored) == (dialect, 6, 2, [])
    assert {module.alpha.scale for module in file.modules.values()} == {scale}
    lora = read_lora(DATA / f"{name}.safetensors", SPEC)
    assert_same(deltas(lora, SPEC), expected)
    assert dialect in lora.told and "6 modules, rank 2, alpha" in lora.told and f"scale {scale:g}" in lora.told


@pytest.mark.parametrize("to", [to for to in WRITTEN if to != "sat"])
@pytest.mark.parametrize("patch_t", [None, 2])
def test_every_linear_layer_goes_out_and_comes_back(tmp_path, to, patch_t):
    """The patches of 1.0, a convolution, and those of 1.5 among them, with odd scales and several ranks."""
    transformer = dataclasses.replace(TWO.transformer, patch_t=patch_t, ofs_dim=8 if patch_t else None)
    spec = dataclasses.replace(TWO, transformer=transformer)
    lora = loras.stack([random_lora(spec, alpha=3.0), random_lora(spec, ["to_q", "proj", "linear_1"], 3, 1.0, 1)])
    write_lora(tmp_path / "one.safetensors", lora, spec, to)
    file = open_lora(tmp_path / "one.safetensors")
    assert file.format is WRITTEN[to] and len(file.modules) == len(kernels(spec)) == (24 if patch_t else 22)
    assert_same(deltas(read_lora(file.path, spec), spec), deltas(lora, spec), 1e-5)
    window = file.modules["patch_embed.proj"].window
    assert window == (() if patch_t else (2, 2))


@pytest.mark.parametrize("to", [to for to in WRITTEN if to != "sat"])
@pytest.mark.parametrize("name", ["peft_metadata", "kohya", "comfyui"])
def test_files_become_files(tmp_path, name, to):
    file = open_lora(DATA / f"{name}.safetensors")
    convert_lora(tmp_path / "two.safetensors", file, to)
    found = open_lora(tmp_path / "two.safetensors")
    for module in file.modules:  # nothing is rounded
        for part in ("a", "b"):
            np.testing.assert_array_equal(found.stored(module, part), file.stored(module, part))
    assert found.format.to == to and found.modules["transformer_blocks.0.attn1.to_q"].alpha.value == 1.0
    assert_same(deltas(read_lora(found.path, SPEC), SPEC), deltas(read_lora(file.path, SPEC), SPEC))
    convert_lora(tmp_path / "half.safetensors", file, to, "bfloat16")
    half = safetensors.numpy.load_file(tmp_path / "half.safetensors")
    assert {x.dtype for key, x in half.items() if ".alpha" not in key} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = deltas(read_lora(tmp_path / "half.safetensors", SPEC), SPEC)
    assert_same(rounded, deltas(read_lora(file.path, SPEC), SPEC), 0.05)
    with pytest.raises(FileExistsError):
        convert_lora(tmp_path / "two.safetensors", file, to)


def pair(a_name, b_name, rank=2, features=D, out=D, seed=0):
    return {a_name: normal(seed, rank, features), b_name: normal(seed + 1, out, rank)}


BLOCK = "transformer_blocks.1"
NAMES = [  # what stands before and after the side, the sides, dialect, module
    ("lora_unet_transformer_blocks_1_attn1_to_out_0.lora_{}.weight", "kohya", f"{BLOCK}.attn1.to_out.0"),
    ("lora_transformer_proj_out.lora_{}.weight", "kohya", "proj_out"),
    ("lora_unet__time_embedding_linear_1.lora_{}.weight", "VideoX-Fun", "time_embedding.linear_1"),
    ("lora_unet__transformer_blocks_1_norm1_linear.lora_{}.weight", "VideoX-Fun", f"{BLOCK}.norm1.linear"),
    (f"diffusion_model.{BLOCK}.ff.net.0.proj.lora_[].weight", "ComfyUI", f"{BLOCK}.ff.net.0.proj"),
    (f"model.diffusion_model.{BLOCK}.attn1.to_v.lora_{{}}.weight", "ComfyUI", f"{BLOCK}.attn1.to_v"),
    (f"transformer.{BLOCK}.attn1.to_k.lora.{{}}.weight", "old diffusers", f"{BLOCK}.attn1.to_k"),
    (f"{BLOCK}.attn1.processor.to_q_lora.{{}}.weight", "old diffusers", f"{BLOCK}.attn1.to_q"),
    (f"{BLOCK}.attn1.processor.to_out_lora.{{}}.weight", "old diffusers", f"{BLOCK}.attn1.to_out.0"),
    (f"{BLOCK}.ff.net.2.lora_linear_layer.{{}}.weight", "old diffusers", f"{BLOCK}.ff.net.2"),
    ("blocks.1.attn1.to_out.lora_[].default.weight", "DiffSynth", f"{BLOCK}.attn1.to_out.0"),
    ("blocks.1.ff.0.lora_[].default.weight", "DiffSynth", f"{BLOCK}.ff.net.0.proj"),
    ("time_embedder.timestep_embedder.2.lora_[].weight", "DiffSynth", "time_embedding.linear_2"),
    ("base_model.model.norm_out.linear.lora_[].panda.weight", "raw PEFT", "norm_out.linear"),
    ("transformer.base_model.model.proj_out.lora_[].weight", "raw PEFT", "proj_out"),
]


@pytest.mark.parametrize("name, dialect, module", NAMES)
def test_names_of_every_dialect(tmp_path, name, dialect, module):
    """With A and B where a name has [], with down and up where it has {}."""
    features, out = kernels(TWO)[module][0].shape[-2:]
    names = [name.replace("[]", side) for side in "AB"] if "[]" in name else [name.format(s) for s in ("down", "up")]
    tensors = pair(*names, 2, features, out)
    file = open_lora(save(tmp_path / "x.safetensors", tensors))
    assert (file.format.name, [*file.modules]) == (dialect, [module])
    (delta,) = deltas(read_lora(file.path, TWO), TWO).items()
    a, b = tensors.values()
    assert delta[0] == f"{module}.weight"
    np.testing.assert_allclose(delta[1], b @ a, atol=1e-5)


KEY = "transformer_blocks.0.attn1.to_q"
PEFT = (f"transformer.{KEY}.lora_A.weight", f"transformer.{KEY}.lora_B.weight")
KOHYA = tuple(f"lora_unet_{KEY.replace('.', '_')}.lora_{side}.weight" for side in ("down", "up"))
COMFY = tuple(f"diffusion_model.{KEY}.lora_{side}.weight" for side in ("down", "up"))
SYNTH = tuple(f"blocks.0.attn1.to_q.lora_{side}.default.weight" for side in "AB")
OLD = tuple(f"transformer.{KEY}.lora.{side}.weight" for side in ("down", "up"))


@pytest.mark.parametrize(
    "names, stored, given, scale, source",
    [
        (PEFT, None, None, 1.0, "not in the file; the rank, as in diffusers"),
        (PEFT, None, 1, 0.25, "given"),
        (PEFT, 2.0, None, 0.5, "tensors of the file"),
        (PEFT, 2.0, 1, 0.25, "given"),
        (KOHYA, None, None, 1.0, "the rank"),
        (KOHYA, 2.0, None, 0.5, "tensors"),
        (KOHYA, 0.0, None, 1.0, "0 in the file, which stands for the rank"),
        (COMFY, None, None, 1.0, "the rank"),
        (COMFY, np.float32([3]), None, 0.75, "tensors"),
        (OLD, np.float16(2), None, 0.5, "tensors"),
        (SYNTH, None, None, 1.0, "not in the file; 1, the trainer's default"),
        (SYNTH, None, 0.5, 0.5, "given"),
    ],
)
def test_where_alpha_is_and_what_it_does(tmp_path, names, stored, given, scale, source):
    tensors = pair(*names, rank=4)
    if stored is not None:
        stem = names[0].rsplit(".", 3)[0] if "lora.down" in names[0] else names[0].rsplit(".", 2)[0]
        tensors[f"{stem}.alpha"] = np.asarray(stored, getattr(stored, "dtype", ml_dtypes.bfloat16))
    file = open_lora(save(tmp_path / "x.safetensors", tensors), given)
    (module,) = file.modules.values()
    assert module.alpha.scale == scale and source in module.alpha.source
    assert read_lora(file.path, TWO, given).scale == scale


def test_a_given_alpha_takes_the_place_of_that_of_peft(tmp_path):
    said = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": True}
    path = save(tmp_path / "x.safetensors", pair(*PEFT, rank=4), {METADATA: json.dumps(said)})
    (module,) = open_lora(path).modules.values()
    assert (module.alpha.value, module.alpha.scale, module.alpha.source) == (8, 4.0, "the file's metadata")
    assert read_lora(path, TWO, 1).scale == 0.5  # over the root of the rank, as the file says
    for alpha in (0, -1, float("nan"), float("inf"), "many", True, 1e9):
        with pytest.raises(ValueError, match="alpha must be a positive number of at most 1,000,000"):
            open_lora(path, alpha)


@pytest.mark.parametrize("rank, warned", [(128, True), (256, True), (64, False)])
@pytest.mark.parametrize("names", [PEFT, SYNTH], ids=["peft", "diffsynth"])
def test_no_alpha_at_a_rank_of_sat_is_warned_of(tmp_path, recwarn, rank, warned, names):
    wide = dataclasses.replace(TWO, transformer=dataclasses.replace(TWO.transformer, heads=16))
    path = save(tmp_path / "x.safetensors", pair(*names, rank, 256, 256))
    read_lora(path, wide)
    said = [str(one.message) for one in recwarn if "alpha" in str(one.message)]
    assert bool(said) == (warned and names is PEFT)
    if said:
        assert f"has the rank {rank}" in said[0] and "alpha=1," in said[0] and str(path) in said[0]
    recwarn.clear()
    read_lora(path, wide, 1)
    assert not [one for one in recwarn if "alpha" in str(one.message)]


def test_tensors_of_a_text_encoder_are_named(tmp_path):
    fun = {key: normal(5, 2, D) for key in ("lora_te_encoder_block_0.lora_down.weight", "lora_te1_x.alpha")}
    tensors = pair(*(name.replace("lora_unet_", "lora_unet__") for name in KOHYA)) | fun
    path = save(tmp_path / "x.safetensors", tensors)
    with pytest.warns(UserWarning, match=r"2 tensors of a text encoder \(lora_te.*left out"):
        assert "2 tensors of a text encoder ignored" in read_lora(path, TWO).told
    tensors = pair(*PEFT) | {"text_encoder.encoder.block.0.lora_A.weight": normal(0, 2, 8)}
    with pytest.warns(UserWarning, match="1 tensor of a text encoder"):
        read_lora(save(tmp_path / "y.safetensors", tensors), TWO)
    with pytest.raises(ValueError, match=r"it adapts a text encoder alone \(lora_te"):
        open_lora(save(tmp_path / "z.safetensors", fun))


pytestmark = pytest.mark.filterwarnings("ignore:.*looks made for a model of CogVideoX-Fun")


def refusal(path, spec=TWO):
    with pytest.raises(ValueError) as raised:
        read_lora(path, spec)
    said = str(raised.value)
    assert "\n" not in said and str(path) in said and len(said) < 600
    return said


@pytest.mark.parametrize(
    "key, words",
    [
        (f"transformer.{KEY}.lora_magnitude_vector.weight", "it is a DoRA ("),
        (f"diffusion_model.{KEY}.dora_scale", "it is a DoRA ("),
        ("lora_unet_transformer_blocks_0_attn1_to_k.lokr_w1", "it is a LoKr ("),
        ("lora_unet_transformer_blocks_0_attn1_to_k.hada_w1_a", "it is a LoHa ("),
        ("lora_unet_transformer_blocks_0_attn1_to_k.lora_mid.weight", "it is a LoCon with a third tensor ("),
        (f"transformer.{KEY}.weight", "which is no part of a LoRA that can be read"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, key, words):
    names = {"lora_unet": KOHYA, "diffusion": COMFY}.get(key[:9], PEFT)
    for tensors in (pair(*names) | {key: normal(0, D)}, {key: normal(0, D)}):
        said = refusal(save(tmp_path / "x.safetensors", tensors))
        assert (words in said and key in said) or "it holds no LoRA: none of its 1 tensors" in said
    assert words in refusal(save(tmp_path / "x.safetensors", pair(*names) | {key: normal(0, D)}))


@pytest.mark.full
def test_what_does_not_fit_is_named(tmp_path):
    def said(tensors, spec=TWO):
        return refusal(save(tmp_path / "x.safetensors", tensors), spec)

    other = {"lora_unet_down_blocks_0_resnets_0.lora_down.weight": normal(0, 2, D)}
    other |= {"lora_unet_down_blocks_0_resnets_0.lora_up.weight": normal(0, D, 2)}
    assert "it matches no module of two, such as down_blocks_0_resnets_0" in said(other)
    facts = describe(open_lora(tmp_path / "x.safetensors"))
    assert facts["modules"] == ["1", "1 of no CogVideoX model, such as down_blocks_0_resnets_0"]
    far = pair(*(name.replace("blocks_0", "blocks_1000") for name in KOHYA))
    assert "such as transformer_blocks_1000_attn1_to_q" in said(far)
    deep = pair(*(name.replace("blocks_0", "blocks_7") for name in KOHYA)) | pair(*KOHYA)
    assert "it adapts transformer_blocks.7.attn1.to_q, which two of 2 layers does not have" in said(deep)
    assert "is 24 x 24, the model's 16 x 16" in said(pair(*COMFY, features=24, out=24))
    padded = pair(*(name.replace("blocks.0", "blocks.007") for name in COMFY))
    assert "such as transformer_blocks.007.attn1.to_q" in said(padded)
    braces = pair(*(name.replace("blocks.0", "blocks.{i}") for name in COMFY))
    assert "it matches no module of two, such as transformer_blocks.{i}.attn1.to_q" in said(braces)
    twice = pair(*PEFT) | pair(*(name.removeprefix("transformer.") for name in PEFT))
    assert f"it holds {KEY} twice" in said(twice)
    norm = pair(*(name.replace("to_q", "norm_q") for name in PEFT))
    assert "attn1.norm_q, which is no linear layer" in said(norm)
    half = pair(*KOHYA)
    del half[KOHYA[1]]
    assert f"it holds only one of lora_down and lora_up for {KEY}" in said(half)
    patch = {"transformer.patch_embed.proj.lora_A.weight": normal(0, 2, 8, 2, 2)}
    patch |= {"transformer.patch_embed.proj.lora_B.weight": normal(0, D, 2, 1, 1)}
    assert "its patch_embed.proj is 32 x 16, the model's 16 x 16" in said(patch)
    flat = {
        key: array.reshape(2, 4, 4, 1) if "A" in key else array[..., None, None] for key, array in pair(*PEFT).items()
    }
    assert "does not fit two" in said(flat)


def test_the_patches_of_1_0_are_a_convolution(tmp_path):
    down, up = normal(1, 3, 4, 2, 2), normal(2, D, 3, 1, 1)
    stem = "lora_unet_patch_embed_proj"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": np.float32(6)}
    path = save(tmp_path / "x.safetensors", tensors)
    weight = deltas(read_lora(path, TWO), TWO)["patch_embed.proj.weight"]  # (out, channels, h, w)
    np.testing.assert_allclose(weight, 2 * np.einsum("ormn,rchw->ochw", up, down), atol=1e-5)
    convert_lora(tmp_path / "y.safetensors", open_lora(path))
    stored = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    np.testing.assert_array_equal(stored["transformer.patch_embed.proj.lora_A.weight"], down)


def test_a_rank_above_the_few_channels_of_the_patches_is_read(tmp_path):
    wide = dataclasses.replace(TWO, transformer=dataclasses.replace(TWO.transformer, heads=4))
    lora = random_lora(wide, ["proj_out", "patch_embed.proj"], rank=40)  # of 64 x 16 and 16 x 64
    write_lora(tmp_path / "x.safetensors", lora, wide)
    assert_same(deltas(read_lora(tmp_path / "x.safetensors", wide), wide), deltas(lora, wide), 1e-4)


def test_differences_of_comfyui_and_biases_of_peft(tmp_path):
    bias, norm, weight = normal(3, D), normal(4, 16), normal(5, 4 * D, D)
    stem = "diffusion_model.transformer_blocks.1"
    tensors = pair(*COMFY) | {f"{stem}.attn1.to_q.diff_b": bias, f"{stem}.attn1.norm_q.diff": norm}
    tensors |= {f"{stem}.ff.net.0.proj.diff": weight, "diffusion_model.norm_final.diff_b": bias}
    tensors |= {"diffusion_model.patch_embed.proj.diff": normal(6, D, 4, 2, 2)}
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), TWO)
    found = deltas(lora, TWO, 0.5)
    assert len(lora.differences) == 5 and "5 whole differences" in lora.told
    np.testing.assert_allclose(found["transformer_blocks.1.attn1.to_q.bias"], bias / 2)
    np.testing.assert_allclose(found["transformer_blocks.1.attn1.norm_q.weight"], norm / 2)
    np.testing.assert_allclose(found["transformer_blocks.1.ff.net.0.proj.weight"], weight / 2)
    np.testing.assert_allclose(found["norm_final.bias"], bias / 2)
    np.testing.assert_allclose(found["patch_embed.proj.weight"], normal(6, D, 4, 2, 2) / 2)
    assert "transformer_blocks.0.attn1.to_q.bias" not in found and len(found) == 6
    write_lora(tmp_path / "back.safetensors", lora, TWO, "comfyui")
    assert_same(deltas(read_lora(tmp_path / "back.safetensors", TWO), TWO), deltas(lora, TWO))
    for to in ("peft", "kohya", "fun"):
        with pytest.raises(ValueError, match=r"it holds a whole difference of .*write it as comfyui"):
            write_lora(tmp_path / f"{to}.safetensors", lora, TWO, to)
    assert_same(deltas(loras.stack([lora, lora], [0.25, 0.5]), TWO), deltas(lora, TWO, 0.75))

    said = {"transformer.r": 2, "transformer.lora_alpha": 1, "transformer.lora_bias": True}
    tensors = pair(*PEFT) | {PEFT[1].replace("weight", "bias"): bias}
    peft = read_lora(save(tmp_path / "peft.safetensors", tensors, {METADATA: json.dumps(said)}), TWO)
    np.testing.assert_allclose(deltas(peft, TWO)[f"{KEY}.bias"], bias / 2)
    for to in ("peft", "comfyui"):
        convert_lora(tmp_path / f"{to}-bias.safetensors", open_lora(tmp_path / "peft.safetensors"), to)
        assert_same(deltas(read_lora(tmp_path / f"{to}-bias.safetensors", TWO), TWO), deltas(peft, TWO))
    lonely = {PEFT[1].replace("weight", "bias"): bias}
    assert "the bias of an adapter, without the adapter" in refusal(save(tmp_path / "z.safetensors", lonely))
    window = {COMFY[0]: normal(0, 2, D, 3, 3), COMFY[1]: normal(1, D, 2, 1, 1)}
    assert "is (2, 16, 3, 3), of a convolution, and the" in refusal(save(tmp_path / "z.safetensors", window))
    endless = save(tmp_path / "endless.safetensors", pair(*COMFY) | {COMFY[0]: np.full((2, D), np.inf, np.float32)})
    with pytest.raises(ValueError, match=f"^{endless}: {COMFY[0]} holds numbers that are not finite"):
        convert_lora(tmp_path / "new.safetensors", open_lora(endless), "kohya")
    whole = {f"{stem}.attn1.to_q.diff_b": np.zeros(D, np.int8)}
    assert "diff_b is int8, not floating-point" in refusal(save(tmp_path / "z.safetensors", pair(*COMFY) | whole))
    assert "is (3,), the model's (16,)" in refusal(
        save(tmp_path / "z.safetensors", pair(*COMFY) | {f"{stem}.attn1.to_q.diff_b": normal(0, 3)})
    )


def test_alpha_is_of_adapters(tmp_path, recwarn):
    """Given, it is used or refused; beside a whole difference it has no effect, as in ComfyUI, which is said."""
    stem = f"diffusion_model.{KEY}"
    whole = {f"{stem}.diff": normal(5, D, D)}
    path = save(tmp_path / "whole.safetensors", whole)
    with pytest.raises(ValueError, match="alpha is of adapters, and it holds whole differences alone"):
        read_lora(path, TWO, 1)
    assert not open_lora(path).idle_alphas and not recwarn
    path = save(tmp_path / "both.safetensors", whole | {f"{stem}.alpha": np.full((), 3, np.float32)})
    np.testing.assert_array_equal(deltas(read_lora(path, TWO), TWO)[f"{KEY}.weight"], whole[f"{stem}.diff"])
    said = f"the alpha of {KEY} has no effect, as in ComfyUI: a whole difference takes none"
    assert [str(one.message) for one in recwarn] == [f"{path}: {said}"] and describe(open_lora(path))["mind"] == [said]
    lost = pair(*COMFY) | {f"{stem.replace('to_q', 'to_k')}.alpha": np.ones((), np.float32)}
    assert f"an alpha of {KEY[:-1]}k, and no adapter" in refusal(save(tmp_path / "lost.safetensors", lost))


SAT = Path(__file__).parent / "data" / "sat_2b_lora" / "transformer"
LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")


def test_a_checkpoint_of_sat_is_a_lora(tmp_path):
    """The folder, its tag and the file: A and B as they were drawn, and what the merged model adds to the original."""
    file = open_lora(SAT)
    rng = np.random.default_rng(415)
    for layer in LAYERS:
        a, b = file.read(f"transformer_blocks.0.{layer}")
        np.testing.assert_array_equal(a.T, rng.standard_normal((4, 32), dtype=np.float32))
        np.testing.assert_array_equal(b.T, rng.standard_normal((32, 4), dtype=np.float32))
    assert "SAT, 4 modules, rank 4, alpha 1 (not in the file; 1, the trainer's default), scale 0.25" == file.told()
    assert open_lora(SAT / "1000").path == open_lora(SAT / "1000" / "mp_rank_00_model_states.pt").path == file.path
    merged = open_component(file.path, "transformer", NOTHING)
    states = "model.diffusion_model.transformer.layers.0.attention"
    original = np.split(file.tensors.read(f"{states}.query_key_value.original.weight"), 3)
    original.append(file.tensors.read(f"{states}.dense.original.weight"))
    for layer, weight in zip(LAYERS, original, strict=True):
        name = f"transformer_blocks.0.{layer}"
        a, b = file.read(name)
        np.testing.assert_allclose(merged.read(f"{name}.weight") - weight, (a @ b).T / 4, atol=1e-5)


def test_sat_goes_out_and_comes_back_to_the_bit(tmp_path):
    file = open_lora(SAT)
    for out in ("lora.pt", "folder"):
        convert_lora(tmp_path / out, file, "sat")
        back = open_lora(tmp_path / out)
        for name in file.modules:
            for part in ("a", "b"):
                np.testing.assert_array_equal(back.stored(name, part), file.stored(name, part))
    assert (tmp_path / "folder" / "latest").read_text() == "1"
    convert_lora(tmp_path / "peft.safetensors", file)
    peft = open_lora(tmp_path / "peft.safetensors")
    assert {module.alpha.scale for module in peft.modules.values()} == {0.25}  # the exporter of SAT forgets it
    convert_lora(tmp_path / "again.pt", peft, "sat")
    assert open_lora(tmp_path / "again.pt").told() == file.told()


def test_all_42_layers_for_sat_with_ranks_and_scales_of_their_own(tmp_path):
    """SAT's exporter takes 240 tensors alone."""
    deep = ModelSpec(name="deep", transformer=TransformerConfig(layers=42, **SMALL))
    queries, values = random_lora(deep, ["to_q"], 2, 3.0), random_lora(deep, ["to_v"], 4, 1.0)
    lora = dataclasses.replace(queries, adapters=queries.adapters | values.adapters, rank=4)
    write_lora(tmp_path / "deep.pt", lora, deep, "sat")
    file = open_lora(tmp_path / "deep.pt")
    assert len(file.tensors) == 336 and all(".matrix_" in key for key in file.tensors)
    assert {module.rank for module in file.modules.values()} == {4}
    back, own = deltas(read_lora(file.path, deep), deep), deltas(lora, deep)
    assert back.keys() == own.keys() and len(own) == 84  # what SAT wants beside them is 0
    assert_same(back, own, 1e-5)
    for to in ("peft", "kohya"):
        convert_lora(tmp_path / f"{to}.safetensors", file, to)
        assert len(open_lora(tmp_path / f"{to}.safetensors").modules) == 168
    write_lora(tmp_path / "ff.safetensors", random_lora(TWO), TWO)
    with pytest.raises(ValueError, match=r"SAT adapts attention alone, and has no place for .*; write it as peft"):
        convert_lora(tmp_path / "ff.pt", open_lora(tmp_path / "ff.safetensors"), "sat")
    with pytest.raises(ValueError, match="a LoRA of SAT is written as a .pt file or a folder, got 'x.safetensors'"):
        convert_lora(tmp_path / "x.safetensors", file, "sat")
    assert not (tmp_path / "ff.pt").exists()


def test_which_model_a_file_fits_and_was_made_for(tmp_path):
    def about(width, layers, name="x.safetensors", names=PEFT, metadata=None, more=None):
        tensors = dict(more or {})
        for i in (0, layers - 1):
            key = lambda text: text.replace("blocks.0", f"blocks.{i}").replace("blocks_0", f"blocks_{i}")  # noqa: B023, E731
            tensors |= pair(*map(key, names), 1, width, width)
        file = open_lora(save(tmp_path / name, tensors, metadata))
        return fits(file), made_for(file)

    fives = ["CogVideoX-5b", "CogVideoX-5b-I2V", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V"]
    fits_5b, made = about(3072, 42)
    assert fits_5b[:4] == fives and "CogVideoX-Fun-5b-InP" in fits_5b and "CogVideoX-2b" not in fits_5b
    assert "CogVideoX-5b or CogVideoX-5b-I2V or" in made and "(width 3072 and 42 layers)" in made
    fits_2b, made = about(1920, 30)
    assert fits_2b[0] == "CogVideoX-2b" and made == "CogVideoX-2b (width 1920 and 30 layers)"
    assert about(64, 4) == ([], "a model of width 64 and 4 layers")
    fun = tuple(name.replace("lora_unet_", "lora_unet__") for name in KOHYA)
    assert about(3072, 42, names=fun)[1] == "CogVideoX-Fun (the naming of its trainer)"
    assert about(3072, 42, "DimensionX_orbit_left.safetensors")[1].startswith("CogVideoX-5b-I2V by DimensionX")
    assert about(3072, 42, "CogVideoX1.5-5B-I2V_crush.safetensors")[1] == "CogVideoX1.5-5B-I2V (its name)"
    assert "5b-I2V" in about(3072, 42, "cogvideox-5b-i2v-lora.safetensors")[1]
    said = about(3072, 42, metadata={"base_model_name_or_path": "THUDM/CogVideoX-5b"})[1]
    assert said == "'THUDM/CogVideoX-5b' (its base_model_name_or_path)"
    inpaint = {"transformer.patch_embed.proj.lora_A.weight": normal(0, 1, 33, 2, 2)}
    inpaint |= {"transformer.patch_embed.proj.lora_B.weight": normal(0, 3072, 1, 1, 1)}
    assert about(3072, 42, more=inpaint)[0] == ["CogVideoX-Fun-5b-InP"]
    assert "it looks made for CogVideoX-Fun-5b-InP" in refusal(tmp_path / "x.safetensors", PRESETS["5b"])


def test_a_lora_of_fun_on_another_model_is_warned_of(tmp_path):
    path = shutil.copy(DATA / "videox_fun.safetensors", tmp_path)
    with pytest.warns(UserWarning, match="looks made for a model of CogVideoX-Fun; it fits small by shape"):
        read_lora(path, SPEC)
    assert not doubts(open_lora(path), dataclasses.replace(SPEC, name="CogVideoX-Fun-5b-InP"))


def test_all_rows_spell_every_module_in_one_way():
    for row in FORMATS:
        names = row.names()
        spelled = [module for module in LINEAR if row.spelled(module)]
        for module in spelled:
            assert names[row.spelled(module)[0]] == module
            key = row.written(module.replace("{i}", "41"), "a")
            assert row.match(key, names)[:2] == (module.replace("{i}", "41"), "a"), key
        assert len(spelled) == (4 if row.name == "SAT" else len(LINEAR))


def test_damage_at_random_is_a_sentence_or_nothing(tmp_path):
    """A thousand damaged files of all dialects."""
    rng, refused = random.Random(14), 0
    files = [*(DATA / f"{name}.safetensors" for name in GOLDEN), open_lora(SAT).path]
    for number in range(1000):
        path = tmp_path / f"x{files[number % len(files)].suffix}"
        path.write_bytes(mutate(files[number % len(files)].read_bytes(), rng))
        try:
            open_lora(path).told()
        except ValueError as error:
            said, refused = str(error), refused + 1
            assert said.startswith(f"{path} cannot be read as a LoRA: ") and "\n" not in said and len(said) < 700
    assert 300 < refused < 1000
