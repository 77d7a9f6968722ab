"""Meshes with this project's axes, laid out by the hardware's topology."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

# Slowest links first: what talks least stands first, so that it is what crosses hosts and slices.
MESH_AXES = (
    "data",  # videos
    "fsdp",  # weights, gathered layer by layer; of activations videos, else tokens
    "cfg",  # the two branches of guidance
    "context",  # tokens; keys and values are gathered
    "sp",  # tokens; traded for heads by all-to-all
    "tensor",  # heads and MLP features
)


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    cfg: int = 1,
    context: int = 1,
    sp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of all devices, neighbours on the axes that talk most; several TPU slices split the first axes.

    Args:
      data: videos side by side.
      fsdp: ways the weights are split for storage; the same devices share videos or, with too few, tokens.
      cfg: 2 computes the two branches of guidance side by side.
      context: ways the tokens are split, keys and values gathered. Any number of heads.
      sp: ways the tokens are split, traded for heads around attention (Ulysses). Heads that do not
        divide are padded.
      tensor: ways heads and MLP features are split.
      devices: instead of all of `jax.devices()`.
    Raises: ValueError where the product is not the number of devices, or cfg is not 1 or 2.
    """
    sizes = {"data": data, "fsdp": fsdp, "cfg": cfg, "context": context, "sp": sp, "tensor": tensor}
    devices = list(jax.devices() if devices is None else devices)
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"the mesh axis {name} has size {size!r}; sizes are whole numbers, 1 or more")
    if cfg > 2:
        raise ValueError(f"cfg is {cfg}, but guidance has only 2 branches")
    if math.prod(sizes.values()) != len(devices):
        shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1"
        raise ValueError(f"the mesh {shown} is for {math.prod(sizes.values())} devices, there are {len(devices)}")
    shape = [sizes[name] for name in MESH_AXES]
    return Mesh(_arrange(shape, devices), MESH_AXES)


def _arrange(shape: list[int], devices: list[jax.Device]) -> np.ndarray:
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        if devices[0].platform != "tpu":
            return np.array(devices).reshape(shape)  # in the order of hosts
        return mesh_utils.create_device_mesh(shape, devices)
    across, left = [], slices  # slices are shared out to the first axes
    for size in shape:
        part = math.gcd(size, left)
        across.append(part)
        left //= part
    if left > 1:
        raise ValueError(f"{slices} slices do not divide the mesh {shape}; make data or fsdp a multiple of {slices}")
    within = [size // part for size, part in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices)


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of "cfg=2,sp=4"; `devices` as for `make_mesh`.

    Raises: ValueError for what is not of that form, an unknown axis, or the wrong number of devices.
    """
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in MESH_AXES or not size.isdecimal() or name in sizes:
            known = ", ".join(MESH_AXES)
            raise ValueError(f"{text!r} is not a mesh such as 'cfg=2,sp=4'; its axes are {known}, each at most once")
        sizes[name] = int(size)
    return make_mesh(**sizes, devices=devices)


def format_mesh(sizes: Mapping[str, int]) -> str:
    """What `parse_mesh` reads, of axis -> size; without an axis above 1, "one device"."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


def auto(mesh: Mesh) -> Mesh:
    """The same devices and names, with axes that the compiler may use freely, whatever the caller's say."""
    return Mesh(mesh.devices, mesh.axis_names)
