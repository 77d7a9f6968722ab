"""Clips and prompts as the models see them, encoded once and kept in a folder.

Every file is named by what it was made of: the video's bytes, those of an image that goes with it, its size and
length, the encoder's weights.
So encoding again does only what is missing, and nothing stale is ever read:

    FOLDER/moments/KEY.npy   posterior mean and log variance (T, h, w, 32), float32
    FOLDER/image/KEY.npy     first frame, or the image that goes with it (H, W, 3), uint8
    FOLDER/text/KEY.npy      states of a prompt (L, text_dim), float32
    FOLDER/cache.json        what the last encoding was of, and the keys of its clips
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from flax import traverse_util

from cogvx_jax.data.clips import Source, TooShort, read_clip, read_picture
from cogvx_jax.data.tars import read_chunks
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.latents import encode_batch
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import host_blocks, replicate, wait_for_all

# NumPy's headers are parsed by Python's own parser, which threads break for each other before 3.11.8 and 3.12.2.
_HEADERS = Lock()
FORMAT = 1  # part of every key: raise it when what is stored changes
READERS = 4  # clips read ahead; of the largest size, each holds 0.25 GB


@dataclasses.dataclass(frozen=True)
class Shape:
    """Pixels, pixel frames and frames per second of clips."""

    height: int
    width: int
    frames: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Encoded clips: `clips` holds the keys of moments and text of each."""

    folder: Path
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
        return {
            "moments": np.stack([self._read("moments", key) for key, _ in chosen]),
            "text": np.stack([self._read("text", key) for _, key in chosen]),
            "image": np.stack([self._read("image", key) for key, _ in chosen]).astype(np.float32) / 127.5 - 1,
        }

    def empty_text(self) -> np.ndarray:
        return self._read("text", self.empty)

    def _read(self, kind: str, key: str) -> np.ndarray:
        with _HEADERS:
            array = np.load(_file(self.folder, kind, key), mmap_mode="r")
        return np.array(array)


def encode(
    model: Model,
    sources: Sequence[Source],
    folder: Path,
    shape: Shape,
    report: Callable[[str], None] = print,
    *,
    process: int = 0,
    processes: int = 1,
) -> Cache:
    """Encodes what `folder` does not yet hold. Videos that cannot be used are reported and left out.

    The next few clips are read while one is encoded; no others are held.

    Args:
      process, processes: which of several processes this is, each of which encodes every so manieth video with a
        model on devices of its own. They call this together and see one `folder`.
    Raises: ValueError if none can be used; OSError where the folder cannot be written.
    """
    vae_digest, text_digest = digest(model.params["vae"]), digest(model.params["text_encoder"])
    part: dict[str, Any] = {"clips": [], "skipped": collections.Counter(), "new": 0}
    read = functools.partial(_read_missing, folder=folder, vae=vae_digest, shape=shape)
    own = range(process, len(sources), processes)
    for number, (source, reading) in zip(own, _ahead(read, [sources[i] for i in own]), strict=True):
        try:
            key, clip = reading.result()
        except (ValueError, OSError) as error:
            part["skipped"]["too short" if isinstance(error, TooShort) else "unreadable"] += 1
            report(f"skipped {source.video}: {getattr(error, 'strerror', None) or error}")
            continue
        if clip is not None and not _has_clip(folder, key):  # it may have been in the list just before
            _save(_file(folder, "image", key), clip.image)
            _save(_file(folder, "moments", key), _moments(model, clip.pixels))
            part["new"] += 1
        part["clips"].append((number, key, _text(model, source.prompt, text_digest, folder)))
    parts = [part] if processes == 1 else _exchange(folder, part, process, processes)
    clips = sorted(clip for each in parts for clip in each["clips"])
    skipped = sum((collections.Counter(each["skipped"]) for each in parts), collections.Counter[str]())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    if not clips:
        raise ValueError(f"none of the {len(sources)} videos can be used: {reasons}, see above")
    cache = Cache(
        folder=folder,
        model=model.spec.name,
        vae=vae_digest,
        text_encoder=text_digest,
        shape=shape,
        clips=tuple((key, text) for _, key, text in clips),
        empty=_text(model, "", text_digest, folder),
    )
    if process == 0:
        report(
            f"{len(clips)} clips in {folder}, {sum(each['new'] for each in parts)} of them encoded now; "
            f"{skipped.total()} of {len(sources)} videos skipped{reasons and f' ({reasons})'}"
        )
        facts = dataclasses.asdict(cache)
        del facts["folder"]
        _replace(folder / "cache.json", lambda file: file.write(json.dumps(facts, indent=1).encode()))
    return cache


def _exchange(folder: Path, part: dict[str, Any], process: int, processes: int) -> list[dict[str, Any]]:
    """What each process has done, by a file of each."""
    files = [folder / f".part-{i}-of-{processes}.json" for i in range(processes)]
    _replace(files[process], lambda file: file.write(json.dumps(part).encode()))
    wait_for_all("clips are encoded")
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(
            f"{folder} must be one folder for all processes, on a disk that they share; {missing[0]} is not"
        )
    parts = [json.loads(file.read_text()) for file in files]
    wait_for_all("parts are read")
    files[process].unlink()
    return parts


def is_cache(folder: Path) -> bool:
    return (folder / "cache.json").is_file()


def open_cache(folder: Path) -> Cache:
    """What `encode` last made of `folder`. Raises: ValueError where that cannot be read or is not whole."""
    try:
        facts = json.loads((folder / "cache.json").read_text())
        clips = tuple((str(moments), str(text)) for moments, text in facts.pop("clips"))
        cache = Cache(folder=folder, clips=clips, shape=Shape(**facts.pop("shape")), **facts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / 'cache.json'} is not one of `cogvx encode`: {error}") from None
    files = [_file(folder, kind, key) for key, _ in cache.clips for kind in ("moments", "image")]
    missing = [f for f in files + [_file(folder, "text", key) for _, key in cache.clips] if not f.exists()]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} files, such as {missing[0].name}; run `cogvx encode` again")
    return cache


def check_model(cache: Cache, model: Model) -> None:
    """Raises ValueError if the cache was made by other encoders than the model's."""
    for name, theirs in (("vae", cache.vae), ("text_encoder", cache.text_encoder)):
        if digest(model.params[name]) != theirs:
            raise ValueError(
                f"{cache.folder} was encoded by the {name} of {cache.model}, whose weights are not those of "
                f"this {model.spec.name}; run `cogvx encode` with the model you train"
            )


def digest(params: Any) -> str:
    """A name for a tree of parameters: different numbers, another name; the same on any mesh."""
    found = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        for block in host_blocks(leaf):
            found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Clip:
    """Pixels (F, H, W, 3) and the image of the clip (H, W, 3), uint8."""

    pixels: np.ndarray
    image: np.ndarray


def _read_missing(source: Source, *, folder: Path, vae: str, shape: Shape) -> tuple[str, _Clip | None]:
    """The key of a clip, and the clip where `folder` lacks it."""
    images = [] if source.image is None else [_key(read_chunks(source.image))]
    key = _key(read_chunks(source.video), vae, shape, *images)
    if _has_clip(folder, key):
        return key, None
    pixels = read_clip(source.video, **dataclasses.asdict(shape))
    image = pixels[0] if source.image is None else read_picture(source.image, shape.height, shape.width)
    return key, _Clip(pixels, image)


def _ahead(
    read: Callable[[Source], Any], sources: Iterable[Source]
) -> Iterator[tuple[Source, concurrent.futures.Future]]:
    """Reads in threads, in order, as many as READERS ahead of who takes them."""
    pool = concurrent.futures.ThreadPoolExecutor(READERS)
    begun: collections.deque = collections.deque()
    try:
        for source in sources:
            begun.append((source, pool.submit(read, source)))
            if len(begun) > READERS:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _moments(model: Model, pixels: np.ndarray) -> np.ndarray:
    run = encode_batch(model.spec.vae, model.mesh)
    clip = pixels[None].astype(np.float32)
    clip /= 127.5
    clip -= 1
    moments = vaes.encode(model.vae, model.params["vae"], replicate(clip, model.mesh), encode_batch=run)
    return np.asarray(moments[0])


def _text(model: Model, prompt: str, encoder: str, folder: Path) -> str:
    """The key of a prompt's states, encoded where they are missing."""
    key = _key([prompt.encode()], encoder, model.spec.transformer.text_length)
    file = _file(folder, "text", key)
    if not file.exists():
        _save(file, np.asarray(encode_prompts(model, [prompt])[0], np.float32))
    return key


def _key(data: Iterable[bytes], *of: Any) -> str:
    found = hashlib.sha256(repr((FORMAT, *of)).encode() + b"\0")
    for chunk in data:
        found.update(chunk)
    return found.hexdigest()[:32]


def _has_clip(folder: Path, key: str) -> bool:
    return all(_file(folder, kind, key).exists() for kind in ("moments", "image"))


def _file(folder: Path, kind: str, key: str) -> Path:
    return folder / kind / f"{key}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    _replace(path, lambda file: np.save(file, array))


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes a file that appears under its name only when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")  # of any process of any host
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
