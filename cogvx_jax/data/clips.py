"""Lists of captioned videos, and clips cut from them: what fine-tuning reads."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image

from cogvx_jax.data.video import read_video


@dataclasses.dataclass(frozen=True)
class Source:
    """A video file and what it shows."""

    video: Path
    prompt: str


def read_sources(path: Path) -> list[Source]:
    """The videos and prompts that `path` lists.

    Args:
      path: a .jsonl file with a "video" and a "prompt" on each line, or a folder with prompts.txt and
        videos.txt, whose lines belong together. Videos are relative to the file or folder.
    Raises: FileNotFoundError; ValueError naming the line that cannot be read. The videos are not looked at.
    """
    if path.is_dir():
        sources = _lists(path)
    elif path.is_file():
        sources = _jsonl(path)
    else:
        raise FileNotFoundError(f"there is no {str(path)!r}; give a .jsonl file, or a folder with prompts.txt")
    if not sources:
        raise ValueError(f"{path} lists no videos")
    return sources


def read_clip(path: Path, *, frames: int, fps: float, height: int, width: int) -> np.ndarray:
    """The first `frames` frames at `fps` of a video, scaled and cropped about the centre: (F, H, W, 3) uint8.

    A video of fewer frames per second than `fps` is taken frame by frame.
    Raises: FileNotFoundError; ValueError for a file that is no video, or too short a one.
    """
    pixels, own = read_video(path)
    step = max((own or fps) / fps, 1.0)
    chosen = np.round(np.arange(frames) * step).astype(int)
    if chosen[-1] >= len(pixels):
        raise ValueError(f"{len(pixels)} frames at {own or fps:g} fps are too short for {frames} at {fps:g} fps")
    return crop(pixels[chosen], height, width)


def crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred part of the right shape, (F, H', W', 3) -> (F, height, width, 3) uint8, bicubic."""
    tall, wide = frames.shape[1:3]
    if (tall, wide) == (height, width):
        return frames
    scale = min(tall / height, wide / width)
    top, left = (tall - scale * height) / 2, (wide - scale * width) / 2
    box = (left, top, wide - left, tall - top)
    bicubic = PIL.Image.Resampling.BICUBIC
    return np.stack([np.asarray(PIL.Image.fromarray(f).resize((width, height), bicubic, box)) for f in frames])


def _jsonl(path: Path) -> list[Source]:
    sources = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        for name in ("video", "prompt"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                raise ValueError(f"{path}, line {number} has no {name}; each line has a video and a prompt")
        sources.append(Source(path.parent / row["video"], row["prompt"].strip()))
    return sources


def _lists(folder: Path) -> list[Source]:
    found = {}
    for name in ("prompts.txt", "videos.txt"):
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; it needs prompts.txt and videos.txt (or give a .jsonl file)"
            )
        found[name] = [line.strip() for line in file.read_text().rstrip("\n").splitlines()]
    prompts, videos = found["prompts.txt"], found["videos.txt"]
    if len(prompts) != len(videos):
        raise ValueError(f"{folder} has {len(prompts)} prompts but {len(videos)} videos; their lines belong together")
    for number, pair in enumerate(zip(prompts, videos, strict=True), 1):
        if not all(pair):
            raise ValueError(f"{folder}, line {number} of {'prompts' if not pair[0] else 'videos'}.txt is empty")
    return [Source(folder / video, prompt) for prompt, video in zip(prompts, videos, strict=True)]
