"""Videos to deliver: 8 and 10 bits, several codecs, sound beside the pictures, colours tagged as what they are.

Pictures come as planes of luma and chroma, limited range, by the BT.709 matrix; see `finishing.colour`. The file says
so: matrix, primaries, transfer and range are those of BT.709.
"""

import contextlib
import fractions
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from cogvx_jax.data.comments import TAG
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.sound import RATE, Player, Track
from cogvx_jax.data.writer import check_output_place
from cogvx_jax.temporaries import hidden_folder, written_place

BT709 = 1  # of matrix, primaries and transfer in ITU-T H.273; of the range, limited
SOUND_BITS = {"aac": 192_000, "libopus": 160_000}  # a second; the others lose nothing
SOUND_FORMATS = {"aac": "fltp", "libopus": "flt", "pcm_s24le": "s32", "flac": "s16"}
X265 = {"x265-params": "open-gop=0:log-level=none"}


class Preset(NamedTuple):
    """A way to write a video.

    suffixes: of files that may be written so, the usual one first.
    pixels: ffmpeg's name of the planes.
    options: of the encoder; crf is added.
    crf: how coarse it is; None where the codec has no such number.
    sound: the codec of sound.
    tag: four letters that say in an .mp4 what the codec is, where not the usual ones.
    """

    suffixes: tuple[str, ...]
    encoder: str
    pixels: str
    options: dict[str, str]
    crf: int | None
    sound: str
    tag: str | None = None

    @property
    def bits(self) -> int:
        return 10 if self.pixels.endswith("10le") else 8

    @property
    def shrink(self) -> tuple[int, int]:
        """Rows and columns of luma for one of chroma."""
        return {"420": (2, 2), "422": (1, 2), "444": (1, 1)}[self.pixels[3:6]]


# With x264's mbtree the same frames come to other bytes from run to run. Groups are closed, so that players can begin
# at each; Apple's players want hvc1.
PRESETS = {
    "h264": Preset((".mp4", ".mov", ".mkv"), "libx264", "yuv420p", {"x264-params": "mbtree=0"}, 17, "aac"),
    "hevc": Preset(
        (".mp4", ".mov", ".mkv"),
        "libx265",
        "yuv420p10le",
        {"x265-params": "open-gop=0:log-level=none"},
        18,
        "aac",
        "hvc1",
    ),
    "av1": Preset((".mp4", ".mkv", ".webm"), "libsvtav1", "yuv420p10le", {"preset": "6"}, 30, "libopus"),
    "prores": Preset((".mov",), "prores_ks", "yuv422p10le", {"profile": "3", "vendor": "apl0"}, None, "pcm_s24le"),
    "ffv1": Preset((".mkv",), "ffv1", "yuv444p10le", {"level": "3", "slicecrc": "1"}, None, "flac"),
}
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def preset_of(path: str | Path, codec: str | None, crf: int | None = None) -> Preset:
    """The way in which a file is written: of `codec`, or the first that its suffix may have.

    Raises: ValueError for a codec that is not known, a suffix that does not fit, and a `crf` out of range.
    """
    suffix = Path(path).suffix.lower()
    if codec is not None and codec not in PRESETS:
        raise ValueError(f"codec must be one of {', '.join(PRESETS)}, got {codec!r}")
    fits = [name for name, preset in PRESETS.items() if suffix in preset.suffixes]
    if not fits or (codec is not None and codec not in fits):
        known = PRESETS[codec].suffixes if codec else CONTAINERS
        raise ValueError(f"{str(path)!r} must end in one of {', '.join(known)}" + f" for {codec}" * (codec is not None))
    # ProRes is what editors take of a .mov, and FFV1 what archives take of an .mkv.
    usual = {".mov": "prores", ".mkv": "ffv1"}.get(suffix, fits[0])
    found = PRESETS[codec or usual]
    if crf is None:
        return found
    if found.crf is None:
        raise ValueError(f"crf has no effect on {codec or usual}; leave it out")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be from 0 to 51, got {crf}")
    return found._replace(crf=crf)


def check_deliverable(path: str | Path, preset: Preset) -> None:
    """Checks, before any work, that a video can be written. Raises: as `check_output_place`; OSError: no encoder."""
    check_output_place(path)
    for encoder in (preset.encoder, preset.sound):
        if encoder not in av.codecs_available:
            raise OSError(f"the installed PyAV has no encoder {encoder}; `pip install --force-reinstall av` brings one")


class DeliveryWriter:
    """Writes one video, a picture at a time, and the sound beside it.

        with DeliveryWriter("out.mp4", preset, 60, (2160, 3840)) as writer:
            for planes in pictures:
                writer.write(planes)

    Memory does not grow with the video. `path` appears, or is replaced, only when the block ends well.

    Args:
      size: height and width; even where chroma is halved.
      track: its sound, as long as the pictures to the sample.
      comment: a text that the video carries.
    Raises: ValueError for odd sizes; OSError, which names `path`, if it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        preset: Preset,
        fps: float | fractions.Fraction,
        size: tuple[int, int],
        *,
        track: Track | None = None,
        comment: str | None = None,
    ):
        check_even(size, preset)
        self.path, self._final = Path(path), written_place(path)
        self._preset, self._fps, self._size = preset, frame_rate(fps), size
        self._player, self._comment = None if track is None else Player(track), comment
        self._stack = contextlib.ExitStack()
        self._count, self._heard = 0, 0  # pictures, and samples of sound

    def __enter__(self) -> "DeliveryWriter":
        with self._naming_the_file(), contextlib.ExitStack() as stack:
            folder = stack.enter_context(hidden_folder(self._final.parent))
            self._partial = folder / self._final.name
            self._container = stack.enter_context(self._open())
            self._video, self._audio = self._video_stream(), self._audio_stream()
            self._stack = stack.pop_all()
        return self

    def write(self, planes: Sequence[np.ndarray]) -> None:
        """Appends a picture: luma (H, W) and two planes of chroma, uint8 or uint16 by the preset's bits."""
        with self._naming_the_file():
            self._container.mux(self._video.encode(self._picture(planes)))
            self._count += 1
            if self._player is not None:
                for block in self._player.until(self._samples):
                    self._sound(block)

    def __exit__(self, kind, value, traceback) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    @property
    def _samples(self) -> int:
        """Of sound, as many as the pictures last."""
        return round(self._count / self._fps * RATE)

    def _finish(self) -> None:
        if not self._count:
            raise ValueError(f"no frames were given for {str(self.path)!r}; write at least one")
        with self._naming_the_file():
            self._container.mux(self._video.encode(None))
            if self._player is not None:
                self._sound(self._player.end())
                self._container.mux(self._audio.encode(None))
            self._container.close()
            self._partial.replace(self._final)

    def _open(self) -> Any:
        container = CONTAINERS[self.path.suffix.lower()]
        options = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
        found: Any = av.open(f"file:{self._partial}", "w", format=container, container_options=options)
        if self._comment is not None:
            found.metadata[TAG] = self._comment
        return found

    def _video_stream(self) -> Any:
        preset = self._preset
        os.environ.setdefault("SVT_LOG", "1")  # else it says its settings on stderr; it knows no other way
        crf = {} if preset.crf is None else {"crf": str(preset.crf)}
        stream: Any = self._container.add_stream(preset.encoder, rate=self._fps, options=preset.options | crf)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = *self._size, preset.pixels
        context.time_base = 1 / self._fps
        context.color_range = context.colorspace = context.color_primaries = context.color_trc = BT709
        if preset.tag is not None and self.path.suffix.lower() != ".mkv":
            context.codec_tag = preset.tag
        return stream

    def _audio_stream(self) -> Any:
        if self._player is None:
            return None
        codec = self._preset.sound
        stream: Any = self._container.add_stream(codec, rate=RATE, layout="stereo", format=SOUND_FORMATS[codec])
        if codec in SOUND_BITS:
            stream.bit_rate = SOUND_BITS[codec]
        return stream

    def _sound(self, block: np.ndarray) -> None:
        if not block.shape[1]:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", "stereo")
        frame.sample_rate, frame.time_base = RATE, fractions.Fraction(1, RATE)
        frame.pts, self._heard = self._heard, self._heard + block.shape[1]
        self._container.mux(self._audio.encode(frame))

    def _picture(self, planes: Sequence[np.ndarray]) -> Any:
        frame: Any = av.VideoFrame(self._size[1], self._size[0], self._preset.pixels)
        for plane, numbers in zip(frame.planes, planes, strict=True):
            rows = np.zeros((numbers.shape[0], plane.line_size // numbers.itemsize), numbers.dtype)
            rows[:, : numbers.shape[1]] = numbers
            plane.update(rows)
        frame.color_range = frame.colorspace = frame.color_primaries = frame.color_trc = BT709
        frame.pts, frame.time_base = self._count, 1 / self._fps
        return frame

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{str(self.path)!r} could not be written: {reason}") from error


def check_even(size: tuple[int, int], preset: Preset) -> None:
    """Raises: ValueError for sizes that a preset's halved chroma does not divide."""
    if any(side % step for side, step in zip(size, preset.shrink, strict=True)):
        raise ValueError(
            f"{preset.encoder} needs an even height and width, got {size[0]}x{size[1]}; "
            "write a .mkv by ffv1, a .gif or a folder of PNGs, or another size"
        )
