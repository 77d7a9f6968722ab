"""What a video is made of beside its prompt: which task that is, and its pictures and clips, read and checked.

A row of KINDS says what a kind of model takes. What the tasks compute is in `pipelines.tasks`.
"""

import fractions
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image

from cogvx_jax.configs import Kind, ModelSpec
from cogvx_jax.data.pictures import read_image
from cogvx_jax.data.video import read_video
from cogvx_jax.pipelines.controlnets import ControlNet, check_kind, open_controlnet
from cogvx_jax.pipelines.options import INPUTS, NEEDS, PICTURES, Options, control_sources

# v2v redraws a clip, repaint a part of it, edit looks at one, extend goes on with one; the others are those of the
# kinds of models.
Task = Literal["t2v", "i2v", "v2v", "repaint", "edit", "extend", "inpaint", "control"]
WHITE = 128  # from this grey on, a mask's pixel is to be made


class Takes(NamedTuple):
    """What a kind of model makes videos of."""

    words: str  # "NAME ... "
    inputs: tuple[str, ...]  # options
    tasks: tuple[Task, ...]  # the first is its own, without a clip to start from
    needs: tuple[str, ...] = ()  # one of these


KINDS: Mapping[Kind, Takes] = {
    "t2v": Takes("is text-to-video", ("video", "mask", "edit", "extend"), ("t2v", "v2v", "repaint", "edit", "extend")),
    "i2v": Takes("makes videos from an image", (*PICTURES, "extend"), ("i2v",), needs=(*PICTURES, "extend")),
    "inpaint": Takes("is for inpainting", (*PICTURES, "video", "mask", "extend"), ("inpaint",)),
    "control": Takes("makes videos from a control video", ("control",), ("control",), needs=("control",)),
}
USE = {  # option -> the models that take it
    **dict.fromkeys(PICTURES, "one of the I2V models, or an inpainting one such as tiny-inp or CogVideoX-Fun's InP"),
    **dict.fromkeys(("video", "mask"), "a text-to-video model, or an inpainting one such as CogVideoX-Fun's InP"),
    "edit": "a text-to-video model",
    "extend": "a text-to-video, image-to-video or inpainting model",
    "control": "a control model, such as CogVideoX-Fun's Control or Pose, or give a ControlNet, too",
}
NAMES = {name: name.replace("_", " ") for name in INPUTS} | {
    "control": "control video",
    "edit": "video to edit",
    "extend": "video to extend",
}
# Those that may start from a clip, and then take fewer steps.
REDRAWS: tuple[Task, ...] = ("v2v", "repaint", "edit", "inpaint")
PREFIX = 3  # latents of a clip that a text-to-video model goes on with; of short models half of their own
CLIPS: tuple[Kind, ...] = ("control", "inpaint")  # kinds that may encode a whole clip for their condition
OTHERS = {name: f"a {words}" for name, words in NAMES.items()} | {"image": "an image", "keyframes": "keyframes"}


class Still(NamedTuple):
    """A picture at a frame: one for all videos, or B of them, (H, W, 3) uint8 each."""

    frame: int
    pictures: tuple[np.ndarray, ...]
    whole: bool = False  # it stands for all frames of its latent


def own_task(spec: ModelSpec) -> Task:
    return KINDS[spec.kind].tasks[0]


def find_task(spec: ModelSpec, asked: Options) -> Task:
    """What is asked of a model. Raises: ValueError for what it does not take, or lacks."""
    given, takes = [name for name in INPUTS if getattr(asked, name) is not None], KINDS[spec.kind]
    _check_controlnet(spec, asked)
    if "video" in given and set(PICTURES) & set(given):
        raise ValueError("give an image or a video, not both")
    for alone, beside in (("extend", ()), ("edit", ("mask",))):
        others = [name for name in given if name not in (alone, *beside)]
        if alone in given and others:
            raise ValueError(f"give a {NAMES[alone]} or {OTHERS[others[0]]}, not both")
    for name in given:
        if not (name == "control" and asked.controlnet):
            _check_takes(spec, name)
    if "mask" in given and not {"video", "edit"} & set(given):
        raise ValueError("a mask needs the video that it is of; give video=..., or leave out the mask")
    for name, inputs in NEEDS.items():
        if getattr(asked, name) != getattr(Options, name) and not set(inputs) & set(given):
            raise ValueError(f"{name} needs {inputs[0]}=..., which is not given; leave it out")
    if takes.needs and not set(takes.needs) & set(given):
        raise ValueError(f"{spec.name} {takes.words}; give {takes.needs[0]}=..., or use a text-to-video model")
    if spec.kind != "t2v":
        return own_task(spec)
    for task in ("extend", "edit"):
        if task in given:
            return task
    return "repaint" if "mask" in given else "v2v" if "video" in given else "t2v"


def check_edits(spec: ModelSpec) -> Task:
    """The task of an edit. Raises: ValueError for a model that does not take it."""
    _check_takes(spec, "edit")
    return "edit"


def _check_takes(spec: ModelSpec, name: str) -> None:
    """Raises: ValueError where an input is not for a model."""
    takes = KINDS[spec.kind]
    if name not in takes.inputs:
        raise ValueError(f"{spec.name} {takes.words} and takes no {NAMES[name]}; use {USE[name]}")


def _check_controlnet(spec: ModelSpec, asked: Options) -> None:
    """Raises: ValueError where there is a ControlNet, but not what it needs."""
    if not asked.controlnet:
        if isinstance(asked.control_strength, tuple):
            raise ValueError("control_strength has a number for each block, which only a ControlNet has; give one")
        return
    if asked.control is None:
        raise ValueError("a ControlNet needs the video that it follows; give control=..., or leave out the ControlNet")
    check_kind(spec)


def open_controlnets(spec: ModelSpec, asked: Options) -> list[tuple[ControlNet, tuple[float, ...]]]:
    """The ControlNets that are asked for, with the weights of their blocks; no numbers are read.

    Raises: ValueError for one that does not fit the model, or another number of weights; OSError.
    """
    found = []
    several: Any = asked.controlnet
    for source, weight in several:
        net, strength = open_controlnet(source, spec), asked.control_strength
        each = strength if isinstance(strength, tuple) else (strength,) * net.cfg.layers
        if len(each) != net.cfg.layers:
            raise ValueError(
                f"control_strength has {len(each)} numbers and the ControlNet {net.name} has {net.cfg.layers} blocks; "
                "give one number, or one for each block"
            )
        found.append((net, tuple(weight * one for one in each)))
    return found


def read_controls(asked: Options, count: int, most: int) -> tuple[list[np.ndarray], fractions.Fraction | None]:
    """The control videos of `count` ControlNets, one for all or one each, up to `most` frames; and their rate.

    Raises: ValueError for another number of videos; OSError.
    """
    sources = control_sources(asked)
    given = len(sources)
    if given == 1 and isinstance(sources[0], str) and not Path(sources[0]).exists():  # several names, perhaps
        names = sources[0].split(",")
        given = len(names) if all(Path(name).is_file() for name in names) else 1
    if given not in (1, count):
        wanted = f"{count} ControlNets; give one, or one each" if asked.controlnet else "one model; give one"
        raise ValueError(f"{given} control videos for {wanted}")
    read = [read_video(source, most) for source in sources]
    clips = [clip for clip, _ in read]
    return clips * count if len(clips) == 1 else clips, read[0][1]


def find_strength(task: Task, asked: Options) -> float:
    """How much of a clip is redrawn: 1 where none is started from. An edit starts from noise unless less is asked."""
    if task == "edit":
        return 1.0 if asked.strength is None else asked.strength
    if asked.video is None:
        return 1.0
    own = 1.0 if task == "inpaint" and asked.mask is not None else 0.8
    return own if asked.strength is None else asked.strength


def read_stills(asked: Options, count: int, frames: int, per_latent: int) -> tuple[Still, ...]:
    """The pictures of a clip in the order of its frames, of `count` prompts.

    Args:
      per_latent: pixel frames of a latent, but for the first.
    Raises: ValueError for pictures outside the clip, or two of one latent; OSError.
    Warns of a keyframe between latents.
    """
    last, stills = frames - 1, []
    for frame, image in (asked.keyframes or {}).items():
        if not 0 <= frame <= last:
            raise ValueError(f"keyframe {frame} is outside the clip, whose frames are 0 to {last}")
        place = -(-frame // per_latent) * per_latent
        if place != frame:
            warnings.warn(
                f"keyframe {frame} lies between latents, which stand for {per_latent} frames: it is put at frames "
                f"{place - per_latent + 1} to {place}",
                stacklevel=4,
            )
        stills.append(Still(place, _read_images(image, 1), whole=True))
    for frame, image in ((0, asked.image), (last, asked.last_image)):
        if image is not None:
            stills.append(Still(frame, _read_images(image, count)))
    stills.sort(key=lambda still: still.frame)
    for one, other in zip(stills[:-1], stills[1:], strict=True):
        if -(-one.frame // per_latent) == -(-other.frame // per_latent):
            raise ValueError(f"there are two pictures for frame {other.frame}; give one")
    return tuple(stills)


def carried_frames(spec: ModelSpec, available: int) -> int:
    """How many frames of the end of a clip its continuation begins with, of so many that there are.

    An image-to-video model takes the last one. Inpainting models take a latent's, as VideoX-Fun's scripts. Others take
    latents of a clip of its own, whose first one is of one frame.
    """
    per_latent = spec.vae.temporal_compression
    if spec.kind == "t2v":
        own = (spec.defaults.num_frames - 1) // per_latent + 1
        return per_latent * (max(min(PREFIX, own // 2, (available - 1) // per_latent + 1), 1) - 1) + 1
    return 1 if spec.kind == "i2v" else min(per_latent, available)


def begins_with(kind: Kind, frames: np.ndarray) -> dict[str, Any]:
    """The fields of a request whose clip begins with those frames (F, H, W, 3) uint8."""
    if kind == "t2v":
        return {"prefix": frames}
    return {"stills": tuple(Still(at, (frame,)) for at, frame in enumerate(frames))}


def _read_images(image: Any, count: int) -> tuple[np.ndarray, ...]:
    """One image for all prompts, or one each."""
    several = image if isinstance(image, list | tuple) else [image]
    if len(several) not in (1, count):
        raise ValueError(f"{len(several)} images for {count} prompts; give one, or one each")
    return tuple(read_image(one) for one in several)


def read_mask(source: Any, clip: np.ndarray, most: int) -> np.ndarray:
    """Which pixels of a clip (F, H, W, 3) are to be made: (F, H, W) bool, white ones.

    Args:
      clip: up to `most` frames of it, and one more where it has more, of which masks need not have as many.
      source: of as many frames, or of one, which is for all.
    Raises: ValueError for a mask of another size or length; OSError.
    """
    grey = grey_frames(source, most + 1)
    frames, (height, width) = len(clip), clip.shape[1:3]
    fits = len(grey) in (1, frames) or frames > most <= len(grey)
    if grey.shape[1:] != (height, width) or not fits:
        raise ValueError(
            f"the mask is {_frames(len(grey), most)} of {grey.shape[1]}x{grey.shape[2]}, the video "
            f"{_frames(frames, most)} of {height}x{width}; give a mask of the video's size and length, or one picture"
        )
    return np.broadcast_to(grey >= WHITE, (frames if len(grey) == 1 else len(grey), height, width))


def grey_frames(source: Any, most: int) -> np.ndarray:
    """(F, H, W) numbers of 0 to 255 of a video, up to `most` frames of it, of a picture, or of arrays of either."""
    if isinstance(source, str | os.PathLike):
        frames = read_video(source, most)[0]
    elif isinstance(source, PIL.Image.Image):
        frames = read_image(source)[None]
    else:
        frames = np.asarray(source)
        frames = np.where(frames, np.uint8(255), np.uint8(0)) if frames.dtype == bool else frames
        if frames.ndim == 2 or frames.ndim == 3 and frames.shape[-1] in (1, 3, 4):
            frames = read_image(frames)[None]
        elif frames.ndim == 3:
            frames = np.broadcast_to(frames[..., None], (*frames.shape, 3))
        frames = read_video(frames, most)[0]
    return frames.mean(-1, dtype=np.float32)


def _frames(count: int, most: int) -> str:
    if count == 1:
        return "1 frame"
    return f"more than {most} frames" if count > most else f"{count} frames"


def fill_clip(clip: np.ndarray, frames: int) -> np.ndarray:
    """A clip (F, H, W, 3) of so many frames: one that is too short runs forth and back. Warns of that."""
    if len(clip) >= frames:
        return clip[:frames]
    warnings.warn(
        f"the control video has {len(clip)} of {frames} frames; it runs forth and back to fill them", stacklevel=4
    )
    there_and_back = np.concatenate([clip, clip[::-1]])
    return there_and_back[np.arange(frames) % len(there_and_back)]
