"""`cx.load`: `pipelines.model.load`, which chooses a memory mode, too, where it is asked to."""

import functools
import os
from typing import Any

from jax.sharding import Mesh

from cogvx_jax.pipelines import model
from cogvx_jax.pipelines.memory_modes import AUTO, MemoryMode
from cogvx_jax.planning.plan import choose


@functools.wraps(model.load)
def load(
    source: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    memory: str | MemoryMode | None = None,
    **others: Any,
) -> model.Model:
    """`memory` may be "auto" here: the first mode that fits a video of the model's own size."""
    if memory == AUTO:
        model.check_kinds(mesh)
        name = model.source_text(source)
        _, memory = choose(name, mesh=mesh, dtype=dtype, quantize=quantize, memory=AUTO, report=print)
    return model.load(source, mesh=mesh, dtype=dtype, quantize=quantize, memory=memory, **others)
