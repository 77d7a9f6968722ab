"""Videos as codes of the image tokenizer, made once and kept in a folder, which training of CogVideo (2022) reads.

FOLDER/arrays/     a `Store` of codes/KEY, (F, n) int32
FOLDER/codes.json  whose codes they are, and key and caption of each clip

An entry is named by the video's bytes, the clip's size and length, and the tokenizer's weights: making codes again
does only what is missing, and nothing stale is read.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.data.clips import Source, TooShort, read_clip
from cogvx_jax.data.tars import read_chunks
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.pipelines.cogvideo2022.generate import KEY_FRAMES_SECONDS
from cogvx_jax.sharding import params_digest
from cogvx_jax.storage import StoragePath, is_bucket, read_file, write_whole
from cogvx_jax.train.clips.store import Store

FILE = "codes.json"
MAX_BYTES = 2**30
FORMAT = 1  # part of every key: raise it when what is stored changes
TOGETHER = 9  # frames that go through the tokenizer at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeCache:
    """Captioned clips of codes in a folder; a `Clips` of `batches`."""

    folder: StoragePath
    tokenizer: str  # digest of its weights
    grid: int  # rows and columns of a frame
    frames: int
    keys: tuple[str, ...]
    prompts: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.keys, self.prompts]).encode()).hexdigest()[:16]

    @property
    def where(self) -> str:
        return str(self.folder if is_bucket(self.folder) else self.folder.absolute())

    def codes(self, numbers: Sequence[int]) -> np.ndarray:
        """(B, F, n) int32. Raises: ValueError naming folder and entry for what is damaged."""
        names = [_name(self.keys[number]) for number in numbers]
        found = []
        for name, entry in zip(names, _store(self.folder).read(names), strict=True):
            codes = entry.get("codes")
            if codes is None or codes.shape != (self.frames, self.grid**2) or codes.dtype != np.int32:
                raise ValueError(f"{self.folder}: the entry {name} holds no codes of {self.frames} frames")
            found.append(codes)
        return np.stack(found)


def is_code_cache(folder: StoragePath) -> bool:
    return (folder / FILE).is_file()


def open_codes(folder: StoragePath) -> CodeCache:
    """What `make_cache` last made of a folder. Raises: ValueError where that cannot be read or is not whole."""
    try:
        said = parse_json(read_file(folder / FILE, MAX_BYTES))
        clips = [(str(key), str(prompt)) for key, prompt in said["clips"]]
        sizes = {name: said[name] for name in ("grid", "frames")}
        if not clips or any(type(size) is not int or size < 1 for size in sizes.values()):
            raise ValueError(f"it has {len(clips)} clips and the sizes {quoted(sizes)}")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / FILE} holds no codes of `cogvx train`: {error}") from None
    keys, prompts = zip(*clips, strict=True)
    cache = CodeCache(folder=folder, tokenizer=str(said.get("tokenizer")), keys=keys, prompts=prompts, **sizes)
    if missing := {_name(key) for key in keys} - _store(folder).names():
        raise ValueError(f"{folder} lacks {len(missing)} entries, such as {min(missing)}; make the codes again")
    return cache


def check_codes(cache: CodeCache, params: Mapping[str, Any], grid: int) -> None:
    """Raises ValueError for codes that another image tokenizer made, or of frames of another size."""
    if cache.tokenizer != params_digest(params) or cache.grid != grid:
        raise ValueError(f"{cache.folder} holds codes of another CogVideo (2022); give the videos themselves as --data")


def make_cache(
    images: ImageTokenizer,
    params: Mapping[str, Any],
    sources: Sequence[Source],
    folder: StoragePath,
    *,
    grid: int,
    frames: int,
    report: Callable[[str], None] = print,
) -> CodeCache:
    """Makes the codes that `folder` lacks. Videos that cannot be used are reported and left out.

    A clip is the first 4 seconds of a video, its frames as far apart as those of a video that is made.

    Raises: ValueError if none can be used; OSError where the folder cannot be written.
    """
    store, tokenizer, side = Store(folder / "arrays"), params_digest(params), images.cfg.rate * grid
    about: dict[str, Any] = {"frames": frames, "fps": (frames - 1) / KEY_FRAMES_SECONDS, "height": side, "width": side}
    names, clips, new = store.names(), [], 0
    try:
        for source in sources:
            try:
                key = _key(source, tokenizer, about)
                if _name(key) not in names:
                    store.add(_name(key), {"codes": encode_frames(images, params, read_clip(source.video, **about))})
                    names.add(_name(key))
                    new += 1
                clips.append((key, source.prompt))
            except (ValueError, OSError) as error:
                why = "too short, " if isinstance(error, TooShort) else ""
                report(f"skipped {source.video}: {why}{getattr(error, 'strerror', None) or error}")
    finally:
        store.commit()  # also what was made before something went wrong
    if not clips:
        raise ValueError(f"none of the {len(sources)} videos can be used, see above")
    report(f"{len(clips)} clips in {folder}, codes of {new} of them made now; {len(sources) - len(clips)} skipped")
    facts = {"tokenizer": tokenizer, "grid": grid, "frames": frames, "clips": clips}
    write_whole(folder / FILE, json.dumps(facts, indent=1).encode())
    return open_codes(folder)


def encode_frames(images: ImageTokenizer, params: Mapping[str, Any], pixels: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (F, n) int32."""
    found = []
    for start in range(0, len(pixels), TOGETHER):
        some = pixels[start : start + TOGETHER]
        full = np.concatenate([some, np.repeat(some[-1:], TOGETHER - len(some), axis=0)])  # one shape, one program
        found.append(np.asarray(_encoded(images, params, full))[: len(some)])
    return np.concatenate(found).reshape(len(pixels), -1)


@functools.partial(jax.jit, static_argnums=0)
def _encoded(images: ImageTokenizer, params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
    codes: Any = images.apply({"params": params}, pixels.astype(jnp.float32) / 255, images.cfg.rate, method="encode")
    return codes


def _key(source: Source, *of: Any) -> str:
    found = hashlib.sha256(repr((FORMAT, *of)).encode() + b"\0")
    for chunk in read_chunks(source.video):
        found.update(chunk)
    return found.hexdigest()[:32]


def _name(key: str) -> str:
    return f"codes/{key}"


@functools.lru_cache(maxsize=16)
def _store(folder: StoragePath) -> Store:
    """To read what does not change; opened once in each process."""
    return Store(folder / "arrays")
