"""A head for the six labels: logistic regression over clips' scores or embeddings, fitted to a table labelled by hand.

Accuracy is told of clips that the fit did not see, in five turns.
"""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.text_lines import read_text
from cogvx_jax.json_files import quoted, read_json
from cogvx_jax.prepare.label_features import On, measured, read_features
from cogvx_jax.prepare.label_names import LABELS
from cogvx_jax.prepare.rows import Row, key_of
from cogvx_jax.prepare.sets import read_set
from cogvx_jax.storage import write_whole

FORMAT = 2
FOLDS, LEAST = 5, 10  # turns; labelled clips, at least
RIDGE, ROUNDS = 1.0, 25  # strength of the penalty; steps of Newton's method, at most
STEADY = 1e-9  # the largest change of a weight after which no more steps are taken
PAPER = {"editing": 0.91, "static": 0.92, "low_quality": 0.89, "lecture": 0.99, "text": 0.96, "screenshot": 0.98}

Head = Callable[[Row], dict[str, float | None]]


def fit(folder: Path, table: Path, out: Path, on: On = "scores") -> Iterator[str]:
    """Fits a head to a table of a set's clips and writes it.

    Args:
      on: what it reads of a clip.
    Returns: lines for people: the accuracy of each label.
    Raises: as `read_set`; ValueError for a table that does not fit.
    """
    rows = {row["clip_id"]: row for row in read_set(folder)}
    marked = read_marks(table, rows)
    clips_of = [rows[clip] for clip in marked]
    features, weights = measured(clips_of, on), {}
    x = features(clips_of)
    yield f"{'label':12} {'clips':>6} {'head':>6} {'set':>6} {'paper':>6}"
    for label in LABELS:
        own = [n for n, marks in enumerate(marked.values()) if label in marks]
        y = np.array([list(marked.values())[n][label] for n in own], np.float64)
        if len(own) < LEAST or not 0 < y.sum() < len(y):
            yield f"{label:12} {len(own):6}   no head: it takes {LEAST} clips, and some of either kind"
            continue
        weights[label] = [float(w) for w in _logistic(x[own], y)]
        clips = [list(marked)[n] for n in own]
        held_out = held_out_accuracy(x[own], y, clips)
        agreed = accuracy({c: rows[c].get(label) for c in clips}, dict(zip(clips, y, strict=True)))
        said = "     -" if agreed is None else f"{agreed:6.2f}"
        yield f"{label:12} {len(own):6} {held_out:6.2f} {said} {PAPER[label]:6.2f}"
    if not weights:
        raise ValueError(f"{table} has no label of {LEAST} clips of which some are 1 and some 0; nothing was written")
    about = {"format": FORMAT} | features.about() | {"weights": weights}
    write_whole(out, (json.dumps(about) + "\n").encode())
    yield f"{out}: a head for {', '.join(weights)}"


def accuracy(said: Mapping[str, float | None], marks: Mapping[str, float]) -> float | None:
    """The share of clips of which a probability is on the right side of 0.5; None where none has one."""
    known = [(said[clip], mark) for clip, mark in marks.items() if said.get(clip) is not None]
    return None if not known else float(np.mean([(p >= 0.5) == (mark >= 0.5) for p, mark in known]))  # type: ignore[operator]


def read_marks(table: Path, rows: Mapping[str, Row]) -> dict[str, dict[str, int]]:
    """The labels of a CSV by `clip_id`: 1, 0 or nothing.

    Raises: FileNotFoundError; ValueError naming the line, for other columns, other values and other clips.
    """
    reader = csv.DictReader(io.StringIO(read_text(table)))
    names = reader.fieldnames or []
    if "clip_id" not in names or not set(names) & set(LABELS):
        raise ValueError(f"{table} must have the columns clip_id and some of {', '.join(LABELS)}, got {quoted(names)}")
    found: dict[str, dict[str, int]] = {}
    for line in reader:
        clip, where = (line["clip_id"] or "").strip(), f"{table}, line {reader.line_num}"
        if clip not in rows:
            raise ValueError(f"{where}: the set has no clip {quoted(clip)}")
        said = {label: (line.get(label) or "").strip() for label in LABELS}
        if wrong := next((label for label, text in said.items() if text not in ("", "0", "1")), None):
            raise ValueError(f"{where}: {wrong} must be 0, 1 or empty, got {quoted(said[wrong])}")
        found[clip] = {label: int(text) for label, text in said.items() if text}
    if not found:
        raise ValueError(f"{table} labels no clips")
    return found


@functools.cache
def read_head(place: str) -> Head:
    """The head of a file. Raises: FileNotFoundError; ValueError for a file that is none."""
    said = read_json(Path(place))
    try:
        if said["format"] != FORMAT:
            raise ValueError("it is of another version")
        features = read_features(said)
        weights = {str(label): np.asarray(w, np.float64) for label, w in said["weights"].items()}
        if any(w.shape != (features.width,) or label not in LABELS for label, w in weights.items()):
            raise ValueError("its weights are of another size")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{place} is no head of `cogvx prepare fit-labels`: {error}") from None

    def head(clip: Row) -> dict[str, float | None]:
        x = features([clip])[0]
        return {label: float(_probability(x @ weights[label])) if label in weights else None for label in LABELS}

    return head


@functools.cache
def head_digest(place: str) -> str:
    """Of a head's numbers. Raises: as `read_json`."""
    return key_of(read_json(Path(place)))


def held_out_accuracy(x: np.ndarray, y: np.ndarray, clips: Sequence[str]) -> float:
    """The share of clips that is told rightly by fits to the others; the turn of a clip depends on its name alone."""
    order = np.argsort([key_of(clip) for clip in clips])
    turns = np.empty(len(order), int)
    turns[order] = np.arange(len(order)) % FOLDS
    right = 0
    for turn in range(FOLDS):
        inside = turns != turn
        weights = _logistic(x[inside], y[inside])
        right += int(((x[~inside] @ weights > 0) == (y[~inside] > 0.5)).sum())
    return right / len(y)


def _probability(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logit, -50, 50)))


def _logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights with a ridge on all but the last, which is the constant."""
    if x.shape[1] > len(x) + 1:  # a ridge knows no directions, so they lie where the clips do
        _, _, turn = np.linalg.svd(x[:, :-1], full_matrices=False)
        inside = _logistic(np.concatenate([x[:, :-1] @ turn.T, x[:, -1:]], axis=1), y)
        return np.concatenate([inside[:-1] @ turn, inside[-1:]])
    penalty, weights = np.full(x.shape[1], RIDGE), np.zeros(x.shape[1])
    penalty[-1] = 1e-3
    for _ in range(ROUNDS):
        p = _probability(x @ weights)
        slope = x.T @ (p - y) + penalty * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        change = np.linalg.solve(curve, slope)
        weights = weights - change
        if np.abs(change).max() < STEADY:
            break
    return weights
