"""Torch's side of `benchmark_finish`: the authors' networks as functions of their tensors, in float32.

Each function takes tensors by their published names and pictures (1, H, W, 3), and gives a function that computes.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], Any]
Tensors = dict[str, np.ndarray]


def compact(tensors: Tensors, picture: np.ndarray) -> Run:
    """`SRVGGNetCompact`, x4."""
    import torch
    from torch.nn import functional as F

    t, x = _torch(tensors), _first(picture)
    last = max(int(name.split(".")[1]) for name in t)

    def run():
        with torch.inference_mode():
            y = x
            for i in range(0, last, 2):
                y = F.prelu(_conv(t, f"body.{i}", y), t[f"body.{i + 1}.weight"])
            y = F.pixel_shuffle(_conv(t, f"body.{last}", y), 4)
            return y + F.interpolate(x, scale_factor=4, mode="nearest")

    return run


def dense(tensors: Tensors, picture: np.ndarray) -> Run:
    """`RRDBNet`, x4."""
    import torch
    from torch.nn import functional as F

    t, x = _torch(tensors), _first(picture)
    blocks = 1 + max(int(name.split(".")[1]) for name in t if name.startswith("body."))

    def inner(name, y):
        seen = [y]
        for k in range(1, 5):
            seen.append(F.leaky_relu(_conv(t, f"{name}.conv{k}", torch.cat(seen, 1)), 0.2))
        return y + 0.2 * _conv(t, f"{name}.conv5", torch.cat(seen, 1))

    def run():
        with torch.inference_mode():
            first = y = _conv(t, "conv_first", x)
            for i in range(blocks):
                y = y + 0.2 * functools.reduce(lambda z, n: inner(f"body.{i}.rdb{n}", z), (1, 2, 3), y)
            y = first + _conv(t, "conv_body", y)
            for name in ("conv_up1", "conv_up2"):
                y = F.leaky_relu(_conv(t, name, F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
            return _conv(t, "conv_last", F.leaky_relu(_conv(t, "conv_hr", y), 0.2))

    return run


def rife(tensors: Tensors, first: np.ndarray, second: np.ndarray) -> Run:
    """`IFNet` of HDv3 at scales 4, 2, 1."""
    import torch
    from torch.nn import functional as F

    t, a, b = _torch(tensors), _first(first), _first(second)
    height, width = a.shape[2:]
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy"), -1)
    resize = functools.partial(F.interpolate, mode="bilinear", align_corners=False, recompute_scale_factor=False)

    def layer(name, x, stride=1):
        return F.prelu(_conv(t, f"{name}.0", x, stride), t[f"{name}.1.weight"])

    def head(name, x):
        y = F.conv_transpose2d(x, t[f"{name}.0.weight"], t[f"{name}.0.bias"], 2, 1)
        y = F.prelu(y, t[f"{name}.1.weight"])
        return F.conv_transpose2d(y, t[f"{name}.2.weight"], t[f"{name}.2.bias"], 2, 1)

    def step(name, x, flow, scale):
        y = torch.cat([resize(x, scale_factor=1 / scale), resize(flow, scale_factor=1 / scale) / scale], 1)
        y = layer(f"{name}.conv0.1", layer(f"{name}.conv0.0", y, 2), 2)
        for i in range(4):
            y = layer(f"{name}.convblock{i}.1", layer(f"{name}.convblock{i}.0", y)) + y
        flow, mask = (resize(head(f"{name}.{which}", y), scale_factor=scale) for which in ("conv1", "conv2"))
        return flow * scale, mask

    def warp(x, flow):
        own = flow.permute(0, 2, 3, 1) / torch.tensor([(width - 1) / 2, (height - 1) / 2])
        return F.grid_sample(x, grid[None] + own, mode="bilinear", padding_mode="border", align_corners=True)

    def run():
        with torch.inference_mode():
            flow, mask, warped = torch.zeros(1, 4, height, width), torch.zeros(1, 1, height, width), (a, b)
            for i, scale in enumerate((4, 2, 1)):
                swapped = torch.cat([flow[:, 2:], flow[:, :2]], 1)
                f0, m0 = step(f"block{i}", torch.cat([*warped, mask], 1), flow, scale)
                f1, m1 = step(f"block{i}", torch.cat([*warped[::-1], -mask], 1), swapped, scale)
                flow = flow + (f0 + torch.cat([f1[:, 2:], f1[:, :2]], 1)) / 2
                mask = mask + (m0 - m1) / 2
                warped = warp(a, flow[:, :2]), warp(b, flow[:, 2:])
            part = torch.sigmoid(mask)
            return warped[0] * part + warped[1] * (1 - part)

    return run


def _torch(tensors: Tensors) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def _first(picture: np.ndarray) -> Any:
    """Channels first, as torch has them."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(picture.transpose(0, 3, 1, 2)))


def _conv(t: dict[str, Any], name: str, x: Any, stride: int = 1) -> Any:
    from torch.nn import functional as F

    return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride, 1)
