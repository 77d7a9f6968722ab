"""How good a video is: measures of arrays of pixels, each one number a frame or a video."""

from cogvx_jax.metrics.flicker import flicker
from cogvx_jax.metrics.similarity import psnr, ssim

__all__ = ["flicker", "psnr", "ssim"]
