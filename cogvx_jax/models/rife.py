"""RIFE HDv3, which makes the picture in the middle of two: a flow in three steps, coarse to fine, and a blend.

A step estimates how the flow from the middle to either picture changes, at a part of the size, once forward and once
with the pictures swapped; the mean of both is taken. It knows the middle alone: other moments are middles of middles.

Shapes: B pairs, H W pixels, C channels; 2B stands for pairs and the same pairs swapped.

Source: Huang et al. 2022, arXiv:2011.06294; `train_log/IFNet_HDv3.py` of version 3.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.nn.conv2d import Conv2D, PReLU, TransposedConv2D
from cogvx_jax.nn.resize import resize_linear

SCALES = (4, 2, 1)  # of the steps, in full-size pixels to one; all doubled for pictures of 4K
PIXELS = ("batch", "height", "width", None)
PAIRS = 4  # of residual convolutions in a step
QUARTER = 4  # of a step's pixels, each way, for one of its residual convolutions
HEADS = {"flow": 4, "mask": 1}  # channels


class Middle(NamedTuple):
    """What the network finds.

    picture: (B, H, W, 3) float32.
    flow: (B, H, W, 4) float32 pixels: x and y to where the first picture is looked up, then the same of the second.
    mask: (B, H, W, 1) float32: the first picture's part, 0 to 1.
    """

    picture: jax.Array
    flow: jax.Array
    mask: jax.Array


class RIFE(nn.Module):
    """Pictures (B, H, W, 3) in [0, 1] and as many that follow them -> `Middle`. H and W are multiples of `multiple`."""

    width: int = 90
    scales: tuple[int, ...] = SCALES
    dtype: str = "float32"

    @property
    def multiple(self) -> int:
        """Of pixels."""
        return 8 * self.scales[0]  # as the reference pads; half of it would do

    @property
    def multiplications(self) -> int:
        """Of one pixel of a pair, each with an addition."""
        w, h = self.width, self.width // 2
        convs = 9 * (11 * h / 4 + h * w / 16 + 2 * PAIRS * w * w / 16)
        heads = 16 * (2 * w * h / 16 + 5 * h / 4)
        return round(sum(2 * (convs + heads) / scale**2 for scale in self.scales))

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> Middle:
        # A flow may point anywhere, so devices that share a pair have all of both pictures.
        first, second = (constrain(x.astype(jnp.float32), "batch", None, None, None) for x in (first, second))
        flow, mask = (constrain(jnp.zeros((*first.shape[:3], n)), *PIXELS) for n in (4, 1))
        warped = first, second
        for i, scale in enumerate(self.scales):
            step = FlowStep(self.width, self.dtype, name=f"block{i}")
            # What is of full size takes 33 MB a channel at 4K: the swapped pair is made of what is small already.
            small = [_smaller(x, scale) for x in (*warped, mask, flow)]
            change, gain = step(small[0], small[1], small[2], small[3] / scale)
            flow = constrain(flow + _larger(change, first, scale) * scale, *PIXELS)
            mask = constrain(mask + _larger(gain, first, scale), *PIXELS)
            warped = warp(first, flow[..., :2]), warp(second, flow[..., 2:])
        part = nn.sigmoid(mask)
        return Middle(warped[0] * part + warped[1] * (1 - part), flow, part)


class FlowStep(nn.Module):
    """What a step changes, at its own size: flow (B, h, w, 4), in its pixels, and mask (B, h, w, 1)."""

    width: int
    dtype: str

    def setup(self):
        layers = {}
        for i, features in enumerate((self.width // 2, self.width)):
            layers[f"down{i}"] = Conv2D(features, 2, dtype=self.dtype)
        for pair, i in itertools.product(range(PAIRS), range(2)):
            layers[f"pair{pair}_{i}"] = Conv2D(self.width, dtype=self.dtype)
        activated = [*layers, *HEADS]
        for head, features in HEADS.items():
            layers[f"{head}0"] = TransposedConv2D(self.width // 2, dtype=self.dtype)
            layers[f"{head}1"] = TransposedConv2D(features, dtype=self.dtype)
        for name, layer in (layers | {f"{name}_act": PReLU() for name in activated}).items():
            setattr(self, name, layer)

    def __call__(
        self, first: jax.Array, second: jax.Array, mask: jax.Array, flow: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of both pictures as they are warped so far (B, h, w, 3), the mask (B, h, w, 1) and the flow (B, h, w, 4)."""
        return joined(*self.heads(self.residual(self.down(seen_both_ways(first, second, mask, flow)))))

    def down(self, seen: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """(2B, h, w, 11) -> (2B, h / 4, w / 4, C).

        Args:
          inside: (1, h / 2, 1, 1), which of a strip's rows are of the picture; of others the next one sees zeros.
        """
        y = _within(self.down0_act(self.down0(seen)), inside)
        return self.down1_act(self.down1(y))

    def residual(self, y: jax.Array) -> jax.Array:
        """(2B, h / 4, w / 4, C) -> the same shape."""
        for pair in range(PAIRS):
            inner = y
            for name in (f"pair{pair}_{i}" for i in range(2)):
                inner = getattr(self, f"{name}_act")(getattr(self, name)(inner))
            y = y + inner
        return y

    def heads(self, y: jax.Array, inside: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(2B, h / 4, w / 4, C) -> flow (2B, h, w, 4) and mask (2B, h, w, 1), float32; `inside` as for `down`."""
        found = []
        for head in HEADS:
            z = _within(getattr(self, f"{head}_act")(getattr(self, f"{head}0")(y)), inside)
            found.append(getattr(self, f"{head}1")(z).astype(jnp.float32))
        return found[0], found[1]


def seen_both_ways(first: jax.Array, second: jax.Array, mask: jax.Array, flow: jax.Array) -> jax.Array:
    """What a step sees of pairs, then of the same pairs swapped: (2B, h, w, 11)."""
    seen = jnp.concatenate([first, second, mask, flow], axis=-1)
    return jnp.concatenate([seen, jnp.concatenate([second, first, -mask, _swapped(flow)], axis=-1)])


def joined(flow: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of what was found of pairs and of the same pairs swapped: (2B, h, w, C) -> (B, h, w, C) each."""
    (forward, backward), (gained, lost) = jnp.split(flow, 2), jnp.split(mask, 2)
    return (forward + _swapped(backward)) / 2, (gained - lost) / 2


def _within(x: jax.Array, inside: jax.Array | None) -> jax.Array:
    return x if inside is None else jnp.where(inside, x, 0)


def warp(picture: jax.Array, flow: jax.Array) -> jax.Array:
    """Looks every pixel up where its flow points, between pixels by their distance, beyond the border on the border.

    Args:
      picture: (B, H, W, C).
      flow: (B, H, W, 2) pixels, x and y.
    Returns: (B, H, W, C).
    """
    _, height, width, _ = picture.shape
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]
    look = jax.vmap(lambda one, row, column: one[row, column])
    return look_up(functools.partial(look, picture), rows + flow[..., 1], columns + flow[..., 0], (height, width))


def look_up(
    look: Callable[[jax.Array, jax.Array], jax.Array], y: jax.Array, x: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """Pixels (..., C) at places between pixels, (...) rows and columns, of a picture of so many rows and columns.

    Args:
      look: of integers (...), rows and columns inside of the picture, the pixels.
    """
    y, x = jnp.clip(y, 0, size[0] - 1), jnp.clip(x, 0, size[1] - 1)
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, size[0] - 1), jnp.minimum(left + 1, size[1] - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]
    above = look(top, left) * (1 - across) + look(top, right) * across
    below = look(bottom, left) * (1 - across) + look(bottom, right) * across
    return above * (1 - down) + below * down


def _swapped(flow: jax.Array) -> jax.Array:
    return jnp.concatenate([flow[..., 2:], flow[..., :2]], axis=-1)


def _larger(x: jax.Array, like: jax.Array, scale: int) -> jax.Array:
    return resize_linear(x, {1: like.shape[1], 2: like.shape[2]}) if scale > 1 else x


def _smaller(x: jax.Array, scale: int) -> jax.Array:
    """(B, H, W, C) -> (B, H / scale, W / scale, C): the mean of the two middle pixels each way, for an even scale."""
    for axis in (1, 2) if scale > 1 else ():
        shape = (*x.shape[:axis], x.shape[axis] // scale, scale, *x.shape[axis + 1 :])
        middle = jax.lax.slice_in_dim(x.reshape(shape), scale // 2 - 1, scale // 2 + 1, axis=axis + 1)
        x = jnp.mean(middle, axis=axis + 1)
    return x
