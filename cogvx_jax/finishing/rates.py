"""Which moments a video of another rate shows: parts of the way from one frame to the next, as exact fractions.

Frame j of the new video is shown j / rate seconds after the first. The last frame comes once, at the first moment at
or after its own: n frames become ceil((n - 1) rate / fps) + 1, which is k (n - 1) + 1 at k times the rate. The new
video is less than a frame of the old one shorter or longer. Where the duration is to be held, the last frame is
repeated.

Networks find the middle of two pictures, so moments are rounded to parts of a power of two: of the lowest that reaches
the rate where that is a power of two times the old one, else of twice that. So 60 of 8 frames a second are taken from
128, which lie at most 1/256 s from where they should.
"""

import math
from fractions import Fraction

MAX_LEVELS = 6  # of middles of middles, 64 frames for one


def levels(fps: Fraction, rate: Fraction) -> int:
    """How many times the way from frame to frame is halved. Raises: ValueError for a rate that cannot be had."""
    if rate < fps:
        raise ValueError(f"fps must be at least the video's own {float(fps):g}, got {float(rate):g}")
    factor = rate / fps
    needed = math.ceil(math.log2(factor))
    needed += factor != 2**needed
    if needed > MAX_LEVELS:
        most = float(fps * 2 ** (MAX_LEVELS - 1))
        raise ValueError(f"fps must be at most {most:g} for a video of {float(fps):g}, got {float(rate):g}")
    return needed


def parts(frame: int, fps: Fraction, rate: Fraction) -> tuple[Fraction, ...]:
    """The moments from a frame, counted from 0, to the one after it, which has its own: parts of the way, 0 to 1."""
    step, unit = fps / rate, 2 ** levels(fps, rate)
    first, after = math.ceil(frame / step), math.ceil((frame + 1) / step)
    places = (j * step - frame for j in range(first, after))
    return tuple(Fraction(math.floor(place * unit + Fraction(1, 2)), unit) for place in places)


def last_count(frames: int, fps: Fraction, rate: Fraction, hold: bool) -> int:
    """How often the last of so many frames is shown: once, or until the duration is that of the old video."""
    before = math.ceil((frames - 1) * rate / fps)
    return max(math.floor(frames * rate / fps + Fraction(1, 2)) - before, 1) if hold else 1


def frame_count(frames: int, fps: Fraction, rate: Fraction, hold: bool = False) -> int:
    """How many frames the new video has."""
    return math.ceil((frames - 1) * rate / fps) + last_count(frames, fps, rate, hold)
