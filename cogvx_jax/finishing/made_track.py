"""The sound that a maker makes for a video that is about to be finished, before its frames are worked on."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from cogvx_jax.data.sound import Track
from cogvx_jax.finishing.options import Delivery
from cogvx_jax.finishing.rates import frame_count
from cogvx_jax.finishing.sound_makers import make_sound
from cogvx_jax.finishing.stream import Job
from cogvx_jax.pipelines.record import parse_record
from cogvx_jax.temporaries import temporary_folder


@contextlib.contextmanager
def made_track(
    source: Any, job: Job, delivery: Delivery, comment: str | None
) -> Iterator[tuple[Track | None, dict[str, Any]]]:
    """The track, whose file is gone after the block, and what the record's step says of it; None where none is asked.

    Args:
      source: the video, which is read once more: a path.
      comment: its text; a record's prompt is what the maker is told.
    Raises: as `make_sound`.
    """
    if delivery.sound_from is None:
        yield None, {}
        return
    prompt = _prompt(comment) if delivery.sound_prompt is None else delivery.sound_prompt

    def seconds(count: int, fps: Fraction) -> float:
        return float(frame_count(count, fps, job.rate, job.options.hold) / job.rate)

    with temporary_folder() as folder:
        made = make_sound(
            delivery.sound_from,
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
        yield track, {"sound": told}


def _prompt(comment: str | None) -> str:
    with contextlib.suppress(ValueError):
        return parse_record(comment).prompt if comment is not None else ""
    return ""
