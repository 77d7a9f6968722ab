"""Step `check`: whether a caption is one that a model can learn from."""

import functools
from collections import Counter
from collections.abc import Callable

from cogvx_jax.prepare.embedding import text_likeness
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prompting.languages import other_language

FIELDS = ("caption_language", "caption_words", "caption_tokens", "caption_cut", "caption_repeats", "clip_score")
GRAM = 4  # words that come again


def check(clip: Row, settings: Settings) -> Row:
    """Of the caption, or of the prompt that came with the film:

    Returns: `caption_language`, English or what it looks like; `caption_words`; `caption_tokens`, of T5, the one that
      ends it included; `caption_cut`, how many of these no model reads; `caption_repeats`, the share of its runs of
      four words that were there before; `clip_score`, 0 to 100, how like the clip's embedding it is, None
      where the step embedding has nothing for texts. All None without a text.
    """
    text = clip.get("caption") or clip.get("prompt")
    if not text:
        return {}
    words = text.lower().split()
    tokens = token_counter(settings.captions.tokenizer)(text)
    grams = Counter(zip(*(words[n:] for n in range(GRAM)), strict=False))
    return {
        "caption_language": other_language(text) or "English",
        "caption_words": len(words),
        "caption_tokens": tokens,
        "caption_cut": max(tokens - settings.captions.tokens, 0),
        "caption_repeats": (grams.total() - len(grams)) / grams.total() if grams else 0.0,
        "clip_score": text_likeness(clip.get("embedding"), text, settings.embedding),
    }


@functools.cache
def token_counter(model: str) -> Callable[[str], int]:
    """Counts T5 tokens as a model's own tokenizer does, the one that ends a text included. Raises: as `load`."""
    from cogvx_jax.convert.sources import open_source
    from cogvx_jax.pipelines.model import resolve
    from cogvx_jax.pipelines.tokenizer import read_tokenizer

    files = open_source(resolve(model))
    tokenizer = read_tokenizer(files.tokenizer, files.spec())
    return lambda text: len(tokenizer(text, verbose=False)["input_ids"])
