"""Step `embedding`: a vector of what clips show, by a function of the user's or a folder's CLIP; null without one."""

from typing import Any

import numpy as np

from cogvx_jax.metrics.feature_functions import frame_features, text_features
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Embedding, Settings

FIELDS = ("embedding", "embedding_of")
MOST = 4096  # numbers of an embedding


def embedding(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `embedding`, the mean of the large frames' features, each of length 1; `embedding_of`, whose they are.

    Raises: ValueError where the function cannot be imported, raises, or gives what are no features.
    """
    function = settings.embedding.function
    if function is None or not len(look.large):
        return {}
    found = _called(function, frame_features, look.large)
    if found.shape[1] > MOST:
        raise ValueError(f"{function} gives {found.shape[1]} features; at most {MOST} are kept of a clip")
    return {"embedding": _unit(found).mean(axis=0).tolist(), "embedding_of": settings.embedding.name}


def text_likeness(found: list[float] | None, text: str, settings: Embedding) -> float | None:
    """CLIPScore of a text and a clip's embedding, 100 max(0, cos) averaged over frames; None where either has none.

    No frame is the opposite of its clip's text, so the mean of cosines is not clipped frame by frame.
    """
    if found is None or settings.texts is None:
        return None
    words = _called(settings.texts, text_features, [text])
    if words.shape[1] != len(found):
        raise ValueError(f"features of frames and texts are of one length, got {len(found)} and {words.shape[1]}")
    return 100 * max(float(_unit(words)[0] @ np.asarray(found)), 0.0)


def _called(name: str, features: Any, given: Any) -> np.ndarray:
    """Raises: ValueError for whatever a function of the user's raises."""
    try:
        return features(name, given)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from None


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
