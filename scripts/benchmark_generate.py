"""The workloads of `benchmark.py`: the parts of making a video, ours and diffusers'."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.allocator import give_back_freed_memory
from cogvx_jax.configs import ModelSpec, ScheduleConfig, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import load_params, read_spec
from cogvx_jax.convert.checkpoint import expected_shapes
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.flops import sequence_tokens, text_flops, transformer_flops
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.attention import BACKENDS
from cogvx_jax.pipelines.model import TINY
from cogvx_jax.scripts.device_workloads import vae_flops

PROMPT = "a red circle moves right on a white background"

Run = Callable[[], np.ndarray]  # one measured run; its result is compared between the sides
Formulation = tuple[str, str]  # a field of Formulations and its value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The models and inputs of the synthetic workloads; latents and clips are T or F, height, width."""

    spec: ModelSpec
    tokens: tuple[int, int, int]  # latents of workload a
    latents: tuple[int, int, int]  # of workload b
    clip: tuple[int, int, int]  # pixels of workload c


FULL = Sizes(
    spec=ModelSpec(
        name="benchmark",
        transformer=TransformerConfig(layers=6, heads=12, text_dim=1024, position="rope"),
        vae=VAEConfig(),
        text_encoder=T5Config(layers=8, width=1024, heads=16, mlp=2816, vocab=4096),
        schedule=ScheduleConfig(snr_shift=1.0),
    ),
    tokens=(5, 48, 64),  # 3840 tokens, and 226 of text
    latents=(5, 16, 24),
    clip=(17, 128, 192),
)
SMALL = Sizes(  # to try the script out
    spec=dataclasses.replace(
        FULL.spec,
        transformer=TransformerConfig(layers=2, heads=2, text_dim=128, position="rope"),
        vae=VAEConfig(channels=(32, 32, 32, 64), layers=1),
        text_encoder=T5Config(layers=2, width=128, heads=2, mlp=256, vocab=256),
    ),
    tokens=(3, 8, 12),
    latents=(3, 4, 6),
    clip=(9, 32, 48),
)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape, np.float32)


def our_params(sizes: Sizes, folder: Path, component: str) -> Any:
    params = jax.block_until_ready(jax.device_put(load_params(folder, sizes.spec, component)))
    give_back_freed_memory()  # as `load` does
    return params


def our_transformer(sizes: Sizes, folder: Path) -> Run:
    cfg = sizes.spec.transformer
    params = our_params(sizes, folder, "transformer")
    run = jax.jit(lambda params, *inputs: Transformer(cfg).apply({"params": params}, *inputs))
    inputs = jax.device_put((*transformer_inputs(sizes), np.float32([500])))
    return lambda: np.asarray(run(params, *inputs))


def their_transformer(sizes: Sizes, folder: Path) -> Run:
    import torch
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    cfg = sizes.spec.transformer
    model = CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    latents, text = map(torch.from_numpy, transformer_inputs(sizes))
    frames, *grid = sizes.tokens[0], sizes.tokens[1] // cfg.patch, sizes.tokens[2] // cfg.patch
    crops = get_resize_crop_region_for_grid(grid, cfg.sample_width // cfg.patch, cfg.sample_height // cfg.patch)
    rope = get_3d_rotary_pos_embed(cfg.head_dim, crops, grid, frames)
    latents = latents.permute(0, 1, 4, 2, 3).contiguous()  # (B, T, C, h, w)
    t = torch.tensor([500])

    def run():
        v = model(latents, text, t, image_rotary_emb=rope, return_dict=False)[0]
        return v.permute(0, 1, 3, 4, 2).numpy()

    return run


def transformer_inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    cfg = sizes.spec.transformer
    return normal(1, *sizes.tokens, cfg.in_channels), normal(1, cfg.text_length, cfg.text_dim)


def our_decode(sizes: Sizes, folder: Path) -> Run:
    vae = vaes.VAE(sizes.spec.vae)
    params = our_params(sizes, folder, "vae")
    batch = jax.jit(lambda p, z, cache: vae.apply({"params": p}, z, cache, method="decode_batch"), donate_argnums=2)
    latents = jnp.asarray(normal(1, *sizes.latents, vae.cfg.latent_channels))
    return lambda: np.asarray(vaes.decode(vae, params, latents, decode_batch=batch))


def their_decode(sizes: Sizes, folder: Path) -> Run:
    vae, latents = their_vae(folder, normal(1, *sizes.latents, sizes.spec.vae.latent_channels))
    return lambda: vae.decode(latents, return_dict=False)[0].permute(0, 2, 3, 4, 1).numpy()


def our_encode(sizes: Sizes, folder: Path) -> Run:
    vae = vaes.VAE(sizes.spec.vae)
    params = our_params(sizes, folder, "vae")
    batch = jax.jit(lambda p, x, cache: vae.apply({"params": p}, x, cache, method="encode_batch"), donate_argnums=2)
    clip = jnp.asarray(normal(1, *sizes.clip, 3) / 2)
    return lambda: np.asarray(vaes.encode(vae, params, clip, encode_batch=batch))


def their_encode(sizes: Sizes, folder: Path) -> Run:
    vae, clip = their_vae(folder, normal(1, *sizes.clip, 3) / 2)
    return lambda: vae.encode(clip, return_dict=False)[0].parameters.permute(0, 2, 3, 4, 1).numpy()


def their_vae(folder: Path, video: np.ndarray) -> tuple[Any, Any]:
    import torch
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae")
    return vae, torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()  # (B, C, F, H, W)


def our_text(sizes: Sizes, folder: Path) -> Run:
    cfg = sizes.spec.text_encoder
    params = our_params(sizes, folder, "text_encoder")
    run = jax.jit(lambda params, ids: T5Encoder(cfg).apply({"params": params}, ids))
    ids = jnp.asarray(token_ids(sizes), jnp.int32)
    return lambda: np.asarray(run(params, ids))


def their_text(sizes: Sizes, folder: Path) -> Run:
    import torch
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
    ids = torch.from_numpy(token_ids(sizes))
    return lambda: model(ids)[0].numpy()


def token_ids(sizes: Sizes) -> np.ndarray:
    shape = (2, sizes.spec.transformer.text_length)
    return np.random.default_rng(7).integers(sizes.spec.text_encoder.vocab, size=shape)


def our_generate(sizes: Sizes, folder: Path) -> Run:
    import cogvx_jax as cx

    model = cx.load(TINY)
    jax.config.update("jax_enable_compilation_cache", False)  # `load` has turned it on
    latents = tiny_latents(model.spec)
    run = functools.partial(cx.generate, model, PROMPT, latents=latents, num_inference_steps=20, progress=False)
    return lambda: np.float32(run().frames) / 255


def their_generate(sizes: Sizes, folder: Path) -> Run:
    import torch
    from diffusers import CogVideoXPipeline

    spec = read_spec(TINY)
    pipe = CogVideoXPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(tiny_latents(spec)).permute(0, 1, 4, 2, 3)
    size = {"height": spec.defaults.height, "width": spec.defaults.width, "num_frames": spec.defaults.num_frames}
    guidance = spec.defaults.guidance_scale
    options = size | {"num_inference_steps": 20, "guidance_scale": guidance, "output_type": "np"}
    return lambda: pipe(PROMPT, negative_prompt="", latents=latents, **options).frames


def tiny_latents(spec: ModelSpec) -> np.ndarray:
    size, vae = spec.defaults, spec.vae
    frames = (size.num_frames - 1) // vae.temporal_compression + 1
    pixels = vae.spatial_compression
    return normal(1, frames, size.height // pixels, size.width // pixels, vae.latent_channels)


def transformer_operations(sizes: Sizes) -> float:
    cfg = sizes.spec.transformer
    return transformer_flops(cfg, sequence_tokens(cfg, sizes.tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    title: str
    ours: Callable[[Sizes, Path], Run]
    theirs: Callable[[Sizes, Path], Run]
    alternatives: tuple[Formulation, ...] = ()  # that matter here
    shipped: bool = False  # runs the model that ships with the package
    needs: tuple[str, ...] = ()  # packages of the other side, besides diffusers
    flops: Callable[[Sizes], float] | None = None  # of a run, by the definition


WORKLOADS = {
    "a": Workload(
        title="transformer",
        ours=our_transformer,
        theirs=their_transformer,
        alternatives=tuple(("attention", name) for name, backend in BACKENDS.items() if "cpu" in backend.platforms),
        flops=transformer_operations,
    ),
    "b": Workload(
        title="VAE decode",
        ours=our_decode,
        theirs=their_decode,
        alternatives=(
            ("causal_conv", "conv3d"),
            ("causal_conv", "conv2d"),
            ("causal_conv", "by_frame"),
            ("upsample_conv", "repeat"),
            ("upsample_conv", "phase"),
            ("upsample_conv", "dilated"),
            ("spatial_norm", "full"),
            ("spatial_norm", "latent"),
        ),
        flops=lambda sizes: vae_flops(sizes.spec.vae, "decode_batch", (1, *sizes.latents, 16)),
    ),
    "c": Workload(
        title="VAE encode",
        ours=our_encode,
        theirs=their_encode,
        alternatives=(("causal_conv", "conv3d"), ("causal_conv", "conv2d"), ("causal_conv", "by_frame")),
        flops=lambda sizes: vae_flops(sizes.spec.vae, "encode_batch", (1, *sizes.clip, 3)),
    ),
    "d": Workload(
        title="text encoder",
        ours=our_text,
        theirs=their_text,
        flops=lambda sizes: text_flops(sizes.spec.text_encoder, sizes.spec.transformer.text_length, batch=2),
    ),
    "e": Workload(title="tiny, 20 steps", ours=our_generate, theirs=their_generate, shipped=True),
}
COMPONENTS = ("transformer", "vae", "text_encoder")


def random_params(spec: ModelSpec, component: str) -> dict[str, Any]:
    """Weights that keep activations near 1 in size, none of them zero, so that a difference would show."""
    rng, tree = np.random.default_rng(11), {}
    for path, shape in expected_shapes(spec, component).items():
        *parents, name = path.split("/")
        values = rng.standard_normal(shape, np.float32)
        if name == "kernel":
            inputs = np.prod(shape[1:-1] if parents[0] == "blocks" else shape[:-1])
            if component == "text_encoder" and parents[-1] == "q":
                inputs *= spec.text_encoder.head_dim  # T5 does not scale its logits, its weights do
            values /= np.sqrt(inputs)
        elif name == "scale":
            values = 1 + values / 10
        elif name == "bias":
            values /= 10
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = values
    return tree
