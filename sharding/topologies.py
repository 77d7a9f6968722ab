"""Slices by name, and their devices, which need not be here: libtpu compiles for a TPU that nobody owns.

topology("v5e:2x4").devices()   # eight devices to compile for
topology("cpu:8").devices()     # eight virtual ones, which compute
"""

import dataclasses
import importlib.util
import os
from typing import Any

import jax

from cogvx_jax.chips import Chip, generations

MISSING = "compiling for a TPU topology needs libtpu, which works on machines without a TPU, too: pip install libtpu"


TOPOLOGIES = tuple(f"{name}:{shape}" for name, chip in generations().items() for shape in chip.shapes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A slice; `chip` is None where it is not a TPU's, and nothing is known of its time."""

    name: str
    chip: Chip | None

    def devices(self) -> list[Any]:
        """The slice's devices, to compile for.

        Raises: ValueError where libtpu is missing or held by another process, or there are too few virtual devices.
        """
        kind, _, shape = self.name.partition(":")
        if self.chip is not None:
            return _tpus(kind, shape)
        found = jax.devices("cpu")
        if len(found) < int(shape):
            flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={shape}"
            raise ValueError(f"{self.name} needs {shape} virtual devices, there are {len(found)}; set {flag}")
        return found[: int(shape)]


def topology(name: str) -> Topology:
    """A slice by its name, GENERATION:SHAPE, or cpu:N for virtual devices.

    Raises: ValueError that lists the known ones.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        return Topology(name=name, chip=None)
    if name not in TOPOLOGIES:
        known = "; ".join(f"{kind}: {', '.join(chip.shapes)}" for kind, chip in generations().items())
        raise ValueError(f"unknown topology {name!r}; the known ones are {known} (such as v5e:2x4), and cpu:N")
    return Topology(name=name, chip=generations()[kind])


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _tpus(kind: str, shape: str) -> list[Any]:
    if not has_libtpu():
        raise ValueError(MISSING)
    # Without them libtpu asks the host it takes itself to be on about its chips, and waits for an answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    single = shape == "1x1"
    try:
        found = topologies.get_topology_desc(f"{kind}:{'2x2' if single else shape}", platform="tpu").devices
    except Exception as error:  # of libtpu's, which are many
        reason = str(error).splitlines()[0]
        if "lockfile" in reason or "in use" in reason:
            reason = "another process holds libtpu; set ALLOW_MULTIPLE_LIBTPU_LOAD=1 to share it"
        raise ValueError(f"libtpu does not give {kind}:{shape}: {reason}") from error
    return list(found)[:1] if single else list(found)
