"""What captioners are asked, in our own words."""

from collections.abc import Sequence
from typing import Any

FRAME = "Describe this picture in one or two sentences: what is seen, where, and how it looks. Answer with them alone."
SHORT = (
    "These pictures are frames of one video, in their order. Say in one sentence what happens in it, and what the "
    "camera does. Answer with the sentence alone."
)
DIRECT = """\
These pictures are frames of one video, in their order. Describe the video in one paragraph of English, in the present
tense: what is seen and how it looks, where, the light; what moves and how, from beginning to end; what the camera does.
Say only what is seen. Do not write "the video shows", no lists, no headings. Answer with the paragraph alone."""
MERGE = """\
Here is a sentence about a video of {seconds:.0f} seconds, and descriptions of some of its frames, each with its time.
Write one paragraph of English about the video, in the present tense, of at most {words} words: what is seen and how it
looks, where, the light; what moves and how, from beginning to end; what the camera does{camera}.
Take nothing from anywhere else. Where descriptions contradict each other, follow most of them. Do not write "the video
shows" and do not name frames or times; no lists, no headings. Answer with the paragraph alone.

The video: {short}
{frames}"""
SHORTER = "That is too long. Say the same in at most {words} words."
LABELS = """\
These pictures are frames of one video, in their order. Say how likely each of these is, from 0 to 1:
"editing": it was cut again or has effects, frames or overlays; "static": a slide show, or nothing moves;
"low_quality": blurred, shaking or badly compressed; "lecture": mostly a person who talks; "text": much of the picture
is text; "screenshot": a recording of a screen. Answer with one JSON object of these six names and numbers alone."""


def with_pictures(text: str, urls: Sequence[str]) -> list[dict[str, Any]]:
    """A question about pictures, data: URLs."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *pictures]}]


def merge(short: str, frames: Sequence[tuple[float, str]], seconds: float, words: int, camera: str | None) -> str:
    """The question that merges a sentence about a video and timed descriptions of frames."""
    lines = "\n".join(f"At {time:.1f} s: {text}" for time, text in frames)
    moves = f" (it seems to be: {camera})" if camera else ""
    return MERGE.format(seconds=seconds, words=words, camera=moves, short=short, frames=lines)
