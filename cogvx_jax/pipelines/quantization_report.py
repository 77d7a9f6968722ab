"""What quantising a model costs: the error of its output where one layer, or all, are quantised.

One compiled program computes every product both ways, in float32, and a flag for each layer chooses. Inputs are random
numbers, and a caption and a clip of `tiny`'s world, which any model's text encoder and VAE take.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.configs import ModelSpec
from cogvx_jax.convert.finite import not_finite
from cogvx_jax.diffusion.schedule import alphas_bar
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.models.lora import LoRA
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.quantized import Kernel, product, quantize_kernel, quantize_tokens
from cogvx_jax.pipelines.finite import find_not_finite
from cogvx_jax.pipelines.latents import image_condition, video_latents
from cogvx_jax.pipelines.model import Model, load
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.text import encode_prompts, tokenize
from cogvx_jax.quantization import Quantization, Storage
from cogvx_jax.tiny import shapes

TIMES = (999, 500, 100)  # of the schedule; v is asked at all three
FLAG = "quantised"  # beside a kernel: of each layer, whether its product is computed with integers
FRAMES = 9  # of the clip

Errors = dict[str, float]  # what is quantised -> relative error of the output


class Inputs(NamedTuple):
    """Of the transformer, a row for each of `TIMES`."""

    latents: jax.Array  # (3, T, h, w, in_channels)
    text: jax.Array  # (3, L, text_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Relative errors against float32, by inputs ("random", "drawn"), then by what is quantised."""

    text_encoder: Mapping[str, Errors]  # of its states
    transformer: Mapping[str, Errors]  # of v, the largest of `TIMES`


def print_report(folder: str | Path, how: Quantization, lora: LoRA | None = None, **options: Any) -> None:
    """Prints a table of `make_report`, whose arguments it takes."""
    found = make_report(folder, how, lora, **options)
    times = ", ".join(map(str, TIMES))
    for title, errors in (
        (f"{how.name}: relative error of v against float32, the largest at t = {times}", found.transformer),
        (f"{how.name}: relative error of the text encoder's states against float32", found.text_encoder),
    ):
        print(title)
        print(f"  {'quantised':24}{''.join(f'{name:>10}' for name in errors)}")
        for row in next(iter(errors.values())):
            print(f"  {row:24}{''.join(f'{each[row]:>10.3%}' for each in errors.values())}")


def make_report(
    folder: str | Path,
    how: Quantization,
    lora: LoRA | None = None,
    *,
    mesh: Mesh | None = None,
    given: Given = NOTHING,
) -> Report:
    """The errors of a model that is not quantised yet; its components are in memory one at a time, in float32.

    Args:
      given: of the model, as the keywords of `load`.
    Raises: as `load`; ValueError where the transformer with its LoRA has numbers that are not finite.
    """
    encoders = load(folder, dtype="float32", mesh=mesh, components=("vae", "text_encoder"), **vars(given))
    drawn = _drawn(encoders)
    ids = jnp.asarray(_ids(encoders))
    encoder, cfg = encoders.text_encoder, encoders.spec.text_encoder

    def states(params: Any, ids: jax.Array) -> jax.Array:
        return encoder.apply({"params": params}, ids)  # type: ignore[return-value]

    text_errors = _errors(states, encoders.params["text_encoder"], (ids,), how, cfg.layers, mesh)
    del encoders
    model = load(folder, dtype="float32", mesh=mesh, components=("transformer",), lora=lora, **vars(given))
    if tensor := find_not_finite(model.params["transformer"]):
        raise not_finite(folder, f"transformer/{tensor}", with_loras=lora is not None)
    inputs = {"random": random_inputs(model.spec)} | ({} if drawn is None else {"drawn": drawn})

    def velocity(params: Any, latents: jax.Array, text: jax.Array) -> jax.Array:
        return model.transformer.apply({"params": params}, latents, text, jnp.asarray(TIMES, jnp.float32))  # type: ignore[return-value]

    layers, params = model.spec.transformer.layers, model.params["transformer"]
    errors = {name: _errors(velocity, params, each, how, layers, mesh) for name, each in inputs.items()}
    return Report(text_encoder={"drawn": text_errors}, transformer=errors)


def _errors(
    function: Callable[..., jax.Array],
    params: Any,
    inputs: tuple[jax.Array, ...],
    how: Quantization,
    layers: int,
    mesh: Mesh | None,
) -> Errors:
    """Of `function(params, *inputs)`, for each choice of what is quantised."""
    paths = [path for path in traverse_util.flatten_dict(params, sep="/") if how.storage(path) is not None]

    @jax.jit
    def run(params: Any, flags: Mapping[str, jax.Array], *inputs: jax.Array) -> jax.Array:
        leaves = traverse_util.flatten_dict(params, sep="/")
        leaves |= {_flag(path): flag for path, flag in flags.items()}
        with sharding.activate(mesh), nn.intercept_methods(_both_ways(how)):
            return function(traverse_util.unflatten_dict(leaves, sep="/"), *inputs)

    def output(chosen: Mapping[str, np.ndarray]) -> np.ndarray:
        flags = {path: sharding.replicate(chosen.get(path, np.zeros(layers, bool)), mesh) for path in paths}
        return np.asarray(run(params, flags, *inputs), np.float64)

    inputs = tuple(sharding.replicate(x, mesh) for x in inputs)
    exact = output({})
    return {name: relative_error(output(chosen), exact) for name, chosen in _choices(paths, layers)}


def _choices(paths: list[str], layers: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What is quantised: all, one kernel in all blocks, or all kernels of one block; path -> (layers,) flags."""
    yield "all", {path: np.ones(layers, bool) for path in paths}
    for path in paths:
        yield path.removeprefix("blocks/").removesuffix("/kernel"), {path: np.ones(layers, bool)}
    for layer in range(layers):
        yield f"block {layer}", {path: np.arange(layers) == layer for path in paths}


def _both_ways(how: Quantization) -> Callable[..., Any]:
    """For flax: a `Dense` that has a flag computes with integers where that says so."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, Dense) or context.method_name != "__call__" or not layer.has_variable("params", FLAG):
            return call(*args, **kwargs)
        (x,), exact = args, call(*args, **kwargs)
        path = "/".join(layer.path) + "/kernel"
        storage = how.storage(path)
        assert storage is not None
        return jnp.where(layer.get_variable("params", FLAG), _rounded(layer, x, storage, how.takes_tokens(path)), exact)

    return intercept


def _rounded(layer: Dense, x: jax.Array, storage: Storage, tokens: bool) -> jax.Array:
    kernel: Kernel = quantize_kernel(layer.get_variable("params", "kernel"), storage)
    y = product(quantize_tokens(x) if tokens else x, kernel, layer.dtype)
    bias = layer.get_variable("params", "bias") if layer.bias else None
    return y if bias is None else y + jax.lax.broadcast_to_rank(bias, y.ndim)


def _flag(path: str) -> str:
    return f"{path.rpartition('/')[0]}/{FLAG}"


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest relative error of a row."""
    axes = tuple(range(1, exact.ndim))
    return float(np.sqrt(np.sum(np.square(found - exact), axes) / np.sum(np.square(exact), axes)).max())


def random_inputs(spec: ModelSpec) -> Inputs:
    cfg, rng = spec.transformer, np.random.default_rng(0)
    grid = (2, 8, 8)
    if cfg.position == "rope+learned":  # which has no other size
        grid = (cfg.sample_latent_frames, cfg.sample_height, cfg.sample_width)
    latents, text = (len(TIMES), *grid, cfg.in_channels), (len(TIMES), cfg.text_length, cfg.text_dim)
    return Inputs(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (latents, text)))


def _caption() -> tuple[shapes.Scene, str]:
    scene = shapes.split()[1][0]
    return scene, shapes.caption(scene, np.random.default_rng(0))


def _ids(model: Model) -> np.ndarray:
    return tokenize(model, [_caption()[1]])


def _drawn(model: Model) -> Inputs | None:
    """A clip and its caption, noised to each of `TIMES`; None of a model that takes clips of its own size only."""
    spec, cfg = model.spec, model.spec.transformer
    if cfg.position == "rope+learned":
        return None
    scene, caption = _caption()
    text = encode_prompts(model, [caption])
    clip = (shapes.draw(scene, np.random.default_rng(0))[None, :FRAMES] / 127.5 - 1).astype(np.float32)
    noise, frames = SeededNoise(0), 3 + 3 % (cfg.patch_t or 1)
    latents = video_latents(model, clip, frames, noise)
    signal = jnp.asarray(alphas_bar(spec.schedule)[list(TIMES)], jnp.float32)[:, None, None, None, None]
    drawn = jax.random.normal(jax.random.key(0), latents.shape)
    noisy = jnp.sqrt(signal) * latents + jnp.sqrt(1 - signal) * drawn
    if cfg.conditions_on_image:
        image = image_condition(model, clip[:, :1], latents.shape, noise)
        noisy = jnp.concatenate([noisy, jnp.repeat(image, len(TIMES), axis=0)], axis=-1)
    elif cfg.condition_channels:  # nothing known, nothing to follow
        noisy = jnp.pad(noisy, [(0, 0)] * 4 + [(0, cfg.condition_channels)])
    return Inputs(noisy, jnp.repeat(text, len(TIMES), axis=0))
