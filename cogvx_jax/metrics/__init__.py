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
_FILES = {
    "bootstrap": ("bootstrap_mean",),
    "differences": ("flicker",),
    "features": ("clip_score", "consistency"),
    "flickering": ("temporal_flickering",),
    "sets": ("frechet_distance", "squared_mmd"),
    "similarity": ("psnr", "ssim"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value
