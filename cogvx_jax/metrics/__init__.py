"""How good a video is: measures of arrays of pixels or features, each one number a frame, a video or a set."""

from cogvx_jax.metrics.bootstrap import bootstrap_mean
from cogvx_jax.metrics.features import clip_score, consistency
from cogvx_jax.metrics.flicker import flicker
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
