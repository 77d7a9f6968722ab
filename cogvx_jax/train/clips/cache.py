"""Encoded clips and prompts in a folder or bucket, which training reads.

FOLDER/arrays/     a `Store` of clip/KEY and text/KEY:
                     clip: moments, posterior mean and log variance (T, h, w, 32), float32, and
                           image, the first frame or the image that goes with it (H, W, 3), uint8
                     text: states of a prompt (L, text_dim), float32
FOLDER/cache.json  what the last encoding was of, and the keys of its clips
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cogvx_jax.json_files import parse_json
from cogvx_jax.storage import StoragePath, read_file, write_whole
from cogvx_jax.train.clips.store import Store

FILE = "cache.json"
MAX_BYTES = 2**30  # of it: seven million clips


@dataclasses.dataclass(frozen=True)
class Shape:
    """Pixels, pixel frames and frames per second of clips."""

    height: int
    width: int
    frames: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipCache:
    """Encoded clips: `clips` holds the keys of moments and text of each."""

    folder: StoragePath
    model: str  # name of the model whose encoders made it
    vae: str  # digests of their weights
    text_encoder: str
    shape: Shape
    clips: tuple[tuple[str, str], ...]
    empty: str  # key of the states of ""

    @property
    def digest(self) -> str:
        """Of all the clips, in their order."""
        return hashlib.sha256(json.dumps(self.clips).encode()).hexdigest()[:16]

    def batch(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Moments, text and image of these clips, stacked; images in [-1, 1]."""
        chosen = [self.clips[i] for i in numbers]
        names = [clip_name(key) for key, _ in chosen] + [text_name(key) for _, key in chosen]
        found = _store(self.folder).read(names)
        clips, texts = found[: len(chosen)], found[len(chosen) :]
        return {
            "moments": np.stack([clip["moments"] for clip in clips]),
            "text": np.stack([text["states"] for text in texts]),
            "image": np.stack([clip["image"] for clip in clips]).astype(np.float32) / 127.5 - 1,
        }

    def empty_text(self) -> np.ndarray:
        """States of the empty prompt (L, text_dim)."""
        (entry,) = _store(self.folder).read([text_name(self.empty)])
        return entry["states"]


def clip_name(key: str) -> str:
    return f"clip/{key}"


def text_name(key: str) -> str:
    return f"text/{key}"


def is_cache(folder: StoragePath) -> bool:
    return (folder / FILE).is_file()


def open_cache(folder: StoragePath) -> ClipCache:
    """What `encode` last made of `folder`. Raises: ValueError where that cannot be read or is not whole."""
    try:
        facts = parse_json(read_file(folder / FILE, MAX_BYTES))
        clips = tuple((str(clip), str(text)) for clip, text in facts.pop("clips"))
        cache = ClipCache(folder=folder, clips=clips, shape=Shape(**facts.pop("shape")), **facts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / FILE} is not one of `cogvx encode`: {error}") from None
    needed = {clip_name(clip) for clip, _ in clips} | {text_name(text) for _, text in clips} | {text_name(cache.empty)}
    if missing := needed - store_of(folder).names():
        raise ValueError(f"{folder} lacks {len(missing)} entries, such as {min(missing)}; run `cogvx encode` again")
    return cache


def write_cache(cache: ClipCache) -> None:
    """Writes cache.json; the entries are in the store already."""
    facts = dataclasses.asdict(cache)
    del facts["folder"]
    write_whole(cache.folder / FILE, json.dumps(facts, indent=1).encode())


def store_of(folder: StoragePath) -> Store:
    """The arrays of a cache, as they are now."""
    return Store(folder / "arrays")


@functools.lru_cache(maxsize=16)
def _store(folder: StoragePath) -> Store:
    """To read what does not change; opened once in each process."""
    return store_of(folder)
