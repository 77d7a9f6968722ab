"""The process that reads films, apart from the one that measures: a film may hang a decoder, or crash it.

    python -m cogvx_jax.prepare.reader

A line of JSON on stdin says what is asked. Answers come on stdout: the length of a line of JSON in four bytes, the
line, and the bytes of an array where the line has a `shape`. The last has `end` or `error`.
"""

import collections
import contextlib
import itertools
import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from cogvx_jax.data.decode import Stream, stream_video
from cogvx_jax.data.probe import probe
from cogvx_jax.data.scene_scores import SceneScores
from cogvx_jax.data.writer import VideoWriter

MOST_MEMORY = 12 * 2**30  # bytes of addresses; the largest frames take some 5 GiB in the decoder's threads
FAR = 10.0  # seconds between two spans, from which on the file is opened anew: what is between is not decoded
Answer = tuple[dict[str, Any], np.ndarray | None]
Look = tuple[int, list[int]]  # longer side in pixels, slots


def read_facts(path: str) -> Iterator[Answer]:
    yield {"facts": probe(path)}, None


def read_small(path: str, side: int) -> Iterator[Answer]:
    """All frames, scaled down so that the longer side is `side`, (H, W, 3) uint8, and how `scdet` scores each."""
    scores = SceneScores()
    with stream_video(path, strict=True) as stream:
        for frame in stream.at(itertools.count(), side):
            yield {"change": list(scores(frame))}, frame


def read_looks(path: str, clips: list[list[Look]]) -> Iterator[Answer]:
    """Of each clip in turn its looks: frames of one size in some slots, (F, H, W, 3) uint8; fewer where the film ends.

    Args:
      clips: in the order of their slots; of each look the longer side in pixels, and the slots.
    """
    waiting, fps = [clip for clip in clips if clip], _rate(path)
    while waiting:
        near = 1
        while near < len(waiting) and _first(waiting[near]) - _last(waiting[near - 1]) <= FAR * fps:
            near += 1
        group, waiting = waiting[:near], waiting[near:]
        begin = _first(group[0]) / fps
        with stream_video(path, strict=True, start=begin if begin > FAR else 0.0) as stream:
            yield from _looked(stream, group)


def _looked(stream: Stream, clips: list[list[Look]]) -> Iterator[Answer]:
    slots = sorted({slot for clip in clips for _, of in clip for slot in of})
    wanted = collections.defaultdict[int, set[int]](set)
    for side, of in itertools.chain.from_iterable(clips):
        for slot in of:
            wanted[slot].add(side)
    frames, held = zip(slots, stream.shown(slots), strict=False), dict[tuple[int, int], np.ndarray]()
    for n, clip in enumerate(clips):
        last = _last(clip)
        while not any(slot >= last for _, slot in held) and (found := next(frames, None)) is not None:
            slot, frame = found
            held |= {(side, slot): frame.rgb(side) for side in wanted[slot]}
        for side, of in clip:
            pixels = [held[side, slot] for slot in of if (side, slot) in held]
            yield {}, np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8)
        after = min(map(_first, clips[n + 1 :]), default=last + 1)
        held = {key: pixels for key, pixels in held.items() if key[1] >= after}


def _first(clip: list[Look]) -> int:
    return min(of[0] for _, of in clip)


def _last(clip: list[Look]) -> int:
    return max(of[-1] for _, of in clip)


def _rate(path: str) -> float:
    with stream_video(path) as stream:
        return float(stream.fps or 25)


def write_clips(path: str, clips: list[dict[str, Any]], crf: int) -> Iterator[Answer]:
    """Writes an .mp4 of each: `out`, its slots from `first` to `stop`, and `crop`, top, left, height and width."""
    fps = _rate(path)
    for clip in clips:
        begin, (top, left, height, width) = clip["first"] / fps, clip["crop"]
        try:
            with stream_video(path, strict=True, start=begin if begin > FAR else 0.0) as stream:
                with VideoWriter(clip["out"], stream.fps or 25, crf=crf) as writer:
                    count = 0
                    for frame in stream.at(range(clip["first"], clip["stop"])):
                        writer.write(frame[None, top : top + height, left : left + width])
                        count += 1
                        if count % 16 == 0:
                            yield {"frames": count}, None
        except ValueError as error:
            yield {"failed": str(error)}, None
            continue
        yield {"written": count}, None


JOBS: Mapping[str, Callable[..., Iterator[Answer]]] = {
    "facts": read_facts,
    "small": read_small,
    "looks": read_looks,
    "write": write_clips,
}


def main() -> None:
    """Does the job that stdin names."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _bound_memory()
    job = JOBS[asked.pop("job")]
    with contextlib.suppress(BrokenPipeError):
        try:
            for header, pixels in job(**asked):
                _send(out, header, pixels)
            _send(out, {"end": True})
        except (ValueError, OSError, MemoryError, ArithmeticError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            said = "it takes more memory than a film may" if isinstance(error, MemoryError) else str(error)
            _send(out, {"error": said, "missing": isinstance(error, FileNotFoundError)})
    os._exit(0)  # threads of a decoder that hangs are not waited for


def _send(out: BinaryIO, header: dict[str, Any], pixels: np.ndarray | None = None) -> None:
    if pixels is not None:
        header = header | {"shape": pixels.shape}
    line = json.dumps(header).encode()
    out.write(struct.pack("<I", len(line)) + line)
    if pixels is not None:
        out.write(np.ascontiguousarray(pixels).data)
    out.flush()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read1(1):  # type: ignore[union-attr]
        pass
    os._exit(1)


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    main()
