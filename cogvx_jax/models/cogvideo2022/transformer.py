"""The transformer of CogVideo (2022): a base for text and pictures, and in each layer a channel between frames.

A layer has two attentions over the same input. The spatial one, of the base, sees the text and the token's own frame.
The temporal one, of the channel, sees the text and other frames. A gate mixes both for every feature.

The base is frozen in training, so all stages have the same one. Its parameters are those that `of_base` names.

Shapes: B sequences, L text tokens, F slots of frames, n codes of a frame, D width, A heads, K head width.

Source: Hong et al. 2022, arXiv:2205.15868; branch CogVideo of zai-org/CogVideo, `models/`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax.axes import constrain
from cogvx_jax.models.cogvideo2022.attention import Seen, attend, hidden_where
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.visibility import between_frames, own_frame, steps, windows
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.norms import LayerNorm
from cogvx_jax.nn.parameters import parameter

KeyValue = tuple[jax.Array, jax.Array]  # (B, S, A, K) each


class Text(NamedTuple):
    """Prompts, padded in front."""

    ids: jax.Array  # (B, L) int32
    real: jax.Array  # (B, L) bool: what is no padding


class Kept(NamedTuple):
    """Keys and values of a pass, layer by layer: (layers, B, L + F * n, A, K) each."""

    spatial: KeyValue
    temporal: KeyValue | None  # None where the channel is left out


class Cache(NamedTuple):
    """Keys and values of what was seen, in arrays that are never resized: (layers, B, S, A, K) each.

    The spatial ones hold the text and the frame that is being made, S = L + n. The temporal ones hold the text and all
    slots, S = L + frames * n; None where the channel is left out.
    """

    spatial: KeyValue
    temporal: KeyValue | None


class Frames(NamedTuple):
    """How the frames of a pass stand to each other; static.

    Attributes:
      order: the frame in each slot.
      given: codes of so many slots count as the reference's first pass does them: see `training_mask`, and the text's
        bias does not reach them in the temporal channel.
      training_mask: a window that is moved over the edge of the frame falls apart for given codes, too, as in training.
        The reference leaves that out when it generates.
      temporal: False leaves the channel out: a picture model.
      text_bias: added to the scores between codes and text.
    """

    order: tuple[int, ...]
    given: int = 0
    training_mask: bool = False
    temporal: bool = True
    text_bias: float = 0.0


def of_base(path: str) -> bool:
    """Whether a parameter belongs to the base that all stages share."""
    return not path.startswith(("extra_positions", "blocks/channel/"))


class CogVideo2022(nn.Module):
    """`__call__` is a whole pass; `models.cogvideo2022.cached` has the steps after it."""

    cfg: CogVideo2022Config
    dtype: str = "float32"
    remat: bool = False  # whether the backward pass computes each layer anew

    def setup(self) -> None:
        cfg, init = self.cfg, nn.initializers.normal(0.02)
        self.words = parameter(self, "words", init, ("vocab", "embed"), (cfg.vocab, cfg.width))
        self.positions = parameter(self, "positions", init, (None, "embed"), (cfg.base_positions, cfg.width))
        shape = (cfg.extra_positions, cfg.width)
        self.extra_positions = parameter(self, "extra_positions", init, (None, "embed"), shape)
        self.blocks = nn.scan(
            nn.remat(Block, prevent_cse=False, static_argnums=(4,)) if self.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, self.dtype)
        self.norm = LayerNorm(cfg.norm_eps)

    def __call__(self, text: Text, codes: jax.Array, frames: Frames) -> tuple[jax.Array, Kept]:
        """A pass over a text and frames.

        Args:
          codes: (B, F, n), those of the slots. Row k of a frame predicts its code k and is given the code before, so
            that the last one is not used.
        Returns: the last norm's output (B, L + F * n, D), and what steps after it need.
        """
        x = jnp.concatenate([self.embed_text(text), self.embed_frames(codes, frames.order)], axis=1)
        x, kept = self.blocks(constrain(x, "batch", "seq", None), jnp.arange(self.cfg.layers), text.real, frames)
        return self.norm(x), Kept(*kept)

    def embed_code(self, code: jax.Array, frame: int, place: jax.Array) -> jax.Array:
        """(B,) -> (B, 1, D): the input at a place of a frame, which is the code before."""
        token = jnp.where(place == 0, self.cfg.start_of_image, code)
        return (self._words(token) + self.frame_positions()[frame, place][None])[:, None]

    def embed_text(self, text: Text) -> jax.Array:
        """(B, L) -> (B, L, D). Positions count from the first token that is no padding."""
        place = jnp.maximum(jnp.cumsum(text.real, axis=-1) - 1, 0)
        return self._words(text.ids) + self.positions[place].astype(self.dtype)

    def embed_frames(self, codes: jax.Array, order: tuple[int, ...]) -> jax.Array:
        """(B, F, n) -> (B, F * n, D), of inputs that begin with the start of an image."""
        inputs = jnp.pad(codes[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=self.cfg.start_of_image)
        x = self._words(inputs) + self.frame_positions()[np.array(order, np.int32)][None]
        return x.reshape(len(codes), -1, self.cfg.width)

    def frame_positions(self) -> jax.Array:
        """(frames, n, D): the first frame's are the base's, those of the others the channel's."""
        cfg = self.cfg
        first = self.positions[cfg.first_position : cfg.first_position + cfg.frame_codes]
        others = self.extra_positions[: (cfg.frames - 1) * cfg.frame_codes]
        return jnp.concatenate([first, others]).reshape(cfg.frames, cfg.frame_codes, cfg.width).astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> (..., codes) float32: the words are those of the input."""
        words = self.words[: self.cfg.codes].astype(jnp.float32)
        return jnp.einsum("...d,cd->...c", hidden.astype(jnp.float32), words)

    def normed(self, x: jax.Array) -> jax.Array:
        """The last norm."""
        return self.norm(x)

    def _words(self, ids: jax.Array) -> jax.Array:
        """Ids below 0 are nothing, as in the reference: see `guide_shift` of the pipeline."""
        found = self.words[jnp.maximum(ids, 0)].astype(self.dtype)
        return jnp.where(ids[..., None] < 0, jnp.zeros((), found.dtype), found)


class Block(nn.Module):
    """Sandwich norms around both attentions and an MLP: (B, S, D) -> (B, S, D)."""

    cfg: CogVideo2022Config
    dtype: str

    def setup(self) -> None:
        self.base = Base(self.cfg, self.dtype)
        self.channel = Channel(self.cfg, self.dtype)

    def __call__(
        self, x: jax.Array, layer: jax.Array, real: jax.Array, frames: Frames
    ) -> tuple[jax.Array, tuple[KeyValue, KeyValue | None]]:
        length = real.shape[1]
        y = self.base.normed(x)
        q, k, v = self.base.heads(y)
        spatial, seen = self._spatial(q, k, v, real, frames), (k, v)
        mixed = self.base.out(spatial)
        if not frames.temporal:
            return self.base.rest(x, mixed), (seen, None)
        q, k, v = self.channel.heads(y)
        if frames.order:
            temporal = self._temporal(q, k, v, layer, real, frames)
            mixed = jnp.concatenate([mixed[:, :length], self.channel.mixed(mixed[:, length:], temporal)], axis=1)
        return self.base.rest(x, mixed), (seen, (k, v))

    def _spatial(self, q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array, frames: Frames) -> jax.Array:
        """The text sees itself; a frame sees the text and itself. (B, S, A, K) -> (B, S, A, K)."""
        length, n = real.shape[1], self.cfg.frame_codes
        to_text = hidden_where(real)[:, None]  # (B, 1, L)
        text = attend(q[:, :length], Seen(k[:, :length], v[:, :length], to_text))
        if not frames.order:
            return text

        def by_frame(x: jax.Array) -> jax.Array:  # (B, F, n, A, K)
            return x[:, length:].reshape(len(x), len(frames.order), n, *x.shape[2:])

        words = Seen(k[:, None, :length], v[:, None, :length], to_text[:, None] + frames.text_bias)
        own = Seen(by_frame(k), by_frame(v), hidden_where(own_frame(self.cfg, frames.order))[None])
        seen = attend(by_frame(q), words, own).reshape(len(q), -1, *q.shape[2:])
        return jnp.concatenate([text, seen], axis=1)

    def _temporal(
        self, q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array, real: jax.Array, frames: Frames
    ) -> jax.Array:
        """A frame sees the text and, in its window, frames: (B, S, A, K) -> (B, F * n, A, K)."""
        cfg, length, slots = self.cfg, real.shape[1], len(frames.order)
        table = windows(cfg)
        kinds, count, size = table.cells.shape
        kind = layer % kinds
        cells, back = jnp.asarray(table.cells)[kind].reshape(-1), jnp.asarray(table.back)[kind]

        def by_window(x: jax.Array) -> jax.Array:  # (B, W, F * w, A, K)
            x = x[:, length:].reshape(len(x), slots, cfg.frame_codes, *x.shape[2:])[:, :, cells]
            x = x.reshape(len(x), slots, count, size, *x.shape[3:])
            return jnp.swapaxes(x, 1, 2).reshape(len(x), count, slots * size, *x.shape[4:])

        free = 0 if frames.training_mask else frames.given
        sight = jnp.asarray(between_frames(cfg, frames.order, free))[kind]  # (W or 1, F * w, F * w)
        own = Seen(by_window(k), by_window(v), hidden_where(sight)[None])
        bias = frames.text_bias * (np.arange(slots * size) >= frames.given * size).astype(np.float32)
        to_text = hidden_where(real)[:, None, None] + bias[None, None, :, None]  # (B, 1, F * w, L)
        words = Seen(k[:, None, :length], v[:, None, :length], to_text)
        y = attend(by_window(q), words, own).reshape(len(q), count, slots, size, *q.shape[2:])
        y = jnp.swapaxes(y, 1, 2).reshape(len(q), slots, count * size, *q.shape[2:])
        return y[:, :, back].reshape(len(q), slots * count * size, *q.shape[2:])

    def step(
        self, x: jax.Array, layer: jax.Array, real: jax.Array, cache: Cache, place: jax.Array, slot: int, bias: float
    ) -> tuple[jax.Array, tuple[KeyValue, KeyValue | None]]:
        """One code of every sequence: (B, 1, D) -> (B, 1, D), and its own keys and values, (B, 1, A, K)."""
        length, n = real.shape[1], self.cfg.frame_codes
        y = self.base.normed(x)
        q, own_k, own_v = self.base.heads(y)
        to_text = hidden_where(real)[:, None] + bias  # (B, 1, L)
        earlier = hidden_where(jnp.arange(n) < place)  # of its frame; its own row is not in the cache yet
        itself = np.zeros((1, 1, 1), np.float32)
        k, v = (part[layer] for part in cache.spatial)
        sets = (
            Seen(k[:, :length], v[:, :length], to_text),
            Seen(k[:, length:], v[:, length:], earlier[None, None]),
            Seen(own_k, own_v, itself),
        )
        mixed, own = self.base.out(attend(q, *sets)), (own_k, own_v)
        if cache.temporal is None:
            return self.base.rest(x, mixed), (own, None)
        q, own_k, own_v = self.channel.heads(y)
        k, v = (part[layer, :, :length] for part in cache.temporal)
        before = self._before(cache.temporal, layer, length, place, slot)
        temporal = attend(q, Seen(k, v, to_text), before, Seen(own_k, own_v, itself))
        return self.base.rest(x, self.channel.mixed(mixed, temporal)), (own, (own_k, own_v))

    def _before(self, temporal: KeyValue, layer: jax.Array, length: int, place: jax.Array, slot: int) -> Seen:
        """What a code sees in the temporal channel beside the text: slots before its own, and earlier codes of its own.

        Where there are windows, only their cells are read.
        """
        cfg, n = self.cfg, self.cfg.frame_codes
        if not cfg.shift:
            seen = jnp.arange((slot + 1) * n) < slot * n + place
            k, v = (part[layer, :, length : length + (slot + 1) * n] for part in temporal)
            return Seen(k, v, hidden_where(seen)[None, None])
        cells, seen = (jnp.asarray(table)[layer % 2, place] for table in steps(cfg))  # (w,)
        slots = np.arange(slot + 1)
        rows = (length + n * slots[:, None] + cells[None]).reshape(-1)
        visible = seen[None] & ((slots < slot)[:, None] | (cells < place)[None])
        k, v = (jnp.moveaxis(part[layer, :, rows], 0, 1) for part in temporal)
        return Seen(k, v, hidden_where(visible.reshape(-1))[None, None])


class Base(nn.Module):
    """A layer of the base: norms, the spatial attention's projections, the MLP."""

    cfg: CogVideo2022Config
    dtype: str

    def setup(self) -> None:
        cfg, dense = self.cfg, functools.partial(Dense, dtype=self.dtype)
        self.q, self.k, self.v = (dense(cfg.width, axes=("embed", "heads")) for _ in range(3))
        self.dense = dense(cfg.width, axes=("heads", "embed"))
        self.up, self.down = dense(cfg.mlp, axes=("embed", "mlp")), dense(cfg.width, axes=("mlp", "embed"))
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(cfg.norm_eps) for _ in range(4))

    def normed(self, x: jax.Array) -> jax.Array:
        """What both attentions are given."""
        return self.norm1(x)

    def heads(self, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, (B, S, A, K) each."""
        return split_heads(self.cfg, self.q(y)), split_heads(self.cfg, self.k(y)), split_heads(self.cfg, self.v(y))

    def out(self, y: jax.Array) -> jax.Array:
        """(B, S, A, K) -> (B, S, D)."""
        return self.dense(y.reshape(*y.shape[:-2], -1))

    def rest(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The layer's result: `x`, what attention gave, and the MLP of both."""
        x = x + self.norm3(mixed)
        y = self.down(constrain(nn.gelu(self.up(self.norm2(x)), approximate=True), "batch", "seq", "mlp"))
        return constrain(x + self.norm4(y), "batch", "seq", None)


class Channel(nn.Module):
    """What a stage adds to a layer: the temporal attention's projections, and the gate between both."""

    cfg: CogVideo2022Config
    dtype: str

    def setup(self) -> None:
        cfg, dense = self.cfg, functools.partial(Dense, dtype=self.dtype)
        self.q, self.k, self.v = (dense(cfg.width, axes=("embed", "heads")) for _ in range(3))
        self.dense = dense(cfg.width, axes=("heads", "embed"))
        if cfg.stage != "super_resolution":
            self.gate = parameter(self, "gate", nn.initializers.zeros_init(), ("norm",), (cfg.width,))

    def heads(self, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `Base.heads`."""
        return split_heads(self.cfg, self.q(y)), split_heads(self.cfg, self.k(y)), split_heads(self.cfg, self.v(y))

    def out(self, y: jax.Array) -> jax.Array:
        """As `Base.out`."""
        return self.dense(y.reshape(*y.shape[:-2], -1))

    def mixed(self, spatial: jax.Array, temporal: jax.Array) -> jax.Array:
        """(B, S, D) of the base with (B, S, A, K) of the channel: (B, S, D)."""
        share = nn.sigmoid(self.gate.astype(jnp.float32)).astype(spatial.dtype)[None, None]
        return share * spatial + (1 - share) * self.out(temporal)


def split_heads(cfg: CogVideo2022Config, y: jax.Array) -> jax.Array:
    """(B, S, D) -> (B, S, A, K)."""
    return y.reshape(*y.shape[:-1], cfg.heads, cfg.head_dim)
