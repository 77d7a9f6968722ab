"""What a head for labels reads of a clip: its scores, its embedding, or both, as numbers that compare.

A score that is missing is its mean, and another number says that it was missing; so is an embedding.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from cogvx_jax.prepare.label_names import SCORES
from cogvx_jax.prepare.rows import Row

On = Literal["scores", "embedding", "both"]
READ = tuple(name for name in SCORES if name != "cut_scores")
WEIGHT = 16.0  # scores that an embedding counts as much as, however long it is
FARTHEST = 8.0  # deviations from the mean


@dataclasses.dataclass(frozen=True)
class Features:
    """Which numbers of a row are read, and how they are brought to one scale.

    scores: names of fields.
    size: of embeddings, 0 where they are not read; `of`: whose they are, as `embedding_of` names them.
    mean, spread: (scores + size,), of the clips of the fit.
    """

    scores: tuple[str, ...]
    size: int
    of: str | None
    mean: np.ndarray
    spread: np.ndarray

    @property
    def width(self) -> int:
        """Numbers of a clip."""
        return 2 * len(self.scores) + (self.size + 1 if self.size else 0) + 1

    def __call__(self, rows: Sequence[Row]) -> np.ndarray:
        """(N, width): standardised, whether each is missing, and 1."""
        raw, count = self._raw(rows), len(self.scores)
        missing = ~np.isfinite(raw)
        x = np.clip(np.where(missing, 0.0, (raw - self.mean) / self.spread), -FARTHEST, FARTHEST)
        x[:, count:] *= np.sqrt(WEIGHT / max(self.size, 1))
        gone = missing[:, : count + 1] if self.size else missing
        return np.concatenate([x, gone, np.ones((len(x), 1))], axis=1)

    def about(self) -> dict[str, Any]:
        """As JSON, of which `read_features` makes the same."""
        numbers = {"mean": self.mean.tolist(), "spread": self.spread.tolist()}
        return {"scores": list(self.scores), "size": self.size, "embedding_of": self.of} | numbers

    def _raw(self, rows: Sequence[Row]) -> np.ndarray:
        """(N, scores + size), nan where nothing is known."""
        found = np.full((len(rows), len(self.scores) + self.size), np.nan)
        for line, row in zip(found, rows, strict=True):
            line[: len(self.scores)] = [np.nan if row.get(name) is None else float(row[name]) for name in self.scores]
            if self.size and _is_of(row, self.size, self.of):
                line[len(self.scores) :] = row["embedding"]
        return found


def measured(rows: Sequence[Row], on: On) -> Features:
    """The features of some clips. Raises: ValueError where none has an embedding, or they are of several functions."""
    size, of = 0, None
    if on != "scores":
        made = sorted({(str(row["embedding_of"]), len(row["embedding"])) for row in rows if row.get("embedding")})
        if not made:
            raise ValueError("none of the labelled clips has an embedding: set function of [embedding], prepare again")
        if len(made) > 1:
            raise ValueError(f"the clips' embeddings are of {made[0][0]} and of {made[1][0]}: prepare the set again")
        ((of, size),) = made
    scores = READ if on != "embedding" else ()
    count = len(scores) + size
    raw = Features(scores, size, of, np.zeros(count), np.ones(count))._raw(rows)
    known = np.isfinite(raw)
    there = np.maximum(known.sum(0), 1)
    mean = np.where(known, raw, 0).sum(0) / there
    spread = np.sqrt((np.where(known, raw - mean, 0) ** 2).sum(0) / there)
    return Features(scores, size, of, mean, np.where(spread > 0, spread, 1.0))


def read_features(said: Mapping[str, Any]) -> Features:
    """Those of a head's file. Raises: KeyError, TypeError or ValueError for what are none."""
    mean, spread = (np.asarray(said[name], np.float64) for name in ("mean", "spread"))
    found = Features(tuple(said["scores"]), int(said["size"]), said["embedding_of"], mean, spread)
    if set(found.scores) - set(READ):
        raise ValueError("it reads scores that are not known")
    if mean.shape != (len(found.scores) + found.size,) or spread.shape != mean.shape or not (spread > 0).all():
        raise ValueError("its moments are of another size")
    return found


def _is_of(row: Row, size: int, of: str | None) -> bool:
    return row.get("embedding") is not None and row.get("embedding_of") == of and len(row["embedding"]) == size
