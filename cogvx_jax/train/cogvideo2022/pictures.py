"""What trains the image tokenizer of a small CogVideo (2022): codes by k-means, and the networks that learn them.

A picture is cut into patches, one for each code. Their principal components are what the encoder learns to give, and
clusters of these are the codebook, which stays as it is. The decoder learns pictures from the codes of their patches.
So neither waits for the other, as they do where codes are learnt with them, and every code is used.

Shapes: B pictures, H W pixels, h w codes, C channels of a code, N patches of P numbers.
"""

import dataclasses
from typing import Any, NamedTuple

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
    features: float = 1.0  # of the squared error of what the encoder gives

    def __post_init__(self) -> None:
        if min(self.l1, self.squared, self.features) < 0:
            raise ValueError("the weights of the image tokenizer's loss must be at least 0")


class Components(NamedTuple):
    """The principal components of patches, on a scale on which one feature's variance is 1 in the mean."""

    mean: np.ndarray  # (P,)
    basis: np.ndarray  # (P, C)
    rate: int  # pixels of a patch's side

    @classmethod
    def of(cls, pixels: np.ndarray, rate: int, count: int) -> "Components":
        """So many components of the patches of pictures (B, H, W, 3) in [0, 1]."""
        patches = np.asarray(_patches(pixels, rate)).reshape(-1, 3 * rate**2)
        mean = patches.mean(axis=0)
        sizes, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))  # the smallest first
        scale = np.sqrt(sizes[-count:].mean())
        return cls(mean, (vectors[:, ::-1][:, :count] / scale).astype(np.float32), rate)

    def features(self, pixels: Any) -> Any:
        """(B, H, W, 3) in [0, 1] -> (B, h, w, C)."""
        return (_patches(pixels, self.rate) - self.mean[None, None, None]) @ self.basis


def picture_loss(
    objective: PictureObjective, network: ImageTokenizer, components: Components, params: Any, pixels: jax.Array
) -> jax.Array:
    """The loss of pictures (B, H, W, 3) in [0, 1]. The codebook among the parameters gets no gradient."""
    variables = {"params": params | {"codebook": jax.lax.stop_gradient(params["codebook"])}}
    wanted = components.features(pixels)
    given: Any = network.apply(variables, pixels, components.rate, method="features")
    codes = network.apply(variables, wanted, method="nearest")
    made: Any = network.apply(variables, codes, components.rate, method="decode")
    error = made - pixels
    shown = objective.l1 * jnp.mean(jnp.abs(error)) + objective.squared * jnp.mean(jnp.square(error))
    return shown + objective.features * jnp.mean(jnp.square(given - wanted))


def clusters(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The centres (count, C) of features (N, C), of which there are more, by k-means.

    Source: the first ones are drawn as in k-means++, Arthur & Vassilvitskii 2007.
    """
    found = _spread(features, count, rng)
    for _ in range(LLOYD):
        nearest = _distances(features, found).argmin(axis=1)
        counts = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, x, minlength=count) for x in features.T], axis=1)
        found = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], found).astype(np.float32)
    return found


def _spread(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the features, each drawn by its squared distance to those before."""
    chosen = [features[rng.integers(len(features))]]
    distance = np.square(features - chosen[0]).sum(axis=1)
    while len(chosen) < count:
        total = distance.sum()
        chances = distance / total if total > 0 else None  # fewer different features than clusters: any of them
        chosen.append(features[rng.choice(len(features), p=chances)])
        distance = np.minimum(distance, np.square(features - chosen[-1]).sum(axis=1))
    return np.stack(chosen)


def _distances(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, centres), squared, but for what is the same for all centres."""
    return np.square(centres).sum(axis=1)[None] - 2 * features @ centres.T


def _patches(pixels: Any, rate: int) -> Any:
    """(B, H, W, 3) -> (B, h, w, P)."""
    b, height, width, channels = pixels.shape
    cut = pixels.reshape(b, height // rate, rate, width // rate, rate, channels).swapaxes(2, 3)
    return cut.reshape(b, height // rate, width // rate, -1)
