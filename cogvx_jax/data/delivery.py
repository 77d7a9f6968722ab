"""Videos to deliver: 8 and 10 bits, several codecs, sound beside the pictures, colours tagged as what they are.

Pictures come as planes of luma and chroma, limited range, by the BT.709 matrix; see `finishing.colour`. The file says
so: matrix, primaries, transfer and range are those of BT.709.
"""

import contextlib
import fractions
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from cogvx_jax.data.comments import TAG
from cogvx_jax.data.packets import Encoded, begin_packets, end_packets, open_packets, write_packet
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.data.sound import RATE, Player, Track
from cogvx_jax.data.writer import check_output_place
from cogvx_jax.temporaries import hidden_folder, written_place

BT709 = 1  # of matrix, primaries and transfer in ITU-T H.273; of the range, limited
SOUND_BITS = {"aac": 192_000, "libopus": 160_000}  # a second; the others lose nothing
SOUND_FORMATS = {"aac": "fltp", "libopus": "flt", "pcm_s24le": "s32", "flac": "s16"}
LARGE = 2048  # pixels of a side: at 2160x3840 frames that wait for later ones take 0.4 (x264) to 2.3 GB (SVT-AV1)
AT_ONCE = {  # encoder -> an option and what more it says of large pictures: each is made of the one before alone
    "libx264": ("x264-params", "rc-lookahead=0:bframes=0:ref=1"),
    "libx265": ("x265-params", "frame-threads=1:rc-lookahead=0:bframes=0:ref=1:no-cutree=1"),
    "libsvtav1": ("svtav1-params", "lp=1:pred-struct=1"),
}
NARROW = 64  # pixels of a side: of pictures 34 to 46 wide, x265's cutree writes where it must not


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

    Or of files that `PacketWriter` wrote, in their order: `writer.append(file)` for each. Pictures are written or
    appended, not both. Memory does not grow with the video. `path` appears, or is replaced, only when the block ends
    well.

    Args:
      size: height and width; even where chroma is halved.
      track: its sound, as long as the pictures to the sample.
      comment: a text that the video carries.
      tags: texts of other programs, by name.
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
        tags: Mapping[str, str] | None = None,
    ):
        check_even(size, preset)
        self.path, self._final = Path(path), written_place(path)
        self._preset, self._fps, self._size = preset, frame_rate(fps), size
        self._player, self._comment, self._tags = None if track is None else Player(track), comment, dict(tags or {})
        self._stack = contextlib.ExitStack()
        self._count, self._heard = 0, 0  # pictures, and samples of sound

    def __enter__(self) -> "DeliveryWriter":
        with self._naming_the_file(), contextlib.ExitStack() as stack:
            folder = stack.enter_context(hidden_folder(self._final.parent))
            self._partial = folder / self._final.name
            self._container = stack.enter_context(self._open())
            self._video, self._audio = self._video_stream(), self._audio_stream()
            self._encoding = False
            self._late = 0  # frames by which the first appended one is decoded before it is shown
            self._stack = stack.pop_all()
        return self

    def write(self, planes: Sequence[np.ndarray]) -> None:
        """Appends a picture: luma (H, W) and two planes of chroma, uint8 or uint16 by the preset's bits."""
        with self._naming_the_file():
            self._encoding = True
            self._container.mux(self._video.encode(frame_of(planes, self._preset, self._size, self._count, self._fps)))
            self._counted()

    def append(self, file: Path) -> None:
        """Appends the pictures that `PacketWriter` encoded, of the same preset, rate and size. Raises: ValueError."""
        with self._naming_the_file(), open_packets(file) as packets:
            self._container.start_encoding()
            if packets.about != bytes(self._video.codec_context.extradata or b""):
                raise ValueError(f"{str(file)!r} was encoded otherwise; remove its folder and begin anew")
            first = self._count
            for packet in packets:
                if not self._count:
                    self._late = -packet.decoded
                self._container.mux(self._packet(packet, first))
                self._counted()

    def _packet(self, encoded: Encoded, first: int) -> Any:
        # Decoders take a frame after the other. Of a file of few frames the encoder counts otherwise.
        packet: Any = av.Packet(encoded.data)
        packet.stream, packet.time_base = self._video, 1 / self._fps
        packet.pts, packet.dts, packet.duration = first + encoded.shown, self._count - self._late, 1
        packet.is_keyframe = encoded.key
        return packet

    def _counted(self) -> None:
        """Counts a picture, and writes the sound that is heard until its end."""
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
            if self._encoding:
                self._container.mux(self._video.encode(None))
            if self._player is not None:
                self._sound(self._player.end())
                self._container.mux(self._audio.encode(None))
            self._container.close()
            self._partial.replace(self._final)

    def _open(self) -> Any:
        container = CONTAINERS[self.path.suffix.lower()]
        flags = "faststart" + "+use_metadata_tags" * bool(self._tags)  # else texts of unknown names are lost
        options = {"movflags": flags} if container in ("mp4", "mov") else {}
        found: Any = av.open(f"file:{self._partial}", "w", format=container, container_options=options)
        if self._comment is not None:
            found.metadata[TAG] = self._comment
        found.metadata.update(self._tags)
        return found

    def _video_stream(self) -> Any:
        stream = encoder_stream(self._container, self._preset, self._fps, self._size)
        if self._preset.tag is not None and self.path.suffix.lower() != ".mkv":
            stream.codec_context.codec_tag = self._preset.tag
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

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{str(self.path)!r} could not be written: {reason}") from error


class PacketWriter:
    """Encodes pictures into a file of packets, a part of a video: `DeliveryWriter.append` joins such files.

    The encoder begins anew with each file, so a part depends on its own pictures alone. `path` appears only when it is
    whole and on the disk; otherwise nothing of it stays.

    Args: as of `DeliveryWriter`. Raises: OSError or av.FFmpegError where it cannot be written.
    """

    def __init__(self, path: Path, preset: Preset, fps: float | fractions.Fraction, size: tuple[int, int]):
        self._path, self._part = path, path.with_suffix(".part")
        self._preset, self._fps, self._size = preset, frame_rate(fps), size
        self._count, self._begun = 0, False

    def __enter__(self) -> "PacketWriter":
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(self._part.open("wb"))
            # It only says that the encoder's header is to stand apart, as in all files that packets come to.
            container = stack.enter_context(av.open(io.BytesIO(), "w", format="matroska"))
            self._video = encoder_stream(container, self._preset, self._fps, self._size)
            self._stack = stack.pop_all()
        return self

    def write(self, planes: Sequence[np.ndarray]) -> None:
        """Appends a picture, as `DeliveryWriter.write` takes it."""
        self._encode(frame_of(planes, self._preset, self._size, self._count, self._fps))
        self._count += 1

    def __exit__(self, kind, value, traceback) -> None:
        try:
            with self._stack:
                if kind is None:
                    self._encode(None)
                    end_packets(self._file)
            if kind is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def _encode(self, frame: Any) -> None:
        for packet in self._video.encode(frame):
            if not self._begun:
                begin_packets(self._file, bytes(self._video.codec_context.extradata or b""))
                self._begun = True
            write_packet(self._file, Encoded(bytes(packet), packet.pts, packet.dts, packet.is_keyframe))


def encoder_stream(container: Any, preset: Preset, fps: fractions.Fraction, size: tuple[int, int]) -> Any:
    """A stream of a container whose encoder takes a preset's pictures."""
    os.environ.setdefault("SVT_LOG", "1")  # else it says its settings on stderr; it knows no other way
    options = dict(preset.options) | ({} if preset.crf is None else {"crf": str(preset.crf)})
    if preset.encoder == "libx265" and min(size) < NARROW:
        options["x265-params"] += ":no-cutree=1"
    if max(size) > LARGE and preset.encoder in AT_ONCE:
        name, more = AT_ONCE[preset.encoder]
        options[name] = ":".join(filter(None, (options.get(name), more)))
    stream: Any = container.add_stream(preset.encoder, rate=fps, options=options)
    context = stream.codec_context
    context.height, context.width, context.pix_fmt = *size, preset.pixels
    context.time_base = 1 / fps
    context.color_range = context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream


def frame_of(
    planes: Sequence[np.ndarray], preset: Preset, size: tuple[int, int], number: int, fps: fractions.Fraction
) -> Any:
    """A picture as encoders take it: luma and two planes of chroma, uint8 or uint16 by the preset's bits."""
    frame: Any = av.VideoFrame(size[1], size[0], preset.pixels)
    for plane, numbers in zip(frame.planes, planes, strict=True):
        rows = np.zeros((numbers.shape[0], plane.line_size // numbers.itemsize), numbers.dtype)
        rows[:, : numbers.shape[1]] = numbers
        plane.update(rows)
    frame.color_range = frame.colorspace = frame.color_primaries = frame.color_trc = BT709
    frame.pts, frame.time_base = number, 1 / fps
    return frame


def check_even(size: tuple[int, int], preset: Preset) -> None:
    """Raises: ValueError for sizes that a preset's halved chroma does not divide."""
    if any(side % step for side, step in zip(size, preset.shrink, strict=True)):
        raise ValueError(
            f"{preset.encoder} needs an even height and width, got {size[0]}x{size[1]}; "
            "write a .mkv by ffv1, a .gif or a folder of PNGs, or another size"
        )
