"""What a device is measured by: parts of the published models with random weights in bfloat16, at native sizes.

Weights are made on the device. Small sizes in float32 try everything out on a CPU; their figures mean nothing.
"""

import dataclasses
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from cogvx_jax.configs import Compute, ModelSpec, VAEConfig
from cogvx_jax.diffusion.update import init
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import sequence_tokens, text_flops, transformer_flops
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.models.vae import VAE, decode_stream, frame_batches
from cogvx_jax.nn.attention import attention
from cogvx_jax.nn.backend import PLAIN, using
from cogvx_jax.pipelines import denoise
from cogvx_jax.pipelines.latents import decode_batch
from cogvx_jax.pipelines.request import latent_frames, padded_latent_frames
from cogvx_jax.presets import PRESETS

MATMUL = {False: 8192, True: 256}  # side of the square product that the peak is measured with, by `small`
LOGITS = 20.0  # bound on attention's, as a loaded model has one
COMPARED = 2048  # tokens that attention is compared with its definition on
Run = Callable[[], Any]  # one measured run, waited for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model that is measured, on latents (1, T, h, w, 16)."""

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


def case(name: str, *, small: bool) -> Case:
    """A preset at its native size, or with few layers and a small clip in float32."""
    spec = PRESETS[name]
    own = spec.defaults
    if small:
        cfg = dataclasses.replace(spec.transformer, layers=2, heads=2, text_dim=32, time_dim=32)
        vae = dataclasses.replace(spec.vae, channels=(16, 16, 16, 32), layers=1, groups=8)
        own = dataclasses.replace(own, height=64, width=96, num_frames=17)
        text = dataclasses.replace(spec.text_encoder, layers=2, width=cfg.text_dim, heads=2, mlp=64, vocab=64)
        spec = dataclasses.replace(spec, transformer=cfg, vae=vae, text_encoder=text, defaults=own)
    compute = Compute(dtype="float32" if small else "bfloat16", logit_bound=LOGITS)
    shape = (1, padded_latent_frames(spec, own.num_frames), own.height // 8, own.width // 8, 16)
    return Case(name=name, spec=spec, compute=compute, shape=shape)


def step(one: Case) -> Run:
    """A denoising step with guidance."""
    cfg = one.spec.transformer
    weights = random_params(cfg, one.compute.dtype)
    program = denoise.step_program(Transformer(cfg, one.compute), True)
    text = random((2, cfg.text_length, cfg.text_dim), one.compute.dtype)
    latents, noise = random(one.shape), jnp.zeros(one.shape)
    row = np.asarray([1, 0, 1, 0, 0, 0], np.float32)

    def run() -> None:
        state = init(jnp.copy(latents))  # the step takes its memory
        state = program(weights, state, text, None, np.int32(500), row, np.float32(6), noise)
        state.latents.block_until_ready()

    return run


def attend(one: Case) -> Run:
    """One layer's attention, alone, over the batch of guidance."""
    cfg = one.spec.transformer
    q, k, v = (random((2, cfg.heads, one.tokens, cfg.head_dim), one.compute.dtype, seed=i) for i in range(3))
    program = jax.jit(lambda *qkv: attention(*qkv, scale=cfg.head_dim**-0.5, max_logit=LOGITS))
    return lambda: program(q, k, v).block_until_ready()


def decode(one: Case) -> Run:
    """The VAE's decode of a whole video, whose pixels stay on the device."""
    vae = VAE(one.spec.vae, one.compute.of("vae"))
    weights, batch = random_params(one.spec.vae, "float32"), decode_batch(vae)
    latents = random((1, one.kept, *one.shape[2:]))

    def run() -> None:
        for pixels in decode_stream(vae, weights, latents, decode_batch=batch):
            pixels.block_until_ready()

    return run


def encode_text(one: Case) -> Run:
    """The text encoder on two prompts, as guidance needs them."""
    cfg, compute = one.spec.text_encoder, one.compute.of("text_encoder")
    weights = random_params(cfg, compute.dtype)
    ids = jnp.arange(2 * one.spec.transformer.text_length, dtype=jnp.int32).reshape(2, -1) % cfg.vocab
    program = jax.jit(lambda params, ids: T5Encoder(cfg, compute).apply({"params": params}, ids))
    return lambda: program(weights, ids).block_until_ready()


def decode_flops(one: Case) -> float:
    """Of the decode of a whole video."""
    return vae_flops(one.spec.vae, "decode_batch", (1, one.kept, *one.shape[2:]))


def vae_flops(cfg: VAEConfig, method: Literal["encode_batch", "decode_batch"], shape: tuple[int, ...]) -> float:
    """Of the VAE as it is defined, on a whole video or its latents, counted by XLA; some formulations need fewer."""
    vae, cache, counts = VAE(cfg), None, []
    leaves = {path: jax.ShapeDtypeStruct(p.shape, "float32") for path, p in abstract_params(cfg).items()}
    params = traverse_util.unflatten_dict(leaves, sep="/")
    batches = frame_batches(shape[1], cfg.decode_frames if method == "decode_batch" else cfg.encode_frames)

    def batch(params, x, cache):
        return vae.apply({"params": params}, x, cache, method=method)

    with using(PLAIN):
        for start, stop in batches[:2]:  # the others are like the second
            x = jax.ShapeDtypeStruct((shape[0], stop - start, *shape[2:]), "float32")
            lowered = jax.jit(batch).lower(params, x, cache)
            counts.append((lowered.cost_analysis() or {})["flops"])
            cache = lowered.out_info[1]
    return counts[0] + (len(batches) - 1) * counts[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    ours: Callable[[Case], Run]
    flops: Callable[[Case], float]


PARTS: Mapping[str, Part] = {
    "step": Part(ours=step, flops=lambda one: transformer_flops(one.spec.transformer, one.tokens, batch=2)),
    "attention": Part(ours=attend, flops=lambda one: 2 * 4 * one.tokens**2 * one.spec.transformer.width),
    "decode": Part(ours=decode, flops=decode_flops),
    "text": Part(
        ours=encode_text,
        flops=lambda one: text_flops(one.spec.text_encoder, one.spec.transformer.text_length, batch=2),
    ),
}


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("seed", "scale"))
def random(shape: tuple[int, ...], dtype: str = "float32", *, seed: int = 0, scale: float = 1.0) -> jax.Array:
    """Numbers of mean 0 and deviation `scale`, equally spread: a hash of their places.

    A generator's bits would take more memory than the weights themselves; ones, less power than numbers that differ.
    Source: the constants are those of Chris Wellons' lowbias32.
    """
    n = jnp.full(shape, seed * 0x9E3779B9 % 2**32, jnp.uint32)
    for axis in range(len(shape)):  # of the shape itself: to shape a row of numbers, a TPU would copy it
        n += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        n = (n ^ (n >> shift)) * jnp.uint32(factor)
    unit = n.astype(jnp.float32) * 2.0**-31 - 1  # within -1 and 1
    return (unit * (scale * math.sqrt(3))).astype(dtype)


def ours(one: Case, part: str, runs: int) -> dict[str, Any]:
    """Figures of a part, a name of `PARTS`: those of `timed`, peak memory in GiB, and its operations in TFLOP.

    Warnings are among them, such as that of attention which has no kernel here.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    with warnings.catch_warnings(record=True) as given:
        found = timed(PARTS[part].ours(one), runs) | {"GiB": peak_gib()}
    if given:
        found["warned"] = "; ".join(dict.fromkeys(str(warning.message) for warning in given))
    return found | {"TFLOP": PARTS[part].flops(one) / 1e12}


def timed(run: Run, runs: int) -> dict[str, Any]:
    """Seconds of the first run, with its compilation, of the `runs` after it, and their median, "s"."""
    seconds = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"s": statistics.median(seconds[1:]), "first s": seconds[0], "runs": seconds[1:]}


def random_params(cfg: Any, dtype: str) -> dict[str, Any]:
    """All parameters of a component, made on the device by one program: gains near 1, the others near 0."""

    def make() -> dict[str, jax.Array]:
        drawn = {}
        for seed, (path, parameter) in enumerate(abstract_params(cfg).items(), 1):
            values = random(parameter.shape, dtype, seed=seed, scale=0.02)
            drawn[path] = 1 + values if path.endswith("scale") else values
        return drawn

    return traverse_util.unflatten_dict(jax.block_until_ready(jax.jit(make)()), sep="/")


def peak_gib() -> float | None:
    """The most memory of the first device that this process has held; None where the platform does not say."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**30 if stats and "peak_bytes_in_use" in stats else None


def matmul_rate(
    dtype: str, *, small: bool = False, side: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP of a large square product in a second of a clock, the best of ten."""
    side = side or MATMUL[small]
    a = random((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = clock()
        product(a).block_until_ready()
        best = min(best, clock() - start)
    return 2 * side**3 / best


def attention_error(one: Case) -> float:
    """How far this device's attention is from its definition in float32, relative to the largest number.

    Of the first head and `COMPARED` tokens, which the definition has room for.
    """
    cfg = one.spec.transformer
    shape = (1, 1, min(one.tokens, COMPARED), cfg.head_dim)
    q, k, v = (random(shape, one.compute.dtype, seed=i) for i in range(3))
    scale = cfg.head_dim**-0.5
    y = jax.jit(lambda *qkv: attention(*qkv, scale=scale, max_logit=LOGITS))(q, k, v)
    with using(PLAIN), jax.default_matmul_precision("highest"):
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        expected = jax.jit(lambda *qkv: attention(*qkv, scale=scale))(*wide)
    return float(jnp.max(jnp.abs(y.astype(jnp.float32) - expected)) / jnp.max(jnp.abs(expected)))
