"""What a video file is: of its headers, of the time stamps of all its packets, and of its first frames."""

import array
import os
from typing import Any

import av
import numpy as np

from cogvx_jax.data.decode import HDR, open_container, stream_video

TRANSFER, PRIMARIES = (
    {1: "bt709", 13: "srgb", **{n: name.lower() for n, name in HDR.items()}},
    {1: "bt709", 9: "bt2020"},
)
LOOKED_AT = 8  # frames, of which one that is interlaced tells
UNEVEN = 0.01  # share of steps between frames that are not the usual one, from which on the rate varies
APART = 0.25  # of the usual step, by which another differs

Facts = dict[str, Any]


def probe(source: str | os.PathLike) -> Facts:
    """Facts about a video file, JSON values. No frame is decoded but the first few.

    Returns: `width` and `height` in pixels as shown, upright and square; `sar`, the sample aspect ratio; `rotation`,
      degrees; `fps`, of the slots that frames are counted in; `fps_average`; `vfr`, whether the steps between frames
      differ; `frames`, packets that hold one; `duration`, seconds; `codec`, `pix_fmt`, `color`, `interlaced`; `audio`,
      the codec of its sound or None.
    Raises: FileNotFoundError; ValueError for a file without a video, without a frame, or in HDR.
    """
    with open_container(source) as (container, stream):
        context, sound = stream.codec_context, container.streams.audio
        facts: Facts = {
            "sar": str(stream.sample_aspect_ratio or 1),
            "fps_average": _number(stream.average_rate),
            "codec": context.name,
            "pix_fmt": context.pix_fmt,
            "audio": sound[0].codec_context.name if sound and sound[0].codec_context else None,
        }
        stamps, unit = _stamps(container, stream), float(stream.time_base or 0)
    with stream_video(source) as shown:
        looked = [frame.decoded for frame, _ in zip(shown.frames, range(LOOKED_AT), strict=False)]
        if not looked:
            raise ValueError(f"{str(source)!r} holds no video frames; give an mp4, webm or gif file with at least one")
        first = looked[0]
        facts |= {"width": shown.width, "height": shown.height, "fps": _number(shown.fps), "duration": shown.duration}
        facts["interlaced"] = any(frame.interlaced_frame for frame in looked)
        facts["rotation"] = int(first.rotation) % 360
        facts["color"] = f"{TRANSFER.get(first.color_trc, 'unknown')}/{PRIMARIES.get(first.color_primaries, 'unknown')}"
    facts |= {"frames": len(stamps), "vfr": _varies(stamps)}
    if len(stamps) > 1 and unit:  # the header's duration may be of the sound, or a lie
        span = (int(stamps[-1]) - int(stamps[0])) * unit
        facts["duration"] = span * len(stamps) / (len(stamps) - 1)
    return facts


def _stamps(container: Any, stream: Any) -> np.ndarray:
    """The time stamps of all frames in their order, as far as the file goes."""
    found, count = array.array("q"), 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                found.append(packet.pts if packet.pts is not None else count)
                count += 1
    except av.FFmpegError:
        pass  # a file that breaks off
    return np.sort(np.frombuffer(found, np.int64)) if found else np.zeros(0, np.int64)


def _varies(stamps: np.ndarray) -> bool:
    steps = np.diff(stamps)
    if not len(steps) or not (usual := float(np.median(steps))):
        return False
    return bool(np.mean(np.abs(steps - usual) > APART * usual) > UNEVEN)


def _number(rate: Any) -> float | None:
    return None if rate is None else float(rate)
