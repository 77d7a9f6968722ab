"""The sound that a maker makes for a video that is finished: of a file before any work, of frames once all are made."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from cogvx_jax.data.sound import Track
from cogvx_jax.finishing.options import Delivery
from cogvx_jax.finishing.rates import frame_count
from cogvx_jax.finishing.sound_makers import make_sound
from cogvx_jax.finishing.stream import Job
from cogvx_jax.pipelines.record import parse_record
from cogvx_jax.temporaries import temporary_folder

Making = Callable[[], tuple[Track, dict[str, Any]]]


@contextlib.contextmanager
def made_track(source: Any, job: Job, delivery: Delivery, comment: str | None) -> Iterator[Making]:
    """Gives what asks the maker, once however often it is called: the track, and what the record's step says of it.

    The track's file is gone after the block.

    Args:
      source: what `make_sound` takes: the video's path, which is read once more, or a small copy.
      delivery: names the maker.
      comment: the video's text; a record's prompt is what the maker is told.
    """
    maker = delivery.sound_from
    assert maker is not None
    prompt = _prompt(comment) if delivery.sound_prompt is None else delivery.sound_prompt

    def seconds(count: int, fps: Fraction) -> float:
        return float(frame_count(count, fps, job.rate, job.options.hold) / job.rate)

    with temporary_folder() as folder:

        @functools.cache
        def make() -> tuple[Track, dict[str, Any]]:
            """Raises: as `make_sound`."""
            made = make_sound(
                maker,
                source,
                folder / "sound.w64",
                prompt=prompt,
                seed=delivery.sound_seed,
                seconds=seconds,
                loop=delivery.loop,
                timeout=delivery.sound_timeout,
            )
            track = Track(path=made.path, loop=delivery.loop, fade=delivery.fade, loudness=delivery.loudness)
            told = {"maker": made.maker, "prompt": prompt, "seed": delivery.sound_seed, "sha256": made.sha256}
            return track, {"sound": told}

        yield make


def _prompt(comment: str | None) -> str:
    with contextlib.suppress(ValueError):
        return parse_record(comment).prompt if comment is not None else ""
    return ""
