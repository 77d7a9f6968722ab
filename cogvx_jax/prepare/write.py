"""Step `write`: clips as .mp4 files of their own, without borders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cogvx_jax.prepare.films import ask
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

FOLDER = "clips"
LEAST = 16  # pixels of a side


def write(film: Row, clips: Sequence[Row], folder: Path, settings: Settings) -> Iterator[Row]:
    """Writes clips of a film to `folder`/clips/CLIP_ID.mp4.

    Returns: of each clip in turn `video`, the path inside `folder`, `video_height`, `video_width` and `video_frames`;
      or `error`.
    Raises: as `films.ask`.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    boxes = [box(film, clip, settings.write.crop) for clip in clips]
    names = [f"{FOLDER}/{clip['clip_id']}.mp4" for clip in clips]
    asked = [
        {"out": str((folder / name).absolute()), "first": c["start_frame"], "stop": c["end_frame"], "crop": crop}
        for name, c, crop in zip(names, clips, boxes, strict=True)
    ]
    limit = 4 * settings.limit_of(film["duration"])
    with ask("write", Path(film["source"]), limit, clips=asked, crf=settings.write.crf) as answers:
        for name, (_, _, height, width) in zip(names, boxes, strict=True):
            told = next(header for header, _ in answers if header.keys() & {"written", "failed"})
            if "failed" in told:
                yield {"error": told["failed"]}
            else:
                yield {
                    "video": name,
                    "video_height": height,
                    "video_width": width,
                    "video_frames": told["written"],
                }


def box(film: Row, clip: Row, crop: bool) -> list[int]:
    """Top, left, height and width in pixels of what is written of a frame; both are even, as an .mp4 needs it."""
    top, left, bottom, right = (clip.get("crop") if crop else None) or (0.0, 0.0, 1.0, 1.0)
    sides = []
    for first, stop, side in ((top, bottom, film["height"]), (left, right, film["width"])):
        begin, end = round(first * side), round(stop * side)
        if end - begin < LEAST:
            begin, end = 0, side
        sides.append((begin, (end - begin) // 2 * 2))
    (top_row, height), (left_column, width) = sides
    return [top_row, left_column, height, width]
