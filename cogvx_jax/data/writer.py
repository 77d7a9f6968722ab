"""Videos written to files, frames as they come."""

import contextlib
import fractions
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import av.filter
import numpy as np
import PIL.Image

from cogvx_jax.data.comments import BESIDE, TAG, check_sidecar, png_info, remove_sidecar, sidecar, sidecar_text
from cogvx_jax.data.rates import frame_rate
from cogvx_jax.storage import is_empty
from cogvx_jax.temporaries import check_local, hidden_folder, written_place

Filters = Sequence[tuple[str, str | None]]


class Format(NamedTuple):
    """How a kind of file is written: ffmpeg's name of its container, the encoder with its options, pixels."""

    container: str
    encoder: str
    pixels: str
    options: dict[str, str]
    container_options: dict[str, str]
    video: bool = True  # YUV pixels of a tagged matrix, not those of a picture format


# With x264's mbtree the same frames come to other bytes from run to run. Without it, a video of tiny took 1.3 times the
# bytes, and was 1.4 dB nearer to the frames.
X264 = {"crf": "17", "x264-params": "mbtree=0"}
VP9 = {"crf": "20", "b": "0", "row-mt": "1", "cpu-used": "3"}
FORMATS = {
    ".mp4": Format("mp4", "libx264", "yuv420p", X264, {"movflags": "faststart"}),
    ".gif": Format("gif", "gif", "pal8", {}, {"loop": "0"}, video=False),
    ".webm": Format("webm", "libvpx-vp9", "yuv420p", VP9, {"fflags": "bitexact"}),  # else it gets a random name
    ".webp": Format("webp", "libwebp_anim", "bgra", {"quality": "95"}, {"loop": "0"}, video=False),
}
# Without it an .mp4 loses texts whose names ffmpeg does not know.
TAGGED = {".mp4": {"movflags": "faststart+use_metadata_tags"}}
# The matrix is given and tagged, or players guess different colours.
BT709: Filters = (
    ("scale", "out_color_matrix=bt709:out_range=tv"),
    ("setparams", "range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"),
)


class VideoWriter:
    """Writes one video, frames handed over as they come.

        with VideoWriter("out.mp4", fps=8) as writer:
            for chunk in chunks:  # (F, H, W, 3) uint8, RGB
                writer.write(chunk)

    The suffix tells the kind: .mp4 (H.264, plays in browsers), .webm (VP9), .gif or .webp (animated). A name without a
    suffix is a folder of PNGs, 00000.png, 00001.png and so on, which must be new or empty; it keeps no rate.

    Memory does not grow with the clip, but for the compressed frames of a .webp. `path` appears, or is replaced, only
    when the block ends well; if it ends by an exception nothing is left behind. Where `path` is a link, what it names
    is written.

    Args:
      fps: any positive number; a fraction such as 30000/1001 is kept exactly, in a .gif to a hundredth of a second.
      comment: a text that the video carries, such as how it was made; `data.comments` says where.
      tags: texts of other programs, by name; an .mp4 or .webm carries them, no other kind.
      crf: of an .mp4 or .webm, how coarse it is; more is smaller. None is nearly without loss.
    Raises: what `check_writable` raises, on construction; ValueError if `fps` is not positive, if chunks
      differ in H or W, if H or W is odd in an .mp4, or if the block ends without a frame; OSError, which names `path`,
      if it cannot be written, as on a full disk.
    """

    def __init__(
        self,
        path,
        fps: float | fractions.Fraction,
        comment: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        crf: int | None = None,
    ):
        check_writable(path, commented=comment is not None)
        self._options = {} if crf is None else {"crf": str(crf)}
        self.path, self.fps, self._final = Path(path), frame_rate(fps), written_place(path)
        self._comment, self._tags = comment, dict(tags or {})
        self._partial: Path | None = None  # in a hidden folder beside it
        self._hidden = contextlib.ExitStack()
        self._size: tuple[int, int] | None = None
        self._output: _Output | None = None  # once the first frames say how large they are

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, (F, H, W, 3) uint8; H and W as in the first call."""
        frames = check_frames(frames, "FHW3")
        size = frames.shape[1:3]
        self._size = self._size or size
        if size != self._size:
            first = "x".join(map(str, self._size))
            raise ValueError(f"all frames of {str(self.path)!r} must be {first}, got {size[0]}x{size[1]}")
        suffix = self.path.suffix.lower()
        if suffix == ".mp4" and (size[0] % 2 or size[1] % 2):
            raise ValueError(f"an .mp4 needs an even height and width, got {size[0]}x{size[1]}; resize or write a .gif")
        with self._naming_the_file():
            if self._output is None:
                folder = self._hidden.enter_context(hidden_folder(self._final.parent))
                self._partial = folder / self.path.name
                self._output = _Pictures(self._partial, self._comment) if not suffix else None
                self._output = self._output or self._encoder(suffix, size)
            for frame in frames:
                self._output.write(np.ascontiguousarray(frame))

    def _encoder(self, suffix: str, size: tuple[int, int]) -> "Encoder":
        assert self._partial is not None
        kind = FORMATS[suffix]
        kind, texts = kind._replace(options=kind.options | self._options), dict[str, str]()
        if self._comment is not None and suffix not in BESIDE:
            texts[TAG] = self._comment
        if self._tags and kind.video:
            texts |= self._tags
            kind = kind._replace(container_options=kind.container_options | TAGGED.get(suffix, {}))
        return Encoder(self._partial, kind, self.fps, size, texts)

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._output is not None:
                with contextlib.suppress(OSError, av.FFmpegError):  # what it could not write is not wanted any more
                    self._output.close()
            self._hidden.close()

    def _finish(self) -> None:
        if self._output is None or self._partial is None:
            raise ValueError(f"no frames were given for {str(self.path)!r}; write at least one")
        with self._naming_the_file():
            self._output.finish()
            beside = self._write_sidecar()
            self._partial.replace(self._final)
            if beside is not None:
                beside.replace(sidecar(self._final))
            else:
                remove_sidecar(self._final)

    def _write_sidecar(self) -> Path | None:
        """The hidden sidecar of a video that cannot hold its comment; one that has its name before is of old bytes."""
        if self._comment is None or self._partial is None or self.path.suffix.lower() not in BESIDE:
            return None
        beside = sidecar(self._partial)
        beside.write_text(sidecar_text(self._partial, self._comment), encoding="utf-8")
        return beside

    @contextlib.contextmanager
    def _naming_the_file(self):
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{str(self.path)!r} could not be written: {reason}") from error


class _Output(Protocol):
    """Where the frames of one video go."""

    def write(self, frame: np.ndarray) -> None: ...

    def finish(self) -> None:
        """Writes what is still held, and closes."""

    def close(self) -> None:
        """Gives up what is still held. No effect after `finish`."""


class _Pictures:
    """A folder of PNGs."""

    def __init__(self, folder: Path, comment: str | None):
        self._folder, self._count, self._comment = folder, 0, comment
        folder.mkdir()

    def write(self, frame: np.ndarray) -> None:
        text = None if self._comment is None or self._count else png_info(self._comment)
        PIL.Image.fromarray(frame).save(self._folder / f"{self._count:05d}.png", pnginfo=text)
        self._count += 1

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class Encoder:
    """One stream in a container. Raises: OSError or av.FFmpegError where it cannot be written."""

    def __init__(
        self, path: Path, kind: Format, fps: fractions.Fraction, size: tuple[int, int], texts: Mapping[str, str]
    ):
        url = f"file:{path.absolute()}"  # else ffmpeg reads a name such as "a:b.mp4" as a protocol
        self._container: Any = av.open(url, "w", format=kind.container, container_options=kind.container_options)
        self._container.metadata.update(texts)
        self._stream: Any = self._container.add_stream(kind.encoder, rate=fps, options=kind.options)
        context: Any = self._stream.codec_context
        context.height, context.width, context.pix_fmt = *size, kind.pixels
        context.time_base = 1 / fps
        if kind.video:
            context.color_range = context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        self._graph = _graph(kind, fps, size)
        self._count, self._unit = 0, 1 / fps

    def write(self, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(frame, "rgb24")
        picture.pts, picture.time_base = self._count, self._unit
        self._count += 1
        self._graph.push(picture)
        self._encode()

    def finish(self) -> None:
        self._graph.push(None)
        self._encode()
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def close(self) -> None:
        self._container.close()

    def _encode(self) -> None:
        """Encodes the frames that the filters have ready."""
        while True:
            try:
                picture = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._container.mux(self._stream.encode(picture))


def _graph(kind: Format, fps: fractions.Fraction, size: tuple[int, int]) -> Any:
    """The filters from RGB to the pixels that the encoder takes."""
    graph: Any = av.filter.Graph()
    last = graph.add_buffer(height=size[0], width=size[1], format="rgb24", time_base=1 / fps)
    if kind.pixels == "pal8":
        # One palette a frame: one for the whole clip would hold back every frame until the last.
        both, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        last.link_to(both)
        both.link_to(palette, 0, 0)
        last = graph.add("paletteuse", "new=1")
        both.link_to(last, 1, 0)
        palette.link_to(last, 0, 1)
    steps = [*(BT709 if kind.video else ()), ("format", kind.pixels), ("buffersink", None)]
    for name, arguments in steps:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def check_writable(path, *, commented: bool = False) -> None:
    """Checks, before any work, that a video can be written to `path`; an existing file there is fine.

    Args:
      commented: it is to carry a comment, for which a .gif or .webp needs a file beside it.
    Raises: ValueError for a suffix that is not known, or where a comment would replace another file;
      FileNotFoundError, NotADirectoryError, IsADirectoryError or PermissionError, all of them OSError, for the place;
      OSError if there is no such encoder.
    """
    check_local(path, "a video's file or folder")
    path = Path(path)
    if "\0" not in str(path) and path.suffix.lower() not in {"", *FORMATS}:
        raise ValueError(
            f"{str(path)!r} must end in one of {', '.join(FORMATS)} to say which kind of video to write; "
            "without a suffix it is a folder of PNGs"
        )
    check_output_place(path)
    if commented and path.suffix.lower() in BESIDE:
        check_sidecar(written_place(path))
    if path.suffix and (encoder := FORMATS[path.suffix.lower()].encoder) not in av.codecs_available:
        raise OSError(f"the installed PyAV has no encoder {encoder}; `pip install --force-reinstall av` brings one")


def check_output_place(path) -> None:
    """Checks that a file, or without a suffix a folder, can be written there; its kind is no matter.

    Raises: as `check_writable`, for the place.
    """
    check_local(path, "a video's file or folder")
    path = Path(path)
    name = repr(str(path))
    if "\0" in str(path):
        raise ValueError(f"{name} holds a NUL, which no file name may")
    folder = written_place(path).parent
    if path.is_dir() and path.suffix:
        raise IsADirectoryError(f"{name} is a folder; give the name of a file to write")
    if path.is_dir() and not is_empty(path):
        raise IsADirectoryError(f"{name} is a folder that is not empty; give a new one for PNGs, or a file's name")
    if path.suffix and path.exists() and not path.is_file():
        raise OSError(f"{name} is no ordinary file; write elsewhere")
    if not path.suffix and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name} is a file; without a suffix it must be a folder, for PNGs")
    if not folder.exists():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; create it first or write elsewhere")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file, not a folder; write elsewhere")
    try:  # os.access says yes to root even where nothing can be written
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise PermissionError(f"the folder {str(folder)!r} cannot be written to ({e.strerror}); write elsewhere") from e


def encoder_version() -> str:
    """Of FFmpeg's library of encoders, which decides about bytes."""
    return ".".join(map(str, av.library_versions["libavcodec"]))


def check_frames(frames, axes: str) -> np.ndarray:
    """`frames` as an array, if it is uint8 with these axes, one letter each; leading dots stand for any."""
    frames = np.asarray(frames)
    rank_ok = frames.ndim >= 3 if axes.startswith("...") else frames.ndim == len(axes)
    if frames.dtype != np.uint8 or not rank_ok or frames.shape[-1] != 3 or not frames.size:
        shape = ", ".join(axes.replace("...", "…")).replace("…", "...")
        raise ValueError(f"frames must be uint8 ({shape}) and not empty, got {frames.dtype} {frames.shape}")
    return frames
