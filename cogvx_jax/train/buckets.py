"""Batches of clips of one shape: the simple alternative to `train.pack`, for any model."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np


def bucket_batches(
    shapes: Sequence[Hashable], batch: int, *, seed: int, report: Callable[[str], None] = print
) -> list[list[int]]:
    """One epoch of batches, each of `batch` clips of one shape; clips and batches in an order drawn from `seed`.

    What does not fill a batch of its shape is left out and reported; another seed leaves out others.

    Args:
      shapes: of each clip, anything that can be compared: (T, h, w), say.
    Returns: the clips' numbers, batch by batch.
    Raises: ValueError if no shape fills a batch.
    """
    if batch < 1:
        raise ValueError(f"a batch needs at least one clip, got {batch}")
    rng = np.random.default_rng(seed)
    buckets: dict[Hashable, list[int]] = {}
    for i in rng.permutation(len(shapes)).tolist():
        buckets.setdefault(shapes[i], []).append(i)
    batches = [
        clips[i : i + batch] for clips in buckets.values() for i in range(0, len(clips) - len(clips) % batch, batch)
    ]
    if not batches:
        most = max((len(clips) for clips in buckets.values()), default=0)
        raise ValueError(f"no shape has {batch} clips for a batch, the commonest has {most}; lower the batch size")
    left_out = len(shapes) - batch * len(batches)
    report(f"{len(batches)} batches of {batch} clips in {len(buckets)} shapes; {left_out} clips left out this time")
    return [batches[i] for i in rng.permutation(len(batches))]
