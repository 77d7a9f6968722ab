"""Random modules of diffusers and transformers through `load_params`, and our exports back in them."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import close

from cogvx_jax.convert import export, load_params, read_spec
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.models import vae as video_vae
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.presets import PRESETS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CONFIGS = Path(__file__).parent.parent / "data" / "configs"
SMALL = {
    "transformer": dict(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        text_embed_dim=24,
        max_text_seq_length=6,
        time_embed_dim=40,
        sample_height=8,
        sample_width=12,
        sample_frames=9,
    ),
    "vae": dict(block_out_channels=[8, 8, 16, 12], layers_per_block=1, norm_num_groups=4),
    "text_encoder": dict(num_layers=2, num_decoder_layers=2, d_model=24, num_heads=3, d_kv=4, d_ff=20, vocab_size=32),
}


def module_of(component, folder):
    """The reference's module of a published configuration made small, random in all its numbers."""
    config = json.loads((folder / component / "config.json").read_text()) | SMALL[component]
    torch.manual_seed(0)
    if component == "text_encoder":
        module = transformers.T5EncoderModel(transformers.T5Config.from_dict(config))
    elif component == "vae":
        module = diffusers.AutoencoderKLCogVideoX.from_config(config)
    else:
        if "patch_size_t" in config:  # where the sample sizes are limits
            config |= dict(sample_height=16, sample_width=16)
        if "ofs_embed_dim" in config:
            config["ofs_embed_dim"] = 40
        module = diffusers.CogVideoXTransformer3DModel.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        tensors = dict(module.named_parameters()) | {
            name: module.get_buffer(name) for name in module.state_dict() if name.endswith("pos_embedding")
        }
        for name, tensor in tensors.items():
            # Norms' weights and biases too, and biases that are not small: a swap must show.
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 and "pos_embedding" not in name else 0.3
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            if tensor.ndim == 1 and "norm" in name and name.endswith("weight"):
                tensor += 1
    return module.eval()


@pytest.fixture(scope="module", params=list(PRESETS))
def model(request, tmp_path_factory):
    """A preset's name, a folder that the reference wrote, its spec as we read it, the reference's modules."""
    published = CONFIGS / PRESETS[request.param].name
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(published / "model_index.json", folder)
    shutil.copytree(published / "scheduler", folder / "scheduler")
    modules = {component: module_of(component, published) for component in COMPONENTS}
    for component, module in modules.items():
        size = "20KB" if component == "transformer" else "5GB"  # one of them in shards
        module.save_pretrained(folder / component, max_shard_size=size)
    return request.param, folder, read_spec(folder), modules


def test_specs_keep_the_options(model):
    preset, _, spec, _ = model
    for option in ("position", "patch_t", "in_channels", "out_channels"):
        assert getattr(spec.transformer, option) == getattr(PRESETS[preset].transformer, option)
    assert (spec.transformer.ofs_dim is None) == (PRESETS[preset].transformer.ofs_dim is None)
    assert spec.kind == PRESETS[preset].kind and spec.schedule == PRESETS[preset].schedule


def rope(spec, frames, height, width):
    """As the pipelines make it."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    cfg = spec.transformer
    if cfg.position == "sincos":
        return None
    names = dict(patch_size=cfg.patch, patch_size_t=cfg.patch_t, attention_head_dim=cfg.head_dim)
    names |= dict(sample_width=cfg.sample_width, sample_height=cfg.sample_height)
    config = type("Config", (), names)
    stub = type("Stub", (), dict(vae_scale_factor_spatial=8, transformer=type("T", (), dict(config=config))))
    prepare = CogVideoXPipeline._prepare_rotary_positional_embeddings
    return prepare(stub, 8 * height, 8 * width, frames, torch.device("cpu"))


# Frames, height and width of the latents: the native size, then others where the model has them.
@pytest.mark.parametrize("size", [None, (2, 12, 8), (6, 6, 16)])
def test_transformer(model, size):
    preset, folder, spec, modules = model
    cfg = spec.transformer
    native = (4 if cfg.patch_t else cfg.sample_latent_frames, cfg.sample_height, cfg.sample_width)
    if cfg.position == "rope+learned" and size is not None:
        pytest.skip("learned positions have one size")
    frames, height, width = size or native
    rng = np.random.default_rng(2)
    latents = rng.standard_normal((2, frames, height, width, cfg.in_channels), np.float32)
    text = rng.standard_normal((2, cfg.text_length, cfg.text_dim), np.float32)
    t = np.array([999, 19])
    params = load_params(folder, spec, "transformer")
    ours = jax.jit(Transformer(cfg).apply)({"params": params}, latents, text, t)
    with torch.no_grad():
        theirs = modules["transformer"](
            torch.from_numpy(latents).permute(0, 1, 4, 2, 3),
            torch.from_numpy(text),
            torch.from_numpy(t),
            ofs=None if cfg.ofs_dim is None else torch.full((1,), 2.0),
            image_rotary_emb=rope(spec, frames, height, width),
        ).sample
    close(ours, theirs.permute(0, 1, 3, 4, 2).detach(), 1e-5)


@functools.cache  # frame batches have three lengths, whatever the clip's
def compiled(vae):
    methods = ("encode_batch", "decode_batch")
    return {m: jax.jit(lambda p, x, c, m=m: vae.apply({"params": p}, x, c, method=m)) for m in methods}


@pytest.mark.parametrize("frames", [1, 17, *(pytest.param(n, marks=pytest.mark.full) for n in (9, 25))])
@pytest.mark.parametrize("model", ["2b"], indirect=True)
def test_vae(model, frames):
    _, folder, spec, modules = model
    vae, params = video_vae.VAE(spec.vae), load_params(folder, spec, "vae")
    run = compiled(vae)
    rng = np.random.default_rng(3)
    pixels = rng.uniform(-1, 1, (1, frames, 32, 48, 3)).astype(np.float32)
    ours = video_vae.encode(vae, params, pixels, encode_batch=run["encode_batch"])
    with torch.no_grad():
        posterior = modules["vae"].encode(torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)).latent_dist
        close(ours, posterior.parameters.permute(0, 2, 3, 4, 1).detach(), 1e-4)
        latents = rng.standard_normal(video_vae.mode(ours).shape, np.float32)
        theirs = modules["vae"].decode(torch.from_numpy(latents).permute(0, 4, 1, 2, 3)).sample
    close(
        video_vae.decode(vae, params, latents, decode_batch=run["decode_batch"]),
        theirs.permute(0, 2, 3, 4, 1).detach(),
        1e-4,
    )


@pytest.mark.parametrize("length", [6, 226])
@pytest.mark.parametrize("model", ["2b"], indirect=True)
def test_t5(model, length):
    _, folder, spec, modules = model
    ids = np.random.default_rng(4).integers(0, 32, (2, length))
    params = load_params(folder, spec, "text_encoder")
    ours = T5Encoder(spec.text_encoder).apply({"params": params}, ids)
    with torch.no_grad():
        theirs = modules["text_encoder"](torch.from_numpy(ids)).last_hidden_state
    close(ours, theirs.detach(), 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_export_opens_in_the_reference(model, dtype, tmp_path):
    _, folder, spec, modules = model
    params = {component: load_params(folder, spec, component, dtype) for component in COMPONENTS}
    mine = tmp_path / "mine"
    export(mine, dataclasses.replace(spec, name="mine"), params, max_shard_bytes=20_000)
    pipeline_class = getattr(diffusers, json.loads((mine / "model_index.json").read_text())["_class_name"])
    pipeline = pipeline_class.from_pretrained(mine, tokenizer=None, torch_dtype=getattr(torch, dtype))
    for component, module in modules.items():
        theirs, back = module.state_dict(), getattr(pipeline, component).state_dict()
        assert theirs.keys() == back.keys()
        for key in theirs:
            expected = theirs[key].to(getattr(torch, dtype))
            assert torch.equal(back[key], expected) and back[key].dtype == expected.dtype, key
    # Every setting as in the files that the reference reads itself, but for names and traces of saving.
    for component in ("transformer", "vae"):
        a, b = (dict(m.config) for m in (modules[component], getattr(pipeline, component)))
        assert {k: v for k, v in a.items() if k[0] != "_"} == {k: v for k, v in b.items() if k[0] != "_"}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert type(pipeline.scheduler).__name__ == scheduler.pop("_class_name")
    assert scheduler.items() <= dict(pipeline.scheduler.config).items()
