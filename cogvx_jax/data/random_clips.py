"""Clips cut at random out of videos, in time, place and scale: what a VAE is trained on."""

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from cogvx_jax.data.clips import Source, slots
from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.tars import File


class RandomClips:
    """Draws batches of clips (B, F, height, width, 3) uint8 from videos.

    Args:
      sources: the videos; their captions are not used.
      fps: frames per second, one of which is drawn for each clip.
      report: told once of each video that cannot be used, for which another is drawn.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        frames: int,
        fps: Sequence[float],
        height: int,
        width: int,
        report: Callable[[str], None] = print,
    ):
        self._sources, self._frames, self._fps, self._size = list(sources), frames, tuple(fps), (height, width)
        self._report, self._skipped = report, set[int]()

    def batch(self, count: int, seed: tuple[int, ...]) -> np.ndarray:
        """`count` clips, the same ones for the same seed. Raises: ValueError where no video can be used."""
        rng = np.random.default_rng(seed)
        return np.stack([self._clip(rng) for _ in range(count)])

    def _clip(self, rng: np.random.Generator) -> np.ndarray:
        for number in rng.permutation(len(self._sources)):
            source = self._sources[number]
            fps = float(rng.choice(self._fps))
            try:
                return random_clip(source.video, rng, frames=self._frames, fps=fps, size=self._size)
            except (ValueError, OSError) as error:
                if number not in self._skipped:
                    self._skipped.add(number)
                    self._report(f"skipped {source.video}: {getattr(error, 'strerror', None) or error}")
        raise ValueError(f"none of the {len(self._sources)} videos can be used, see above")


def random_clip(
    source: File, rng: np.random.Generator, *, frames: int, fps: float, size: tuple[int, int]
) -> np.ndarray:
    """`frames` frames at `fps` of a video from anywhere in it, (F, height, width, 3) uint8.

    Of its area, a random part: as large as `size`, or up to all that has that shape, scaled down bicubically.
    Frames are chosen as by `clips.read_clip`. Only these frames are held, whatever the
    video's length.

    Raises: FileNotFoundError; ValueError for a file that is no video, or one that is too short or too small.
    """
    with stream_video(source) as stream:  # for what its header says
        own, tall, wide = stream.fps or frame_rate(fps), stream.height, stream.width
    length, places = round((stream.duration or 0) * own), slots(own, fps, frames)
    spare = length - 1 - places[-1]
    if spare < 0:
        raise ValueError(f"{length} frames at {float(own):g} fps are too short for {frames} at {float(fps):g} fps")
    height, width = size
    if tall < height or wide < width:
        raise ValueError(f"its {tall}x{wide} pixels are fewer than the clips' {height}x{width}")
    first = int(rng.integers(spare + 1))
    scale = rng.uniform(1, min(tall / height, wide / width))
    top, left = rng.uniform(0, tall - scale * height), rng.uniform(0, wide - scale * width)
    box, bicubic = (left, top, left + scale * width, top + scale * height), PIL.Image.Resampling.BICUBIC
    # Half a frame early, or rounding may lose the first one.
    with stream_video(source, start=float(max(first - 0.5, 0) / own)) as stream:
        shown = stream.at(first + place for place in places)
        clip = [np.asarray(PIL.Image.fromarray(frame).resize((width, height), bicubic, box)) for frame in shown]
    if len(clip) < frames:
        raise ValueError(f"it breaks off before frame {first + places[-1]} of about {length}")
    return np.stack(clip)
