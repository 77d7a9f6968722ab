"""The process that reads films, apart from the one that measures: a film may hang a decoder, or crash it.

    python -m cogvx_jax.prepare.reader

A line of JSON on stdin says what is asked; when that is done, there may be another. Answers come on stdout: the length
of a line of JSON in four bytes, the line, and the bytes of an array where the line has a `shape`. The last has `end` or
`error`.
"""

import collections
import contextlib
import itertools
import json
import os
import queue
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
TOGETHER = 32  # small frames of an answer
ROWS, COLUMNS = 18, 32  # of thumbnails, about
Answer = tuple[dict[str, Any], np.ndarray | None]
Look = tuple[int, bool, list[int]]  # longer side in pixels, whether in colour, slots


def read_facts(path: str) -> Iterator[Answer]:
    yield {"facts": probe(path)}, None


def read_small(path: str, side: int, colours: bool) -> Iterator[Answer]:
    """All frames, scaled down so that the longer side is `side`, some at a time.

    Answers: how `scdet` scores each, and thumbnails of their luma (N, h, w) uint8, 16 to 235; with `colours` there
    follow the frames themselves, (N, H, W, 3) uint8.
    """
    scores, last = SceneScores(), None
    changes, thumbnails, pictures = list[list[float]](), list[np.ndarray](), list[np.ndarray]()

    def told() -> Iterator[Answer]:
        yield {"changes": changes}, np.stack(thumbnails)
        if colours:
            yield {}, np.stack(pictures)
        for some in (changes, thumbnails, pictures):
            some.clear()

    with stream_video(path, strict=True) as stream:
        for frame in stream.shown(itertools.count()):
            if frame is not last:  # one that is shown for longer is not scaled again
                planes, last = frame.planes(side), frame
                thumbnail = _thumbnail(planes)
                picture = frame.rgb(side) if colours else thumbnail
            changes.append(list(scores(planes)))
            thumbnails.append(thumbnail)
            pictures.append(picture)
            if len(changes) == TOGETHER:
                yield from told()
    if changes:
        yield from told()


def _thumbnail(planes: Any) -> np.ndarray:
    """Some pixels of luma, (h, w)."""
    plane = planes.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    return luma[:: max(plane.height // ROWS, 1), :: max(plane.width // COLUMNS, 1)].copy()


def read_looks(path: str, clips: list[list[Look]]) -> Iterator[Answer]:
    """Of each clip in turn its looks: frames of one size in some slots, (F, H, W, 3) uint8 in colour, or their luma
    (F, H, W); fewer where the film ends.

    Args:
      clips: in the order of their slots; of each look the longer side in pixels, whether in colour, and the slots.
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
    slots = sorted({slot for clip in clips for _, _, of in clip for slot in of})
    wanted = collections.defaultdict[int, set[tuple[int, bool]]](set)
    for side, colour, of in itertools.chain.from_iterable(clips):
        for slot in of:
            wanted[slot].add((side, colour))
    frames, held = zip(slots, stream.shown(slots), strict=False), dict[tuple[int, bool, int], np.ndarray]()
    for n, clip in enumerate(clips):
        last = _last(clip)
        while not any(slot >= last for _, _, slot in held) and (found := next(frames, None)) is not None:
            slot, frame = found
            for side, colour in wanted[slot]:
                held[side, colour, slot] = frame.rgb(side) if colour else frame.luma(side)
        for side, colour, of in clip:
            pixels = [held[side, colour, slot] for slot in of if (side, colour, slot) in held]
            yield {}, np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3)[: 4 if colour else 3], np.uint8)
        after = min(map(_first, clips[n + 1 :]), default=last + 1)
        held = {key: pixels for key, pixels in held.items() if key[-1] >= after}


def _first(clip: list[Look]) -> int:
    return min(of[0] for *_, of in clip)


def _last(clip: list[Look]) -> int:
    return max(of[-1] for *_, of in clip)


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
    """Does the jobs that stdin names, one after the other, until one fails."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    lines = queue.SimpleQueue[bytes]()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    _bound_memory()
    with contextlib.suppress(BrokenPipeError):
        while _done(json.loads(lines.get()), out):
            pass
    os._exit(0)  # threads of a decoder that hangs are not waited for


def _done(asked: dict[str, Any], out: BinaryIO) -> bool:
    """Whether a job was done to its end; what is wrong is told otherwise. Raises: BrokenPipeError."""
    job = JOBS[asked.pop("job")]
    try:
        for header, pixels in job(**asked):
            _send(out, header, pixels)
        _send(out, {"end": True})
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        said = "it takes more memory than a film may" if isinstance(error, MemoryError) else str(error)
        _send(out, {"error": said, "missing": isinstance(error, FileNotFoundError)})
        return False
    return True


def _send(out: BinaryIO, header: dict[str, Any], pixels: np.ndarray | None = None) -> None:
    if pixels is not None:
        header = header | {"shape": pixels.shape}
    line = json.dumps(header).encode()
    out.write(struct.pack("<I", len(line)) + line)
    if pixels is not None:
        out.write(np.ascontiguousarray(pixels).data)
    out.flush()


def _listen(lines: "queue.SimpleQueue[bytes]") -> None:
    """Hands on what is asked, and ends this process with the one that asks."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(1)


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    main()
