"""The devices that a plan is for, those of a slice or those that are here, and the meshes that make sense on them."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax.chips import Chip
from cogvx_jax.nn.backend import platform_of
from cogvx_jax.sharding.topologies import Topology, topology

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices that are all alike."""

    name: str
    devices: tuple[Any, ...]
    platform: str
    topology: Topology | None
    device_gb: float | None = None  # in place of what a device has

    @property
    def slice_chip(self) -> Chip | None:
        """The chip of a TPU slice by name; None for the devices that are here, whose clock nobody knows."""
        return None if self.topology is None else self.topology.chip

    @property
    def memory(self) -> float | None:
        if self.device_gb is not None:
            return self.device_gb * 1e9 / GIB
        if self.slice_chip is not None:
            return self.slice_chip.memory
        stats = self.devices[0].memory_stats() if self.topology is None else None
        return stats["bytes_limit"] / GIB if stats and "bytes_limit" in stats else None


def find_target(name: str | None, mesh: Mesh | None = None, device_gb: float | None = None) -> Target:
    """A slice by its name, or the devices that are here; of either, those of a mesh."""
    if device_gb is not None and not 0 < device_gb < math.inf:
        raise ValueError(f"the memory of a device must be a positive number of GB, got {device_gb:g}")
    slice_ = None if name is None else topology(name)
    devices = tuple(jax.devices() if slice_ is None else slice_.devices())
    devices = devices if mesh is None else tuple(mesh.devices.flat)
    return Target(
        name=name or f"{len(devices)} x {devices[0].device_kind}",
        devices=devices,
        platform=platform_of(devices[0]),
        topology=slice_,
        device_gb=device_gb,
    )


def candidates(heads: int, devices: int, videos: int, *, guided: bool) -> Iterator[dict[str, int]]:
    """Meshes that make sense for so many devices, best first: axis -> size, those above 1.

    Videos side by side talk least, then the branches of guidance; tokens are traded for heads as far as
    those divide, and beyond that keys and values are gathered. Weights are copied to all devices first, then
    split over more and more of them. Tensor parallelism is left out: it fits no more than that, and is slower.
    """
    data = math.gcd(videos, devices)
    cfg = 2 if guided and devices // data % 2 == 0 else 1
    for branches in dict.fromkeys((cfg, 1)):
        rest = devices // data // branches
        for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
            sp = math.gcd(heads, rest // fsdp)
            sizes = {"data": data, "fsdp": fsdp, "cfg": branches, "context": rest // fsdp // sp, "sp": sp}
            if branches == cfg or fsdp == rest:  # without the branches' axis only to split weights further
                yield {axis: size for axis, size in sizes.items() if size > 1}
