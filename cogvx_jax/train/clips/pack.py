"""Frame pack: clips of any length and size, and images as clips of one frame, side by side in rows of one length.

    rows = plan_rows([video_tokens(cfg, clip.moments.shape) for clip in clips], length=3000, most=8)
    batch = pack(cfg, [[clips[i] for i in row] for row in rows], length=3000, most=8)

A row has places for `length` video tokens and for the text of `most` clips. `train.packed_objective` is
the loss of such a batch, in which every clip is as alone as in a batch of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.configs import TransformerConfig
from cogvx_jax.models.transformer import check_packs, check_shapes
from cogvx_jax.nn.embeddings import patchify, token_positions


class Clip(NamedTuple):
    """One clip to train on, as the encoders made it."""

    moments: np.ndarray  # (T, h, w, 2 * out_channels), mean and log variance of the posterior; an image has T = 1
    text: np.ndarray  # (L, text_dim)


def plan_rows(
    sizes: Sequence[int], *, length: int, most: int, report: Callable[[str], None] = print
) -> list[list[int]]:
    """Which clips share a row: the largest first, each into the first row with a place left for it.

    Reports how much of the rows is used. Give it some thousand clips at a time, drawn at random.

    Args:
      sizes: video tokens of each clip, see `video_tokens`.
      length: video tokens a row holds.
      most: clips a row holds.
    Returns: the clips' numbers, row by row.
    Raises: ValueError for a clip that is longer than a row, or no clips.
    """
    if not sizes or most < 1:
        raise ValueError(f"rows need clips, and places for at least one, got {len(sizes)} clips and {most} places")
    if max(sizes) > length:
        raise ValueError(f"rows of {length} tokens cannot hold a clip of {max(sizes)}; make them that long")
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = (r for r, row in enumerate(rows) if free[r] >= sizes[i] and len(row) < most)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append(length)
        rows[row].append(i)
        free[row] -= sizes[i]
    used, places = 1 - sum(free) / (length * len(rows)), most * len(rows)
    report(
        f"packed {len(sizes)} clips into {len(rows)} rows of {length} video tokens: {used:.1%} of them are used, "
        f"{len(sizes)} of {places} places for text"
    )
    return rows


@dataclasses.dataclass(frozen=True)
class Packing:
    """Batches of `rows` rows of `length` video tokens that hold `clips` clips together, each `most` at most."""

    rows: int
    length: int
    most: int
    clips: int
    used: float  # share of all places for tokens, of text and video, that hold one

    def __str__(self) -> str:
        return (
            f"{self.clips} clips an update in {self.rows} rows of {self.length} video tokens and {self.most} texts, "
            f"{self.used:.1%} of which are used"
        )


def best_packing(sizes: Sequence[int], turns: Sequence[int], *, rows: int, length: int, words: int) -> Packing:
    """The packing that uses most of the rows, of clips that come in a sequence without end.

    Args:
      sizes: video tokens of each kind of clip.
      turns: the kinds of the sequence's clips, which repeat.
      words: text tokens of a clip.
    Raises: ValueError for a clip that is longer than a row.
    """
    lengths = [sizes[kind] for kind in turns]
    period, mean = len(lengths), sum(lengths) / len(lengths)

    @functools.cache
    def count(clips: tuple[int, ...], most: int) -> int:
        return len(plan_rows(clips, length=length, most=most, report=lambda line: None))

    def fits(clips: int, most: int) -> bool:
        batches = period // math.gcd(period, clips)  # then they repeat, too
        each = ([lengths[i % period] for i in range(b * clips, (b + 1) * clips)] for b in range(batches))
        return all(count(tuple(sorted(some)), most) <= rows for some in each)

    count(tuple(sizes), len(sizes))  # refuses what is too long
    found = []
    for most in range(1, length // min(sizes) + 1):
        largest = min(int(rows * length / mean), rows * most)
        clips = next(clips for clips in range(largest, 0, -1) if fits(clips, most))
        used = clips * (mean + words) / (rows * (length + most * words))
        found.append(Packing(rows, length, most, clips, used))
    return max(found, key=lambda packing: packing.used)


def pack(cfg: TransformerConfig, rows: Sequence[Sequence[Clip]], *, length: int, most: int) -> dict[str, np.ndarray]:
    """The arrays of rows of clips: R rows, N = `length` video tokens, C = `most` clips a row. A row may be empty.

    Returns:
      moments: (R, N, 2 * features) float32, patches of the mean, then of the log variance.
      text: (R, C, L, text_dim) float32.
      clip: (R, N) int32, which of the row's clips a token is of, -1 for padding.
      positions: (R, N, 3) float32, see `token_positions`; each clip has its own, as if it were alone.
      copies: (R, N) int32, how many frames in front in a token's patch are copies of the clip's first.
    Raises: ValueError for a model or clips that cannot be packed so.
    """
    check_packs(cfg)
    texts = {clip.text.shape for row in rows for clip in row} or {(cfg.text_length, cfg.text_dim)}
    if len(texts) != 1:
        raise ValueError(f"all clips need texts of one shape, got {sorted(texts)}")
    features = cfg.patch**2 * (cfg.patch_t or 1) * cfg.out_channels
    batch = {
        "moments": np.zeros((len(rows), length, 2 * features), np.float32),
        "text": np.zeros((len(rows), most, *texts.pop()), np.float32),
        "clip": np.full((len(rows), length), -1, np.int32),
        "positions": np.zeros((len(rows), length, 3), np.float32),
        "copies": np.zeros((len(rows), length), np.int32),
    }
    for r, row in enumerate(rows):
        tokens = sum(video_tokens(cfg, clip.moments.shape) for clip in row)
        if tokens > length or len(row) > most:
            raise ValueError(f"row {r} has {len(row)} clips of {tokens} tokens, its places are {most} and {length}")
        start = 0
        for c, clip in enumerate(row):
            half = clip.moments.shape[-1] // 2
            mean, log_variance = clip.moments[..., :half], clip.moments[..., half:]
            check_shapes(cfg, whole_patches(cfg, mean)[None].shape, clip.text[None].shape)
            found = {
                "moments": np.concatenate([to_patches(cfg, mean), to_patches(cfg, log_variance)], axis=-1),
                "clip": np.int32(c),
                "positions": token_positions(cfg, *token_grid(cfg, mean.shape)),
                "copies": _copies(cfg, mean.shape),
            }
            stop = start + video_tokens(cfg, mean.shape)
            for name, values in found.items():
                batch[name][r, start:stop] = values
            batch["text"][r, c] = clip.text
            start = stop
    return batch


def video_tokens(cfg: TransformerConfig, shape: tuple[int, ...]) -> int:
    """Video tokens of a clip with latents or moments of `shape`, (T, h, w, ...)."""
    frames, rows, columns = token_grid(cfg, shape)
    return frames * rows * columns


def token_grid(cfg: TransformerConfig, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens."""
    return -(-shape[0] // (cfg.patch_t or 1)), shape[1] // cfg.patch, shape[2] // cfg.patch


def to_patches(cfg: TransformerConfig, latents: np.ndarray) -> np.ndarray:
    """The tokens' values of one clip, (T, h, w, C) -> (tokens, features), its first frame repeated to whole patches."""
    clip: Any = whole_patches(cfg, latents)[None]  # patches of NumPy arrays are NumPy arrays, too
    return np.asarray(patchify(clip, cfg))[0]


def whole_patches(cfg: TransformerConfig, latents: np.ndarray) -> np.ndarray:
    """(T, h, w, C), the first frame repeated in front until the frames divide into patches."""
    extra = -len(latents) % (cfg.patch_t or 1)
    return np.concatenate([np.repeat(latents[:1], extra, axis=0), latents])


def _copies(cfg: TransformerConfig, shape: tuple[int, ...]) -> np.ndarray:
    """`copies` of one clip, (tokens,)."""
    copies = np.zeros(token_grid(cfg, shape), np.int32)
    copies[0] = -shape[0] % (cfg.patch_t or 1)
    return copies.ravel()
