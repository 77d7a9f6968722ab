"""A warning before a run that will take hours, with an estimate, and the nearest setting that takes less."""

import functools
import itertools
import time
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cogvx_jax.chips import chip_of
from cogvx_jax.configs import ControlNetConfig, ModelSpec, ToraConfig
from cogvx_jax.models.flops import fuser_flops, sequence_tokens, transformer_flops
from cogvx_jax.pipelines.options import Sampling
from cogvx_jax.pipelines.request import (
    Request,
    Settings,
    check_sampling,
    evaluations,
    inversions,
    row_evaluations,
    seen_latents,
    shorter_clips,
    shown_steps,
    windows_a_step,
)

LONG = 3600.0  # seconds
SHARE = 0.4  # of a chip's published peak: what video models reach with good kernels; a CPU's rate is measured
WORTH_ASKING = 1e13  # operations: less takes no hour on anything that runs this


def warn_of_hours(spec: ModelSpec, requests: Sequence[Request], mesh: Mesh | None) -> None:
    """Warns where sampling these videos, one request after the other, will take more than an hour.

    Nothing is said of accelerators that `chips` does not know.
    """
    each = [sampling_flops(spec, request, len(request.prompts)) for request in requests]
    work = sum(own * with_beside(spec, request) for own, request in zip(each, requests, strict=True))
    if work < WORTH_ASKING or (rate := flops_per_second(mesh)) is None or work / rate < LONG:
        return
    longest = max(requests, key=lambda request: sampling_flops(spec, request, 1))
    found = nearest_faster(spec, longest, LONG * rate / len(requests) / with_beside(spec, longest))
    better = ""
    if found is not None:
        share = sampling_flops(spec, found, 1) / sampling_flops(spec, longest, 1)
        words = f"{found.frames} frames of {found.height}x{found.width} in {found.steps} steps"
        better = f"; {words} would take about {_words(share * work / rate)}"
    warnings.warn(
        f"sampling will take about {_words(work / rate)} here: {work / 1e15:.3g} PFLOP at {rate / 1e12:.3g} TFLOP/s"
        + better,
        stacklevel=3,
    )


def with_beside(spec: ModelSpec, request: Request) -> float:
    """How many times the transformer's own operations a request takes with its ControlNets and Tora's fusers."""
    count, share = evaluations(spec, request, request.strength), 1.0
    if request.control_steps is not None:
        share = float(shown_steps(request.control_steps, count).mean())
    nets = [use.net.cfg for use in request.controls or ()]
    tora = None if request.motion is None else request.motion.files.cfg
    rows, texts = len(request.prompts), texts_of(request)
    more = share * nets_share(spec, request, nets, texts) + fusers_share(spec, request, tora, rows, texts)
    return 1 + more


def nets_share(spec: ModelSpec, settings: Settings, nets: Sequence[ControlNetConfig], texts: int = 1) -> float:
    """Operations of ControlNets in a step that has them, as a share of the transformer's own."""
    tokens = _tokens(spec, settings, texts)
    beside = sum(transformer_flops(net.transformer, tokens) for net in nets)
    return beside / transformer_flops(spec.transformer, tokens)


def fusers_share(spec: ModelSpec, settings: Settings, tora: ToraConfig | None, videos: int, texts: int = 1) -> float:
    """Operations of Tora's fusers as a share of the transformer's own in a step, whose rows share them; 0 of none."""
    if tora is None:
        return 0.0
    tokens = _tokens(spec, settings, texts)
    fused = fuser_flops(tora, tokens - texts * spec.transformer.text_length)
    return fused / transformer_flops(spec.transformer, tokens, batch=videos * (1 + settings.guided))


def texts_of(settings: Settings) -> int:
    """Prompts that a video's tokens have side by side: with regions several."""
    regions = settings.regions if isinstance(settings, Request) else None
    return 1 if regions is None else 1 + len(regions.prompts)


def _tokens(spec: ModelSpec, settings: Settings, texts: int) -> int:
    return sequence_tokens(spec.transformer, (seen_latents(spec, settings), *settings.shape[1:3]), texts)


def sampling_flops(spec: ModelSpec, settings: Settings, videos: int, texts: int | None = None) -> float:
    """Operations of the transformer in all denoising steps; of a video that is redrawn, of those that are taken.

    Of an edit a row has that of its clip beside it, and meets the keys of both; inversion is a row a step.

    Args:
      texts: prompts side by side; None is as `texts_of` the settings.
    """
    tokens = _tokens(spec, settings, texts_of(settings) if texts is None else texts)
    strength = settings.strength if isinstance(settings, Request) else 1.0
    each = own = transformer_flops(spec.transformer, tokens, batch=videos)
    if settings.task == "edit":
        each += transformer_flops(spec.transformer, tokens, batch=videos, keys=2 * tokens)
    work = row_evaluations(spec, settings, strength) * each + inversions(settings, strength) * own
    work *= settings.segments if isinstance(settings, Request) else 1
    return work if settings.windows is None else work * windows_a_step(spec, settings)


def nearest_faster(spec: ModelSpec, settings: Settings, most: float) -> Settings | None:
    """Of fewer steps, frames and pixels what takes at most so many operations a video, and the most of those.

    Where none is so fast, the fastest; None where the model makes no other videos.
    """
    fewer = [n for n in (settings.steps, settings.steps // 2) if n > 0]
    sizes = [(settings.height // n // 16 * 16, settings.width // n // 16 * 16) for n in (1, 2)]
    ways = []
    frames = [settings.frames, *shorter_clips(spec, settings.frames)]
    for steps, count, size in itertools.product(fewer, frames, sizes):
        asked = Sampling(
            size=size,
            frames=count,
            steps=steps,
            guidance_scale=settings.guidance,
            sampler=settings.sampler,
            guider=settings.guider,
            windows=settings.windows,
        )
        try:
            ways.append(check_sampling(spec, asked, settings.task))
        except ValueError:  # it makes none of that size
            continue
    ways = [way for way in ways if sampling_flops(spec, way, 1) < sampling_flops(spec, settings, 1)]
    ways.sort(key=lambda way: sampling_flops(spec, way, 1))
    fast = [way for way in ways if sampling_flops(spec, way, 1) <= most]
    return fast[-1] if fast else ways[0] if ways else None


def flops_per_second(mesh: Mesh | None) -> float | None:
    """What a run may expect of the devices of a mesh, or of the default one; None where nothing is known."""
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    if devices[0].platform == "cpu":
        return _measured()
    chip = chip_of(devices[0].device_kind)
    return None if chip is None else SHARE * chip.peak * 1e12 * len(devices)


@functools.cache
def _measured() -> float:
    """Operations a second of a product of float32 matrices on this CPU: virtual devices share it."""
    x = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


def _words(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(seconds / 60, 1):.0f} minutes"
