"""Sound that is made for a video: by a Python function, by a program behind an address, or by what is built in.

A maker gets a `Scene`: small pictures, the prompt, a seed, and how long the sound should be. What it gives is bounded
in time and bytes, decoded, cut to the video's length, and refused where it is too short or no sound at all.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.data.sound import PLAIN, RATE, read_sound, save_samples
from cogvx_jax.finishing.maker_names import maker_name
from cogvx_jax.finishing.scene import Scene, SmallCopy, small_copy
from cogvx_jax.finishing.sound_http import ask_address
from cogvx_jax.finishing.sound_process import answered, ask_function
from cogvx_jax.finishing.tones import tones
from cogvx_jax.temporaries import temporary_folder

FUNCTIONS: dict[str, Callable[[Scene], Any]] = {"tones": tones}  # of `maker_names.BUILT_IN`
TIMEOUT = 600.0  # seconds that a maker has
SHORT = 0.25  # seconds by which sound may end before the video: coders of sound lose some at the end
MOST = 2**25, 2**21  # bytes of an answer: so many, and more for each second, as 192 kHz in 32 bits take

Maker = str | Callable[[Scene], Any]


class Made(NamedTuple):
    """Sound that was made: a file of 48 kHz, by whom, how long in seconds, and the hash of its samples."""

    path: Path
    maker: str
    seconds: float
    sha256: str


def make_sound(
    maker: Maker,
    video: Any,
    out: Path,
    *,
    prompt: str = "",
    seed: int = 0,
    seconds: Callable[[int, Fraction], float] | None = None,
    source_fps: float | Fraction | None = None,
    loop: bool = False,
    timeout: float = TIMEOUT,
) -> Made:
    """Has sound made for a video.

        made = make_sound("http://localhost:8100/sound", "clip.mp4", folder / "sound.w64", prompt="rain on a roof")

    Args:
      maker: "tones", which is built in; "module:function"; an address; or, from Python, a function of a `Scene`.
        A named function runs in a process of its own. One that is handed over runs here; its time is not bounded.
      video, source_fps: see `open_source`; or a small copy of it, all of whose frames have passed.
      out: the file that is written, a .w64 of 48 kHz.
      seconds: of the sound, by the video's count of frames and rate; None is how long the video is.
      loop: it may be shorter than the video, and is played again.
      timeout: seconds that the maker has.
    Raises: TimeoutError; OSError for an address that does not answer or refuses; ValueError, one sentence, for what is
      no sound, too short or too large, and for what the function raised; as `open_source` for the video.
    """
    name = maker_name(maker)
    with temporary_folder() as folder:
        copy = video if isinstance(video, SmallCopy) else small_copy(video, folder / "video.mp4", source_fps)
        length = float(copy.count / copy.fps) if seconds is None else seconds(copy.count, copy.fps)
        about: dict[str, Any] = {name: getattr(copy, name) for name in ("fps", "count", "height", "width")}
        scene = Scene(video=copy.path, seconds=length, prompt=prompt, seed=seed, **about)
        given = _asked(maker, name, scene, folder, timeout)
        settled = _Settled(given, name, length)
        save_samples(out, settled)
    settled.check(loop)
    return Made(out, name, settled.count / RATE, settled.sha256.hexdigest())


def _asked(maker: Maker, name: str, scene: Scene, folder: Path, timeout: float) -> Path:
    most = MOST[0] + math.ceil(scene.seconds) * MOST[1]
    function = FUNCTIONS.get(maker) if isinstance(maker, str) else maker
    if function is not None:
        try:
            return answered(function(scene), scene, folder, most)
        except ValueError as error:
            raise ValueError(f"the maker of sound {name} failed: {error}") from error
    assert isinstance(maker, str)
    if "://" in maker:
        return ask_address(maker, scene, folder / "answer", most, timeout)
    return ask_function(maker, scene, folder, most, timeout)


class _Settled:
    """The samples (2, N) float32 of an answer in blocks, up to the video's length. Raises: ValueError for no sound."""

    def __init__(self, path: Path, name: str, seconds: float):
        self._path, self._name, self._seconds = path, name, seconds
        self.count, self.sha256 = 0, hashlib.sha256()

    def __iter__(self) -> Iterator[np.ndarray]:
        wanted = round(self._seconds * RATE)
        try:
            for whole in read_sound(self._path, formats=PLAIN):
                block = whole[:, : wanted - self.count]
                if not np.isfinite(block).all():
                    raise ValueError
                self.count += block.shape[1]
                self.sha256.update(block.tobytes())
                yield block
                if self.count >= wanted:
                    return
        except (ValueError, FileNotFoundError):
            said = f"what the maker of sound {self._name} gives is no sound"
            raise ValueError(f"{said}{_beginning(self._path)}") from None

    def check(self, loop: bool) -> None:
        """Raises: ValueError for sound that is too short."""
        missing = self._seconds - self.count / RATE
        if not self.count or (missing > SHORT and not loop):
            raise ValueError(
                f"the maker of sound {self._name} gives {self.count / RATE:.2f} s for {self._seconds:.2f} s of video; "
                "let it make more, or loop it"
            )


def _beginning(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        data = file.read(60)
        if not data:
            return ": it is empty"
        return f": it begins with {data.decode()!r}" if data.isascii() else ", or none that can be decoded"
    return f": there is no file {path}"
