"""Encoded clips and prompts in a folder or bucket, which training reads.

FOLDER/arrays/     a `Store` of clip/KEY, text/KEY and control/KEY:
                     clip: moments, posterior mean and log variance (T, h, w, 32), float32, and
                           image, the first frame or the image that goes with it (H, W, 3), uint8;
                           of caches for inpainting models pixels, the clip itself (F, H, W, 3), uint8
                     text: states of a prompt (L, text_dim), float32
                     control: deflated pixels (F, H, W, 3), uint8, of the video that a ControlNet is given
FOLDER/cache.json  what the last encoding was of, and the keys of its clips

Control videos stay pixels, as a ControlNet's own encoder is trained, too. Edges and poses deflate to a few percent.
"""

import dataclasses
import functools
import hashlib
import json
import math
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cogvx_jax.data.expressions import parse_expression
from cogvx_jax.json_files import parse_json, quoted
from cogvx_jax.storage import StoragePath, read_file, write_whole
from cogvx_jax.train.clips.store import Store

FILE = "cache.json"
MAX_BYTES = 2**30  # of it: seven million clips
TIME, SPACE = 4, 8  # pixel frames and rows of a latent one
SHOWN = 20  # of many damaged entries


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
    pixels: bool = False  # whether entries hold the clips themselves, too
    controls: tuple[str, ...] = ()  # keys of the clips' control videos, of each one; or there are none
    scores: tuple[Mapping[str, Any], ...] = ()  # what the list said beside, of each clip; or nothing

    @property
    def digest(self) -> str:
        """Of all the clips, in their order."""
        of = [*self.clips, *self.controls]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]

    def batch(self, numbers: Sequence[int], *, controls: bool = False) -> dict[str, np.ndarray]:
        """Moments, text and image of these clips, stacked, and pixels where there are any; images in [-1, 1].

        Args:
          controls: as well as their control videos (B, F, H, W, 3) uint8, which there must be.
        Raises: ValueError naming the folder and the entry for what is damaged, not finite or of another shape.
        """
        chosen = [self.clips[i] for i in numbers]
        names = [clip_name(key) for key, _ in chosen] + [text_name(key) for _, key in chosen]
        names += [control_name(self.controls[i]) for i in numbers] if controls else []
        found = _store(self.folder).read(names)
        self._check(dict(zip(names, found, strict=True)))
        clips, texts, videos = (found[i : i + len(chosen)] for i in range(0, 3 * len(chosen), len(chosen)))
        batch = {
            "moments": np.stack([clip["moments"] for clip in clips]),
            "text": np.stack([text["states"] for text in texts]),
            "image": np.stack([clip["image"] for clip in clips]).astype(np.float32) / 127.5 - 1,
        }
        if self.pixels:
            batch["pixels"] = np.stack([clip["pixels"] for clip in clips])
        if controls:
            of = zip(names[2 * len(chosen) :], videos, strict=True)
            batch["control"] = np.stack([self._inflated(name, video["pixels"]) for name, video in of])
        return batch

    def empty_text(self) -> np.ndarray:
        """States of the empty prompt (L, text_dim)."""
        (entry,) = _store(self.folder).read([text_name(self.empty)])
        self._check({text_name(self.empty): entry})
        return entry["states"]

    def verify(self) -> tuple[int, int]:
        """Reads every entry. Returns: how many there are, and how many of them have no checksum.

        Raises: ValueError listing what is damaged, not finite or of another shape.
        """
        store, problems, bare = _store(self.folder), [], 0
        names = sorted(_needed(self.clips, self.controls))
        for name in (*names, text_name(self.empty)):
            try:
                ((entry, has_checksum),) = store.read_checked([name])
                self._check({name: entry})
                if name.startswith(control_name("")):
                    self._inflated(name, entry["pixels"])
                bare += not has_checksum
            except (ValueError, KeyError) as error:
                problems.append(str(error.args[0]).removeprefix(f"{self.folder}: ").splitlines()[0])
        if problems:
            shown = "\n  ".join(problems[:SHOWN])
            rest = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ValueError(f"{self.folder}: {len(problems)} of {len(names) + 1} entries\n  {shown}{rest}")
        return len(names) + 1, bare

    def _check(self, entries: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        for name, entry in entries.items():
            for part, shape in self._shapes(name).items():
                array = entry.get(part)
                if array is None or not _fits(array.shape, shape):
                    found = "missing" if array is None else f"of shape {array.shape}"
                    wanted = ", ".join("..." if size is None else str(size) for size in shape)
                    raise ValueError(f"{self.folder}: {part} of the entry {name} is {found}, not ({wanted})")
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ValueError(f"{self.folder}: {part} of the entry {name} holds numbers that are not finite")

    def _shapes(self, name: str) -> dict[str, tuple[int | None, ...]]:
        """Of the arrays of an entry; None is any size. All texts are like the empty one."""
        if name.startswith(control_name("")):
            return {"pixels": (None,)}
        if not name.startswith(clip_name("")):
            return {"states": _text_shape(self.folder, text_name(self.empty))}
        height, width = self.shape.height, self.shape.width
        latents = (self.shape.frames - 1) // TIME + 1, height // SPACE, width // SPACE
        shapes: dict[str, tuple[int | None, ...]] = {"moments": (*latents, None), "image": (height, width, 3)}
        return shapes | ({"pixels": (self.shape.frames, height, width, 3)} if self.pixels else {})

    def _inflated(self, name: str, deflated: np.ndarray) -> np.ndarray:
        """Pixels (F, H, W, 3) uint8, never more. Raises: ValueError where it does not hold as many."""
        shape = (self.shape.frames, self.shape.height, self.shape.width, 3)
        size, inflate = math.prod(shape), zlib.decompressobj()
        try:
            data = inflate.decompress(deflated.tobytes(), size + 1)
        except zlib.error as error:
            raise ValueError(f"{self.folder}: pixels of the entry {name} cannot be inflated: {error}") from None
        if len(data) != size or not inflate.eof:
            raise ValueError(f"{self.folder}: pixels of the entry {name} are not of {shape}")
        return np.frombuffer(data, np.uint8).reshape(shape)


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))


def deflated(pixels: np.ndarray) -> np.ndarray:
    """What an entry of control holds of pixels (F, H, W, 3) uint8."""
    return np.frombuffer(zlib.compress(pixels.tobytes(), 1), np.uint8)


def clip_name(key: str) -> str:
    return f"clip/{key}"


def text_name(key: str) -> str:
    return f"text/{key}"


def control_name(key: str) -> str:
    return f"control/{key}"


def _needed(clips: Iterable[tuple[str, str]], controls: Iterable[str]) -> set[str]:
    """Names of the entries of clips."""
    found = {name for clip, text in clips for name in (clip_name(clip), text_name(text))}
    return found | {control_name(key) for key in controls}


def chosen(cache: ClipCache, where: str | None) -> list[int]:
    """The numbers of the clips of which an expression over their scores is true; None chooses all.

    Raises: ValueError for one that cannot be, or that chooses none.
    """
    if where is None:
        return list(range(len(cache.clips)))
    known = {name for scores in cache.scores for name in scores}
    if not known:
        raise ValueError(f"{cache.folder} holds no scores to choose by; encode a list that has them, as clips.jsonl")
    expression = parse_expression(where, known)
    found = [number for number, scores in enumerate(cache.scores) if expression.chooses(scores)]
    if not found:
        raise ValueError(f"{where!r} is true of none of the {len(cache.clips)} clips in {cache.folder}")
    return found


def is_cache(folder: StoragePath) -> bool:
    return (folder / FILE).is_file()


def open_cache(folder: StoragePath) -> ClipCache:
    """What `encode` last made of `folder`. Raises: ValueError where that cannot be read or is not whole."""
    try:
        facts = parse_json(read_file(folder / FILE, MAX_BYTES))
        clips = tuple((str(clip), str(text)) for clip, text in facts.pop("clips"))
        controls = tuple(str(key) for key in facts.pop("controls", ()))
        scores = tuple(facts.pop("scores", ()))
        shape = _shape(facts.pop("shape"))
        about: dict[str, Any] = {"controls": controls, "scores": scores, "shape": shape}
        cache = ClipCache(folder=folder, clips=clips, **about, **facts)
        if scores and (len(scores) != len(clips) or not all(isinstance(each, dict) for each in scores)):
            raise ValueError(f"it has {len(clips)} clips and {len(scores)} objects of scores")
        if controls and len(controls) != len(clips):
            raise ValueError(f"it has {len(clips)} clips and {len(controls)} control videos")
        if type(cache.pixels) is not bool:
            raise ValueError(f"its pixels are {quoted(cache.pixels)}, not true or false")
        if not all(isinstance(text, str) for text in (cache.model, cache.vae, cache.text_encoder, cache.empty)):
            raise ValueError("its names and hashes are no texts")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / FILE} is not one of `cogvx encode`: {error}") from None
    needed = _needed(clips, controls) | {text_name(cache.empty)}
    if missing := needed - store_of(folder).names():
        raise ValueError(f"{folder} lacks {len(missing)} entries, such as {min(missing)}; run `cogvx encode` again")
    # The oldest entry tells whether there are any that were written before they had checksums.
    ((_, has_checksum),) = _store(folder).read_checked([text_name(cache.empty)])
    if not has_checksum:
        _warn_of_age(folder)
    return cache


def _shape(said: Any) -> Shape:
    shape = Shape(**said)
    whole = all(type(size) is int and size > 0 for size in (shape.height, shape.width, shape.frames))
    if not whole or type(shape.fps) not in (int, float) or shape.fps <= 0:
        raise ValueError(f"its shape is {quoted(said)}")
    return shape


@functools.cache
def _warn_of_age(folder: StoragePath) -> None:
    """Once for each folder."""
    warnings.warn(
        f"{folder} was encoded before entries had checksums: damage may go unnoticed; encode to a new folder",
        stacklevel=3,
    )


def write_cache(cache: ClipCache) -> None:
    """Writes cache.json; the entries are in the store already."""
    facts = dataclasses.asdict(cache)
    del facts["folder"]
    for name in ("controls", "scores"):
        if not facts[name]:  # versions that know none read it, too
            del facts[name]
    write_whole(cache.folder / FILE, json.dumps(facts, indent=1).encode())


def store_of(folder: StoragePath) -> Store:
    """The arrays of a cache, as they are now."""
    return Store(folder / "arrays")


@functools.lru_cache(maxsize=16)
def _text_shape(folder: StoragePath, name: str) -> tuple[int | None, ...]:
    """That of one text is that of all."""
    (entry,) = store_of(folder).read([name])
    return entry["states"].shape if "states" in entry else (None, None)


@functools.lru_cache(maxsize=16)
def _store(folder: StoragePath) -> Store:
    """To read what does not change; opened once in each process."""
    return store_of(folder)
