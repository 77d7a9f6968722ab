"""How good a video is: measures of arrays of pixels or features, each one number a frame, a video or a set.

Names are imported when they are first asked for: those of pictures and features alone need no jax, which takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogvx_jax.metrics.bootstrap import bootstrap_mean
    from cogvx_jax.metrics.differences import flicker
    from cogvx_jax.metrics.features import clip_score, consistency
    from cogvx_jax.metrics.flickering import temporal_flickering
    from cogvx_jax.metrics.sets import frechet_distance, squared_mmd
    from cogvx_jax.metrics.similarity import psnr, ssim

__all__ = [
    "bootstrap_mean",
    "clip_score",
    "consistency",
    "flicker",
    "frechet_distance",
    "psnr",
    "squared_mmd",
    "ssim",
    "temporal_flickering",
]
_HOMES = {  # name -> its file
    "bootstrap_mean": "bootstrap",
    "clip_score": "features",
    "consistency": "features",
    "flicker": "differences",
    "frechet_distance": "sets",
    "psnr": "similarity",
    "squared_mmd": "sets",
    "ssim": "similarity",
    "temporal_flickering": "flickering",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
