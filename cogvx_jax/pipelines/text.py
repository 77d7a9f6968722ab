"""Prompts to text states: tokenizer, then the T5 encoder, padded to the model's text length."""

import functools
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.pipelines.exact import row_by_row
from cogvx_jax.pipelines.finite import NotFiniteError, all_finite
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.text_cache import TextCache
from cogvx_jax.pipelines.turns import Turns
from cogvx_jax.sharding import activate, everywhere, replicate


def tokenize(model: Model, prompts: Sequence[str]) -> np.ndarray:
    """Token ids (B, L) int32, padded or cut to the model's text length; warns of what is cut."""
    length = model.spec.transformer.text_length
    ids = model.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True).input_ids
    whole = model.tokenizer(list(prompts)).input_ids
    for prompt, tokens in zip(prompts, whole, strict=True):
        if len(tokens) > length:
            # The end token keeps its place, so one word piece more than the surplus is lost.
            cut = model.tokenizer.decode(tokens[length - 1 : -1])
            warnings.warn(
                f"the prompt has {len(tokens)} tokens, {model.spec.name} reads {length}; "
                f"cut from {prompt[:40]!r}...: {cut!r}",
                stacklevel=3,
            )
    return np.asarray(ids, np.int32)


def encode_prompts(model: Model, prompts: Sequence[str]) -> jax.Array:
    """Text states (B, L, text_dim) of the text encoder's dtype. Padding is encoded like words.

    Where components take turns, states that the cache holds are taken from there, and new ones put into it.
    Raises: NotFiniteError.
    """
    ids = tokenize(model, prompts)
    kept = None
    if isinstance(model.params, Turns):
        kept = TextCache.of(model.params.component("text_encoder"), model.exact)
    if kept is not None and (found := kept.read(ids, model.spec.text_encoder.width)) is not None:
        return replicate(found, model.mesh)
    states = _encode(model, ids)
    if kept is not None:
        kept.write(ids, np.asarray(states))
    return states


def _encode(model: Model, ids: np.ndarray) -> jax.Array:
    encode = model.compiled("text", encode_program(model.text_encoder, model.mesh, model.exact))
    states = encode(model.params["text_encoder"], replicate(ids, model.mesh))
    if not all_finite(states):
        raise NotFiniteError.of(model, "text_encoder", "encoding the prompt")
    return states


@functools.lru_cache
def encode_program(encoder: T5Encoder, mesh: Mesh | None, exact: bool = False):
    def states(params, ids):
        return encoder.apply({"params": params}, ids)

    def encode(params, ids):
        if exact:
            return row_by_row(states, mesh)(params, ids)
        with activate(mesh):
            return states(params, ids)

    return jax.jit(encode, out_shardings=everywhere(mesh))
