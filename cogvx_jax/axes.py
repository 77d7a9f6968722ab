"""The words for what an array's axes mean, and the hook by which a mesh gives them places.

Modules say `constrain(x, "batch", "seq", "embed")`: they know what an axis means, never which chips
hold it. `cogvx_jax.sharding` installs the function that turns names into places; without one,
`constrain` checks the names and returns its argument.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

AXES = frozenset(
    {
        # of activations
        "batch",  # videos, or videos times guidance branches
        "frames",  # F or T: time, in pixels, latents or tokens
        "height",
        "width",
        "seq",  # S: text and video tokens together
        # of parameters and activations
        "embed",  # D: the model's width
        "heads",  # A * K: attention features, head-major
        "mlp",  # M
        "time",  # features of the timestep embedding
        "modulation",  # shift, scale and gate features
        "text",  # features of the text encoder
        "patch",  # features of one patch of latents
        "vocab",
        "layers",  # the leading axis of scanned blocks
        "conv_in",
        "conv_out",
        "latent",  # channels of the latents
        "norm",  # a norm's own features
    }
)

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
_active: contextvars.ContextVar[Constrain | None] = contextvars.ContextVar("constrain", default=None)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """States what the axes of `x` mean; None leaves an axis to the compiler.

    Raises: ValueError for an unknown name or the wrong number of names.
    """
    check_names(names)
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}")
    place = _active.get()
    return x if place is None else place(x, names)


def check_names(names: tuple[str | None, ...]) -> None:
    """Raises ValueError if a name is not one of AXES."""
    unknown = [n for n in names if n is not None and n not in AXES]
    if unknown:
        raise ValueError(f"unknown axis names {unknown}; the known ones are {sorted(AXES)}")


@contextlib.contextmanager
def constraining(place: Constrain) -> Iterator[None]:
    """Makes `constrain` call `place(x, names)` inside the block."""
    token = _active.set(place)
    try:
        yield
    finally:
        _active.reset(token)
