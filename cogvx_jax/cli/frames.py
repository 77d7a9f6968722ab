"""Frames of a video into its file, as they are made."""

import contextlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def write_frames(
    frames: Iterable[Any],
    out: Path,
    fps: float | Fraction,
    record: str | None,
    tags: Mapping[str, str] | None = None,
) -> tuple[int, int, int]:
    """Writes the first process's video as its frames come, (F', H, W, 3) uint8; gives their count, height and width."""
    from cogvx_jax.data.video import VideoWriter
    from cogvx_jax.sharding import first_process

    count, shape = 0, (0, 0, 0, 3)
    ours = first_process()
    with VideoWriter(out, fps=fps, comment=record, tags=tags) if ours else contextlib.nullcontext() as writer:
        for pixels in frames:
            if writer is not None:
                writer.write(pixels)
            count, shape = count + len(pixels), pixels.shape
    return count, shape[1], shape[2]
