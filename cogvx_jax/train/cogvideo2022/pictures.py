"""What trains the image tokenizer of CogVideo (2022): the loss of its pictures, and codes that no picture uses.

Shapes: B pictures, H W pixels, h w codes, C channels of a code.

Source: van den Oord et al. 2017, arXiv:1711.00937, whose codes follow the gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer

LLOYD = 10  # rounds of k-means


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureObjective:
    """Weights of the terms, each a mean over its numbers. Raises: ValueError for weights below 0."""

    l1: float = 1.0  # of the absolute error of pixels in [0, 1]
    squared: float = 2.0  # of their squared error
    codes: float = 1.0  # of the distance of codes to what the encoder gives, which moves the codes
    commitment: float = 0.25  # of the same distance, which moves the encoder
    quantised: bool = True  # False decodes what the encoder gives: an autoencoder, by which codes can begin

    def __post_init__(self) -> None:
        if min(self.l1, self.squared, self.codes, self.commitment) < 0:
            raise ValueError("the weights of the image tokenizer's loss must be at least 0")


def picture_loss(objective: PictureObjective, network: ImageTokenizer, params: Any, pixels: jax.Array) -> jax.Array:
    """The loss of pictures (B, H, W, 3) in [0, 1] and their reconstruction, at the rate of frames."""
    variables, rate = {"params": params}, network.cfg.rate
    features = network.apply(variables, pixels, rate, method="features")
    states, distance = features, jnp.zeros(())
    if objective.quantised:
        found = params["codebook"][network.apply(variables, features, method="nearest")]
        held, moved = jax.lax.stop_gradient((features, found))
        distance = objective.codes * jnp.mean(jnp.square(found - held))
        distance += objective.commitment * jnp.mean(jnp.square(features - moved))
        states = features + (moved - held)  # the decoder's gradient goes to the encoder as if nothing lay between
    made: Any = network.apply(variables, states, rate, method="pixels")
    error = made - pixels
    return objective.l1 * jnp.mean(jnp.abs(error)) + objective.squared * jnp.mean(jnp.square(error)) + distance


def revived(codebook: np.ndarray, features: np.ndarray, rng: np.random.Generator, *, least: float = 0.1) -> np.ndarray:
    """A codebook in which codes that are hardly used have moved to where others are far away.

    Args:
      codebook: (codes, C). All zeros, as none is used then, gives a new one by k-means.
      features: (N, C) of the encoder, more than there are codes.
      least: what counts as used, as a share of the mean number of features of a code.
    Source: the draws are those of k-means++, Arthur & Vassilvitskii 2007.
    """
    made = np.array(codebook, np.float32)
    if not made.any():
        return _means(features, _spread(made[:0], features, len(made), rng))
    used = np.bincount(_nearest(features, made), minlength=len(made)) >= least * len(features) / len(made)
    made[~used] = _spread(made[used], features, int((~used).sum()), rng)
    return made


def _spread(there: np.ndarray, features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the features, each drawn by its squared distance to those before and to what is `there`."""
    chosen = [features[rng.integers(len(features))]] if not len(there) and count else []
    distance = _distances(features, there if len(there) else np.stack(chosen)).min(axis=1) if count else np.zeros(0)
    while len(chosen) < count:
        total = distance.sum()
        chances = distance / total if total > 0 else None
        chosen.append(features[rng.choice(len(features), p=chances)])
        distance = np.minimum(distance, np.square(features - chosen[-1]).sum(axis=1))
    return np.stack(chosen) if chosen else np.zeros((0, features.shape[1]), np.float32)


def _means(features: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    for _ in range(LLOYD):
        nearest = _nearest(features, codebook)
        counts = np.bincount(nearest, minlength=len(codebook))
        sums = np.stack([np.bincount(nearest, x, minlength=len(codebook)) for x in features.T], axis=1)
        codebook = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], codebook).astype(np.float32)
    return codebook


def _nearest(features: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return _distances(features, codebook).argmin(axis=1)


def _distances(features: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """(N, codes), squared, at least 0."""
    sizes = np.square(features).sum(axis=1)[:, None] + np.square(codebook).sum(axis=1)[None]
    return np.maximum(sizes - 2 * features @ codebook.T, 0)
