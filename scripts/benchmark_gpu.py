"""The accelerator workloads of `benchmark.py gpu`: a denoising step and a VAE decode of the published models.

Random weights in bfloat16, native sizes, beside diffusers eager and with torch.compile. Each side is alone in a process
of its own while it is measured, as two of them would not fit one device. What a row says of 50 steps is the
median step times 50. Results are not compared: the sides draw their own weights; `tests/parity` compares.

It runs on a CPU, too, at small sizes in float32, to see that everything works.
"""

import dataclasses
import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion.update import init
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import sequence_tokens, transformer_flops
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE, decode_stream
from cogvx_jax.pipelines import denoise
from cogvx_jax.pipelines.latents import decode_batch
from cogvx_jax.pipelines.request import latent_frames, padded_latent_frames
from cogvx_jax.presets import PRESETS

MODELS = ("2b", "5b", "1.5-5b")
STEPS = 50
MATMUL = 8192  # side of the square product that the peak is measured with
Part = Literal["step", "decode"]
Side = Literal["ours", "eager", "compiled"]
Run = Callable[[], None]  # one measured run, waited for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: latents (1, T, h, w, 16) of a model."""

    name: str
    spec: ModelSpec
    compute: Compute
    shape: tuple[int, int, int, int, int]

    @property
    def kept(self) -> int:
        """Latent frames that are decoded: without those that only fill a patch."""
        return latent_frames(self.spec, self.spec.defaults.num_frames)

    @property
    def tokens(self) -> int:
        return sequence_tokens(self.spec.transformer, self.shape[1:4])


def main(
    models: tuple[str, ...] = MODELS,
    parts: tuple[Part, ...] = ("step", "decode"),
    sides: tuple[Side, ...] = ("ours", "eager", "compiled"),
    runs: int = 3,
    small: bool = False,
    json_file: Path | None = None,
) -> None:
    """Prints seconds, peak memory and the share of the device's measured matmul rate.

    Args:
      models: names of presets, at their native sizes.
      parts: the denoising step with guidance, the VAE's decode of a whole video.
      sides: ours, diffusers as it is, diffusers with torch.compile.
      runs: measured runs after the first; the median counts.
      small: few layers and small clips in float32, to try the script out; the figures then mean nothing.
      json_file: where to write the figures, too.
    """
    needed = {"ours": (), "eager": ("torch", "diffusers"), "compiled": ("torch", "diffusers")}
    missing = {package for side in sides for package in needed[side] if importlib.util.find_spec(package) is None}
    if missing:
        sides = tuple(side for side in sides if not missing & set(needed[side]))
        print(f"without {', '.join(sorted(missing))}, which diffusers' sides need")
    rows = list(measure([case(name, small=small) for name in models], parts, sides, runs))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def case(name: str, *, small: bool) -> Case:
    spec = PRESETS[name]
    own = spec.defaults
    if small:
        cfg = dataclasses.replace(spec.transformer, layers=2, heads=2, text_dim=32, time_dim=32)
        vae = dataclasses.replace(spec.vae, channels=(16, 16, 16, 32), layers=1, groups=8)
        own = dataclasses.replace(own, height=64, width=96, num_frames=17)
        text = dataclasses.replace(spec.text_encoder, width=cfg.text_dim)
        spec = dataclasses.replace(spec, transformer=cfg, vae=vae, text_encoder=text, defaults=own)
    compute = Compute(dtype="float32" if small else "bfloat16", logit_bound=20.0)
    shape = (1, padded_latent_frames(spec, own.num_frames), own.height // 8, own.width // 8, 16)
    return Case(name=name, spec=spec, compute=compute, shape=shape)


def measure(cases: list[Case], parts: tuple[Part, ...], sides: tuple[Side, ...], runs: int) -> Iterator[dict[str, Any]]:
    """A row for each model and part, with the ratio of ours to each of theirs."""
    peak = None
    for one in cases:
        for part in parts:
            row: dict[str, Any] = {"model": one.name, "part": part}
            for side in sides:
                found = alone(serve, one, part, side, runs)
                row |= {f"{side} s": found["seconds"], f"{side} GiB": found["gib"], f"{side} first s": found["first"]}
                peak = peak or found["peak"]
            if part == "step":
                row |= {f"{side} s for {STEPS}": STEPS * row[f"{side} s"] for side in sides}
                done = transformer_flops(one.spec.transformer, one.tokens, batch=2)
                if peak and "ours" in sides:
                    row |= {"ours of matmul rate": done / row["ours s"] / peak}
            row |= {f"ours/{side}": row["ours s"] / row[f"{side} s"] for side in sides if side != "ours" in sides}
            print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            yield row


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own, whose device memory is then free again."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def serve(one: Case, part: Part, side: Side, runs: int) -> dict[str, float | None]:
    """Times a side: the first run, with its compilation, then the median of `runs`."""
    run, gib, peak = ours(one, part) if side == "ours" else theirs(one, part, compiled=side == "compiled")
    seconds = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:]), "gib": gib(), "peak": peak()}


def ours(one: Case, part: Part) -> tuple[Run, Callable[[], float | None], Callable[[], float | None]]:
    jax.config.update("jax_enable_compilation_cache", False)
    spec, compute, shape = one.spec, one.compute, one.shape
    key = jax.random.key(0)

    def params(component: str, dtype: str):
        from flax import traverse_util

        shapes = abstract_params(getattr(spec, component))

        def draw():
            keys = jax.random.split(key, len(shapes))
            pairs = zip(shapes.items(), keys, strict=True)
            return {path: 0.02 * jax.random.normal(k, p.shape, dtype) for (path, p), k in pairs}

        return traverse_util.unflatten_dict(jax.jit(draw)(), sep="/")

    if part == "step":
        cfg = spec.transformer
        weights, step = params("transformer", compute.dtype), denoise.step_program(Transformer(cfg, compute), True)
        text = jnp.zeros((2, cfg.text_length, cfg.text_dim), compute.dtype)
        row = np.asarray([1, 0, 1, 0, 0, 0], np.float32)

        def run():
            x = jnp.ones(shape)
            state = init(x)
            state = step(weights, state, text, None, np.int32(500), row, np.float32(6), jnp.zeros(shape))
            state.latents.block_until_ready()

    else:
        vae = VAE(spec.vae, compute.of("vae"))
        weights, batch = params("vae", "float32"), decode_batch(vae)

        def run():
            latents = jnp.ones((1, one.kept, *shape[2:]))
            for pixels in decode_stream(vae, weights, latents, decode_batch=batch):
                pixels.block_until_ready()

    def gib() -> float | None:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**30 if stats and "peak_bytes_in_use" in stats else None

    return run, gib, lambda: matmul_rate() if jax.default_backend() != "cpu" else None


def matmul_rate() -> float:
    """FLOP/s of a large bfloat16 product, the best of ten."""
    a = jnp.ones((MATMUL, MATMUL), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * MATMUL**3 / best


def theirs(
    one: Case, part: Part, *, compiled: bool = False
) -> tuple[Run, Callable[[], float | None], Callable[[], float | None]]:
    """diffusers' modules with random weights, from configurations that our exporter writes."""
    import tempfile

    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    from cogvx_jax.convert.config import write_configs

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kind, component = (
        (CogVideoXTransformer3DModel, "transformer") if part == "step" else (AutoencoderKLCogVideoX, "vae")
    )
    with tempfile.TemporaryDirectory() as folder:
        write_configs(one.spec, Path(folder))
        config = kind.load_config(Path(folder) / component)
    with torch.device(device):
        model = kind.from_config(config).to(dtype).eval()
    if compiled:
        model = torch.compile(model)
    _, frames, height, width, channels = one.shape

    if part == "step":
        cfg = one.spec.transformer
        x = torch.ones(2, frames, cfg.in_channels, height, width, device=device, dtype=dtype)
        text = torch.zeros(2, cfg.text_length, cfg.text_dim, device=device, dtype=dtype)
        t, rope = torch.full((2,), 500, device=device), their_rope(one, device)

        def call():
            model(x, text, t, image_rotary_emb=rope, return_dict=False)

    else:
        z = torch.ones(1, channels, one.kept, height, width, device=device, dtype=dtype)

        def call():
            model.decode(z, return_dict=False)

    def run():
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    def gib() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None

    return run, gib, lambda: None


def their_rope(one: Case, device: str):
    """The rotary tables as CogVideoXPipeline makes them; None for 2B."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    cfg, (_, frames, height, width, _) = one.spec.transformer, one.shape
    if cfg.position == "sincos":
        return None
    grid = (height // cfg.patch, width // cfg.patch)
    if cfg.patch_t is None:
        crops = get_resize_crop_region_for_grid(grid, cfg.sample_width // cfg.patch, cfg.sample_height // cfg.patch)
        return get_3d_rotary_pos_embed(cfg.head_dim, crops, grid, frames, device=device)
    most = (cfg.sample_height // cfg.patch, cfg.sample_width // cfg.patch)
    frames = (frames + cfg.patch_t - 1) // cfg.patch_t
    return get_3d_rotary_pos_embed(cfg.head_dim, None, grid, frames, grid_type="slice", max_size=most, device=device)
