"""The words for what an array's axes mean, and the hook by which a mesh gives them places.

Modules say `constrain(x, "batch", "seq", None)`: they know what an axis means, never which chips
hold it. `cogvx_jax.sharding` installs a `Layout` that turns names into places; without one, these
functions check the names and compute on one device.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Protocol

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
        "heads",  # A * K: attention features, head-major
        "mlp",  # M
        # of parameters; activations keep these whole
        "embed",  # D: the model's width
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

Names = tuple[str | None, ...]
Attention = Callable[..., jax.Array]  # (q, k, v, kv_length=..., segments=...), as `nn.attention.attention`


class Layout(Protocol):
    """What a mesh does for a model; `cogvx_jax.sharding.activate` installs one."""

    def constrain(self, x: jax.Array, names: Names) -> jax.Array:
        """`x`, held where its axes belong."""

    def whole(self, x: jax.Array, names: Names) -> jax.Array:
        """A parameter, gathered along the axes that only spread its storage."""

    def padded(self, batch: int, tokens: int) -> int:
        """How many tokens a sequence of `tokens` gets, so that every device holds as many."""

    def parts(self, names: Names, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Over how many devices each axis of an array is spread."""

    def attend(
        self, attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, tokens: int, segments: jax.Array | None
    ) -> jax.Array:
        """`attention` over the first `tokens` keys, whatever device holds them."""


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """States what the axes of `x` mean; None is an axis that stays whole.

    Raises: ValueError for an unknown name or the wrong number of names.
    """
    check_names(names)
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}")
    layout = _active.get()
    return x if layout is None else layout.constrain(x, names)


def whole(x: jax.Array, names: Names) -> jax.Array:
    """A parameter ready to compute with: gathered where a mesh spreads it over devices for storage."""
    layout = _active.get()
    return x if layout is None else layout.whole(x, names)


def padded(batch: int, tokens: int) -> int:
    """The length to pad a (B, S) sequence to at its end; `attend` keeps queries from seeing the padding."""
    layout = _active.get()
    return tokens if layout is None else layout.padded(batch, tokens)


def parts(names: Names, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Over how many devices each axis of an array is spread by `constrain`."""
    layout = _active.get()
    return (1,) * len(shape) if layout is None else layout.parts(names, shape)


def attend(
    attention: Attention,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    tokens: int,
    segments: jax.Array | None = None,
) -> jax.Array:
    """`attention`, of q, k, v (B, A, S, K), over the first `tokens` keys: the others are padding.

    With `segments`, integers (B, S), tokens attend to those of their own number.
    """
    layout = _active.get()
    if layout is not None:
        return layout.attend(attention, q, k, v, tokens, segments)
    return attention(q, k, v, kv_length=tokens, segments=segments)


def check_names(names: Names) -> None:
    """Raises ValueError if a name is not one of AXES."""
    unknown = [n for n in names if n is not None and n not in AXES]
    if unknown:
        raise ValueError(f"unknown axis names {unknown}; the known ones are {sorted(AXES)}")


@contextlib.contextmanager
def using(layout: Layout) -> Iterator[None]:
    """Installs `layout` inside the block."""
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)
