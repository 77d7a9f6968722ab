"""Video files decoded frame by frame, each frame at the moment its time stamp says.

Moments are counted in slots of 1/fps seconds from the first frame on, where fps is the rate that the stream's time
stamps lie on. Frame i of a video of constant rate is in slot i. Where frames are missing, as in those of phones and
screen recorders, a frame is shown until the next one comes.
"""

import contextlib
import dataclasses
import fractions
import itertools
import math
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.stream import Disposition

from cogvx_jax.data.files import existing
from cogvx_jax.data.tars import Member

# By default the conversion to RGB leaves colours blocky and about one level too dark.
SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"
SHRINKING = "flags=area"  # of frames that are only looked at: each pixel is the mean of those that it stands for
MAX_PIXELS = 2**26  # of a frame: twice 8K, 200 MB of RGB
# A header's rate beyond this is no rate: the stamps lie on no common one, and it is the unit that they are written in.
MAX_GRID = 240
UNKNOWN_FPS, UNIT = fractions.Fraction(25), fractions.Fraction(1, 1000)  # of a file that tells none
HDR = {16: "PQ", 18: "HLG"}  # by the number of their transfer function in ITU-T H.273
BT2020 = 9  # primaries, by the same table
TO_SDR = (
    "ffmpeg -i IN -vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=mobius,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p OUT"
)
OPTIONS = {"protocol_whitelist": "file,subfile"}  # playlists and the like must not open other addresses


@dataclasses.dataclass
class Stream:
    """A video while it is decoded.

    Attributes:
      height, width: pixels of a frame as it is shown: upright, and scaled in width if its pixels are not square.
      fps: slots a second, see above; None where the file tells nothing.
      duration: seconds, where known.
      interlaced: its frames are two half pictures of different moments, line by line.
      passed: slots that lie behind what is decoded so far; all of them once `at` has ended early.
    """

    height: int
    width: int
    fps: fractions.Fraction | None
    duration: float | None
    frames: Iterator["Frame"] = dataclasses.field(repr=False)
    passed: int = 0
    interlaced: bool = False

    def at(self, slots: Iterable[int], longest: int | None = None) -> Iterator[np.ndarray]:
        """The frames (H, W, 3) uint8 RGB that are shown in these slots, which must not go back.

        Ends before the first slot after the end. No frame is decoded after the last slot, and only those that are
        shown become RGB.

        Args:
          longest: pixels of the longer side, to which larger frames are scaled down; None keeps their size.
        """
        last, pixels = None, None
        for frame in self.shown(slots):
            pixels = frame.rgb(longest) if frame is not last or pixels is None else pixels
            last = frame
            yield pixels

    def shown(self, slots: Iterable[int]) -> Iterator["Frame"]:
        """As `at`, frames that are not RGB yet; one that is shown in several slots is the same object."""
        shown, after = self._next(), None
        for slot in slots:
            while shown and shown.slot < slot:
                after = after or self._next()
                if after is None or after.slot > slot:
                    break
                shown, after = after, None
            if shown is None or (after is None and slot > shown.last):
                return
            yield shown

    def _next(self) -> "Frame | None":
        frame = next(self.frames, None)
        self.passed = frame.last + 1 if frame else self.passed
        return frame


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame, shown from `slot` on and, if no other comes, until `last`."""

    slot: int
    last: int
    decoded: Any
    converter: "_Converter"

    def rgb(self, longest: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8; see `Stream.at`."""
        return self.converter(self.decoded, longest, "rgb24").to_ndarray()

    def luma(self, longest: int | None = None) -> np.ndarray:
        """(H, W) uint8, 0 to 255, of the size of `rgb`."""
        return self.converter(self.decoded, longest, "gray").to_ndarray()

    def planes(self, longest: int | None = None) -> Any:
        """As FFmpeg's filters take it: of that size, yuv420p, luma from 16 to 235. It takes half the time of RGB."""
        return self.converter(self.decoded, longest, "yuv420p")


@contextlib.contextmanager
def stream_video(source: str | os.PathLike | Member, *, start: float = 0.0, strict: bool = False) -> Iterator[Stream]:
    """Decodes a video file as its frames are asked for.

        with stream_video("clip.mp4") as stream:
            first = next(stream.at([0]))

    Args:
      start: seconds into the video, before which no frame is needed. Slots still count from the video's first frame.
      strict: end where the file is damaged. By default the decoder makes frames up there.
    Raises: FileNotFoundError; ValueError, here or on the way, for a file without a video in it, for HDR and for
      frames of more than `MAX_PIXELS`.
    """
    file = existing(source)
    # "file:" keeps ffmpeg from reading a name such as "a:b.mp4" as a protocol.
    url = file.url if isinstance(file, Member) else f"file:{file.absolute()}"
    with contextlib.ExitStack() as stack:
        with _named(source):
            container = stack.enter_context(av.open(url, container_options=OPTIONS, metadata_errors="ignore"))
            stream = _best(container)
            # After a jump the first frame's time stamp is not known.
            origin = stream.start_time if start else None
            frames = _start(container, stream, 0.0 if origin is None else start, strict)
            first = next(frames, None)
            fps = _fps(stream)
        converter = _Converter(source, stream, first)
        slotted = _slotted(itertools.chain([first] if first else [], frames), fps or UNKNOWN_FPS, origin, converter)
        stack.callback(slotted.close)
        duration, interlaced = _duration(container, stream), first is not None and first.interlaced_frame
        yield Stream(converter.height, converter.width, fps, duration, _checked(slotted, source), interlaced=interlaced)


@contextlib.contextmanager
def _named(source) -> Iterator[None]:
    """Turns the decoder's errors into one sentence that names the file."""
    try:
        yield
    except (av.FFmpegError, ArithmeticError) as error:  # the latter for a header unlike any
        raise ValueError(f"{str(source)!r} cannot be read as a video; give an mp4, webm or gif file") from error


def _checked(frames: Iterator[Frame], source) -> Iterator[Frame]:
    with _named(source):
        yield from frames


def _best(container) -> Any:
    """The stream that players show: the default one, or the largest; never a cover picture."""
    known = (s for s in container.streams.video if s.codec_context is not None)
    streams = [s for s in known if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise av.error.InvalidDataError(0, "it has no video stream")
    return max(streams, key=lambda s: (bool(s.disposition & Disposition.default), (s.width or 0) * (s.height or 0)))


def _fps(stream) -> fractions.Fraction | None:
    """The rate that the time stamps lie on; for those that lie on none, the average."""
    grid, average = stream.base_rate, stream.average_rate
    return (grid if grid and grid <= MAX_GRID else None) or average or None


@contextlib.contextmanager
def open_container(source: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    """The container of a file and, of its streams, the video that players show. Raises: as `stream_video`."""
    url = f"file:{Path(existing(source)).absolute()}"  # type: ignore[arg-type]
    with _named(source), av.open(url, container_options=OPTIONS, metadata_errors="ignore") as container:
        yield container, _best(container)


def pictures_last(source: str | os.PathLike) -> float | None:
    """Seconds that the pictures of a file surely last, as it says; None where they may end before its sound.

    Raises: as `stream_video`.
    """
    with open_container(source) as (container, stream):
        own = stream.duration or len(container.streams) == 1
        return _duration(container, stream) if own else None


def _duration(container, stream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _start(container, stream, seconds: float, strict: bool) -> Iterator[Any]:
    """The decoder's frames, the first of them no later than at `seconds`."""
    stream.thread_type = "AUTO"
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    if seconds:
        with contextlib.suppress(av.FFmpegError):  # a GIF is decoded from its beginning
            container.seek(int(seconds / stream.time_base) + stream.start_time, stream=stream)
    return _decode(container, stream, strict)


def _decode(container, stream, strict: bool) -> Iterator[Any]:
    """The decoder's frames. Damage is passed over, or ends them if `strict`."""
    steps = itertools.chain((packet.decode for packet in _packets(container, stream)), [stream.codec_context.decode])
    for step in steps:
        try:
            frames = step()
        except av.error.EOFError:  # all was given before
            return
        except av.FFmpegError:
            if strict:
                return
            continue
        for frame in frames:
            if strict and frame.is_corrupt:
                return
            yield frame


def _packets(container, stream) -> Iterator[Any]:
    """The packets up to the end or to where the file breaks off."""
    with contextlib.suppress(av.FFmpegError):
        yield from container.demux(stream)


def _slotted(
    frames: Iterator[Any], fps: fractions.Fraction, origin: int | None, converter: "_Converter"
) -> Generator[Frame, None, None]:
    """The frames with their slots, counted from `origin` or, if it is None, from the first frame's time stamp."""
    slot = -1
    for frame in frames:
        stamp, unit = frame.pts, frame.time_base
        if stamp is None or not unit:  # without time stamps it is one frame a slot
            slot += 1
            yield Frame(slot, slot, frame, converter)
            continue
        origin = stamp if origin is None else origin
        own = round((stamp - origin) * unit * fps)
        if own <= slot:  # a second frame of one slot
            continue
        slot = own
        end = round((stamp - origin + (frame.duration or 0)) * unit * fps)
        yield Frame(slot, max(slot, end - 1), frame, converter)


class _Converter:
    """Decoded frames to RGB of one size: upright, with square pixels. Raises: ValueError for HDR and huge frames."""

    def __init__(self, source, stream, first):
        self._source, self._turn = source, _turn(first)
        self._graphs: dict[tuple[int | None, str], tuple[Any, Any]] = {}  # of each result, and for which frames it is
        ratio = float(stream.sample_aspect_ratio or 1)
        width, height = (first.width, first.height) if first else (stream.width or 0, stream.height or 0)
        width = max(round(width * ratio), 1)
        if width * height > MAX_PIXELS:
            raise ValueError(f"{str(source)!r} is too large: a frame of {height}x{width}; at most {MAX_PIXELS} pixels")
        sideways = any(name == "transpose" for name, _ in self._turn)
        self.height, self.width = (width, height) if sideways else (height, width)
        if first:
            self._check(first)

    def __call__(self, frame, longest: int | None, form: str) -> Any:
        """The frame in one of FFmpeg's pixel formats."""
        kind = (frame.width, frame.height, frame.format.name)
        known, graph = self._graphs.get((longest, form), (None, None))
        if kind != known:  # a video may change on the way
            self._check(frame)
            graph = self._filters(frame, longest, form)
            self._graphs[longest, form] = kind, graph
        graph.push(frame)
        return graph.pull()

    def _check(self, frame) -> None:
        kind = HDR.get(frame.color_trc) or (frame.color_primaries == BT2020 and "BT.2020")
        if kind:
            raise ValueError(
                f"{str(self._source)!r} has HDR or wide-gamut colours ({kind}), which would come out wrong; "
                f"convert it first: {TO_SDR}"
            )

    def _filters(self, frame, longest: int | None, form: str) -> Any:
        graph: Any = av.filter.Graph()
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or UNIT
        )
        smaller = longest is not None and longest < (most := max(self.height, self.width))
        width, height = (max(round(x * longest / most), 1) if smaller else x for x in (self.width, self.height))
        scale = ("scale", f"{width}:{height}:{SHRINKING if smaller else SCALING}")
        if form == "yuv420p":
            scale = ("scale", f"{scale[1]}:out_range=limited")
        for name, arguments in (*self._turn, scale, ("format", form), ("buffersink", None)):
            following = graph.add(name, arguments)
            last.link_to(following)
            last = following
        graph.configure()
        return graph


def _turn(frame) -> list[tuple[str, str | None]]:
    """The filters that bring a frame upright, by the matrix that its file gives; as the ffmpeg command chooses them."""
    matrix = frame.side_data.get("DISPLAYMATRIX") if frame else None
    if matrix is None:
        return []
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    degrees = round(math.degrees(math.atan2(b, a))) % 360
    if degrees == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if degrees == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    return [(name, None) for name, flipped in (("hflip", a < 0), ("vflip", d < 0)) if flipped]
