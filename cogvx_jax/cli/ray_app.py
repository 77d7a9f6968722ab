"""The server as an application of Ray Serve: replicas of the same app, and workers that Ray keeps alive.

    serve run cogvx_jax.cli.ray_app:build model=5b queue=postgresql+psycopg://... store=/shared replicas=2

Replicas hold no state; jobs lie in the queue, which outlives the cluster. A worker is an actor with a process of
`cogvx work`; on a TPU slice it is one actor on each host, all reserved together.
"""

import asyncio
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import ray
import tyro
from ray import serve
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cogvx_jax.cli.errors import sentence
from cogvx_jax.cli.options import GivenFlags, ModelFlags
from cogvx_jax.cli.serve import ServeFlags, app_of, check_flags, enhancer_of
from cogvx_jax.cli.work import NO_FLAG, WorkFlags
from cogvx_jax.cli.worker_processes import STOP, words_of
from cogvx_jax.given import Given

if TYPE_CHECKING:
    from fastapi import FastAPI

RESERVE = 1800.0  # seconds to wait for a slice, which may have to be started first
HEALTH = 5.0  # seconds between two looks whether workers live


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayFlags(ServeFlags):
    """What Ray adds to `cogvx serve`.

    Args:
      replicas: of the server; `workers` is the count of workers beside them.
      topology: of the TPU slice that a worker has, such as 4x4; None is a worker without TPUs.
      accelerator: its generation, such as v6e.
    """

    # Ray listens, and starts what runs: on a slice, processes that work together.
    distributed: Annotated[bool, *NO_FLAG] = ServeFlags.distributed
    host: Annotated[str, *NO_FLAG] = ServeFlags.host
    port: Annotated[int, *NO_FLAG] = ServeFlags.port
    new_key: Annotated[str | None, *NO_FLAG] = ServeFlags.new_key
    until_idle: Annotated[bool, *NO_FLAG] = ServeFlags.until_idle
    replicas: int = 2
    topology: str | None = None
    accelerator: str = "v6e"


class Asked:
    """The flags that a mapping of names and values gives. Raises: ValueError."""

    def __init__(self, arguments: Mapping[str, Any]):
        words = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
        try:
            self.run, self.about = tyro.cli(_flags, prog="ray_app:build", args=words)
        except SystemExit:
            raise ValueError("an argument is not one of `cogvx serve`, nor of Ray; what is wrong is above") from None
        check_flags(self.run)
        if not 1 <= self.run.replicas <= 1000:
            raise ValueError(f"replicas must be from 1 to 1000, got {self.run.replicas}")
        if self.run.topology is not None and self.run.mesh is None:
            raise ValueError("a slice needs mesh, such as mesh=auto: without one, every host would work on its own")


def _flags(
    *,
    run: Annotated[RayFlags, tyro.conf.OmitArgPrefixes] = RayFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> tuple[RayFlags, Given]:
    return run, given.checked()


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, of flags of `cogvx serve` and `RayFlags` by name, such as {"model": "5b", "replicas": "2"}.

    The queue may come from the variable COGVX_QUEUE in place of an argument, which Ray's status page shows.
    Raises: ValueError for what cannot be served.
    """
    asked = Asked(arguments)
    environment = {name: os.environ[name] for name in ("COGVX_QUEUE",) if name in os.environ}
    how: dict[str, Any] = {"ray_actor_options": {"runtime_env": {"env_vars": environment}}}
    workers = asked.run.workers
    crews = [CREW.options(num_replicas=workers, **how).bind(arguments)] if workers else []
    return API.options(num_replicas=asked.run.replicas, **how).bind(arguments, *crews)


class Api:
    """A replica of the server. `crews` are only there for Ray to start them, too."""

    def __init__(self, arguments: dict[str, Any], *crews: Any):
        self._arguments = arguments

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from cogvx_jax.serving.keys import Keys

        os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators are the workers'
        asked = Asked(self._arguments)
        return app_of(asked.run, asked.about, Keys(asked.run.keys), enhancer_of(asked.run.model, asked.about))


class Crew:
    """A worker, which begins and ends as a whole: where one of its processes ends, Ray makes another crew."""

    def __init__(self, arguments: dict[str, Any]):
        self._slice: Any = None
        self._hosts: list[Any] = []
        asked = Asked(arguments)
        if asked.run.topology is None:
            self._hosts = [HOST.remote()]
        else:
            self._slice = reserve(asked.run.topology, asked.run.accelerator)
            self._hosts = list(on_slice(self._slice))
        flags = dataclasses.replace(asked.run, distributed=len(self._hosts) > 1)
        command = [sys.executable, "-m", "cogvx_jax.cli", "work", *words_of(flags, WorkFlags)]
        start(self._hosts, [*command, *words_of(asked.about, Given)], {"COGVX_QUEUE": asked.run.url})

    async def check_health(self) -> None:
        """Raises RuntimeError where a process has ended."""
        for status in await asyncio.gather(*(host.status.remote() for host in self._hosts)):
            if status is not None:
                raise RuntimeError(f"a process of this worker has ended with status {status}")

    def __del__(self) -> None:
        try:
            ray.get([host.end.remote() for host in self._hosts], timeout=2 * STOP)
        except (ray.exceptions.RayError, TimeoutError) as error:
            print(f"cogvx: {sentence(error) or error}", file=sys.stderr)
        if self._slice is not None:
            self._slice.shutdown()


class Host:
    """A process of a worker, on the machine that this actor is on. It ends when the actor does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def place(self) -> tuple[int, str]:
        """The machine's number in its slice, and an address that is free there."""
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        return int(os.environ.get("TPU_WORKER_ID", "0")), f"{ray.util.get_node_ip_address()}:{port}"

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        # A process that is started with COGVX_PARENT ends where its standard input does.
        self._process = subprocess.Popen(
            command, env=os.environ | environment | {"COGVX_PARENT": "1"}, stdin=subprocess.PIPE
        )

    def status(self) -> int | None:
        """The exit status of the process; None while it runs."""
        return self._process.poll() if self._process else None

    def end(self) -> None:
        """Lets the process save its step and give its job back."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            print("cogvx: the worker ends after its step", file=sys.stderr)


def reserve(topology: str, accelerator: str) -> Any:
    """A slice that is reserved for this actor. Raises: ValueError for one that there is not; RayError."""
    from ray.util.tpu import SlicePlacementGroup

    found = SlicePlacementGroup(topology=topology, accelerator_version=accelerator, head_reservation_timeout_s=RESERVE)
    ray.get(found.slice_placement_group.ready(), timeout=RESERVE)
    return found


def on_slice(reserved: Any) -> Iterator[Any]:
    """An actor on each host of a slice, with all of its chips."""
    group = reserved.slice_placement_group
    for index, bundle in enumerate(group.bundle_specs):
        where = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        chips = bundle["TPU"]
        yield HOST.options(num_cpus=0, resources={"TPU": chips}, scheduling_strategy=where).remote()


def start(hosts: list[Any], command: list[str], environment: dict[str, str]) -> None:
    """Starts the processes of a worker, which join where there are several; the slice numbers them."""
    if len(hosts) == 1:
        ray.get(hosts[0].start.remote(command, environment))
        return
    places = ray.get([host.place.remote() for host in hosts])
    order = sorted(range(len(hosts)), key=lambda i: places[i][0])
    joined = {"JAX_COORDINATOR_ADDRESS": places[order[0]][1], "JAX_NUM_PROCESSES": str(len(hosts))}
    starts = [
        hosts[place].start.remote(command, environment | joined | {"JAX_PROCESS_ID": str(index)})
        for index, place in enumerate(order)
    ]
    ray.get(starts)


# What Ray makes of the classes.
API: Any = serve.deployment(name="Api", health_check_period_s=HEALTH)(serve.ingress()(Api))
CREW: Any = serve.deployment(name="Crew", health_check_period_s=HEALTH, graceful_shutdown_timeout_s=30.0)(Crew)
HOST: Any = ray.remote(num_cpus=1)(Host)
