"""Tells clips from their reconstructions, patch by patch: the adversary of the VAE's decoder, and its losses.

The paper says that the VAE was trained against a 3D discriminator, not which; the authors' code has several, and no
settings. This is the patch discriminator of pix2pix over time, too, as another family of video VAEs has it
(Open-Sora-Plan's `NLayerDiscriminator3D`).

Source: Isola et al. 2017, arXiv:1611.07004; Esser et al. 2021, arXiv:2012.09841; Lin et al. 2024, arXiv:2412.00131.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cogvx_jax.axes import constrain
from cogvx_jax.configs import DiscriminatorConfig
from cogvx_jax.nn.norms import GroupNorm
from cogvx_jax.nn.parameters import parameter

SLOPE = 0.2  # of the leaky ReLU
TIME_LAYERS = 2  # of the layers that halve height and width, how many halve time, too: the first ones
kernel_init = nn.initializers.normal(0.02)


class Discriminator(nn.Module):
    """Logits of patches of clips in [-1, 1], above 0 where they look real: (B, F, H, W, 3) -> (B, F / 4, H / 8, W / 8).

    Lengths are rounded up, so that 1 frame gives 1 and 17 give 5. With 3 layers the convolutions below a logit see
    31 frames and 47 pixels each way. Norms are by groups, not by the batch as in that family: a logit depends on its
    own clip alone.
    """

    cfg: DiscriminatorConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        act = functools.partial(nn.leaky_relu, negative_slope=SLOPE)
        for layer in range(cfg.layers + 1):
            width = cfg.width * min(2**layer, 8)
            last = layer == cfg.layers  # sees more of the clip, but shrinks it no further
            strides = (1, 1, 1) if last else (2 if layer < TIME_LAYERS else 1, 2, 2)
            x = Conv(width, strides, name=f"conv_{layer}")(x)
            if layer:  # the first one's input is pixels, whose range means something
                (x,) = GroupNorm(cfg.norm_groups, cfg.norm_eps, name=f"norm_{layer}")(x)
            x = act(x)
        return Conv(1, name="out")(x)[..., 0]


class Conv(nn.Module):
    """3x3x3 convolution with zeros around: (B, F, H, W, Ci) -> (B, F', H', W', C)."""

    features: int
    strides: tuple[int, int, int] = (1, 1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes, shape = (None, None, None, "conv_in", "conv_out"), (3, 3, 3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", kernel_init, axes, shape)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), ("conv_out",), (self.features,))
        y = lax.conv_general_dilated(
            x, kernel, self.strides, ((1, 1),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return constrain(y + lax.broadcast_to_rank(bias, y.ndim), "batch", "frames", "height", "width", None)


def hinge_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's: 0 where logits of clips are above 1 and those of reconstructions below -1; a scalar."""
    return 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))


def generator_loss(fake: jax.Array) -> jax.Array:
    """The VAE's: the lower, the more real its reconstructions look; a scalar."""
    return -jnp.mean(fake)
