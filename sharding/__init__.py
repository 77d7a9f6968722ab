"""Where arrays live: one table from the meaning of axes to the axes of a mesh, and what follows from it."""

from cogvx_jax.sharding.digest import params_digest
from cogvx_jax.sharding.exchange import Exchange, ProcessLost
from cogvx_jax.sharding.layout import activate
from cogvx_jax.sharding.mesh import MESH_AXES, auto, format_mesh, make_mesh, parse_mesh
from cogvx_jax.sharding.placement import (
    everywhere,
    host_blocks,
    on_every_host,
    put,
    put_quantized,
    put_sharded,
    replicate,
    shardings,
)
from cogvx_jax.sharding.processes import (
    first_process,
    initialize,
    of_all,
    of_first_process,
    process_index,
    wait_for_all,
)
from cogvx_jax.sharding.rules import RULES, spec

__all__ = [
    "MESH_AXES",
    "Exchange",
    "ProcessLost",
    "RULES",
    "activate",
    "auto",
    "everywhere",
    "first_process",
    "format_mesh",
    "host_blocks",
    "initialize",
    "make_mesh",
    "of_all",
    "of_first_process",
    "on_every_host",
    "params_digest",
    "parse_mesh",
    "process_index",
    "put_quantized",
    "put_sharded",
    "put",
    "replicate",
    "shardings",
    "spec",
    "wait_for_all",
]
