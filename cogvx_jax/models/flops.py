"""Tokens and floating-point operations of the transformers, counted by hand."""

from collections.abc import Collection

from cogvx_jax.configs import T5Config, ToraConfig, TransformerConfig


def sequence_tokens(cfg: TransformerConfig, latents: tuple[int, int, int], texts: int = 1) -> int:
    """Tokens of text and video in a sequence over latents of T whole patches in time, h and w, and so many prompts."""
    frames, height, width = latents
    return texts * cfg.text_length + frames // (cfg.patch_t or 1) * (height // cfg.patch) * (width // cfg.patch)


def transformer_flops(cfg: TransformerConfig, tokens: int, *, batch: int = 1, keys: int | None = None) -> int:
    """Of one forward pass over `batch` sequences of `tokens`, text included: the layers' products.

    Attention is over so many keys; None is its own tokens.

    A product of (m, k) and (k, n) is 2mkn. Per layer: q, k, v and out (4 D^2), the MLP (2 D M), and
    scores and their product with the values (2 T D each, T keys). Embeddings, modulation and the output are left out:
    they are less than a percent of the published sizes.
    """
    keys = tokens if keys is None else keys
    return batch * cfg.layers * tokens * (2 * sum(_kernels(cfg).values()) + 4 * keys * cfg.width)


def fuser_flops(cfg: ToraConfig, tokens: int) -> int:
    """Of Tora's fusers over so many video tokens, once for all rows of an evaluation: their convolutions.

    Per layer and twice, for scale and shift: 3x3 from C to D / 4, and three frames of those to D. The norm is left out.
    """
    inner = cfg.width // 4
    return cfg.layers * tokens * 2 * 2 * (9 * cfg.channels * inner + 3 * inner * cfg.width)


def text_flops(cfg: T5Config, tokens: int, *, batch: int = 1) -> int:
    """Of the text encoder on `batch` texts of `tokens`: products of the layers, as `transformer_flops` counts them.

    Per layer: q, k, v and out, the three kernels of the gated MLP, and scores and their product with the values.
    """
    inner = cfg.heads * cfg.head_dim
    kernels = 4 * cfg.width * inner + 3 * cfg.width * cfg.mlp
    return batch * cfg.layers * tokens * (2 * kernels + 4 * tokens * inner)


def training_flops(
    cfg: TransformerConfig, tokens: int, trained: Collection[str], *, batch: int = 1, rank: int = 0
) -> int:
    """Of one update on `batch` sequences of `tokens`: the products of the forward and of the backward pass.

    A product of the forward pass, F = `transformer_flops` in all, comes again twice in the backward pass, for the
    gradient of either factor; one with a kernel that stays as it is, K in all, only once. So an update takes 3 F - K,
    which for all of the model is 3 F. A LoRA is added to its kernels before they are used: their gradients are taken,
    and a kernel (in, out) costs 6 r in out beside, for the product of a and b and its two gradients. Recomputation by
    `remat` is not counted, nor are the operations that `transformer_flops` leaves out.

    Args:
      trained: paths of parameters that are trained or adapted; those that are not kernels of blocks count for nothing.
      rank: of a LoRA.
    """
    kernels, forward = _kernels(cfg), transformer_flops(cfg, tokens, batch=batch)
    own = sum(size for path, size in kernels.items() if path in trained)
    frozen = 2 * batch * cfg.layers * tokens * (sum(kernels.values()) - own)
    return 3 * forward - frozen + 6 * rank * cfg.layers * own


def _kernels(cfg: TransformerConfig) -> dict[str, int]:
    """Numbers in each kernel of a block, by path."""
    attention = {f"blocks/attention/{name}/kernel": cfg.width**2 for name in ("q", "k", "v", "out")}
    return attention | {f"blocks/mlp/{name}/kernel": cfg.width * cfg.mlp for name in ("up", "down")}
