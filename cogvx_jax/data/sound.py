"""Sound of files as blocks of samples: as long as a video exactly, looped, faded, and of a given loudness.

Samples are float32 (2, N), left and right, 48,000 a second. No more than a block is held.
"""

import contextlib
import dataclasses
import fractions
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np

from cogvx_jax.data.files import existing

RATE = 48_000  # samples a second
LIMIT = 10 ** (-1 / 20)  # of samples once loudness is changed: 1 dB below the largest
LOUDNESS = (-70.0, -5.0)  # LUFS that may be asked for
SILENT = -70.0  # LUFS; below, the measure says nothing
MAX_LAG = 600.0  # seconds between the first picture and the first sample
RATES = (8_000, 192_000)  # samples a second of sound that programs give
# Kinds of files that an answer may be, as FFmpeg calls them: none of them names other files.
PLAIN = "wav,w64,flac,ogg,mp3,aac,mov,matroska,aiff"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """What is played.

    Args:
      path: a file with sound.
      loop: begin again where it ends before the video; silence follows otherwise.
      fade: seconds of a fade at the beginning, and of one at the end.
      loudness: LUFS, integrated over the file, as EBU R 128 measures it; None leaves it.
      lag: seconds of silence before it; where it is negative, so much of its beginning is left out.
    Raises: ValueError for a fade or loudness out of range.
    """

    path: str | os.PathLike
    loop: bool = False
    fade: float = 0.0
    loudness: float | None = None
    lag: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.fade) and 0 <= self.fade <= 60):
            raise ValueError(f"fade must be from 0 to 60 seconds, got {self.fade}")
        low, high = LOUDNESS
        if self.loudness is not None and not low <= self.loudness <= high:
            raise ValueError(f"loudness must be from {low:g} to {high:g} LUFS, got {self.loudness}")

    def _gain(self) -> float:
        measured = loudness(self.path)
        return 1.0 if measured <= SILENT else 10 ** ((self.loudness - measured) / 20)  # type: ignore[operator]

    def read(self) -> Iterator[np.ndarray]:
        """Its samples in blocks, again and again if looped; nothing is faded. Raises: as `read_sound`."""
        gain = None if self.loudness is None else self._gain()
        if self.lag > 0:
            yield np.zeros((2, round(self.lag * RATE)), np.float32)
        skipped = max(round(-self.lag * RATE), 0)
        while True:
            some = False
            for whole in read_sound(self.path, gain):
                some = some or whole.shape[1] > 0
                block, skipped = whole[:, skipped:], max(skipped - whole.shape[1], 0)
                if block.shape[1]:
                    yield block
            if not self.loop or not some:
                return


class Player:
    """A track as pictures come that it is played to: as long as they are, to the sample. It holds a fade's length.

    player.until(n) gives blocks of the first n samples as far as no fade at the end could reach, player.end() the rest.
    """

    def __init__(self, track: Track):
        self._source = track.read()
        self._left = np.zeros((2, 0), np.float32)  # of what was read
        self._held = np.zeros((2, 0), np.float32)  # what the end may fade
        self._fade, self._taken = round(track.fade * RATE), 0

    def until(self, count: int) -> Iterator[np.ndarray]:
        """Raises: ValueError where the file cannot be read."""
        while self._taken < count:
            block = self._next(min(count - self._taken, RATE))
            if self._fade:
                place = np.arange(self._taken, self._taken + block.shape[1])
                block = (block * np.minimum(place / self._fade, 1)).astype(np.float32)
            self._taken += block.shape[1]
            whole = np.concatenate([self._held, block], axis=1)
            ready = max(whole.shape[1] - self._fade, 0)
            self._held = whole[:, ready:]
            if ready:
                yield whole[:, :ready]

    def end(self) -> np.ndarray:
        """The last samples, faded, (2, N)."""
        count = self._held.shape[1]
        return (self._held * (np.arange(count)[::-1] / max(count, 1))).astype(np.float32)

    def _next(self, count: int) -> np.ndarray:
        """At most so many samples, at least one; silence after the end of the file."""
        while not self._left.shape[1]:
            found = next(self._source, None)
            self._left = np.zeros((2, count), np.float32) if found is None else found
        block, self._left = self._left[:, :count], self._left[:, count:]
        return block


def has_sound(path: str | os.PathLike) -> bool:
    """Whether a file has a stream of sound. Raises: FileNotFoundError; ValueError for what FFmpeg cannot open."""
    with _opened(path) as container:
        return bool(container.streams.audio)


def sound_lag(path: str | os.PathLike) -> float:
    """Seconds by which the sound of a video begins after its pictures; negative where it comes first.

    0 where the file does not tell, or tells more than `MAX_LAG`. Raises: as `has_sound`.
    """
    with _opened(path) as container:
        if not (container.streams.audio and container.streams.video):
            return 0.0
        pictures, heard = container.streams.video[0], container.streams.audio[0]
        # What a decoder leaves out at the beginning, as of AAC, counts: so the first samples are asked.
        first = next(_decoded(container, heard), None)
        begins = None if first is None else first.time
        if begins is None or pictures.start_time is None:
            return 0.0
        lag = float(begins - pictures.start_time * pictures.time_base)
    return lag if abs(lag) <= MAX_LAG else 0.0


def check_sound(path: str | os.PathLike) -> None:
    """Checks that a file begins with sound that can be decoded. Raises: FileNotFoundError; ValueError."""
    if next(read_sound(path), None) is None:
        raise ValueError(f"{str(path)!r} holds no sound that can be decoded; give a wav, mp3, m4a, flac or ogg file")


def save_samples(path: str | os.PathLike, blocks: Iterable[np.ndarray], rate: int = RATE) -> None:
    """Writes samples, (1 or 2, N) float32 each, as they are, a .w64: such files may be longer than a .wav."""
    with av.open(f"file:{Path(path).absolute()}", "w", format="w64") as container:
        stream: Any = None
        for block in blocks:
            layout = "mono" if len(block) == 1 else "stereo"
            stream = stream or container.add_stream("pcm_f32le", rate=rate, layout=layout)
            frame: Any = av.AudioFrame.from_ndarray(np.float32(block).T.reshape(1, -1), "flt", layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))


def read_sound(path: str | os.PathLike, gain: float | None = None, formats: str | None = None) -> Iterator[np.ndarray]:
    """A file's sound in blocks, from its beginning.

    Args:
      gain: by which samples are multiplied, limited to 1 dB below the largest after that; None leaves them.
      formats: the kinds of files that it may be, such as `PLAIN`; None is any.
    Raises: FileNotFoundError; ValueError for a file without sound, or one that breaks off in its first block.
    """
    filters = [] if gain is None else [("volume", f"volume={gain}"), ("alimiter", f"limit={LIMIT}:level=0:latency=1")]
    for frame in _filtered(path, filters, formats):
        yield np.asarray(frame.to_ndarray(), np.float32)


def loudness(path: str | os.PathLike) -> float:
    """LUFS of a whole file, as EBU R 128 measures it; -70 of silence. Raises: as `read_sound`."""
    found = SILENT
    for frame in _filtered(path, [("ebur128", "metadata=1")]):
        with contextlib.suppress(KeyError, ValueError):
            found = float(frame.metadata["lavfi.r128.I"])
    return max(found, SILENT) if math.isfinite(found) else SILENT


def _filtered(path: str | os.PathLike, filters: list[tuple[str, str]], formats: str | None = None) -> Iterator[Any]:
    """Frames of sound after filters, as float32 samples of both channels apart."""
    graph, last = None, None
    with _opened(path, formats) as container:
        if not container.streams.audio:
            raise ValueError(
                f"{str(path)!r} has no sound; give a wav, mp3, m4a, flac or ogg file, or a video with sound"
            )
        stream = container.streams.audio[0]
        for frame in _decoded(container, stream):
            kind = frame.sample_rate, frame.format.name, frame.layout.name
            if graph is None or kind != last:
                yield from _pulled(graph, end=True)
                graph, last = _graph(kind, filters), kind
            frame.pts = None
            graph.push(frame)
            yield from _pulled(graph)
    yield from _pulled(graph, end=True)


@contextlib.contextmanager
def _opened(path: str | os.PathLike, formats: str | None = None) -> Iterator[Any]:
    file: Any = existing(path)
    options = {"protocol_whitelist": "file"} | ({} if formats is None else {"format_whitelist": formats})
    try:
        container = av.open(f"file:{file.absolute()}", container_options=options, metadata_errors="ignore")
    except (av.FFmpegError, ArithmeticError, ValueError):
        raise ValueError(f"{str(path)!r} cannot be read as sound; give a wav, mp3, m4a, flac or ogg file") from None
    with container:
        yield container


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Damage is passed over; where the file breaks off, it ends."""
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                yield from packet.decode()


def _graph(kind: tuple[int, str, str], filters: list[tuple[str, str]]) -> Any:
    rate, form, layout = kind
    graph: Any = av.filter.Graph()
    last = graph.add_abuffer(sample_rate=rate, format=form, layout=layout, time_base=fractions.Fraction(1, rate))
    wanted = f"sample_fmts=fltp:sample_rates={RATE}:channel_layouts=stereo"
    resampled = [("aresample", f"{RATE}"), ("aformat", wanted)]
    # The resampler would make one channel of two 3 dB softer.
    both = [("pan", "stereo|c0=c0|c1=c0")] if layout in ("mono", "1 channels") else []
    for name, arguments in (*both, *resampled, *filters, *resampled, ("abuffersink", None)):
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def _pulled(graph: Any, end: bool = False) -> Iterator[Any]:
    if graph is None:
        return
    if end:
        graph.push(None)
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield graph.pull()
