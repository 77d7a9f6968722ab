"""One program on several hosts: every process runs the same code and holds its own devices."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cogvx_jax.sharding.aborts import say_if_aborted
from cogvx_jax.sharding.coordinator import check_own_address, parse_address, wait_for_coordinator

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMEOUT = "COGVX_JOIN_TIMEOUT"  # of the environment: seconds in which all processes must have joined
LOST = (
    "another process of this run has ended, or can't be reached any more; see what it printed, then start all of them "
    "again (TF_CPP_MIN_LOG_LEVEL=0 shows JAX's own words)"
)


def initialize(*, heartbeat: int = 60, preemptible: bool = False) -> None:
    """Joins this process with the others of its run; before anything is computed.

    On TPU pods, GKE and Slurm they find each other; elsewhere the environment says where the first
    one listens (HOST:PORT), how many there are and which one this is, in `VARIABLES`. `TIMEOUT` bounds the time to wait
    for the others, 300 s if it is not set.

    When another process ends later, JAX aborts this one: it then says so and exits with status 2.

    Args:
      heartbeat: seconds after which a process that is not heard of is taken for dead; the others then end, too.
      preemptible: leaves SIGTERM to JAX, which tells all processes of it, as `train.preemption` needs.
    Raises: ValueError if only some of the variables are set, or are not what they should be; OSError if the others
      can't be reached in time. Where they can, but don't all join, the process says so and exits with status 2.
    """
    arguments, seconds = _arguments(), _timeout()
    began = time.monotonic()
    if arguments:
        _meet(arguments, seconds)
    left = max(1, round(seconds - (time.monotonic() - began)))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the default cannot leave the process
    jax.config.update("jax_enable_preemption_service", preemptible)
    say_if_aborted(_not_joined(arguments, seconds))
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=left, heartbeat_timeout_seconds=heartbeat)
        if jax.devices()[0].platform == "cpu":
            # A decode over several processes that came from jax's cache waited for ever (jaxlib 0.10.2).
            jax.config.update("jax_enable_compilation_cache", False)
    except (RuntimeError, ValueError) as error:
        if not arguments and not jax.distributed.is_initialized():
            raise ValueError(
                f"nothing here says which processes there are ({error}); set {', '.join(VARIABLES)}"
            ) from error
        raise
    say_if_aborted(LOST)


def first_process() -> bool:
    """Whether this is the one of several processes that writes and prints what all of them know."""
    return jax.process_index() == 0


def process_index() -> int:
    """Which of several processes this is, from 0."""
    return jax.process_index()


def of_first_process(values: Sequence[int]) -> list[int]:
    """The first process's numbers, in all of them, which must call this together with as many."""
    if jax.process_count() == 1:
        return list(values)
    return multihost_utils.broadcast_one_to_all(np.asarray(values, np.int32)).tolist()


def of_all(value: bool) -> bool:
    """Whether it is true in all processes, which must call this together."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value, np.int32)).all())


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` is the same in all."""
    multihost_utils.sync_global_devices(name)


def has_joined() -> bool:
    """Whether this process is one of several that compute together."""
    return jax.distributed.is_initialized()


def end_within(seconds: float, status: int) -> None:
    """Bounds the end of this process, which has failed: at exit JAX waits for the others, up to five minutes.

    So long they have to fail likewise, as where all of them are given the same wrong argument. Does nothing in a
    process that has joined no others.
    """
    if not has_joined():
        return
    with contextlib.suppress(OSError):
        say_if_aborted("")  # this process has said why it ends
    timer = threading.Timer(seconds, os._exit, [status])
    timer.daemon = True
    timer.start()


def _arguments() -> dict[str, Any]:
    """Of `jax.distributed.initialize`, from the environment; none where JAX finds them itself."""
    found = [os.environ.get(name) for name in VARIABLES]
    if not any(found):
        return {}
    missing = [name for name, value in zip(VARIABLES, found, strict=True) if not value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set, too, to join several processes")
    address, count, index = (str(value) for value in found)
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ValueError(f"JAX_PROCESS_ID is {index} of JAX_NUM_PROCESSES {count}; it counts from 0")
    address = str(parse_address(address))
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "300")
    if not (text.isdecimal() and 0 < int(text) < 10**6):
        raise ValueError(f"{TIMEOUT} must be a number of seconds, at least 1, got {text!r}")
    return float(text)


def _meet(arguments: dict[str, Any], seconds: float) -> None:
    """Checks that the first process can be reached, which JAX would not say of an address that leads nowhere."""
    address = parse_address(arguments["coordinator_address"])
    if arguments["process_id"]:
        wait_for_coordinator(address, seconds)
    elif not os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        check_own_address(address, seconds)


def _not_joined(arguments: dict[str, Any], seconds: float) -> str:
    count = arguments.get("num_processes")
    others = f"the {count} processes" if count else "all processes"
    where = f", JAX_COORDINATOR_ADDRESS {arguments['coordinator_address']}" if arguments else ""
    return (
        f"not {others} of this run have joined within {seconds:g} s; start each with the same JAX_NUM_PROCESSES{where} "
        "and a JAX_PROCESS_ID of its own"
    )
