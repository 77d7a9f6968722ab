"""A video that can be watched while it is still written: an mp4 in fragments."""

import fractions
from pathlib import Path
from typing import Self

import numpy as np

from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.writer import FORMATS, Encoder, check_frames

FRAGMENTS = 2  # a second of the video; one is written when the next begins
# What looks ahead would hold frames back. Slower presets are for files that are kept.
AT_ONCE = {"tune": "zerolatency", "preset": "veryfast"}
MOVFLAGS = "frag_keyframe+empty_moov+default_base_moof"


class FragmentedWriter:
    """Writes an mp4 whose beginning plays before its end is there.

        with FragmentedWriter("live.mp4", fps=8) as writer:
            for chunk in chunks:  # (F, H, W, 3) uint8, RGB
                writer.write(chunk)

    The file has its name from the first frame on, and grows. If the block ends by an exception it is removed.

    Raises: ValueError as `VideoWriter`; OSError or av.FFmpegError where it cannot be written.
    """

    def __init__(self, path: Path, fps: float | fractions.Fraction):
        self._path, self._fps = path, frame_rate(fps)
        self._encoder: Encoder | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, (F, H, W, 3) uint8; H and W as in the first call, and even."""
        frames = check_frames(frames, "FHW3")
        encoder = self._encoder or self._begun(frames.shape[1:3])
        for frame in frames:
            encoder.write(np.ascontiguousarray(frame))

    def _begun(self, size: tuple[int, int]) -> Encoder:
        kind = FORMATS[".mp4"]
        kind = kind._replace(
            options=kind.options | AT_ONCE | {"g": str(max(1, round(self._fps / FRAGMENTS)))},
            container_options={"movflags": MOVFLAGS, "flush_packets": "1"},
        )
        self._encoder = Encoder(self._path, kind, self._fps, size, {})
        return self._encoder

    def __exit__(self, kind, value, traceback) -> None:
        if self._encoder is not None:
            (self._encoder.finish if kind is None else self._encoder.close)()
        if kind is not None:
            self._path.unlink(missing_ok=True)
