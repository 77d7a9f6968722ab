"""Tokens and floating-point operations of the transformer, counted by hand."""

from cogvx_jax.configs import TransformerConfig


def token_count(cfg: TransformerConfig, latents: tuple[int, int, int]) -> int:
    """Tokens of text and video in a sequence over latents of T whole patches in time, h and w."""
    frames, height, width = latents
    return cfg.text_length + frames // (cfg.patch_t or 1) * (height // cfg.patch) * (width // cfg.patch)


def transformer_flops(cfg: TransformerConfig, tokens: int, *, batch: int = 1) -> int:
    """Of one forward pass over `batch` sequences of `tokens`, text included: the layers' products.

    A product of (m, k) and (k, n) is 2mkn. Per layer: q, k, v and out (4 D^2), the MLP (2 D M), and
    scores and their product with the values (2 S D each). Embeddings, modulation and the output are left out:
    they are less than a percent of the published sizes.
    """
    weights = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp
    return batch * cfg.layers * tokens * (2 * weights + 4 * tokens * cfg.width)
