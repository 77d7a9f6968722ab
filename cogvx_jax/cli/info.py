"""`cogvx info`: what a model is."""

from typing import Annotated, Any

import tyro

from cogvx_jax import presets
from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.options import GivenFlags, ModelFlags, print_facts
from cogvx_jax.configs import ModelSpec

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def info(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "tiny",
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Prints a model's kind, sizes, parameters, memory and native shapes, without loading weights.

    Args:
      model: as for `generate`.
      as_json: print JSON.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so an accelerator that does not work is no matter
    from cogvx_jax.pipelines.model import load_quantization, load_spec

    about = given.checked()
    if (family := family_of(model)) is not None:
        return print_facts(family.describe(model, about), as_json)
    facts = describe(load_spec(model, about, report=True))
    if (quantised := load_quantization(model, None, about)) is not None:
        facts["quantised"] = quantised
    print_facts(facts, as_json)


def describe(spec: ModelSpec) -> dict[str, Any]:
    """What `info` prints; sizes of arrays come from shapes alone."""
    import math

    from cogvx_jax.convert import expected_shapes
    from cogvx_jax.convert.inspected_models import KINDS
    from cogvx_jax.pipelines.request import padded_latent_frames

    own, cfg = spec.defaults, spec.transformer
    licences = {presets.PRESETS[preset].name: licence for preset, licence in presets.LICENCES.items()}
    counts = {}
    for component in ("transformer", "vae", "text_encoder"):
        counts[component] = sum(math.prod(shape) for shape in expected_shapes(spec, component).values())
    latent = (padded_latent_frames(spec, own.num_frames), own.height // 8, own.width // 8, cfg.out_channels)
    tokens = math.prod(latent[:3]) // (cfg.patch**2 * (cfg.patch_t or 1))
    few = f", distilled ({own.distilled})" if own.distilled else ""
    half = counts["transformer"] * 2 + counts["text_encoder"] * 2 + counts["vae"] * 4
    return {
        "model": spec.name,
        "kind": KINDS[spec.kind],
        "native size": f"{own.height}x{own.width}, {own.num_frames} frames at {own.fps} fps",
        "sampling": f"{own.num_inference_steps} steps, {own.sampler}, guidance {own.guidance_scale:g}{few}",
        "latents": "x".join(map(str, latent)),
        "tokens": f"{tokens:,} video + {cfg.text_length} text",
        "transformer": f"{cfg.layers} layers, {cfg.heads} heads of {cfg.head_dim}, width {cfg.width}, {cfg.position}",
        **{f"{name} parameters": f"{count:,}" for name, count in counts.items()},
        "weights in 16 bit": f"{half / 1e9:.2f} GB (VAE in 32 bit)",
        "weights in 32 bit": f"{sum(counts.values()) * 4 / 1e9:.2f} GB",
        "trained in": spec.trained_dtype,
        "licence": licences.get(spec.name, "Apache-2.0" if spec.name in presets.SHIPPED else "see the model's own"),
    }
