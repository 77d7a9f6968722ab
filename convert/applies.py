"""What is said of a model that it has no use for is refused: nobody learns otherwise that it was of no effect."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.convert.sat_folder import STATES
from cogvx_jax.convert.tokenizer_files import check_tokenizer
from cogvx_jax.given import Given
from cogvx_jax.storage import parent_and_name

Place = str | Path


def check_given(given: Given, place: Place, *, files: Collection[Place], has_lora: bool, has_taehv: bool) -> None:
    """Checks what is given against what lies there, before any weight is read.

    Args:
      place: what the user named.
      files: the files and folders of the model's parts.
      has_lora: whether SAT trained a LoRA beside the transformer's weights.
      has_taehv: whether its VAE is the tiny one of taehv.
    Raises: ValueError, one sentence, for what is of no effect; FileNotFoundError for a folder without a tokenizer.
    """
    if given.masters and not any(parent_and_name(file)[1] == STATES for file in files):
        raise ValueError(f"masters is for a folder that DeepSpeed saved, with {STATES} in it, and {place} is none")
    if given.sat_lora_alpha is not None and not has_lora:
        raise ValueError(
            f"sat_lora_alpha is for a file of SAT's with a LoRA beside its weights, and {place} has none; the alpha of "
            "a LoRA file is changed with `cogvx lora convert --alpha`, or `load_lora(..., alpha=...)`"
        )
    if given.groups is not None and has_taehv:
        raise ValueError("groups is for a VAE with norms, and the VAE that is given, the tiny one of taehv, has none")
    if given.tokenizer is not None:
        check_tokenizer(given.tokenizer)


def check_position(given: Given, transformer: Mapping[str, Any], place: Place) -> None:
    """Raises ValueError, one sentence, for sincos where the transformer's configuration leaves no choice."""
    has = {"patch_size_t": "patches of several frames", "use_learned_positional_embeddings": "a learned table of them"}
    fixed = next((words for key, words in has.items() if transformer.get(key)), None)
    if given.position == "sincos" and fixed is not None:
        raise ValueError(f"position sincos is for 2B and its like, and {place} has {fixed}, with which they are rope")
