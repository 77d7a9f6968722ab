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
import jax.numpy as jnp

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
Keys = tuple[jax.Array, jax.Array]  # k and v, (B, A, S, K) each


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
        self,
        attention: Attention,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens: int,
        segments: jax.Array | None,
        beside: Keys | None,
    ) -> jax.Array:
        """`attention` over the first `tokens` keys, whatever device holds them, and as many of `beside`."""


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
    beside: Keys | None = None,
) -> jax.Array:
    """`attention`, of q, k, v (B, A, S, K), over the first `tokens` keys: the others are padding.

    With `segments`, integers (B, S), tokens attend to those of their own number.
    `beside` are keys and values that queries meet, too; not with `segments`.
    """
    layout = _active.get()
    if layout is not None:
        return layout.attend(attention, q, k, v, tokens, segments, beside)
    k, v, length = with_beside(k, v, tokens, beside)
    return attention(q, k, v, kv_length=length, segments=segments)


def with_beside(k: jax.Array, v: jax.Array, tokens: int, beside: Keys | None) -> tuple[jax.Array, jax.Array, int]:
    """Keys and values of which all tokens are here, with those beside them, and how many exist."""
    if beside is None:
        return k, v, tokens
    k, v = (jnp.concatenate([x[:, :, :tokens], y[:, :, :tokens]], axis=2) for x, y in zip((k, v), beside, strict=True))
    return k, v, 2 * tokens


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
