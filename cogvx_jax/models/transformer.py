"""The expert transformer: full attention over text and video tokens, predicting v.

Shapes: B batch, T h w latents, L text tokens, N video tokens, S = L + N; D width, A heads, K = D / A.
In a packed row L is the text of its C clips together.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax import axes
from cogvx_jax.axes import attend, constrain
from cogvx_jax.configs import Compute, TransformerConfig
from cogvx_jax.models.kept import Around, Stack
from cogvx_jax.models.per_block import PerBlock, axes_of, enhancement, entry, paired, rows_together, unpaired
from cogvx_jax.nn.attention import attention
from cogvx_jax.nn.embeddings import (
    patchify,
    rope_at,
    rope_tables,
    rotate,
    sincos_at,
    sincos_table,
    sinusoid,
    unpatchify,
)
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.norms import LayerNorm
from cogvx_jax.nn.parameters import parameter
from cogvx_jax.nn.quantized import Tokens, quantize_tokens
from cogvx_jax.nn.remat import block_input, product, rematerialized
from cogvx_jax.nn.stacked import Pick, in_pieces, run_blocks

OFS = 2.0  # input of the `ofs` embedding of 1.5-I2V, with every user
QK_NORM_EPS = 1e-6


class Transformer(nn.Module):
    """v-prediction for latents at a timestep, given the text encoder's states."""

    cfg: TransformerConfig
    compute: Compute = Compute()

    def __call__(
        self,
        latents: jax.Array,
        text: jax.Array,
        t: jax.Array,
        ofs: jax.Array | float = OFS,
        per_block: PerBlock | None = None,
    ) -> jax.Array:
        """Predicts v.

        Args:
          latents: (B, T, h, w, in_channels), scaled; image latents after the noisy ones.
          text: (B, L, text_dim), the text encoder's output; no mask, padding counts.
          t: (B,) training timesteps, 0..999.
          ofs: only used by models with `ofs_dim`.
          per_block: what the blocks do beside their own; None is nothing.
        Returns: (B, T, h, w, out_channels) of `compute.dtype`.
        Raises: ValueError where the shapes cannot be this model's.
        """
        return self._predict(latents, text, t, ofs, None, per_block)[0]

    def around_blocks(
        self, latents: jax.Array, text: jax.Array, t: jax.Array, around: Around, ofs: jax.Array | float = OFS
    ) -> tuple[jax.Array, Any]:
        """`__call__` with the blocks in the hands of a function of `models.kept`; not for packed rows.

        Args:
          around: (stack, x (B, S, D)) -> (x after the blocks, or what stands for it; anything).
        Returns: v, and what `around` gave beside it.
        """
        return self._predict(latents, text, t, ofs, around)

    def _predict(self, latents, text, t, ofs, around, per_block=None) -> tuple[jax.Array, Any]:
        cfg = self.cfg
        check_shapes(cfg, latents.shape, text.shape)
        batch, frames, height, width = latents.shape[:4]
        grid = (frames // (cfg.patch_t or 1), height // cfg.patch, width // cfg.patch)
        length = text.shape[1]
        table = rope = None
        if cfg.position == "sincos":
            table = np.pad(sincos_table(cfg, *grid), ((length, 0), (0, 0)))
        else:
            rope = joint_rope(cfg, length, grid)
        t = jnp.broadcast_to(t, (batch,))
        more = dict(around=around, per_block=per_block, frames=grid[0])
        y, kept = self._tokens(patchify(latents, cfg), text, t, ofs, table, rope, **more)
        return unpatchify(y, cfg, (frames, height, width)), kept

    def packed(
        self, patches: jax.Array, text: jax.Array, t: jax.Array, clip: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Predicts v of several clips a row, each as if it were alone: see `train.pack`.

        Args:
          patches: (B, N, features), as `patchify` makes them, in any order.
          text: (B, C, L, text_dim), of each of the row's clips.
          t: (B, C) training timesteps.
          clip: (B, N) integers, the clip each token is of; one outside 0..C - 1 is padding, whose values
            count nowhere, nor do the text and timestep of a clip without tokens.
          positions: (B, N, 3), where in its clip each token is, by `token_positions`.
        Returns: (B, N, features) of `compute.dtype`; values at padding have no meaning.
        Raises: ValueError for an image-to-video model, or shapes that cannot be this model's.
        """
        cfg = self.cfg
        check_packed(cfg, patches.shape, text.shape, t.shape, clip.shape, positions.shape)
        tokens, (rows, clips, words) = patches.shape[1], text.shape[:3]
        after = axes.padded(rows, clips * words + tokens) - clips * words - tokens
        patches, positions = (jnp.pad(x, ((0, 0), (0, after), (0, 0))) for x in (patches, positions))
        clip = jnp.pad(clip, ((0, 0), (0, after)), constant_values=-1)

        # Zeros at padding: a NaN there would reach the gradients of the weights.
        is_of = clip[..., None] == jnp.arange(clips)[None, None]  # (B, N, C)
        real, used = is_of.any(2), is_of.any(1)
        clip = jnp.where(real, clip, -1)
        patches, positions = (jnp.where(real[..., None], x, 0) for x in (patches, positions))
        text, t = jnp.where(used[..., None, None], text, 0), jnp.where(used, t, 0)

        in_front = ((0, 0), (clips * words, 0), (0, 0))
        table = rope = None
        if cfg.position == "sincos":
            table = jnp.pad(sincos_at(cfg, positions), in_front)
        else:
            cos, sin = rope_at(cfg, positions)
            rope = jnp.pad(cos, in_front, constant_values=1)[:, None], jnp.pad(sin, in_front)[:, None]
        of_text = jnp.broadcast_to(jnp.repeat(jnp.arange(clips), words), (rows, clips * words))
        segments = jnp.concatenate([of_text, clip], axis=1)
        text = text.reshape(rows, clips * words, -1)
        return self._tokens(patches, text, t, OFS, table, rope, segments)[0][:, :tokens]

    @nn.compact
    def _tokens(
        self, patches, text, t, ofs, table, rope, clips=None, *, around=None, per_block=None, frames=1
    ) -> tuple[jax.Array, Any]:
        """Patches (B, N, features) to patches, with text (B, L, text_dim), and what `around` gave.

        `clips` None: a row is one clip, t is (B,); table is (S, D) or None, rope (S, K) twice or None.
        `clips` (B, S): t is (B, C), table has B in front, rope B and 1.
        `frames` are the temporal tokens of a clip, which `per_block` may need.
        """
        cfg, compute, length = self.cfg, self.compute, text.shape[1]
        dense = functools.partial(Dense, dtype=compute.dtype)
        time = TimeEmbedding(cfg.time_dim, name="time")(sinusoid(t, cfg.width))
        if cfg.ofs_dim is not None:
            features = sinusoid(jnp.full(t.shape, ofs, jnp.float32), cfg.ofs_dim)
            time = time + TimeEmbedding(cfg.ofs_dim, name="ofs")(features)

        x = joint_tokens(cfg, compute, patches, text)
        if table is not None:
            x = x + jax.lax.broadcast_to_rank(jnp.asarray(table, x.dtype), 3)
        if cfg.position == "rope+learned":
            zeros, names = nn.initializers.zeros_init(), (None, "embed")
            learned = axes.whole(parameter(self, "position", zeros, names, x.shape[1:]).astype(x.dtype), names)
            x = x + learned[None]
        tokens = x.shape[1]
        x, rope = pad_tokens(x, rope)
        x = constrain(x, "batch", "seq", None)

        def run(x):
            if (compute.streamed or compute.rows_apart) and clips is None and not self.is_initializing():
                block = Block(cfg, compute, length, tokens, frames, parent=None)
                stack = self.variables["params"]["blocks"]
                own = functools.partial(entry, per_block)
                apart = rows_together(per_block) if compute.rows_apart else None
                return run_blocks(block, stack, x, time, rope, None, entry=own, apart=apart)
            blocks = nn.scan(
                rematerialized(Block, compute.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, axes_of(per_block)),
                length=cfg.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return blocks(cfg, compute, length, tokens, frames, name="blocks")(x, time, rope, clips, per_block)[0]

        if around is None:
            x, kept = run(x), None
        else:
            block, stack = Block(cfg, compute, length, tokens, frames, parent=None), self.variables["params"]["blocks"]
            x, kept = around(Stack(run, block, stack, (time, rope, clips), tokens), x)

        video = LayerNorm(cfg.norm_eps, name="norm_final")(x[:, length:tokens])
        modulation = dense(2 * cfg.width, axes=("time", "modulation"), name="modulation_out")
        of_video = None if clips is None else clips[:, length:]
        shift, scale = jnp.split(to_tokens(modulation(nn.silu(time)), of_video), 2, axis=-1)
        video = LayerNorm(cfg.norm_eps, name="norm_out")(video) * (1 + scale) + shift
        patch = cfg.patch**2 * (cfg.patch_t or 1) * cfg.out_channels
        return dense(patch, axes=("embed", "patch"), name="out")(video), kept


class Block(nn.Module):
    """Attention and MLP over the joint sequence, each gated; (B, S, D) -> (B, S, D).

    `tokens` is S without the padding of `pad_tokens`, `frames` the temporal tokens of a clip. `clips` (B, S), in packed
    rows: the clip each token is of. `per_block` is this block's entry.
    `pick` where `x` is some of the rows: see `nn.stacked`; `time` is of all of them.
    With `keep` the attention's output (B, S, D), before its gate, comes beside; `attention` stands for it.
    """

    cfg: TransformerConfig
    compute: Compute
    text_length: int
    tokens: int
    frames: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        rope,
        clips: jax.Array | None,
        per_block: PerBlock | None = None,
        pick: Pick | None = None,
        *,
        keep: bool = False,
        attention: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        cfg, compute, x = self.cfg, self.compute, block_input(x)
        start, length = x, self.text_length
        y, gate = ExpertNorm(cfg, compute, length, name="norm1")(x, time, clips, pick)
        if per_block is not None and per_block.motion is not None:
            y = per_block.motion.fuse(y, length, self.tokens, compute.dtype)
        if attention is None:
            attend = Attention(cfg, compute, self.tokens, length, self.frames, name="attention")
            attention = attend(y, rope, clips, None if per_block is None else per_block.of_rows(pick))
        x = x + gate * attention
        y, gate = ExpertNorm(cfg, compute, length, name="norm2")(x, time, clips, pick)
        x = x + gate * FeedForward(cfg, compute, name="mlp")(y)
        if per_block is not None and per_block.skip is not None:
            x = jnp.where(per_block.skip > 0, start, x)
        if per_block is not None and per_block.states is not None:
            x = per_block.states.add_to(x, pick)
        return constrain(x, "batch", "seq", None), attention if keep else None


class ExpertNorm(nn.Module):
    """One LayerNorm for all tokens, then a shift, scale and gate of its own for text and for video.

    (B, S, D), (B, time) -> normed (B, S, D), gate (B, S, D); with `clips` (B, S) time is (B, C, time). `pick` as in
    `Block`.
    """

    cfg: TransformerConfig
    compute: Compute
    text_length: int

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, clips: jax.Array | None = None, pick: Pick | None = None
    ) -> tuple[jax.Array, jax.Array]:
        cfg, dtype = self.cfg, self.compute.dtype
        modulation = Dense(6 * cfg.width, ("time", "modulation"), dtype, name="modulation")(nn.silu(time))
        modulation = modulation if pick is None else pick(modulation)
        video, text = jnp.split(modulation, 2, axis=-1)  # each: shift, scale, gate
        is_text = (jnp.arange(x.shape[1]) < self.text_length)[:, None]
        shift, scale, gate = (
            jnp.where(is_text, to_tokens(theirs, clips), to_tokens(ours, clips))
            for ours, theirs in zip(jnp.split(video, 3, axis=-1), jnp.split(text, 3, axis=-1), strict=True)
        )
        return LayerNorm(cfg.norm_eps, name="norm")(x) * (1 + scale) + shift, gate


class Attention(nn.Module):
    """Self-attention with normed queries and keys; (B, S, D). `rope`: cosines and sines (S, K), or None.

    Only the first `tokens` are attended to; values at the others do not matter. With `clips` (B, S)
    tokens attend to those of their own clip, and `rope` is (B, 1, S, K). `text_length` and `frames` are of a clip, for
    `per_block`.
    """

    cfg: TransformerConfig
    compute: Compute
    tokens: int
    text_length: int = 0
    frames: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, rope, clips: jax.Array | None = None, per_block: PerBlock | None = None
    ) -> jax.Array:
        cfg, compute = self.cfg, self.compute
        taken = features(x, compute)  # once, for all three

        def project(name):
            y = product(Dense(cfg.width, ("embed", "heads"), compute.dtype, name=name)(taken))
            return y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim)

        q = LayerNorm(QK_NORM_EPS, name="norm_q")(project("q"))  # (B, S, A, K)
        k = LayerNorm(QK_NORM_EPS, name="norm_k")(project("k"))
        q, k, v = (jnp.swapaxes(y, 1, 2) for y in (q, k, project("v")))  # (B, A, S, K)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        how: dict[str, Any] = {"max_logit": compute.logit_bound, "int8": compute.quantizes_scores}
        if per_block is not None and per_block.regions is not None:
            clips = jnp.pad(per_block.regions, ((0, 0), (0, x.shape[1] - self.tokens)))
            how["overlap"] = True
        softmax = functools.partial(attention, scale=cfg.head_dim**-0.5, **how)
        if per_block is not None and per_block.joined is not None:
            y = attend_joined(softmax, q, k, v, tokens=self.tokens)
        else:
            y = attend(softmax, q, k, v, tokens=self.tokens, segments=clips)
        if per_block is not None and per_block.values is not None:
            y = jnp.where(per_block.values > 0, v, y)
        y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
        y = product(Dense(cfg.width, ("heads", "embed"), compute.dtype, name="out")(features(y, compute)))
        if per_block is None or per_block.enhance is None:
            return y
        video = slice(self.text_length, self.tokens)
        factor = enhancement(q[:, :, video], k[:, :, video], per_block.enhance, self.frames)
        is_text = (jnp.arange(y.shape[1]) < self.text_length)[None, :, None]
        return jnp.where(is_text, y, y * factor[:, None, None].astype(y.dtype))


class FeedForward(nn.Module):
    """MLP with tanh GELU, (B, S, D) -> (B, S, D)."""

    cfg: TransformerConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        most = self.compute.mlp_tokens
        if most is not None and not self.is_initializing():
            whole = FeedForward(self.cfg, dataclasses.replace(self.compute, mlp_tokens=None), parent=None)
            params = self.variables["params"]
            return in_pieces(lambda part: cast(jax.Array, whole.apply({"params": params}, part)), x, most)
        dense = functools.partial(Dense, dtype=self.compute.dtype)
        x = product(dense(self.cfg.mlp, axes=("embed", "mlp"), name="up")(features(x, self.compute)))  # (B, S, M)
        x = constrain(nn.gelu(x, approximate=True), "batch", "seq", "mlp")
        return product(dense(self.cfg.width, axes=("mlp", "embed"), name="down")(features(x, self.compute)))


class TimeEmbedding(nn.Module):
    """Sinusoid (..., features) -> (..., width) by an MLP with SiLU, in float32."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(Dense(self.width, ("time", None), name="up")(x))
        return Dense(self.width, (None, "time"), name="down")(x)


def attend_joined(softmax: axes.Attention, q: jax.Array, k: jax.Array, v: jax.Array, *, tokens: int) -> jax.Array:
    """`attend` of rows (2 B, A, S, K) of `paired`: a video meets its reference's keys, too, and that its own alone."""
    (q, its_q), (k, its_k), (v, its_v) = (unpaired(x) for x in (q, k, v))
    y = attend(softmax, q, k, v, tokens=tokens, beside=(its_k, its_v))
    return paired(y, attend(softmax, its_q, its_k, its_v, tokens=tokens))


def time_embeddings(cfg: TransformerConfig, params: Any, t: jax.Array) -> jax.Array:
    """The embeddings of timesteps (N,) that all blocks are modulated by, (N, time_dim) float32."""
    time = cast(jax.Array, TimeEmbedding(cfg.time_dim).apply({"params": params["time"]}, sinusoid(t, cfg.width)))
    if cfg.ofs_dim is None:
        return time
    features = sinusoid(jnp.full(t.shape, OFS, jnp.float32), cfg.ofs_dim)
    return time + cast(jax.Array, TimeEmbedding(cfg.ofs_dim).apply({"params": params["ofs"]}, features))


def joint_tokens(cfg: TransformerConfig, compute: Compute, patches: jax.Array, text: jax.Array) -> jax.Array:
    """Patches (B, N, features) and text (B, L, text_dim) as tokens (B, S, D), text first; for a compact method."""
    dense = functools.partial(Dense, dtype=compute.dtype)
    words = dense(cfg.width, axes=("text", "embed"), name="text")(text)  # (B, L, D)
    video = dense(cfg.width, axes=("patch", "embed"), name="patch")(patches)  # (B, N, D)
    return jnp.concatenate([words, video], axis=1)


def features(x: jax.Array, compute: Compute) -> jax.Array | Tokens:
    """What a block's products take, (..., in): as integers where the model is quantised so."""
    return quantize_tokens(x) if compute.quantizes_tokens else x


def to_tokens(x: jax.Array, clips: jax.Array | None) -> jax.Array:
    """Values of rows (B, n) or of their clips (B, C, n), for each token: (B, 1, n), or (B, S, n) by `clips` (B, S)."""
    if clips is None:
        return x[:, None]
    # A product, not a gather, whose gradient TPUs scatter; exact, as all terms but one are 0.
    is_of = (clips[..., None] == jnp.arange(x.shape[1])[None, None]).astype(x.dtype)
    return jnp.einsum("bsc,bcn->bsn", is_of, x, precision=jax.lax.Precision.HIGHEST)


def joint_rope(cfg: TransformerConfig, length: int, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`rope_tables` with `length` text tokens in front, which do not move: angle 0; (S, K) each."""
    cos, sin = rope_tables(cfg, *grid)
    text = ((length, 0), (0, 0))
    return np.pad(cos, text, constant_values=1), np.pad(sin, text)


def pad_tokens(x: jax.Array, rope):
    """Zeros after the last token, and angles of 0, where a mesh needs more tokens to split; (B, S, D)."""
    tokens = x.shape[1]
    after = axes.padded(x.shape[0], tokens) - tokens
    if not after:
        return x, rope
    if rope is not None:
        rows = ((0, after), (0, 0))
        rope = np.pad(rope[0], rows, constant_values=1), np.pad(rope[1], rows)
    return jnp.pad(x, ((0, 0), (0, after), (0, 0))), rope


def check_shapes(cfg: TransformerConfig, latents: tuple[int, ...], text: tuple[int, ...]) -> None:
    """Raises ValueError where latents (B, T, h, w, C) and text (B, L, text_dim) cannot be this model's."""
    if len(latents) != 5 or latents[-1] != cfg.in_channels:
        raise ValueError(f"latents must be (B, T, h, w, {cfg.in_channels}), got {latents}")
    if len(text) != 3 or text[-1] != cfg.text_dim:
        raise ValueError(f"text must be (B, L, {cfg.text_dim}), got {text}")
    frames, height, width = latents[1:4]
    if height % cfg.patch or width % cfg.patch or frames % (cfg.patch_t or 1):
        raise ValueError(
            f"latents of {frames} x {height} x {width} do not divide into patches of "
            f"{cfg.patch_t or 1} x {cfg.patch} x {cfg.patch}; pad the frames at the front, choose sizes divisible by 16"
        )
    if cfg.position in ("sincos", "rope+learned") and text[1] != cfg.text_length:
        raise ValueError(f"this model's positions need exactly {cfg.text_length} text tokens, got {text[1]}")
    native = (cfg.sample_latent_frames, cfg.sample_height, cfg.sample_width)
    if cfg.position == "rope+learned" and (frames, height, width) != native:
        # diffusers drops the learned table in silence at another frame count; we do not.
        raise ValueError(f"this model's learned positions need latents of {native}, got {(frames, height, width)}")


def check_packs(cfg: TransformerConfig) -> None:
    """Raises ValueError where clips of this model cannot share a row."""
    if cfg.condition_channels or cfg.position == "rope+learned":
        raise ValueError("frame pack is for text-to-video models; train this one on batches of one shape, without it")
    if cfg.riflex:
        raise ValueError("RIFLEx's positions depend on a clip's length, and packed rows hold several; leave it out")


def check_packed(cfg: TransformerConfig, patches, text, t, clip, positions) -> None:
    """Raises ValueError for shapes that `Transformer.packed` does not take."""
    check_packs(cfg)
    features = cfg.patch**2 * (cfg.patch_t or 1) * cfg.in_channels
    if len(patches) != 3 or patches[-1] != features:
        raise ValueError(f"patches must be (B, N, {features}), got {patches}")
    rows, tokens = patches[:2]
    if (clip, positions) != ((rows, tokens), (rows, tokens, 3)):
        raise ValueError(
            f"clip and positions must be {(rows, tokens)} and {(rows, tokens, 3)}, got {clip}, {positions}"
        )
    if len(text) != 4 or (text[0], text[-1]) != (rows, cfg.text_dim) or t != text[:2]:
        raise ValueError(f"text and t must be ({rows}, C, L, {cfg.text_dim}) and ({rows}, C), got {text}, {t}")
    if cfg.position == "sincos" and text[2] != cfg.text_length:
        raise ValueError(f"this model's positions need exactly {cfg.text_length} text tokens a clip, got {text[2]}")
