"""One program on several hosts: every process runs the same code and holds its own devices."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(*, heartbeat: int = 60) -> None:
    """Joins this process with the others of its run; before anything is computed.

    On TPU pods, GKE and Slurm they find each other; elsewhere the environment says where the first
    one listens (HOST:PORT), how many there are and which one this is, in `VARIABLES`.

    Args:
      heartbeat: seconds after which a process that is not heard of is taken for dead; the others then end, too.
    Raises: ValueError if only some of the variables are set, or are not what they should be.
    """
    found = [os.environ.get(name) for name in VARIABLES]
    arguments: dict[str, Any] = {}
    if any(found):
        missing = [name for name, value in zip(VARIABLES, found, strict=True) if not value]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be set, too, to join several processes")
        address, count, index = (str(value) for value in found)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID is {index} of JAX_NUM_PROCESSES {count}; it counts from 0")
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the default cannot leave the process
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat)


def first_process() -> bool:
    """Whether this is the one of several processes that writes and prints what all of them know."""
    return jax.process_index() == 0


def of_first_process(values: Sequence[int]) -> list[int]:
    """The first process's numbers, in all of them, which must call this together with as many."""
    if jax.process_count() == 1:
        return list(values)
    return multihost_utils.broadcast_one_to_all(np.asarray(values, np.int32)).tolist()


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` is the same in all."""
    multihost_utils.sync_global_devices(name)
