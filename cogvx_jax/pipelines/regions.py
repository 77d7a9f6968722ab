"""Regions of a request: read and checked before any work."""

from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.regions import Region, box_mask, region_map
from cogvx_jax.pipelines.inputs import WHITE, grey_frames
from cogvx_jax.pipelines.options import Options, check_alone

OTHERS = {  # what a request with regions cannot have -> why
    "travel": "travel mixes the prompts of a whole clip",
    "edit": "an edit's clip is seen by one prompt",
    "controlnet": "a ControlNet sees one prompt",
    "reuse": "reuse leaves out what regions change",
    "guidance": "ways of guidance leave out what regions change",
}


class Regions(NamedTuple):
    """Prompts with regions, behind the video's own, which has what is left."""

    prompts: tuple[str, ...]
    latents: np.ndarray  # (T, h, w) int32, the prompt of each latent, 0 is the video's own; with its padding


def read_regions(spec: ModelSpec, asked: Options, frames: int, shape: tuple[int, ...], padding: int) -> Regions | None:
    """The regions of a video of so many frames; None where there are none.

    Args:
      shape: of its latents, (T, h, w, C), of which `padding` in front are no frames.
    Raises: ValueError, one sentence, for a model or options that have none, or for a region that covers no token;
      OSError.
    """
    regions: Any = asked.region
    if not regions:
        return None
    check_positions(spec)
    cfg, vae = spec.transformer, spec.vae
    check_alone("regions", OTHERS, vars(asked))
    count, patch_t = shape[0] // (cfg.patch_t or 1), cfg.patch_t or 1
    grid = count, shape[1] // cfg.patch, shape[2] // cfg.patch
    per_token = vae.temporal_compression * patch_t
    first = 1 + vae.temporal_compression * (patch_t - 1 - padding)
    height, width = shape[1] * vae.spatial_compression, shape[2] * vae.spatial_compression
    masks = [_mask(one, frames, height, width, shared=asked.extend is not None) for one in regions]
    tokens = region_map(masks, grid, per_token, first)
    for number, region in enumerate(regions, 1):
        if not np.any(tokens == number):
            raise ValueError(f"the region of {region.prompt[:40]!r} covers no token of {height}x{width}, or is covered")
    for axis, size in enumerate((patch_t, cfg.patch, cfg.patch)):
        tokens = np.repeat(tokens, size, axis=axis)
    return Regions(tuple(region.prompt for region in regions), tokens)


def check_positions(spec: ModelSpec) -> None:
    """Raises: ValueError for a model whose positions are for a certain number of text tokens."""
    cfg = spec.transformer
    if cfg.position in ("sincos", "rope+learned"):
        raise ValueError(
            f"regions lengthen the text, and {spec.name} has positions for exactly {cfg.text_length} text tokens; use "
            "a model of rotary positions alone, such as 5B or 1.5, or leave them out"
        )


def _mask(region: Region, frames: int, height: int, width: int, *, shared: bool) -> np.ndarray:
    """(1 or F, H, W) bool, of its own size where it is a picture.

    Args:
      shared: by all segments of a video to extend, none of which is the whole.
    """
    if region.box is not None:
        return box_mask(region.box, height, width)
    grey = grey_frames(region.place, frames + 1)  # one more tells whether there are more
    if shared and len(grey) > 1:
        raise ValueError(
            f"the region of {region.prompt[:40]!r} has several frames, and segments of a video to extend share their "
            "regions; give a box or a picture"
        )
    if len(grey) not in (1, frames):
        found = f"more than {frames}" if len(grey) > frames else str(len(grey))
        raise ValueError(
            f"the region of {region.prompt[:40]!r} has {found} frames, the video {frames}; give as many, or one picture"
        )
    return grey >= WHITE
