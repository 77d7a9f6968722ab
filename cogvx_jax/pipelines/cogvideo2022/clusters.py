"""How a code is drawn: first one of the likeliest clusters of codes, then a code in it.

Noise is counter-based: a row's code depends on its key and the code's place, not on the rows beside it.

Source: branch CogVideo of zai-org/CogVideo, `coglm_strategy.py`.
"""

import dataclasses
import io
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.pipelines.cogvideo2022.kinds import check_number, check_whole
from cogvx_jax.storage import open_files, parent_and_name

MAX_BYTES = 2**20  # of the file; the published one takes 160 kB
TEMPERATURES = 1e-3, 1e3  # far beyond all use; logits that are divided by them stay finite in float32
UNLIKELY = -1e9  # the score of a place in the table that holds no code


class Clusters(NamedTuple):
    """The codes of each cluster, filled up to the size of the largest: (clusters, most) each."""

    codes: jax.Array | np.ndarray  # int32
    real: jax.Array | np.ndarray  # bool


@dataclasses.dataclass(frozen=True)
class Draw:
    """Numbers of a draw. The defaults are those of the first frame.

    Attributes:
      clusters: how many of the likeliest one is drawn from.
      temperature: of all logits.
      inner: of those in the cluster, beside it.
    Raises: ValueError, which names the field, for what is no number of its kind, or out of range.
    """

    clusters: int = 16
    temperature: float = 1.0
    inner: float = 0.89

    def __post_init__(self) -> None:
        check_whole("clusters", self.clusters, 1)
        for name in ("temperature", "inner"):
            check_number(name, getattr(self, name), *TEMPERATURES)


def read_clusters(place: str | Path, codes: int) -> Clusters:
    """The table of a file as `cluster_label2.npy`: the cluster of each code.

    Raises: FileNotFoundError; ValueError for another file.
    """
    folder, name = parent_and_name(place)
    files = open_files(folder)
    if not files.exists(name):
        raise FileNotFoundError(
            f"there is no {place}, the table of clusters that codes are drawn by; it is cluster_label2.npy in the "
            "branch CogVideo of github.com/zai-org/CogVideo"
        )
    try:
        labels = np.load(io.BytesIO(files.bytes(name, MAX_BYTES)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{place} is no array of NumPy's: {' '.join(str(error)[:100].split())}") from None
    if labels.shape != (codes,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{place} holds {labels.dtype} {labels.shape}, where it would have a whole number for each of {codes} codes"
        )
    if labels.min() < 0 or labels.max() >= codes:
        raise ValueError(f"{place} has the cluster {labels.min() if labels.min() < 0 else labels.max()}, out of range")
    return table_of(labels)


def table_of(labels: np.ndarray) -> Clusters:
    """(codes,) cluster of each code -> its table."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    real = np.arange(sizes.max())[None] < sizes[:, None]
    codes = np.zeros(real.shape, np.int32)
    codes[real] = order
    return Clusters(codes, real)


def draw(logits: jax.Array, clusters: Clusters, keys: jax.Array, how: Draw) -> jax.Array:
    """(B, codes) float32 and a key for each row -> (B,) int32."""
    clusters = Clusters(jnp.asarray(clusters.codes), jnp.asarray(clusters.real))
    by_cluster = jnp.where(clusters.real[None], logits[:, clusters.codes] / how.temperature, UNLIKELY)
    mass = jax.nn.logsumexp(by_cluster, axis=-1)
    likeliest, numbers = jax.lax.top_k(mass, min(how.clusters, mass.shape[-1]))

    def one(key: jax.Array, mass: jax.Array, numbers: jax.Array, inside: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        cluster = numbers[jax.random.categorical(first, mass)]
        return clusters.codes[cluster, jax.random.categorical(second, inside[cluster] / how.inner)]

    return jax.vmap(one)(keys, likeliest, numbers, by_cluster)


def probabilities(logits: np.ndarray, clusters: Clusters, how: Draw) -> np.ndarray:
    """Those of each code in a draw, (B, codes) -> (B, codes) float64: the closed form, to compare with."""
    found = np.zeros(logits.shape)
    for row, scores in zip(found, logits.astype(np.float64) / how.temperature, strict=True):
        members = [codes[real] for codes, real in zip(clusters.codes, clusters.real, strict=True)]
        mass = np.array([np.exp(scores[own] - scores.max()).sum() for own in members])
        best = np.argsort(-mass, kind="stable")[: how.clusters]
        for cluster in best:
            own = members[cluster]
            inner = np.exp((scores[own] - scores[own].max()) / how.inner)
            row[own] = mass[cluster] / mass[best].sum() * inner / inner.sum()
    return found
