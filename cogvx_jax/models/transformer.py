"""The expert transformer: full attention over text and video tokens, predicting v.

Shapes: B batch, T h w latents, L text tokens, N video tokens, S = L + N; D width, A heads, K = D / A.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cogvx_jax import axes
from cogvx_jax.axes import attend, constrain
from cogvx_jax.configs import TransformerConfig
from cogvx_jax.nn.attention import attention
from cogvx_jax.nn.embeddings import patchify, rope_tables, rotate, sincos_table, sinusoid, unpatchify
from cogvx_jax.nn.linear import Dense
from cogvx_jax.nn.norms import LayerNorm
from cogvx_jax.nn.parameters import parameter

OFS = 2.0  # what every user of 1.5-I2V feeds its `ofs` embedding
QK_NORM_EPS = 1e-6


class Transformer(nn.Module):
    """v-prediction for latents at a timestep, given the text encoder's states."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, latents: jax.Array, text: jax.Array, t: jax.Array, ofs: jax.Array | float = OFS) -> jax.Array:
        """Predicts v.

        Args:
          latents: (B, T, h, w, in_channels), scaled; image latents after the noisy ones.
          text: (B, L, text_dim), the text encoder's output; no mask, padding counts.
          t: (B,) training timesteps, 0..999.
          ofs: only used by models with `ofs_dim`.
        Returns: (B, T, h, w, out_channels) of `cfg.dtype`.
        Raises: ValueError where the shapes cannot be this model's.
        """
        cfg = self.cfg
        check_shapes(cfg, latents.shape, text.shape)
        batch, frames, height, width = latents.shape[:4]
        grid = (frames // (cfg.patch_t or 1), height // cfg.patch, width // cfg.patch)
        length = text.shape[1]
        dense = functools.partial(Dense, dtype=cfg.dtype)

        t = jnp.broadcast_to(t, (batch,))
        time = TimeEmbedding(cfg.time_dim, name="time")(sinusoid(t, cfg.width))
        if cfg.ofs_dim is not None:
            features = sinusoid(jnp.full((batch,), ofs, jnp.float32), cfg.ofs_dim)
            time = time + TimeEmbedding(cfg.ofs_dim, name="ofs")(features)

        words = dense(cfg.width, axes=("text", "embed"), name="text")(text)  # (B, L, D)
        video = dense(cfg.width, axes=("patch", "embed"), name="patch")(patchify(latents, cfg))  # (B, N, D)
        x = jnp.concatenate([words, video], axis=1)  # (B, S, D), text first
        if cfg.position == "sincos":
            table = np.pad(sincos_table(cfg, *grid), ((length, 0), (0, 0)))
            x = x + jnp.asarray(table, x.dtype)
        elif cfg.position == "rope+learned":
            zeros, names = nn.initializers.zeros_init(), (None, "embed")
            x = x + axes.whole(parameter(self, "position", zeros, names, x.shape[1:]).astype(x.dtype), names)
        rope = None if cfg.position == "sincos" else joint_rope(cfg, length, grid)
        tokens = x.shape[1]
        x, rope = pad_tokens(x, rope)
        x = constrain(x, "batch", "seq", None)

        block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(cfg, length, tokens, name="blocks")(x, time, rope)

        video = LayerNorm(cfg.norm_eps, name="norm_final")(x[:, length:tokens])
        modulation = dense(2 * cfg.width, axes=("time", "modulation"), name="modulation_out")
        shift, scale = jnp.split(modulation(nn.silu(time))[:, None], 2, axis=-1)
        video = LayerNorm(cfg.norm_eps, name="norm_out")(video) * (1 + scale) + shift
        patch = cfg.patch**2 * (cfg.patch_t or 1) * cfg.out_channels
        return unpatchify(dense(patch, axes=("embed", "patch"), name="out")(video), cfg, (frames, height, width))


class Block(nn.Module):
    """Attention and MLP over the joint sequence, each gated; (B, S, D) -> (B, S, D).

    `tokens` is S without what `pad_tokens` added.
    """

    cfg: TransformerConfig
    text_length: int
    tokens: int

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, rope) -> tuple[jax.Array, None]:
        cfg = self.cfg
        y, gate = ExpertNorm(cfg, self.text_length, name="norm1")(x, time)
        x = x + gate * Attention(cfg, self.tokens, name="attention")(y, rope)
        y, gate = ExpertNorm(cfg, self.text_length, name="norm2")(x, time)
        x = x + gate * FeedForward(cfg, name="mlp")(y)
        return constrain(x, "batch", "seq", None), None


class ExpertNorm(nn.Module):
    """One LayerNorm for all tokens, then a shift, scale and gate of its own for text and for video.

    (B, S, D), (B, time) -> normed (B, S, D), gate (B, S, D).
    """

    cfg: TransformerConfig
    text_length: int

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.cfg
        modulation = Dense(6 * cfg.width, ("time", "modulation"), cfg.dtype, name="modulation")(nn.silu(time))
        video, text = jnp.split(modulation[:, None], 2, axis=-1)  # each: shift, scale, gate
        is_text = (jnp.arange(x.shape[1]) < self.text_length)[:, None]
        shift, scale, gate = (
            jnp.where(is_text, theirs, ours)
            for ours, theirs in zip(jnp.split(video, 3, axis=-1), jnp.split(text, 3, axis=-1), strict=True)
        )
        return LayerNorm(cfg.norm_eps, name="norm")(x) * (1 + scale) + shift, gate


class Attention(nn.Module):
    """Self-attention with normed queries and keys; (B, S, D). `rope`: cosines and sines (S, K), or None.

    Only the first `tokens` can be seen; what stands at the others does not matter.
    """

    cfg: TransformerConfig
    tokens: int

    @nn.compact
    def __call__(self, x: jax.Array, rope) -> jax.Array:
        cfg = self.cfg

        def project(name):
            y = Dense(cfg.width, ("embed", "heads"), cfg.dtype, name=name)(x)
            return y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim)

        q = LayerNorm(QK_NORM_EPS, name="norm_q")(project("q"))  # (B, S, A, K)
        k = LayerNorm(QK_NORM_EPS, name="norm_k")(project("k"))
        q, k, v = (jnp.swapaxes(y, 1, 2) for y in (q, k, project("v")))  # (B, A, S, K)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        softmax = functools.partial(attention, scale=cfg.head_dim**-0.5, max_logit=cfg.logit_bound)
        y = attend(softmax, q, k, v, tokens=self.tokens)
        y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
        return Dense(cfg.width, ("heads", "embed"), cfg.dtype, name="out")(y)


class FeedForward(nn.Module):
    """MLP with tanh GELU, (B, S, D) -> (B, S, D)."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(Dense, dtype=self.cfg.dtype)
        x = dense(self.cfg.mlp, axes=("embed", "mlp"), name="up")(x)  # (B, S, M)
        x = constrain(nn.gelu(x, approximate=True), "batch", "seq", "mlp")
        return dense(self.cfg.width, axes=("mlp", "embed"), name="down")(x)


class TimeEmbedding(nn.Module):
    """Sinusoid (B, features) -> (B, width) by an MLP with SiLU, in float32."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(Dense(self.width, ("time", None), name="up")(x))
        return Dense(self.width, (None, "time"), name="down")(x)


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
