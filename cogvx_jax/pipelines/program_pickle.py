"""Compiled programs as bytes and back: jax's own pickles, read with no more than they need.

A pickle may name any function of any module and call it. Here only what jax's programs were found to name is allowed,
so that a pickle by itself runs nothing. The program inside is machine code all the same.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable

# All that pickles of jax 0.10 and 0.12 name, of programs on one device, on meshes and for TPUs that are not here.
TREES = {
    ("cogvx_jax.diffusion.guiders", "Numbers"),
    ("cogvx_jax.diffusion.update", "SamplerState"),
    ("cogvx_jax.diffusion.windows", "Laid"),
    ("cogvx_jax.models.kept", "Kept"),
    ("cogvx_jax.pipelines.conditions", "Condition"),
    ("cogvx_jax.pipelines.conditions", "Control"),
    ("cogvx_jax.pipelines.noise", "SeededNoise"),
    ("jax._src.tree_util", "default_registry"),
    ("jax._src.tree_util", "tracing_registry"),
    ("jaxlib._jax.pytree", "PyTreeDef"),
}
PROGRAMS = {
    ("jax", "P"),
    ("jax._src.core", "ManualAxisType"),
    ("jax._src.core", "MemorySpace"),
    ("jax._src.core", "ShapedArray"),
    ("jax._src.interpreters.pxla", "AllArgsInfo"),
    ("jax._src.interpreters.pxla", "UnloadedMeshExecutable"),
    ("jax._src.layout", "AutoLayoutSingleton"),
    ("jax._src.layout", "Layout"),
    ("jax._src.linear_util", "DebugInfo"),
    ("jax._src.mesh", "AbstractDevice"),
    ("jax._src.mesh", "AbstractMesh"),
    ("jax._src.mesh", "AxisType"),
    ("jax._src.mesh", "Mesh"),
    ("jax._src.named_sharding", "_unpickle_named_sharding"),
    ("jax._src.sharding_impls", "_unpickle_single_device_sharding"),
    ("jax._src.stages", "ArgInfo"),
    ("jaxlib._jax", "DeviceList"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
}


def dump_program(compiled: jax.stages.Compiled) -> bytes:
    """Raises: ValueError where the platform's programs cannot be stored."""
    return pickle.dumps(serialize_executable.serialize(compiled))


def load_program(data: bytes, devices: Sequence[Any]) -> jax.stages.Compiled:
    """What `dump_program` made, on the devices that it was compiled for.

    Raises: ValueError for a pickle that is damaged, or names what no program needs.
    """
    try:
        serialized, in_tree, out_tree = _Trees(io.BytesIO(data)).load()
        program, arguments, no_kwargs = _Program(io.BytesIO(serialized), devices[0].client, devices).load()
        # As `serialize_executable.deserialize_and_load`, which reads its pickle without bounds.
        arguments = in_tree.unflatten(arguments)
        return jax.stages.Compiled(program.load(), [], arguments, out_tree, no_kwargs=no_kwargs)
    except Exception as error:  # whatever its calls raise
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error)[:200].split())}") from None


class _Trees(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*_allowed(TREES, module, name))


class _Program(serialize_executable._JaxPjrtUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*_allowed(PROGRAMS, module, name))


def _allowed(names: set[tuple[str, str]], module: str, name: str) -> tuple[str, str]:
    if (module, name) not in names:
        raise pickle.UnpicklingError(f"it names {module[:50]}.{name[:50]}, which no program needs")
    return module, name
