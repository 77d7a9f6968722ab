"""Clips and prompts as the models see them, encoded once and kept in a cache.

Every entry is named by what it was made of: the video's bytes, those of an image that goes with it, its size and
length, the encoder's weights. So encoding again does only what is missing, and nothing stale is ever read. A control
video is an entry of its own: the same clip may go with several.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cogvx_jax.configs import ModelSpec
from cogvx_jax.data.clips import Source, TooShort, read_clip, read_picture, shown
from cogvx_jax.data.tars import read_chunks
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.latents import encode_batch
from cogvx_jax.pipelines.memory import check_encode
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.text import encode_prompts
from cogvx_jax.sharding import params_digest, replicate, wait_for_all
from cogvx_jax.storage import StoragePath, write_whole
from cogvx_jax.train.clips.batches import ENCODED
from cogvx_jax.train.clips.cache import (
    ClipCache,
    Shape,
    clip_name,
    control_name,
    deflated,
    store_of,
    text_name,
    write_cache,
)
from cogvx_jax.train.clips.store import Store

FORMAT = 1  # part of every key: raise it when what is stored changes
APART = 0.02  # the share by which sides and rate of a control video may differ from those of the video
READERS = 4  # clips read ahead; of the largest size, each holds 0.25 GB


def encode(
    model: Model,
    sources: Sequence[Source],
    folder: StoragePath,
    shape: Shape,
    report: Callable[[str], None] = print,
    *,
    process: int = 0,
    processes: int = 1,
) -> ClipCache:
    """Encodes what `folder` does not yet hold. Videos that cannot be used are reported and left out.

    The next few clips are read while one is encoded; no others are held.

    Args:
      process, processes: which of several processes this is, each of which encodes every so manieth video with a
        model on devices of its own. They call this together and see one `folder`.
    Raises: ValueError if none can be used; OSError where the folder cannot be written.
    """
    encoders = {name: params_digest(model.params[name]) for name in ("vae", "text_encoder")}
    store = store_of(folder)
    names = store.names()
    text = functools.partial(_text, model, encoder=encoders["text_encoder"], store=store, names=names)
    pixels = holds_pixels(model.spec)
    read = functools.partial(_read_missing, names=names, vae=encoders["vae"], shape=shape, pixels=pixels)
    own = [(i, sources[i]) for i in range(process, len(sources), processes)]
    try:
        part = _encode_part(model, own, store, names, read, text, report)
    finally:
        store.commit()  # also what was encoded before something went wrong
    parts = [part] if processes == 1 else _exchange(folder, part, process, processes)
    clips = sorted(clip for each in parts for clip in each["clips"])
    skipped = sum((collections.Counter(each["skipped"]) for each in parts), collections.Counter[str]())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    if not clips:
        raise ValueError(f"none of the {len(sources)} videos can be used: {reasons}, see above")
    keys, empty = tuple((clip, prompt) for _, clip, prompt, _ in clips), text("")
    store.commit()
    controls = tuple(control for *_, control in clips if control)
    about: dict[str, Any] = {"model": model.spec.name, "shape": shape, "pixels": pixels, "empty": empty, **encoders}
    scores = tuple(dict(sources[number].scores) for number, *_ in clips)
    about["scores"] = scores if any(scores) else ()
    cache = ClipCache(folder=folder, clips=keys, controls=controls, **about)
    if process == 0:
        report(
            f"{len(clips)} clips in {folder}, {sum(each['new'] for each in parts)} of them encoded now; "
            f"{skipped.total()} of {len(sources)} videos skipped{reasons and f' ({reasons})'}"
        )
        write_cache(cache)
    return cache


def _encode_part(
    model: Model,
    sources: Sequence[tuple[int, Source]],
    store: Store,
    names: set[str],
    read: Callable[[Source], "_Read"],
    text: Callable[[str], str],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """What this process adds to the store: of clips number and keys, counts of those left out and of new ones."""
    part: dict[str, Any] = {"clips": [], "skipped": collections.Counter(), "new": 0}

    def skip(source: Source, reason: str, why: Any) -> None:
        part["skipped"][reason] += 1
        report(f"skipped {source.video}: {why}")

    numbers = [number for number, _ in sources]
    for number, (source, reading) in zip(numbers, _ahead(read, [s for _, s in sources]), strict=True):
        try:
            key, clip, control_key, control = reading.result()
        except (ValueError, OSError) as error:
            reason = "too short" if isinstance(error, TooShort) else "unreadable"
            skip(source, reason, getattr(error, "strerror", None) or error)
            continue
        if clip is not None and clip_name(key) not in names:  # it may have been in the list just before
            if not part["new"]:
                model = check_encode(model, (1, *clip.pixels.shape))
            moments = _moments(model, clip.pixels)
            if not np.isfinite(moments).all():
                skip(source, "not finite", f"the VAE of {model.spec.name} gives numbers that are not finite")
                continue
            own = {"pixels": clip.pixels} if holds_pixels(model.spec) else {}
            store.add(clip_name(key), {"moments": moments, "image": clip.image} | own)
            names.add(clip_name(key))
            part["new"] += 1
        if control is not None and control_name(control_key) not in names:
            store.add(control_name(control_key), {"pixels": deflated(control)})
            names.add(control_name(control_key))
        part["clips"].append((number, key, text(source.prompt), control_key))
    return part


def _exchange(folder: StoragePath, part: dict[str, Any], process: int, processes: int) -> list[dict[str, Any]]:
    """What each process has done, by a file of each."""
    files = [folder / f".part-{i}-of-{processes}.json" for i in range(processes)]
    write_whole(files[process], json.dumps(part).encode())
    wait_for_all("clips are encoded")
    try:
        parts = [json.loads(file.read_text()) for file in files]
    except FileNotFoundError:
        raise ValueError(f"{folder} must be one folder that all processes see; here it is not") from None
    wait_for_all("parts are read")
    files[process].unlink()
    return parts


def holds_pixels(spec: ModelSpec) -> bool:
    """Whether entries for a model hold the clips themselves: masks are laid over them anew in every update."""
    return ENCODED.get(spec.kind) == "pixels"


def check_model(caches: Iterable[ClipCache], model: Model) -> None:
    """Raises ValueError if one was made by other encoders than those of the model, or lacks what it learns from."""
    own: dict[str, str] = {}
    for name in model.params.keys() & {"vae", "text_encoder"}:
        own[name] = params_digest(model.params[name])
    for cache in caches:
        if holds_pixels(model.spec) and not cache.pixels:
            raise ValueError(
                f"{cache.folder} was encoded for {cache.model} and holds no pixels, over which the masks of an "
                f"inpainting model are laid; run `cogvx encode` with the model you train, to another folder"
            )
        for name, theirs in (("vae", cache.vae), ("text_encoder", cache.text_encoder)):
            if own.get(name, theirs) != theirs:
                raise ValueError(
                    f"{cache.folder} was encoded by the {name} of {cache.model}, whose weights are not those of "
                    f"this {model.spec.name}; run `cogvx encode` with the model you train"
                )


@dataclasses.dataclass(frozen=True)
class _Clip:
    """Pixels (F, H, W, 3) and the image of the clip (H, W, 3), uint8."""

    pixels: np.ndarray
    image: np.ndarray


class _Read(NamedTuple):
    """Keys of a clip and of its control video, "" where it has none; each where it is not among the entries."""

    key: str
    clip: _Clip | None
    control_key: str = ""
    control: np.ndarray | None = None  # (F, H, W, 3) uint8


def _read_missing(source: Source, *, names: Collection[str], vae: str, shape: Shape, pixels: bool) -> _Read:
    key, clip = _read_clip(source, names, vae, shape, pixels)
    return _Read(key, clip, *_read_control(source, names, shape, new=clip is not None))


def _read_control(source: Source, names: Collection[str], shape: Shape, new: bool) -> tuple[str, np.ndarray | None]:
    """Of a control video, whose frames are taken as those of the video are; that one is `new` or known.

    Raises: as `read_clip`, naming it; ValueError for one whose frames would be of other moments, or cropped elsewhere.
    """
    if source.control is None:
        return "", None
    try:
        key = _key(read_chunks(source.control), shape)
        known = control_name(key) in names
        if new or not known:
            _check_pair(source, shape.fps)
        return (key, None) if known else (key, read_clip(source.control, **dataclasses.asdict(shape)))
    except (ValueError, OSError) as error:
        kind = type(error) if isinstance(error, TooShort) else ValueError
        raise kind(f"its control video {source.control}: {getattr(error, 'strerror', None) or error}") from None


def _check_pair(source: Source, fps: float) -> None:
    """Raises: ValueError where a video and its control do not show the same places at the same moments."""
    assert source.control is not None
    video, control = shown(source.video), shown(source.control)
    if abs(video.height * control.width - video.width * control.height) > APART * video.width * control.height:
        raise ValueError(
            f"it is {control.height}x{control.width} and the video {video.height}x{video.width}; their shapes must be "
            "the same"
        )
    ours, theirs = (min(one.fps or fps, fps) for one in (video, control))  # at which frames are taken
    if abs(ours - theirs) > APART * ours:
        raise ValueError(f"it has {theirs:g} frames a second and the video {ours:g}; their rates must be the same")


def _read_clip(
    source: Source, names: Collection[str], vae: str, shape: Shape, pixels: bool
) -> tuple[str, _Clip | None]:
    """The key of a clip, and the clip where it is not among the entries."""
    others = [] if source.image is None else [_key(read_chunks(source.image))]
    others += ["pixels"] if pixels else []
    key = _key(read_chunks(source.video), vae, shape, *others)
    if clip_name(key) in names:
        return key, None
    clip = read_clip(source.video, **dataclasses.asdict(shape))
    image = clip[0] if source.image is None else read_picture(source.image, shape.height, shape.width)
    return key, _Clip(clip, image)


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
    run = encode_batch(model.vae, model.mesh)
    clip = pixels[None].astype(np.float32)
    clip /= 127.5
    clip -= 1
    moments = vaes.encode(model.vae, model.params["vae"], replicate(clip, model.mesh), encode_batch=run)
    return np.asarray(moments[0])


def _text(model: Model, prompt: str, *, encoder: str, store: Store, names: set[str]) -> str:
    """The key of a prompt's states, encoded where they are missing."""
    key = _key([prompt.encode()], encoder, model.spec.transformer.text_length)
    if text_name(key) not in names:
        store.add(text_name(key), {"states": np.asarray(encode_prompts(model, [prompt])[0], np.float32)})
        names.add(text_name(key))
    return key


def _key(data: Iterable[bytes], *of: Any) -> str:
    found = hashlib.sha256(repr((FORMAT, *of)).encode() + b"\0")
    for chunk in data:
        found.update(chunk)
    return found.hexdigest()[:32]
