"""Numbers that are not finite: found where they come out, and traced to the tensor that they came from."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cogvx_jax.convert.finite import is_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.weights import on_host


@jax.jit
def all_finite(x: jax.Array) -> jax.Array:
    """Whether no number is NaN or infinite, a scalar that stays on the device until it is asked for."""
    return jnp.isfinite(x).all()


class NotFiniteError(ValueError):
    """A part of a generation gave NaN or infinity. Nothing of it is of use."""

    @classmethod
    def of(cls, model: Model, component: str, part: str) -> Self:
        """The error of a part that runs a component; it names the first weight of it that is not finite, if any is."""
        tensor = find_not_finite(model.params[component])
        said = f"{part} gave numbers that are not finite"
        if tensor is not None:
            holds = f"the {component} of {model.spec.name} holds some in {tensor}"
            return cls(f"{said}, as {holds}: the file is damaged, or training or a LoRA diverged")
        dtype = model.compute.of(component).dtype
        why = "another dtype may help" if dtype != "float32" else "the inputs, or the weights, are far too large"
        return cls(f"{said}, though all weights of the {component} of {model.spec.name} are: {why}")


def find_not_finite(params: Any) -> str | None:
    """The first parameter that holds NaN or infinity, and how many of them; of stacked blocks, which one does."""
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        leaf = np.asarray(leaf) if on_host(leaf) else leaf  # a device might have no room for it
        if is_finite(leaf) if isinstance(leaf, np.ndarray) else all_finite(leaf):
            continue
        bad = ~jnp.isfinite(leaf)
        layer = ""
        if path.startswith("blocks/"):
            layer = f" of block {int(np.argmax(np.asarray(bad.any(axis=tuple(range(1, bad.ndim))))))}"
        return f"{path}{layer} ({int(bad.sum())} of its {bad.size} numbers)"
    return None
