"""Ranges of the numbers and words of a request, for the description of the API. `pipelines.options` checks them."""

from typing import Any

from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.pipelines.options import (
    MAX_CONTROL,
    MAX_DILATION,
    MAX_GUIDANCE,
    MAX_IMAGE_NOISE,
    MAX_SEED,
    MAX_STRIPS,
    POSITIONS,
)

_PART = {"minimum": 0, "maximum": 1}
BOUNDS: dict[str, dict[str, Any]] = {
    "guidance_scale": {"minimum": -MAX_GUIDANCE, "maximum": MAX_GUIDANCE},
    "enhance": {"minimum": -MAX_GUIDANCE, "maximum": MAX_GUIDANCE},
    "seed": {"minimum": -MAX_SEED, "maximum": MAX_SEED - 1},
    "image_noise": {"minimum": 0, "maximum": MAX_IMAGE_NOISE},
    "mask_dilation": {"minimum": 0, "maximum": MAX_DILATION},
    "strength": {"exclusiveMinimum": 0, "maximum": 1},
    "control_strength": {"minimum": 0, "maximum": MAX_CONTROL},
    "control_start": _PART,
    "control_end": _PART,
    "strips": {"minimum": 1, "maximum": MAX_STRIPS},
    "num_inference_steps": {"minimum": 1, "maximum": 1000},
    "steps": {"minimum": 1, "maximum": 1000},
    "num_frames": {"minimum": 1},
    "frames": {"minimum": 1},
    "fps": {"exclusiveMinimum": 0},
    "sampler": {"enum": list(SAMPLERS)},
    "positions": {"enum": list(POSITIONS)},
}
