"""Convolutions of the video VAE, channels-last, each with its equal but faster rewrites.

Shapes: B batch, F frames, H W pixels, C channels. Kernels are (t, h, w, in, out) or (h, w, in, out).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cogvx_jax.axes import constrain
from cogvx_jax.nn.backend import formulations
from cogvx_jax.nn.parameters import parameter

# torch draws convolution weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); this has that variance.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Above this many pixels a frame, XLA's 3-D convolution loses to three 2-D ones on TPUs.
TPU_CONV3D_PIXELS = 120 * 180


class CausalConv(nn.Module):
    """3x3x3 convolution that sees no later frame: (B, F, H, W, Ci) -> (B, F, H, W, C).

    Space is padded with zeros. Two earlier frames come from `cache`, or are copies of the first
    frame. Returns the result and the cache for the frames that follow: the last two frames seen.
    With `edges` the first and the last row of what comes in take the place of zeros: the result has none for them.
    """

    features: int
    dtype: str = "float32"
    edges: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        kernel = parameter(
            self,
            "kernel",
            kernel_init,
            (None, None, None, "conv_in", "conv_out"),
            (3, 3, 3, x.shape[-1], self.features),
        )
        x = x.astype(self.dtype)
        before = jnp.repeat(x[:, :1], 2, axis=1) if cache is None else cache.astype(self.dtype)
        y, seen = causal_conv(before, x, kernel, edges=self.edges)
        y = constrain(_plus_bias(self, y), "batch", "frames", "height", "width", None)
        return y, seen[:, -2:]


class FrameConv(nn.Module):
    """3x3 convolution of each frame: (B, F, H, W, Ci) -> (B, F, H', W', C).

    With `stride` 2 one row of zeros is added below and one column to the right, as the reference
    does; otherwise one on every side. With `upsample` each pixel is first repeated twice each way.
    With `edges` a row more comes in at either end in place of zeros: the result has none for it at `stride` 2, and one
    row, of the two that it would have, with `upsample`.
    """

    features: int
    stride: int = 1
    upsample: bool = False
    dtype: str = "float32"
    edges: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(
            self, "kernel", kernel_init, (None, None, "conv_in", "conv_out"), (3, 3, x.shape[-1], self.features)
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.upsample:
            y = upsample_conv(x, kernel)
            y = y[:, :, 1:-1] if self.edges else y  # the outermost rows saw zeros
        elif self.edges and self.stride == 2:
            y = per_frame(x[:, :, 1:], kernel, strides=2, padding=(0, 1), rows=(0, 0))
        else:
            y = per_frame(x, kernel, strides=self.stride, padding=(0 if self.stride == 2 else 1, 1))
        return constrain(_plus_bias(self, y), "batch", "frames", "height", "width", None)


class Pointwise(nn.Module):
    """1x1x1 convolution: (..., Ci) -> (..., C)."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", kernel_init, ("conv_in", "conv_out"), (x.shape[-1], self.features))
        return _plus_bias(self, x.astype(self.dtype) @ kernel.astype(self.dtype))


def causal_conv(
    before: jax.Array, x: jax.Array, kernel: jax.Array, *, edges: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(B, 2, H, W, Ci), (B, F, H, W, Ci) with (3, 3, 3, Ci, C) -> (B, F, H, W, C), and frames seen, at least two.

    Zeros lie around each frame; with `edges` none above and below: (B, F, H - 2, W, C). The kernel is cast.
    """
    rows = (0, 0) if edges else (1, 1)
    choice = formulations().causal_conv
    if choice == "by_frame":
        return _by_frame(before, x, kernel.astype(x.dtype), rows)
    if choice == "by_size":
        choice = "conv3d" if x.shape[2] * x.shape[3] <= TPU_CONV3D_PIXELS else "conv2d"
    x = jnp.concatenate([before, x], axis=1)
    return (_conv3d if choice == "conv3d" else _by_tap)(x, kernel.astype(x.dtype), rows), x


def _conv3d(x: jax.Array, kernel: jax.Array, rows: tuple[int, int]) -> jax.Array:
    """(B, F + 2, H, W, Ci) -> (B, F, H, W, C), with `rows` of zeros above and below each frame."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), ((0, 0), rows, (1, 1)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _by_tap(x: jax.Array, kernel: jax.Array, rows: tuple[int, int]) -> jax.Array:
    """As `_conv3d`: a 2-D convolution of all frames for each of the three taps in time."""
    frames = x.shape[1] - 2
    taps = (per_frame(x[:, t : t + frames], kernel[t], padding=(1, 1), rows=rows) for t in range(3))
    return functools.reduce(jnp.add, taps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_frame(before: jax.Array, x: jax.Array, kernel: jax.Array, rows: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """`causal_conv`, a frame of the result at a time: the frames that it is made of stay in a CPU's cache.

    A result of the shape of `x` takes its place, frame by frame: else XLA holds room for the results of many layers
    from the beginning. Gradients are those of `_by_tap`: a loop would keep every frame of `x` three times for them.
    """
    size = x.shape[2] + sum(rows) - 2, x.shape[3], kernel.shape[-1]
    shape = (*x.shape[:2], *size)

    def step(f: jax.Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, y, first, second = state
        third = lax.dynamic_slice_in_dim(x, f, 1, axis=1)
        frame = _by_tap(jnp.concatenate([first, second, third], axis=1), kernel, rows)
        if y is None:
            return lax.dynamic_update_slice_in_dim(x, frame, f, axis=1), y, second, third
        return x, lax.dynamic_update_slice_in_dim(y, frame, f, axis=1), second, third

    y = None if shape == x.shape else lax.empty(shape, x.dtype)
    x, y, *last = lax.fori_loop(0, x.shape[1], step, (x, y, before[:, :1], before[:, 1:]))
    return x if y is None else y, jnp.concatenate(last, axis=1)


def _by_frame_forward(before, x, kernel, rows):
    return _by_frame(before, x, kernel, rows), (before, x, kernel)


def _by_frame_backward(rows, kept, gradients):
    def by_tap(before, x, kernel):
        x = jnp.concatenate([before, x], axis=1)
        return _by_tap(x, kernel, rows), x[:, -2:]

    _, pull = jax.vjp(by_tap, *kept)
    return pull(gradients)


_by_frame.defvjp(_by_frame_forward, _by_frame_backward)


def per_frame(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: tuple[int, int],
    rows: tuple[int, int] | None = None,
    **dilation,
) -> jax.Array:
    """2-D convolution of every frame; `padding` is (before, after) for width, and for height without `rows`."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        (strides, strides),
        (padding if rows is None else rows, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **dilation,
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest x2 in height and width, then a 3x3 convolution: (B, F, H, W, C) -> (B, F, 2H, 2W, C).

    A repeated pixel meets the sum of the taps that cover it, so the same result comes from smaller
    convolutions at low resolution: "phase" computes each of the four positions in a 2x2 block with
    its own 2x2 kernel, "dilated" spreads the input with zeros under one 4x4 kernel.
    """
    choice = formulations().upsample_conv
    if choice == "repeat":
        return per_frame(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), kernel, padding=(1, 1))
    if choice == "dilated":
        # Each input pixel reaches a 2x2 block, then 3x3 around it: a 4x4 kernel, the box of ones
        # convolved with the taps.
        shifts = (((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)) for i in range(2) for j in range(2))
        spread = functools.reduce(jnp.add, (jnp.pad(kernel, shift) for shift in shifts))
        return per_frame(x, spread, padding=(2, 2), lhs_dilation=(2, 2))
    # "phase": rows of output 2i + p read input rows i + p - 1 and i + p.
    rows = [jnp.stack([kernel[0], kernel[1] + kernel[2]]), jnp.stack([kernel[0] + kernel[1], kernel[2]])]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[2:4]
    phases = []
    for p in range(2):
        for q in range(2):
            taps = rows[p]
            columns = [
                jnp.stack([taps[:, 0], taps[:, 1] + taps[:, 2]], axis=1),
                jnp.stack([taps[:, 0] + taps[:, 1], taps[:, 2]], axis=1),
            ][q]
            window = padded[:, :, p : p + height + 1, q : q + width + 1]
            phases.append(per_frame(window, columns, padding=(0, 0)))
    y = jnp.stack(phases, axis=-2).reshape(*x.shape[:4], 2, 2, kernel.shape[-1])  # (B, F, H, W, 2, 2, C)
    return y.transpose(0, 1, 2, 4, 3, 5, 6).reshape(*x.shape[:2], 2 * height, 2 * width, -1)


def _plus_bias(module: nn.Module, y: jax.Array) -> jax.Array:
    """(..., C) plus the module's own bias (C,), in y's type."""
    bias = parameter(module, "bias", nn.initializers.zeros_init(), ("conv_out",), y.shape[-1:])
    return y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
